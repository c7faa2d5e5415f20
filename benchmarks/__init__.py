"""Benchmarks of the platform's speed targets, each measured beside a reference."""
