"""Guards against files of the schema that change without a new hash, and against long lines."""

from __future__ import annotations

from pathlib import Path

import pytest

from feature_platform import schema
from feature_platform.queries import query_files, sql_dir

FILES = sorted(sql_dir().rglob("*.sql"))
LONGEST_LINE = 120


def test_the_newest_hash_is_that_of_the_files() -> None:
    assert schema.hash_files() == schema.SCHEMA_HASH, (
        "a file of the schema has changed: run `make schema-hash`"
    )


def test_the_hash_covers_every_file_but_the_queries() -> None:
    listed = {sql_dir() / "feature_ca.sql", *schema.schema_files()}
    assert listed == set(FILES) - set(query_files())
    assert len(schema.schema_files()) == len(set(schema.schema_files()))


def test_every_version_has_its_upgrade_step() -> None:
    steps = {file.stem for file in schema.schema_files() if file.parent.name == "upgrade"}
    needed = {f"{number:03d}" for number in range(2, schema.SCHEMA_VERSION + 1)}
    assert needed <= steps
    assert {step.split("_")[0] for step in steps} == needed


def test_a_changed_file_changes_the_hash(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for file in FILES:
        copy = tmp_path / file.relative_to(sql_dir())
        copy.parent.mkdir(exist_ok=True)
        copy.write_bytes(file.read_bytes())
    monkeypatch.setattr(schema, "sql_dir", lambda: tmp_path)
    before = schema.hash_files()
    assert before == schema.SCHEMA_HASH
    changed = tmp_path / "015_buckets.sql"
    changed.write_text(changed.read_text(encoding="utf-8") + "-- one more line\n", encoding="utf-8")
    after = schema.hash_files()
    assert after != before
    assert schema.update_hash() == schema.update_hash() == after
    number, hashes = schema.read_version(schema.version_file().read_text(encoding="utf-8"))
    assert (number, hashes[-1]) == (schema.SCHEMA_VERSION, after)
    assert before in hashes
    assert schema.hash_files() == after


@pytest.mark.parametrize(
    "text",
    [
        "",
        "SET LOCAL feature_platform.schema_number = '3';\n",
        f"{'0' * 64}\n",
        f"{'SET LOCAL feature_platform.schema_number = 3;'}\n{'0' * 64}\n",
    ],
)
def test_a_version_file_without_a_number_or_a_hash_is_rejected(text: str) -> None:
    with pytest.raises(ValueError, match="needs one schema_number and a hash"):
        schema.read_version(text)


@pytest.mark.parametrize(
    ("version", "hash_", "fault"),
    [
        (schema.SCHEMA_VERSION, schema.SCHEMA_HASH, None),
        (schema.SCHEMA_VERSION, None, "has older files of schema version"),
        (schema.SCHEMA_VERSION, "f" * 64, "that this code does not know"),
        (schema.SCHEMA_VERSION - 1, "f" * 64, "this code needs"),
        (schema.SCHEMA_VERSION + 1, schema.SCHEMA_HASH, "this code knows only up to"),
    ],
)
def test_a_difference_of_versions_is_named(
    version: int, hash_: str | None, fault: str | None
) -> None:
    found = schema.version_fault(version, hash_)
    assert found is None if fault is None else fault in (found or "")


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.relative_to(sql_dir()).as_posix())
def test_no_line_of_sql_is_too_long(file: Path) -> None:
    lines = enumerate(file.read_text(encoding="utf-8").splitlines(), start=1)
    assert [(number, line) for number, line in lines if len(line) > LONGEST_LINE] == []


def test_a_known_hash_counts_as_older(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(schema, "_KNOWN_HASHES", ("a" * 64, schema.SCHEMA_HASH))
    assert not schema.is_newer(schema.SCHEMA_VERSION, "a" * 64)
    assert schema.is_newer(schema.SCHEMA_VERSION, "b" * 64)
