"""Guards against SQL of features_1m that is not what its declaration is compiled to."""

from __future__ import annotations

from pathlib import Path

from feature_platform.tables import FEATURES
from feature_platform.views.features_1m import FEATURES_1M, compiled_file, main


def test_the_file_of_the_schema_is_the_compiled_declaration(tmp_path: Path) -> None:
    written = tmp_path / "features_1m.sql"
    main(written)
    expected = written.read_text(encoding="utf-8")
    assert compiled_file().read_text(encoding="utf-8") == expected, "run make schema-hash"


def test_the_declaration_has_the_columns_of_the_table() -> None:
    assert tuple(FEATURES_1M.columns) == FEATURES
