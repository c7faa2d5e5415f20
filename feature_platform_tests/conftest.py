from __future__ import annotations

import os
import signal

import pytest
from hypothesis import HealthCheck, settings

# pytest rewrites the assertions of each module that it loads, so a module precedes its importers.
pytest_plugins = (
    "feature_platform_tests.fix_processes",
    "feature_platform_tests.fix_environment",
    "feature_platform_tests.fix_database",
    "feature_platform_tests.fix_dagster",
    "feature_platform_tests.fix_embedded",
    "feature_platform_tests.fix_exchange",
    "feature_platform_tests.fix_engine",
    "feature_platform_tests.fix_knowledge",
    "feature_platform_tests.fix_lake",
    "feature_platform_tests.fix_plans",
    "feature_platform_tests.fix_ray",
    "feature_platform_tests.fix_service",
    "feature_platform_tests.fix_recorder",
)

# No deadline, because a busy machine is slow. CI runs the same examples each time, so that no
# change passes or fails by chance; other runs draw new examples. FEATURE_PLATFORM_TEST_SEARCH=N
# draws N of them for each test.
settings.register_profile(
    "tests",
    max_examples=int(os.environ.get("FEATURE_PLATFORM_TEST_SEARCH", "100")),
    deadline=None,
    derandomize=bool(os.environ.get("CI")),
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("tests")

# Background jobs of a shell ignore these signals; the processes of the tests must not inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)

# The files that take longest: a worker that begins one of them at the end would leave the others
# idle. Files that wait most of their time, such as those of full disks, come between files that
# compute, because waiting workers leave the processors idle, too. Each worker gets two files at
# first: with three workers, the first and the fourth of this list, and so on.
_LONGEST = (
    "test_full_disk.py",
    "test_notebooks.py",
    "test_demo.py",
    "test_dev_full_disk.py",
    "test_import_memory.py",
    "test_lake_build.py",
    "test_training_before_build.py",
    "test_lake_faults.py",
    "test_live_chaos.py",
    "test_import_rules.py",
    "test_lake_verify.py",
    "test_dev.py",
    "test_features_history.py",
    "test_benchmarks_run.py",
    "test_recorder.py",
    "test_embedded_sharing.py",
    "test_service_openapi.py",
    "test_worker.py",
    "test_embedded_start.py",
    "test_compose_services.py",
    "test_reader_isolation.py",
    "test_refresh_command.py",
    "test_view_plans.py",
    "test_dagster_sensors.py",
    "test_dagster_assets.py",
)


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the files that take longest."""
    place = {name: number for number, name in enumerate(_LONGEST)}
    items.sort(key=lambda item: place.get(item.path.name, len(place)))
