"""The check `drift` of features_1m and of each feature view, and the sensor that reports it."""

import math
from collections.abc import Iterator, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

import dagster as dg

from feature_platform.orchestration.cursors import ReportedDrift
from feature_platform.orchestration.metadata import picture, table
from feature_platform.orchestration.resources import DatabaseResource
from feature_platform.orchestration.sensors import EVERY_MINUTE
from feature_platform.settings import get_settings
from feature_platform.views import catalog
from feature_platform.views.catalog import Version

if TYPE_CHECKING:
    from feature_platform.drift import Report, Table, Watch

CHECK = "drift"
# The most seconds that a tick spends on the references of a table. The sensors that repair wait
# for it.
_SECONDS = 2.0
_ROWS_SHOWN = 10


def drift_checks(views: Sequence[Version]) -> dg.AssetChecksDefinition:
    """Return the check of features_1m and of these views, which have assets."""
    names = ["features_1m", *(view.name for view in views)]

    @dg.multi_asset_check(
        name="drift_checks",
        specs=[
            dg.AssetCheckSpec(
                CHECK,
                asset=name,
                description=(
                    "The values of the last hour and of the last day are distributed as those of"
                    " the days before."
                ),
                metadata={"severity": "WARN"},
            )
            for name in names
        ],
        can_subset=True,
    )
    def checks_of_drift(
        context: dg.AssetCheckExecutionContext, database: DatabaseResource
    ) -> Iterator[dg.AssetCheckResult]:
        """Compute the references of the selected tables, and judge all symbols."""
        from feature_platform.drift import Watch

        selected = {key.asset_key.to_user_string() for key in context.selected_asset_check_keys}
        watch = Watch()
        with database.connection() as connection:
            for one in _tables(catalog.all_versions(connection), selected):
                report = watch.look(connection, one, get_settings())
                yield dg.AssetCheckResult(
                    asset_key=one.name,
                    check_name=CHECK,
                    passed=not report.alarms,
                    severity=dg.AssetCheckSeverity.WARN,
                    description=report.summary,
                    metadata=_shown(report, drawn=True),
                )

    return checks_of_drift


def drift_sensor(views: Sequence[Version]) -> dg.SensorDefinition:
    """Return the sensor that reports the check of features_1m and of these views."""
    names = {"features_1m", *(view.name for view in views)}

    @dg.sensor(
        name="watch_drift",
        description=(
            "Every five minutes, compares the last hour and the last day of each column with the"
            " days before, and reports the check `drift`. The first report of a day and each"
            " report of other columns has a picture."
        ),
        minimum_interval_seconds=EVERY_MINUTE,
        default_status=dg.DefaultSensorStatus.RUNNING,
    )
    def watch_drift(
        context: dg.SensorEvaluationContext, database: DatabaseResource
    ) -> dg.SensorResult | dg.SkipReason:
        """Judge all tables every five minutes."""
        reported = ReportedDrift.parse(context.cursor)
        if not reported.is_due:
            return dg.SkipReason("the last look is less than five minutes ago")
        events: list[dg.AssetCheckEvaluation] = []
        summaries = []
        with database.connection() as connection:
            for one in _tables(catalog.all_versions(connection), names):
                report = _watch().look(connection, one, get_settings())
                state = _state(report)
                drawn = reported.states.get(one.name) != state
                reported.states[one.name] = state
                summaries.append(f"{one.name}: {report.summary}")
                events.append(_evaluation(report, drawn=drawn))
        reported.note_look()
        return dg.SensorResult(
            asset_events=events, cursor=reported.dump(), skip_reason="; ".join(summaries)
        )

    return watch_drift


@cache
def _watch() -> "Watch":
    """Return the references of this process."""
    from feature_platform.drift import Watch  # NumPy, which a load of the definitions does not need

    return Watch(_SECONDS)


def _tables(versions: Sequence[Version], names: set[str]) -> "list[Table]":
    """Return the tables of these names, with the columns that they have now."""
    from feature_platform.drift import FEATURES, table_of

    views = [table_of(one) for one in versions if one.served and one.name in names]
    return [FEATURES, *views] if FEATURES.name in names else views


def _state(report: "Report") -> str:
    """Return the UTC day and the columns that drift."""
    columns = sorted(f"{one.symbol} {one.column}" for one in report.alarms)
    return f"{get_settings().clock.now():%F}: {', '.join(columns)[:1000]}"


def _evaluation(report: "Report", *, drawn: bool) -> dg.AssetCheckEvaluation:
    """Return a report as an event without a run, and so without a partition."""
    return dg.AssetCheckEvaluation(
        asset_key=dg.AssetKey(report.table.name),
        check_name=CHECK,
        passed=not report.alarms,
        severity=dg.AssetCheckSeverity.WARN,
        description=report.summary,
        metadata=_shown(report, drawn=drawn),
    )


def _shown(report: "Report", *, drawn: bool) -> dict[str, Any]:
    """Return the columns that are closest to an alarm, as a table and as a picture."""
    shown: dict[str, Any] = {
        "columns judged": len(report.found),
        "columns judged by the hour": sum(
            not math.isnan(one.shift + one.shift_limit) for one in report.found
        ),
        "columns that drift": len(report.alarms),
        "symbols that wait for their reference": report.waiting,
    }
    if not report.found:
        return shown
    shown["columns"] = table(
        [
            {
                "symbol": one.symbol,
                "column": one.column,
                "shift": _number(one.shift),
                "shift_limit": _number(one.shift_limit) or "not judged",
                "judged_by": one.statistic,
                "psi": round(one.psi, 3),
                "psi_limit": round(one.psi_limit, 3),
                "ks": round(one.ks, 3),
                "ks_probability": f"{one.ks_chance:.1e}",
                "alarms": "; ".join(one.alarms),
            }
            for one in report.found[:_ROWS_SHOWN]
        ]
    )
    if drawn:
        from feature_platform.plot import drift_png  # pandas, only for reports that draw

        shown["plot"] = picture(drift_png(report.found), "distributions of the last day")
    return shown


def _number(value: float) -> str:
    return "" if math.isnan(value) else f"{value:.2f}"
