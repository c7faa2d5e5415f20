"""The platform's Dagster assets, checks, sensors, schedules and jobs."""

from __future__ import annotations

import warnings

import dagster as dg

# Dagster warns of single-run backfills and of references to code, both in beta since 2023. Its
# version is pinned, and a user cannot act on a warning at the start of each process.
warnings.filterwarnings("ignore", category=dg.BetaWarning)
