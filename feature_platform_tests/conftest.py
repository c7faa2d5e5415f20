from __future__ import annotations

import os
import signal

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
    "feature_platform_tests.fix_plans",
    "feature_platform_tests.fix_service",
    "feature_platform_tests.fix_recorder",
)

# No deadline, because a busy machine is slow. CI runs the same examples each time, so that no
# change passes or fails by chance; other runs draw new examples.
settings.register_profile(
    "tests",
    deadline=None,
    derandomize=bool(os.environ.get("CI")),
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("tests")

# Background jobs of a shell ignore these signals; the processes of the tests must not inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)
