"""Guards against rows of a file that are read wrong, lost, or rejected without a reason."""

from __future__ import annotations

import csv
import gzip
import io
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta, timezone
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from feature_platform.errors import UserError
from feature_platform.importer.csv import LONGEST_LINE
from feature_platform.importer.reader import BadRow, ColumnMap, TimeRule, read_file

T0 = 1_769_904_000_000  # 2026-02-01 00:00 UTC, in milliseconds
HEADER = "open_time,open,high,low,close,volume"
KLINES_HEADER = (
    "open_time,open,high,low,close,volume,close_time,quote_volume,count,"
    "taker_buy_volume,taker_buy_quote_volume,ignore"
)
MINUTE = 60_000

Bar = tuple[str, int, float, float, float, float, float]


@dataclass(frozen=True)
class Read:
    """The contents of a file: bars, the line of each, and the bad rows."""

    bars: list[Bar]
    lines: list[int]
    bad: list[BadRow]

    @property
    def reasons(self) -> dict[int, str]:
        return {row.line: row.reason for row in self.bad}


def read(path: Path, symbol: str | None = "A", **options: Any) -> Read:
    bars: list[Bar] = []
    lines: list[int] = []
    bad: list[BadRow] = []
    shares = [0.0]
    for batch in read_file(path, symbol=symbol, **options):
        names = [batch.symbols[code] for code in batch.symbol.tolist()]
        columns = (batch.ts, batch.open, batch.high, batch.low, batch.close, batch.vol)
        bars += zip(names, *(column.tolist() for column in columns), strict=True)
        lines += batch.line.tolist()
        bad += batch.bad
        assert batch.rows == len(names) + len(batch.bad)
        shares.append(batch.done)
    assert shares == sorted(shares)
    assert shares[-1] <= 1
    return Read(bars, lines, bad)


def bar(minute: int = 0, symbol: str = "A") -> Bar:
    return (symbol, (T0 + minute * MINUTE) * 1000, 10.0, 12.0, 9.0, 11.0, 5.5)


def row(minute: int = 0, values: str = "10,12,9,11,5.5") -> str:
    return f"{T0 + minute * MINUTE},{values}"


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    """Write the lines of a CSV file."""

    def write(*lines: str, name: str = "bars.csv", end: str = "\n") -> Path:
        path = tmp_path / name
        path.write_bytes("".join(line + end for line in lines).encode())
        return path

    return write


Write = Callable[..., Path]


# ---- forms of CSV ----


def test_six_columns_with_a_header_are_read(write: Write) -> None:
    result = read(write(HEADER, row(0), row(1)))
    assert result == Read([bar(0), bar(1)], [2, 3], [])


def test_six_columns_without_a_header_are_read(write: Write) -> None:
    assert read(write(row(0), row(1))) == Read([bar(0), bar(1)], [1, 2], [])


@pytest.mark.parametrize("header", [True, False])
def test_binance_klines_of_twelve_columns_are_read(write: Write, header: bool) -> None:
    tail = f",{T0 + 59_999},50.5,7,2.5,25.25,0"
    lines = [row(0) + tail, row(1) + tail]
    result = read(write(*([KLINES_HEADER] if header else []), *lines))
    assert result == Read([bar(0), bar(1)], [2, 3] if header else [1, 2], [])


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
@pytest.mark.parametrize("header", [True, False])
def test_delimiters_are_detected(write: Write, delimiter: str, header: bool) -> None:
    lines = [HEADER] * header + [row(0), row(1)]
    result = read(write(*(line.replace(",", delimiter) for line in lines)))
    assert result.bars == [bar(0), bar(1)]


@pytest.mark.parametrize(
    "header",
    [
        "ts,open,high,low,close,vol",
        "TIME,Open,High,Low,Close,Volume",
        " Timestamp , OPEN,high , low,close,VOL",
        "Open time,Open,High,Low,Close,Volume",
        "date,open,high,low,close,volume",
        "datetime,open,high,low,close,volume",
        '"ts","open","high","low","close","vol"',
        "\ufeffts,open,high,low,close,vol",
    ],
)
def test_usual_headers_are_recognised(write: Write, header: str) -> None:
    assert read(write(header, row())).bars == [bar()]


def test_columns_may_have_any_order_among_others(write: Write) -> None:
    path = write("vol,note,close,low,high,open,ts", f"5.5,Grüße,11,9,12,10,{T0}")
    assert read(path).bars == [bar()]


def test_a_column_of_symbols_is_read(write: Write) -> None:
    path = write(HEADER + ",symbol", row(0) + ",B/USDT", row(0) + ", A/USDT ", row(1) + ",B/USDT")
    result = read(path, symbol=None)
    assert result.bars == [bar(0, "B/USDT"), bar(0, "A/USDT"), bar(1, "B/USDT")]


