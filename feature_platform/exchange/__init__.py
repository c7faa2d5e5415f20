"""The client of exchanges: REST requests, retries and streams, by ccxt."""

from __future__ import annotations
