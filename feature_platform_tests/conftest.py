from __future__ import annotations

import os
import signal

from hypothesis import HealthCheck, settings

# A module comes before those that import it: pytest rewrites the assertions of modules it loads.
pytest_plugins = (
    "feature_platform_tests.fix_processes",
    "feature_platform_tests.fix_environment",
    "feature_platform_tests.fix_dagster",
    "feature_platform_tests.fix_database",
    "feature_platform_tests.fix_embedded",
    "feature_platform_tests.fix_exchange",
    "feature_platform_tests.fix_engine",
    "feature_platform_tests.fix_plans",
    "feature_platform_tests.fix_service",
    "feature_platform_tests.fix_recorder",
)

# No deadline: a busy machine is slow. CI runs the same examples each time, so that no change passes
# or fails by chance; elsewhere each run draws new ones.
settings.register_profile(
    "tests",
    deadline=None,
    derandomize=bool(os.environ.get("CI")),
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("tests")

# A shell that runs the tests in the background has them ignore these signals; the processes that
# the tests start must not inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)