def test_an_option_renames_the_one_symbol_of_a_column(write: Write) -> None:
    path = write(
        HEADER + ",symbol", row(0) + ",LINKUSDT", row(1) + ",LINKUSDT", row(2) + ",LTCUSDT"
    )
    result = read(path, symbol="LINK/USDT", batch_rows=1)
    assert result.bars == [bar(0, "LINK/USDT"), bar(1, "LINK/USDT")]
    assert result.reasons == {
        4: "symbol 'LTCUSDT' is not 'LINK/USDT': omit --symbol, or rename the file's one symbol "
        "with --column-symbol none"
    }


def test_options_name_columns(write: Write) -> None:
    path = write("when,who,o,h,l,c,v,time", f"{T0},X,10,12,9,11,5.5,noon")
    columns = ColumnMap(ts="when", open="o", high="h", low="l", close="c", vol="v", symbol="who")
    assert read(path, symbol=None, columns=columns).bars == [bar(0, "X")]


def test_an_option_selects_one_of_two_columns(write: Write) -> None:
    path = write("time,date,open,high,low,close,vol", f"{T0},x,10,12,9,11,5.5")
    assert read(path, columns=ColumnMap(ts="time")).bars == [bar()]


def test_one_column_may_be_named_for_several_fields(write: Write) -> None:
    path = write("ts,price,amount", f"{T0},10,5.5")
    columns = ColumnMap(open="price", high="price", low="price", close="price", vol="amount")
    assert read(path, columns=columns).bars == [("A", T0 * 1000, 10.0, 10.0, 10.0, 10.0, 5.5)]


def test_options_give_positions_of_columns_without_a_header(write: Write) -> None:
    path = write(f"X,{T0},10,12,9,11,5.5")
    columns = ColumnMap(ts="2", open="3", high="4", low="5", close="6", vol="7", symbol="1")
    assert read(path, symbol=None, columns=columns).bars == [bar(0, "X")]


def test_numbers_may_name_columns_in_a_header(write: Write) -> None:
    path = write("ts,1,2,3,4,5", row())
    columns = ColumnMap(open="1", high="2", low="3", close="4", vol="5")
    assert read(path, columns=columns).bars == [bar()]


@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("last", ["", "\n", "\r\n", "\n\n  \n\r\n"])
def test_line_ends_and_blank_lines_keep_line_numbers_right(
    tmp_path: Path, end: str, last: str
) -> None:
    path = tmp_path / "bars.csv"
    lines = ["", HEADER, "", row(0), " ", row(1), "", "", row(2, "0,0,0,0,0"), row(3)]
    path.write_bytes((end.join(lines) + last).encode())
    for batch_rows in (1, 2, 100_000):
        result = read(path, batch_rows=batch_rows)
        assert (result.bars, result.lines) == ([bar(0), bar(1), bar(3)], [4, 6, 10])
        assert list(result.reasons) == [9]


def test_blank_lines_count_in_line_numbers(write: Write) -> None:
    result = read(write(HEADER, "", row(0), "", "", row(1), row(2, "1,1,1,1,-1"), ""))
    assert (result.lines, list(result.reasons)) == ([3, 6], [7])


def test_quoted_fields_are_read(write: Write) -> None:
    quoted = ",".join(f'"{field}"' for field in row().split(","))
    path = write(HEADER + ",note", quoted + ',"a ""b"", c"', quoted + ",plain", row(2) + ',""')
    result = read(path)
    assert (result.bars, result.lines) == ([bar(0), bar(0), bar(2)], [2, 3, 4])


@pytest.mark.parametrize("batch_rows", [1, 2, 100_000])
def test_line_ends_inside_quotes_are_part_of_the_field(write: Write, batch_rows: int) -> None:
    path = write(
        HEADER + ",note", row(0) + ',"two\nlines"', row(1) + ',"\n\n"', row(2) + ",x", "bad"
    )
    result = read(path, batch_rows=batch_rows)
    assert (result.bars, result.lines) == ([bar(0), bar(1), bar(2)], [2, 4, 7])
    assert result.reasons == {8: "1 fields where 7 are expected"}


def test_an_unclosed_quote_rejects_one_line_only(write: Write) -> None:
    lines = [HEADER, row(0), '"' + row(1), *(row(minute) for minute in range(2, 3000))]
    for batch_rows in (10, 100_000):
        result = read(write(*lines), batch_rows=batch_rows)
        assert result.reasons == {3: "a quote is not closed"}
        assert result.bad[0].text == '"' + row(1)
        assert result.bars == [bar(0), *(bar(minute) for minute in range(2, 3000))]
        assert result.lines == [2, *range(4, 3002)]


def test_an_unclosed_quote_at_the_end_of_a_line_rejects_that_line(write: Write) -> None:
    result = read(write(HEADER, row(0), row(1) + '"', row(2)))
    assert result.reasons == {3: "a quote is not closed"}
    assert result.bars == [bar(0), bar(2)]


def test_quotes_in_the_middle_of_a_field_are_rejected(write: Write) -> None:
    # A lenient parser reads "1"0 as 10.
    result = read(write(HEADER, f'{T0},"1"0,12,9,11,5.5', row(1)))
    assert list(result.reasons) == [2]
    assert result.reasons[2].startswith("not CSV: ")
    assert result.bars == [bar(1)]


