"""Define the features in Feast and write the rows; a script of Feast's own environment."""

from __future__ import annotations

import sys
from datetime import timedelta
from pathlib import Path

import pandas as pd
from feast import Entity, FeatureStore, FeatureView, Field, FileSource, ValueType
from feast.types import Float64, Int32

repository = Path(sys.argv[1])
rows = pd.read_parquet(repository / "rows.parquet")
symbol = Entity(name="symbol", join_keys=["symbol"], value_type=ValueType.STRING)
view = FeatureView(
    name="features_1m",
    entities=[symbol],
    ttl=timedelta(0),  # never expire
    schema=[
        Field(name=name, dtype=Int32 if name == "n_1d" else Float64)
        for name in rows.columns
        if name not in ("symbol", "bucket")
    ],
    source=FileSource(path=str(repository / "rows.parquet"), timestamp_field="bucket"),
)
store = FeatureStore(repo_path=str(repository))
store.apply([symbol, view])
store.write_to_online_store("features_1m", rows)
