from __future__ import annotations

import os
import signal

from hypothesis import HealthCheck, settings

pytest_plugins = (
    "feature_platform_tests.fix_environment",
    "feature_platform_tests.fix_dagster",
    "feature_platform_tests.fix_database",
    "feature_platform_tests.fix_embedded",
    "feature_platform_tests.fix_exchange",
    "feature_platform_tests.fix_engine",
    "feature_platform_tests.fix_plans",
    "feature_platform_tests.fix_processes",
    "feature_platform_tests.fix_service",
    "feature_platform_tests.fix_recorder",
)

# Time is no measure on a machine that does other things, too. In CI a change is not judged by luck:
# the same examples each time; whoever works on it tries others with each run.
settings.register_profile(
    "tests",
    deadline=None,
    derandomize=bool(os.environ.get("CI")),
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("tests")

# Whoever runs the tests in the background may have had Ctrl-C and the end of the terminal ignored;
# what they start must not.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)
