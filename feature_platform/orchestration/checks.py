"""The asset checks: run by a click in the UI, or reported by the sensor `run_checks`."""

from collections.abc import Iterator

import dagster as dg

from feature_platform.orchestration.metadata import of_check
from feature_platform.orchestration.resources import DatabaseResource
from feature_platform.validation import BY_NAME, CHECKS, CheckResult, evaluate

SEVERITIES = {"ERROR": dg.AssetCheckSeverity.ERROR, "WARN": dg.AssetCheckSeverity.WARN}


@dg.multi_asset_check(
    name="validation_checks",
    specs=[
        dg.AssetCheckSpec(
            check.name,
            asset=check.table,
            description=check.description,
            metadata={"severity": check.severity},
        )
        for check in CHECKS
    ],
    can_subset=True,
)
def validation_checks(
    context: dg.AssetCheckExecutionContext, database: DatabaseResource
) -> Iterator[dg.AssetCheckResult]:
    """Evaluate the selected checks."""
    names = {key.name for key in context.selected_asset_check_keys}
    with database.connection() as connection:
        for result in evaluate(connection, names):
            yield dg.AssetCheckResult(
                passed=result.passed,
                asset_key=result.check.table,
                check_name=result.check.name,
                severity=SEVERITIES[result.check.severity],
                description=result.summary,
                metadata=of_check(result),
            )


def evaluation(result: CheckResult) -> dg.AssetCheckEvaluation:
    """Return a result as an event that is reported without a run.

    It has no partition: Dagster stores at most one such event for each partition.
    """
    check = BY_NAME[result.check.name]  # Dagster would store an unknown name and never show it
    return dg.AssetCheckEvaluation(
        asset_key=dg.AssetKey(check.table),
        check_name=check.name,
        passed=result.passed,
        severity=SEVERITIES[check.severity],
        description=result.summary,
        metadata=of_check(result),
    )


checks = [validation_checks]