def test_a_large_file_is_read_in_many_pieces(write: Write) -> None:
    lines = [row(minute) for minute in range(5000)]
    lines[1234] = row(1234, "10,12,9,11,x")
    lines[4999] = row(4999, "10,12,9,11")
    path = write(HEADER, *lines)
    sizes = [len(batch.line) for batch in read_file(path, symbol="A", batch_rows=100)]
    assert len(sizes) > 10
    assert max(sizes) < 400
    result = read(path, batch_rows=100)
    assert result.reasons == {
        1236: "vol 'x' is not a number",
        5001: "5 fields where 6 are expected",
    }
    assert len(result.bars) == 4998


def test_a_file_of_a_header_only_has_no_bars(write: Write) -> None:
    assert read(write(HEADER)) == Read([], [], [])


def test_a_batch_gives_the_text_of_each_row(write: Write) -> None:
    path = write(HEADER, "", row(0), row(1, "0,0,0,0,0"), row(2), end="\r\n")
    (batch,) = read_file(path, symbol="A")
    assert [batch.text(at) for at in range(len(batch.line))] == [row(0), row(2)]
    assert batch.bad[0].text == row(1, "0,0,0,0,0")
    assert batch.bad[0].file == str(path)


# ---- numbers and times ----


@pytest.mark.parametrize(
    "text",
    [
        "1769904000",
        "1769904000000",
        "1769904000000000",
        "1769904000000000000",
        " 1769904000000 ",
        "2026-02-01",
        "2026-02-01 00:00",
        "2026-02-01 00:00:00",
        "2026-02-01T00:00:00",
        "2026-02-01T00:00:00.000",
        "2026-02-01T00:00:00.000000",
        "2026-02-01T00:00:00.000000000",
        "2026-02-01T00:00:00Z",
        "2026-02-01 00:00:00+00:00",
        "2026-02-01T01:00:00+01",
        "2026-01-31T18:30:00-0530",
        "2026-02-01T05:30:00.000+05:30",
        " 2026-02-01T00:00:00Z ",
    ],
)
def test_times_are_read_in_every_form(write: Write, text: str) -> None:
    assert read(write(HEADER, f"{text},10,12,9,11,5.5")).bars == [bar()]
    assert read(write(f"{text},10,12,9,11,5.5")).bars == [bar()]
    # In a block with an invalid value, values are parsed one by one.
    result = read(write(HEADER, f"{text},10,12,9,11,5.5", "x,10,12,9,11,5.5"))
    assert result.bars == [bar()]
    assert result.reasons == {3: "time 'x' is neither a whole number nor a known form of date"}


def test_one_file_may_have_times_of_every_form(write: Write) -> None:
    times = ["1769904000", "1769904000000", "2026-02-01", "1769904000000000", "2026-02-01T01:00+01"]
    path = write(HEADER, *(f"{text},10,12,9,11,5.5" for text in times))
    for batch_rows in (1, 100):
        assert read(path, batch_rows=batch_rows).bars == [bar()] * 5


def test_times_keep_their_microseconds(write: Write) -> None:
    times = ["2026-02-01T00:00:00.000001Z", "1769904000000001", "1769904000000001000"]
    path = write(HEADER, *(f"{text},10,12,9,11,5.5" for text in times))
    ticks = TimeRule(ticks=True)
    assert [ts for _, ts, *_ in read(path, rule=ticks).bars] == [T0 * 1000 + 1] * 3
    assert read(path).reasons == {
        2: f"time '2026-02-01T00:00:00.000001Z' {INSIDE}",
        3: f"time 1769904000000001 {INSIDE}",
        4: f"time 1769904000000001000 {INSIDE}",
    }


YEARS = "is not in the years 1980 to 2099"
INSIDE = "is not the start of a minute (--time close, --ticks)"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "ts is missing"),
        ("   ", "ts is missing"),
        ("noon", "time 'noon' is neither a whole number nor a known form of date"),
        ("1769904000.5", f"time '1769904000.5' {INSIDE}"),
        ("0", f"time 0 {YEARS}"),
        ("-1", f"time -1 {YEARS}"),
        ("315532799", f"time 315532799 {YEARS}"),
        ("4102444800", f"time 4102444800 {YEARS}"),
        ("17699040000", f"time 17699040000 {YEARS}"),
        ("9223372036854775807", f"time 9223372036854775807 {YEARS}"),
        (
            "99999999999999999999",
            f"time '99999999999999999999' {YEARS}",
        ),
        ("2026-02-30", "time '2026-02-30' is not a valid date"),
        ("2026-02-01T25:00:00", "time '2026-02-01T25:00:00' has no valid time of day"),
        ("9999-01-01", f"time '9999-01-01' {YEARS}"),
        ("0001-01-01", f"time '0001-01-01' {YEARS}"),
        ("1979-12-31T23:59:59", f"time '1979-12-31T23:59:59' {YEARS}"),
        ("2100-01-01", f"time '2100-01-01' {YEARS}"),
        ("1769904000000000001", "time 1769904000000000001 is finer than a microsecond"),
        (
            "2026-02-01T00:00:00.0000001",
            "time '2026-02-01T00:00:00.0000001' is finer than a microsecond",
        ),
    ],
)
def test_bad_times_are_rejected_with_a_reason(write: Write, text: str, reason: str) -> None:
    line = f"{text},10,12,9,11,5.5"
    result = read(write(HEADER, row(0), line, row(2)))
    assert result.bad[0].reason == reason
    assert (result.lines, [b.line for b in result.bad]) == ([2, 4], [3])
    assert result.bad[0].text == line
    # Alone in its block, the time is parsed as a column.
    assert read(write(HEADER, line), batch_rows=1).reasons == {2: reason}


