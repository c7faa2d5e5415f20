"""The Dagster side of the platform: what it shows, and when it asks the rest to act."""

from __future__ import annotations

import warnings

import dagster as dg

# Single-run backfills and references to code are in beta since 2023: Dagster's version is pinned,
# and a warning at each start of each process would tell its user nothing to be done.
warnings.filterwarnings("ignore", category=dg.BetaWarning)
