"""Guards against dashboards outside of Grafana's schema or with another data source."""

from __future__ import annotations

import json
from itertools import combinations
from typing import Any

import pytest
import yaml
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.cog.plugins import register_default_plugins
from grafana_foundation_sdk.models.dashboard import Dashboard

from feature_platform_tests.grafana import FOLDER, dashboards

DASHBOARDS = dashboards()

each_dashboard = pytest.mark.parametrize("name", DASHBOARDS)


def provisioned(kind: str) -> dict[str, Any]:
    (file,) = (FOLDER / "provisioning" / kind).iterdir()
    document: dict[str, Any] = yaml.safe_load(file.read_text(encoding="utf-8"))
    return document


def unknown_to(schema: Any, written: Any, path: str = "") -> list[str]:
    """Return the paths of the fields that the schema does not have."""
    if isinstance(written, dict) and isinstance(schema, dict):
        return [
            lost
            for key, value in written.items()
            for lost in (
                unknown_to(schema[key], value, f"{path}.{key}")
                if key in schema
                else [f"{path}.{key}"]
            )
        ]
    if isinstance(written, list) and isinstance(schema, list) and len(schema) == len(written):
        return [
            lost
            for n, (kept, value) in enumerate(zip(schema, written, strict=True))
            for lost in unknown_to(kept, value, f"{path}[{n}]")
        ]
    return [] if written == schema else [f"{path}: {schema!r}"]


@each_dashboard
def test_every_field_is_in_grafanas_types(name: str) -> None:
    register_default_plugins()
    read = Dashboard.from_json(DASHBOARDS[name])
    kept = json.loads(json.dumps(read, cls=JSONEncoder))
    # Grafana's type of an annotation's query describes its own store, not a data source.
    unknown = [path for path in unknown_to(kept, DASHBOARDS[name]) if "].target." not in path]
    assert unknown == []


@each_dashboard
def test_panels_have_unique_ids_and_do_not_overlap(name: str) -> None:
    panels = DASHBOARDS[name]["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    places = [panel["gridPos"] for panel in panels]
    assert all(place["x"] + place["w"] <= 24 for place in places)
    for a, b in combinations(places, 2):
        apart = (
            a["x"] + a["w"] <= b["x"]
            or b["x"] + b["w"] <= a["x"]
            or a["y"] + a["h"] <= b["y"]
            or b["y"] + b["h"] <= a["y"]
        )
        assert apart, f"{a} and {b}"


@each_dashboard
def test_all_queries_use_the_provisioned_data_source(name: str) -> None:
    (source,) = provisioned("datasources")["datasources"]
    known = {"type": source["type"], "uid": source["uid"]}
    board = DASHBOARDS[name]
    used = [panel["datasource"] for panel in board["panels"]]
    used += [target["datasource"] for panel in board["panels"] for target in panel["targets"]]
    used += [variable["datasource"] for variable in board["templating"]["list"]]
    used += [note["datasource"] for note in board["annotations"]["list"] if "target" in note]
    assert all(one == known for one in used)


@each_dashboard
def test_no_line_is_drawn_across_missing_points(name: str) -> None:
    for panel in DASHBOARDS[name]["panels"]:
        if panel["type"] in ("timeseries", "candlestick"):
            assert panel["fieldConfig"]["defaults"]["custom"]["spanNulls"] is False
            (target,) = panel["targets"]
            assert "$__timeGroupAlias(" in target["rawSql"], "missing minutes need a NULL"
            assert panel["interval"] == "1m", "shorter intervals have no rows"


@each_dashboard
def test_every_panel_has_a_description(name: str) -> None:
    board = DASHBOARDS[name]
    assert board["uid"] == f"feature-platform-{name}"
    assert "id" not in board, "an id belongs to one server"
    for panel in board["panels"]:
        assert panel["title"]
        assert panel["description"].endswith(".")


def test_the_data_source_has_no_password_of_its_own() -> None:
    (source,) = provisioned("datasources")["datasources"]
    assert source["secureJsonData"]["password"].startswith("$")
    assert source["editable"] is False