def test_the_first_and_the_last_valid_time_are_accepted(write: Write) -> None:
    times = ["315532800", "4102444799", "4102444799999", "315532800000", "1980-01-01"]
    path = write(HEADER, *(f"{text},10,12,9,11,5.5" for text in times))
    assert read(path, rule=TimeRule(ticks=True)).bad == []


@pytest.mark.parametrize("text", ["12", "12.0", " 12 ", "1.2e1", "+12", "0012", "12.", "120E-1"])
def test_numbers_are_read_in_every_form(write: Write, text: str) -> None:
    assert read(write(HEADER, row(0, f"10,{text},9,11,5.5"))).bars == [bar()]


def test_numbers_are_read_exact_to_the_last_bit(write: Write) -> None:
    texts = ["0.1", "0.30000000000000004", "4.35", "123456789.123456789", "1e-100", "1e100"]
    path = write(HEADER, *(row(n, f"{t},{t},{t},{t},{t}") for n, t in enumerate(texts)))
    assert [values[2:] for values in read(path).bars] == [(float(t),) * 5 for t in texts]


BOUNDS = "is outside of 1e-100 to 1e+100"


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ("x,12,9,11,5.5", "open 'x' is not a number"),
        (",12,9,11,5.5", "open is missing"),
        ("10,,9,11,5.5", "high is missing"),
        ("10,12,null,11,5.5", "low 'null' is not a number"),
        ("10,12,9,0x10,5.5", "close '0x10' is not a number"),
        ('10,12,9,11,"5,5"', "vol '5,5' is not a number"),
        ("10,12,9,11,1_0", "vol '1_0' is not a number"),
        ("nan,12,9,11,5.5", "open is nan, not a finite number"),
        ("10,inf,9,11,5.5", "high is inf, not a finite number"),
        ("10,12,-Infinity,11,5.5", "low is -inf, not a finite number"),
        ("10,12,9,1e400,5.5", "close is inf, not a finite number"),
        ("10,12,9,11,NaN", "vol is nan, not a finite number"),
        ("10,12,9,11,inf", "vol is inf, not a finite number"),
        ("0,12,9,11,5.5", "open is 0.0, not above 0"),
        ("10,12,0,11,5.5", "low is 0.0, not above 0"),
        ("10,12,-9,11,5.5", "low is -9.0, not above 0"),
        ("10,12,9,11,-1", "vol is -1.0, below 0"),
        ("10,12,9e-101,11,5.5", f"low 9e-101 {BOUNDS}"),
        ("10,1.1e100,9,11,5.5", f"high 1.1e+100 {BOUNDS}"),
        ("10,12,9,11,1e-101", f"vol 1e-101 {BOUNDS}"),
        ("10,12,9,11,1.1e100", f"vol 1.1e+100 {BOUNDS}"),
        ("10,12,9,11,1e-400", f"vol 1e-400 {BOUNDS}"),
        ("10,12,9,11,0.0001E-400", f"vol 0.0001E-400 {BOUNDS}"),
        ("10,8,9,11,5.5", "high 8.0 is below low 9.0"),
        ("10,10.5,9,11,5.5", "high 10.5 is below close 11.0"),
        ("13,12,9,11,5.5", "high 12.0 is below open 13.0"),
        ("8,12,9,11,5.5", "low 9.0 is above open 8.0"),
        ("10,12,9,8.5,5.5", "low 9.0 is above close 8.5"),
        ("10,12,9,11", "5 fields where 6 are expected"),
        ("10,12,9,11,5.5,7", "7 fields where 6 are expected"),
    ],
)
def test_bad_values_are_rejected_with_a_reason(write: Write, values: str, reason: str) -> None:
    result = read(write(HEADER, row(0), row(1, values), row(2)))
    assert result == Read(
        [bar(0), bar(2)],
        [2, 4],
        [BadRow(str(result.bad[0].file), 3, reason, row(1, values))],
    )


def test_a_bar_may_have_a_volume_of_zero(write: Write) -> None:
    path = write(HEADER, row(0, "10,12,9,11,0"), row(1, "10,12,9,11,0e-5"))
    assert [values[-1] for values in read(path).bars] == [0.0, 0.0]


