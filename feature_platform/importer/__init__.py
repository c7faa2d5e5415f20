"""Import files of bars: open, parse, recognise the layout, judge, stage, store."""

from __future__ import annotations

from feature_platform.importer.importer import (
    FileReport,
    ImportReport,
    Progress,
    import_bars,
)

__all__ = ["FileReport", "ImportReport", "Progress", "import_bars"]
