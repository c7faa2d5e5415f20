from __future__ import annotations

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