def test_the_first_fault_of_a_row_is_reported(write: Write) -> None:
    result = read(write(HEADER, "noon,x,12,9,11,5.5", row(1, "x,y,9,11,-1")))
    assert result.reasons == {
        2: "time 'noon' is neither a whole number nor a known form of date",
        3: "open 'x' is not a number",
    }


def test_missing_and_invalid_symbols_are_rejected(write: Write) -> None:
    path = write(HEADER + ",symbol", row(0) + ",", row(1) + ",A", row(2) + ",  ", row(3) + ",B\0")
    result = read(path, symbol=None)
    assert result.bars == [bar(1)]
    assert result.reasons == {
        2: "symbol is missing",
        4: "symbol is missing",
        5: r"symbol 'B\x00': it has a control character",
    }


def test_a_row_that_is_not_utf8_is_rejected(tmp_path: Path) -> None:
    path = tmp_path / "bars.csv"
    lines = [HEADER + ",note", row(0) + ",ok", row(1) + ",\xff", row(2) + ",ok"]
    path.write_bytes("\n".join(lines).encode("latin-1"))
    result = read(path)
    assert result.bars == [bar(0), bar(2)]
    assert result.bad == [BadRow(str(path), 3, "not text in UTF-8", row(1) + r",\xff")]


def test_a_carriage_return_inside_a_line_is_no_line_end(write: Write) -> None:
    result = read(write(HEADER, row(0), row(1) + "\r" + row(2), row(3)))
    assert result.lines == [2, 4]
    assert list(result.reasons) == [3]


def test_a_file_of_bad_rows_has_every_row_rejected(write: Write) -> None:
    path = write(HEADER, *("x,x,x,x,x,x" for _ in range(2000)))
    result = read(path)
    assert result.bars == []
    assert list(result.reasons) == list(range(2, 2002))


# ---- compression ----


def packed(path: Path, text: str, kind: str) -> None:
    if kind == "gzip":
        path.write_bytes(gzip.compress(text.encode()))
    elif kind == "gzip of two":
        middle = text.index("\n") + 5
        path.write_bytes(
            gzip.compress(text[:middle].encode()) + gzip.compress(text[middle:].encode())
        )
    elif kind == "zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.mkdir("folder")
            archive.writestr("folder/LINKUSDT-1m-2026-02.csv", text)
            archive.writestr("__MACOSX/folder/._LINKUSDT-1m-2026-02.csv", b"\0\5\x16\7")
    else:
        path.write_bytes(text.encode())


@pytest.mark.parametrize("kind", ["plain", "gzip", "gzip of two", "zip"])
@pytest.mark.parametrize("name", ["bars.csv", "bars.gz", "bars.zip", "bars", "bars.parquet"])
def test_the_compression_is_detected_by_content(tmp_path: Path, kind: str, name: str) -> None:
    path = tmp_path / name
    packed(path, "\n".join([HEADER, row(0), row(1), row(2, "x,1,1,1,1")]), kind)
    result = read(path)
    assert (result.bars, result.lines) == ([bar(0), bar(1)], [2, 3])
    assert (result.bad[0].file, result.bad[0].line) == (str(path), 4)


def test_a_zip_of_several_files_is_read_in_order(tmp_path: Path) -> None:
    path = tmp_path / "bars.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("one.csv", "\n".join([HEADER, row(0), row(1, "x,1,1,1,1")]))
        archive.writestr("two.csv", "\n".join([row(2), row(3), row(4, "x,1,1,1,1")]))
    result = read(path)
    assert result.bars == [bar(0), bar(2), bar(3)]
    assert [(b.file, b.line) for b in result.bad] == [
        (f"{path}!one.csv", 3),
        (f"{path}!two.csv", 3),
    ]


@pytest.mark.parametrize("kind", ["gzip", "zip"])
def test_damaged_archives_are_reported(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "bars"
    packed(path, "\n".join([HEADER, *(row(minute) for minute in range(5000))]), kind)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(
        UserError, match=r"bars: (the file is incomplete|damaged, download it again)"
    ):
        read(path)
    middle = len(whole) // 3
    path.write_bytes(whole[:middle] + bytes(64) + whole[middle + 64 :])
    with pytest.raises(UserError, match=r"bars: damaged, download it again"):
        read(path)


def test_an_encrypted_zip_is_rejected(tmp_path: Path) -> None:
    path = tmp_path / "bars.zip"
    packed(path, HEADER, "zip")
    content = bytearray(path.read_bytes())
    # The flag of encryption is in the local headers and in the central directory.
    for signature, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        start = -1
        while (start := content.find(signature, start + 1)) >= 0:
            content[start + offset] |= 1
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"bars\.zip: encrypted; unpack it first"):
        read(path)


