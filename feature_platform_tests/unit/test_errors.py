"""Guards against passwords and line breaks in the text of errors."""

from __future__ import annotations

from pathlib import Path

import pytest

import feature_platform
from feature_platform.errors import one_line


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("cannot connect:\n  timeout\n", "cannot connect: timeout"),
        ("postgresql://me:s3cr3t@db/bars\nfailed", "postgresql://me:***@db/bars failed"),
        ("host=db password=s3cr3t failed", "host=db password=*** failed"),
    ],
)
def test_the_text_is_one_line_without_passwords(text: str, shown: str) -> None:
    assert one_line(text) == one_line(ValueError(text)) == shown


def test_no_module_joins_the_words_of_an_error_itself() -> None:
    package = Path(feature_platform.__file__).parent
    copies = [
        path.name
        for path in package.rglob("*.py")
        if "join(redact(" in (text := path.read_text(encoding="utf-8"))
        or "join(str(error).split" in text
    ]
    assert copies == ["errors.py"]
