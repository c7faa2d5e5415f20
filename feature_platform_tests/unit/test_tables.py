"""Guards against lists of columns that differ from the schema."""

from __future__ import annotations

import re

from feature_platform.queries import sql_dir
from feature_platform.service.rows import COLUMNS
from feature_platform.tables import BAR_COLUMNS, FEATURE_COLUMNS, FEATURES


def columns_of(file: str, table: str) -> list[str]:
    """Return the columns that a CREATE TABLE of the schema lists."""
    text = (sql_dir() / file).read_text(encoding="utf-8")
    body = text.split(f"CREATE TABLE IF NOT EXISTS public.{table} (")[1].split("CONSTRAINT")[0]
    return re.findall(r"^    (\w+) +\S", body, re.MULTILINE)


def test_the_lists_of_columns_equal_the_schema() -> None:
    assert columns_of("020_bars.sql", "ohlcv_1m") == list(BAR_COLUMNS)
    assert columns_of("030_features.sql", "features_1m") == list(FEATURE_COLUMNS)


def test_the_service_has_every_feature() -> None:
    assert ("symbol", "bucket", *FEATURES, "refresh_no") == COLUMNS