# ---- files without bars ----


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "the file is empty"),
        (b"\n \n\n", "the file is empty"),
        (b"\xef\xbb\xbf\n", "the file is empty"),
        (gzip.compress(b"", mtime=0), "the file is empty"),
        (b"\x28\xb5\x2f\xfd1234", "damaged, download it again: ZSTD decompress failed"),
        (b"BZh91AY", "bzip2 is not supported"),
        (HEADER.encode("utf-16"), "the text is UTF-16; save it as UTF-8"),
        (b"\x7fELF\0\0\n", ":1: neither Parquet nor text: the line has NUL bytes"),
        (b"caf\xe9,x\n", ":1: neither Parquet nor text in UTF-8"),
        (gzip.compress(b"PAR1\xff\0\n", mtime=0), ": the Parquet file cannot be read: "),
        (b"hello world\n", ":1: no comma, semicolon or tab in the first line"),
        (b"a,b\rc,d\r", ":1: the lines end in"),
        (b'"ts,open\n', ":1: unexpected end of data"),
        (
            b"\n\nts,open,high,low\n",
            ":3: no column for close, vol among 'ts', 'open', 'high', 'low'",
        ),
        (b"ts,open,high,low,close\n", "name it with --column-vol NAME"),
        (
            b"ts,time,open,high,low,close,vol\n",
            ":1: more than one column may be ts: 'ts', 'time'; choose one with --column-ts NAME",
        ),
        (
            b"1769904000,1,1,1,1,1,1,1,1,1\n",
            ":1: a line of 10 columns and no header: without a header, only Binance's",
        ),
        (b"1769904000,1,1\n", "give the position of ts, open, high, low, close, vol"),
    ],
)
def test_a_file_without_bars_is_rejected(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "bars.csv"
    path.write_bytes(content)
    with pytest.raises(UserError) as caught:
        read(path)
    assert str(caught.value).startswith(f"{path}:")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("columns", "lines", "message"),
    [
        (
            ColumnMap(ts="when"),
            [HEADER, row()],
            "bars.csv:1: no column 'when'; there are 'open_time'",
        ),
        (ColumnMap(ts="when"), [row()], "no column 'when': the file has no header line"),
        (ColumnMap(ts="7"), [row()], "give positions from 1 to 6"),
        (ColumnMap(ts="0"), [row()], "give positions from 1 to 6"),
        (ColumnMap(ts="2"), [row()], "column 2 is open in Binance's order and ts by --column-ts"),
    ],
)
def test_wrong_names_of_columns_are_rejected(
    write: Write, columns: ColumnMap, lines: Sequence[str], message: str
) -> None:
    with pytest.raises(UserError) as caught:
        read(write(*lines), columns=columns)
    assert message in str(caught.value)


def test_a_file_without_symbols_needs_the_symbol_option(write: Write) -> None:
    with pytest.raises(UserError, match=r"LINKUSDT.csv: .*--symbol LINK/USDT"):
        read(write(HEADER, row(), name="LINKUSDT.csv"), symbol=None)


@pytest.mark.parametrize("symbol", ["", "  ", "A\0"])
def test_an_invalid_symbol_option_is_rejected(write: Write, symbol: str) -> None:
    with pytest.raises(UserError, match=r"is not a symbol"):
        read(write(HEADER, row()), symbol=symbol)


def test_a_missing_file_is_rejected(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"absent\.csv: no such file"):
        read(tmp_path / "absent.csv")
    with pytest.raises(UserError, match=r": not a file"):
        read(tmp_path)


def test_a_line_without_an_end_is_rejected(tmp_path: Path) -> None:
    path = tmp_path / "bars.csv"
    path.write_bytes(b"x," * LONGEST_LINE)
    with pytest.raises(
        UserError, match=r"bars\.csv:1: a line of over .* bytes: not a file of bars"
    ):
        read(path)
    path.write_bytes(f"{HEADER}\n{row()}\n".encode() + b"x," * LONGEST_LINE)
    with pytest.raises(
        UserError, match=r"bars\.csv:3: a line of over .* bytes: not a file of bars"
    ):
        read(path)


# ---- Parquet ----


def parquet(path: Path, columns: dict[str, Any], **options: Any) -> Path:
    pq.write_table(pa.table(columns), path, **options)
    return path


PRICES: dict[str, Any] = {
    "open": [10.0, 10.0],
    "high": [12.0, 12.0],
    "low": [9.0, 9.0],
    "close": [11.0, 11.0],
    "vol": [5.5, 5.5],
}
NOON = datetime(2026, 2, 1, 0, 0, tzinfo=UTC)


@pytest.mark.parametrize(
    "times",
    [
        pa.array([T0, T0 + MINUTE]),
        pa.array([T0 // 1000, T0 // 1000 + 60], pa.int32()),
        pa.array([T0 * 1000, (T0 + MINUTE) * 1000]),
        pa.array([T0, T0 + MINUTE], pa.timestamp("ms")),
        pa.array([T0 * 1000, (T0 + MINUTE) * 1000], pa.timestamp("us", "UTC")),
        pa.array([T0 * 10**6, (T0 + MINUTE) * 10**6], pa.timestamp("ns", "Europe/Berlin")),
        pa.array(["2026-02-01", "2026-02-01 00:01"]),
        pa.array([str(T0), str(T0 + MINUTE)], pa.large_string()),
        pa.array(["2026-02-01", "2026-02-01 00:01"]).dictionary_encode(),
    ],
    ids=lambda times: str(times.type),
)
@pytest.mark.parametrize("batch_rows", [1, 100_000])
def test_parquet_times_of_every_type_are_read(
    tmp_path: Path, times: pa.Array, batch_rows: int
) -> None:
    path = parquet(tmp_path / "bars", {"time": times, **PRICES})
    assert read(path, batch_rows=batch_rows) == Read([bar(0), bar(1)], [1, 2], [])


def test_parquet_dates_are_read(tmp_path: Path) -> None:
    days = pa.array([date(2026, 2, 1), date(2026, 2, 1)])
    assert read(parquet(tmp_path / "bars", {"date": days, **PRICES})).bars == [bar(), bar()]


@pytest.mark.parametrize(
    "kind", [pa.float64(), pa.float32(), pa.int64(), pa.decimal128(18, 4), pa.string()]
)
def test_parquet_prices_of_every_type_are_read(tmp_path: Path, kind: pa.DataType) -> None:
    whole = {name: [float(int(value)) for value in values] for name, values in PRICES.items()}
    prices = {name: pa.array(values).cast(kind) for name, values in whole.items()}
    path = parquet(tmp_path / "bars", {"ts": [T0, T0 + MINUTE], **prices})
    assert read(path).bars == [(*bar(minute)[:-1], 5.0) for minute in range(2)]


def test_parquet_decimals_are_rounded_once(tmp_path: Path) -> None:
    text = "0.30000000000000004441"
    price = pa.array([Decimal(text)], pa.decimal128(38, 20))
    columns = {"ts": [T0]} | dict.fromkeys(PRICES, price)
    assert read(parquet(tmp_path / "bars", columns)).bars[0][2] == float(text)


def test_parquet_symbols_are_read(tmp_path: Path) -> None:
    symbols = pa.array(["B", "A"]).dictionary_encode()
    path = parquet(tmp_path / "bars", {"ts": [T0, T0], **PRICES, "symbol": symbols})
    assert read(path, symbol=None).bars == [bar(0, "B"), bar(0, "A")]


def test_bad_rows_of_parquet_are_rejected_with_a_reason(tmp_path: Path) -> None:
    columns = {
        "note": ["a", "b", "c", "d", "e", "f"],
        "ts": pa.array([T0, None, T0, T0, 0, T0]),
        "open": [10.0, 10.0, None, 10.0, 10.0, 10.0],
        "high": [12.0, 12.0, 12.0, 9.5, 12.0, 12.0],
        "low": [9.0] * 6,
        "close": [11.0, 11.0, 11.0, 9.0, 11.0, float("nan")],
        "vol": [5.5] * 6,
    }
    path = parquet(tmp_path / "bars", columns)
    for batch_rows in (1, 4, 100):
        result = read(path, batch_rows=batch_rows)
        assert (result.bars, result.lines) == ([bar()], [1])
        assert result.reasons == {
            2: "ts is missing",
            3: "open is missing",
            4: "high 9.5 is below open 10.0",
            5: f"time 0 {YEARS}",
            6: "close is nan, not a finite number",
        }
        assert result.bad[2].text == f"{T0},10.0,9.5,9.0,9.0,5.5"


def test_parquet_times_finer_than_a_microsecond_are_rejected(tmp_path: Path) -> None:
    times = pa.array([T0 * 10**6, T0 * 10**6 + 1], pa.timestamp("ns"))
    result = read(parquet(tmp_path / "bars", {"ts": times, **PRICES}))
    assert result.reasons == {2: f"time {T0 * 10**6 + 1} is finer than a microsecond"}


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"ts": [T0, T0]}, ": no column for open, high, low, close, vol among 'ts'"),
        (
            {"ts": [True, False], **PRICES},
            ": the column 'ts' cannot be read as ts: its type is bool",
        ),
        (
            {"ts": [T0, T0], **PRICES, "vol": [True, False]},
            "'vol' cannot be read as vol: its type is bool",
        ),
        (
            {"ts": [T0, T0], **PRICES, "symbol": [1, 2]},
            "'symbol' cannot be read as symbol: its type is int64",
        ),
    ],
)
def test_parquet_without_columns_of_bars_is_rejected(
    tmp_path: Path, columns: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError) as caught:
        read(parquet(tmp_path / "bars", columns))
    assert message in str(caught.value)


def test_damaged_parquet_is_reported(tmp_path: Path) -> None:
    path = parquet(tmp_path / "bars", {"ts": [T0, T0], **PRICES})
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(UserError, match=r"bars: the Parquet file cannot be read: "):
        read(path)


# ---- any text, compared with Python's own parser ----

NUMBERS = st.floats(1e-3, 1e6).map(repr)
GOOD = st.builds(
    lambda minute, low, spread, vol: [
        str(T0 + minute * MINUTE),
        repr(low + spread),
        repr(low + 2 * spread),
        repr(low),
        repr(low + spread),
        repr(vol),
    ],
    st.integers(0, 10**6),
    st.floats(1e-3, 1e6),
    st.floats(0, 1e3),
    st.floats(0, 1e9).filter(lambda vol: vol == 0 or vol > 1e-100),
)
BAD = st.sampled_from(
    [
        ["x", "1", "1", "1", "1", "1"],
        [str(T0), "1", "1", "1", "1"],
        [str(T0), "1", "1", "1", "1", "1", "1"],
        [str(T0), "1", "1", "1", "1", ""],
        [str(T0), "0", "1", "1", "1", "1"],
        [str(T0), "2", "1", "1", "1", "1"],
        ["0", "1", "1", "1", "1", "1"],
        ["2026-02-30", "1", "1", "1", "1", "1"],
        [str(T0), "1", "1", "1", "1\n", "1", "1"],
        ["", "", "", "", "", ""],
    ]
)
RECORDS = st.lists(
    st.one_of(GOOD.map(lambda cells: ("good", cells)), BAD.map(lambda cells: ("bad", cells)))
    | st.just(("blank", [])),
    max_size=30,
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    records=RECORDS,
    quoting=st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL, csv.QUOTE_NONNUMERIC]),
    end=st.sampled_from(["\n", "\r\n"]),
    delimiter=st.sampled_from([",", ";", "\t"]),
    batch_rows=st.integers(1, 5) | st.just(100_000),
    compress=st.booleans(),
    unended=st.booleans(),
)
@example(
    records=[("bad", ["x", "1", "1", "1", "1", "1"])],
    quoting=csv.QUOTE_ALL,
    end="\r\n",
    delimiter="\t",
    batch_rows=1,
    compress=False,
    unended=True,
)
def test_every_row_is_found_with_its_line(
    tmp_path: Path,
    records: list[tuple[str, list[str]]],
    quoting: Any,
    end: str,
    delimiter: str,
    batch_rows: int,
    compress: bool,
    unended: bool,
) -> None:
    text = io.StringIO()
    text.write(HEADER.replace(",", delimiter) + end)
    writer = csv.writer(text, quoting=quoting, delimiter=delimiter, lineterminator=end)
    expected: list[tuple[int, Bar]] = []
    bad_lines: list[int] = []
    line = 2
    for kind, cells in records:
        if kind == "blank":
            text.write(end)
        else:
            writer.writerow(cells)
        if kind == "good":
            ts, *values = cells
            o, h, low, c, v = map(float, values)
            expected.append((line, ("A", int(ts) * 1000, o, h, low, c, v)))
        elif kind == "bad":
            bad_lines.append(line)
        line += 1 + sum(cell.count("\n") for cell in cells)
    content = text.getvalue()
    if unended:
        content = content.removesuffix(end)
    path = tmp_path / "bars"
    path.write_bytes(gzip.compress(content.encode()) if compress else content.encode())
    result = read(path, batch_rows=batch_rows)
    assert list(zip(result.lines, result.bars, strict=True)) == expected
    assert [b.line for b in result.bad] == bad_lines


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    lines=st.lists(st.text(st.sampled_from('0123456789,."\r x-TZ:\té'), max_size=40), max_size=20),
    batch_rows=st.integers(1, 3) | st.just(100_000),
)
@example(lines=["0\t1"], batch_rows=100_000)  # numbers that another delimiter separates
def test_every_line_is_a_bar_or_a_reported_bad_row(
    tmp_path: Path, lines: list[str], batch_rows: int
) -> None:
    path = tmp_path / "bars"
    path.write_bytes("\n".join([HEADER, *lines]).encode())
    result = read(path, batch_rows=batch_rows)
    found = sorted([*result.lines, *(b.line for b in result.bad)])
    assert len(found) == len(set(found))
    # Every other line is blank, or part of a quoted field that began above.
    texts = {b.line: b.text for b in result.bad}
    covered = set(found) | {
        below for at, text in texts.items() for below in range(at, at + text.count("\n") + 1)
    }
    for number, line in enumerate(lines, start=2):
        assert number in covered or not line.strip(" \t\r")


def test_piece_size_and_reader_do_not_change_the_bars(write: Write) -> None:
    generator = np.random.default_rng(7)
    lines = [
        row(minute, ",".join(map(repr, [price, price * 1.5, price / 3, price * 1.1, volume])))
        for minute, (price, volume) in enumerate(
            zip(
                (10 ** generator.uniform(-8, 8, 500)).tolist(),
                (10 ** generator.uniform(-8, 12, 500)).tolist(),
                strict=True,
            )
        )
    ]
    fast = read(write(HEADER, *lines))
    slow = read(write(HEADER, *lines, "x"))
    assert fast.bad == []
    assert len(slow.bad) == 1
    assert fast.bars == slow.bars


def test_the_local_time_zone_does_not_change_the_bars(
    write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TZ", "America/New_York")
    local = datetime(2026, 2, 1, 1, tzinfo=timezone(timedelta(hours=1))).isoformat()
    path = write(HEADER, "2026-02-01T00:00:00,10,12,9,11,5.5", f"{local},10,12,9,11,5.5")
    assert read(path).bars == [bar(), bar()]
