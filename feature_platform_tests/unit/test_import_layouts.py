"""Guards against a layout that is read wrong, or an ambiguous file that is not rejected."""

from __future__ import annotations

import csv
import gzip
import io
import json
import zipfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from feature_platform.errors import UserError
from feature_platform.importer.layouts import LAYOUTS
from feature_platform.importer.reader import ColumnMap, Findings, TimeRule, read_file

DATA = Path(__file__).parents[1] / "data" / "import"
T0 = 1_704_067_200  # 2024-01-01 00:00 UTC, in seconds

Bar = tuple[int, float, float, float, float, float]
Write = Callable[..., Path]

# The bars of all examples: seconds after T0, open, high, low, close, volume.
BARS = [
    (0, 42000.5, 42004.25, 41993.75, 41995.5, 3.5),
    (60, 41995.5, 41997.75, 41988.25, 41990.5, 3.25),
    (120, 41990.5, 42009.5, 41987.0, 42007.5, 2.75),
    (180, 42007.5, 42010.0, 42001.25, 42003.75, 1.5),
]

# The layout that the summary names, and the time zone if the file needs one.
EXAMPLES = {
    "alpha_vantage.csv": ("columns by name", "America/New_York"),
    "backtrader.csv": ("backtrader", None),
    "binance_futures.csv": ("Binance klines", None),
    "binance_microseconds.csv": ("Binance klines", None),
    "binance_spot.csv": ("Binance klines", None),
    "bitfinex.csv": ("Bitfinex", None),
    "bitstamp.json": ("columns by name", None),
    "bybit.json": ("Kraken OHLCVT, Bybit", None),
    "coinbase.json": ("Coinbase", None),
    "compact.csv": ("columns by name", None),
    "cryptodatadownload.csv": ("CryptoDataDownload", None),
    "databento.csv": ("Databento", None),
    "decimal_comma.csv": ("columns by name", None),
    "dukascopy.csv": ("Dukascopy", None),
    "freqtrade.feather": ("columns by name", None),
    "freqtrade.json.gz": ("six columns, as freqtrade and ccxt write", None),
    "gateio.json": ("Gate.io", None),
    "gateio_history.csv": ("Gate.io history", None),
    "histdata.csv": ("HistData", "Etc/GMT+5"),
    "kaggle_bitcoin.csv": ("Kaggle Bitcoin", None),
    "kraken_ohlc.json": ("Kraken OHLC", None),
    "kraken_ohlcvt.csv": ("Kraken OHLCVT, Bybit", None),
    "kucoin.json": ("KuCoin", None),
    "metatrader4.csv": ("MetaTrader 4", None),
    "metatrader5.csv": ("MetaTrader 5", None),
    "okx.json": ("OKX", None),
    "pandas.feather": ("columns by name", None),
    "pandas.parquet": ("columns by name", None),
    "pandas_index.csv": ("columns by name", None),
    "pandas_numbered.csv": ("six columns, as freqtrade and ccxt write", None),
    "polygon.csv": ("Polygon", None),
    "two_months.zip": ("columns by name", None),
    "yahoo.csv": ("Yahoo", None),
}


def read(path: Path, symbol: str | None = "BTC/USDT", **options: Any) -> list[Bar]:
    """Return the bars of a file, in the order of time; no row may be bad."""
    bars: list[Bar] = []
    for batch in read_file(path, symbol=symbol, **options):
        assert batch.bad == ()
        columns = (batch.ts // 1_000_000 - T0, batch.open, batch.high, batch.low, batch.close)
        bars += zip(*(column.tolist() for column in (*columns, batch.vol)), strict=True)
    return sorted(bars)


def reasons(path: Path, symbol: str | None = "BTC/USDT", **options: Any) -> dict[int, str]:
    """Return the reason by line of the bad rows of a file."""
    batches = read_file(path, symbol=symbol, **options)
    return {bad.line: bad.reason for batch in batches for bad in batch.bad}


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def write(*lines: str, name: str = "bars.csv") -> Path:
        path = tmp_path / name
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
        return path

    return write


def bars_as(form: Callable[..., str]) -> list[str]:
    return [form(T0 + t, *values) for t, *values in BARS]


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_of_each_layout_is_read(name: str) -> None:
    layout, zone = EXAMPLES[name]
    symbol = "X:BTCUSDT" if name == "polygon.csv" else "BTC/USDT"
    found = Findings()
    assert read(DATA / name, symbol, rule=TimeRule(zone), findings=found) == BARS
    assert {one.name for one in found.layouts} == {layout}


def test_every_example_and_layout_is_tested() -> None:
    assert {path.name for path in DATA.iterdir()} == set(EXAMPLES)
    assert {order.name for order in LAYOUTS} <= {layout for layout, _ in EXAMPLES.values()}


# ---- symbols ----


@pytest.mark.parametrize(
    "name",
    ["symbol", "pair", "Ticker", "instrument_name", "Asset", "<TICKER>", "product_id", "market"],
)
def test_usual_names_of_a_symbol_column_are_recognised(write: Write, name: str) -> None:
    rows = [f"{T0},1,1,1,1,1,BTC/USDT", f"{T0},2,2,2,2,2, ETH/USDT "]
    path = write(f"time,open,high,low,close,volume,{name}", *rows)
    (batch,) = read_file(path)
    names = [batch.symbols[code] for code in batch.symbol.tolist()]
    assert names == ["BTC/USDT", "ETH/USDT"]
    assert list(reasons(path, "ETH/USDT")) == [2]
    # One symbol can be renamed; several are never merged.
    assert "began with 'BTC/USDT'" in reasons(path, "X", columns=ColumnMap(symbol="none"))[3]
    path = write(f"time,open,high,low,close,volume,{name}", rows[0])
    assert len(read(path, "X", columns=ColumnMap(symbol="none"))) == 1


def test_symbols_are_trimmed_and_limited(write: Write) -> None:
    path = write("time,open,high,low,close,volume", f"{T0},1,1,1,1,1")
    (batch,) = read_file(path, symbol="  BTC/USDT ")
    assert batch.symbols == ("BTC/USDT",)
    for wrong in ("x" * 201, "A\tB", "A\nB", "A\x7f", " "):
        with pytest.raises(UserError, match="is not a symbol"):
            list(read_file(path, symbol=wrong))
    path = write("time,open,high,low,close,volume,symbol", f"{T0},1,1,1,1,1,{'x' * 5000}")
    assert "it has 5,000 characters, and at most 200 are allowed" in reasons(path, None)[2]


# ---- times ----


@pytest.mark.parametrize(
    "text",
    [
        "1704067200.0",
        "1.7040672e9",
        "1.704067200000000000e+12",
        "1704067200000.000",
        "2024-01-01 00:00:00 UTC",
        "2024-01-01 00:00:00 +0000",
        "2024-01-01 01:00:00 GMT+0100",
        "2024-01-01T00:00:00.000000000Z",
        "2024/01/01 00:00",
        "2024.01.01 00:00:00",
        "01.01.2024 00:00:00.000",
        "20240101T000000Z",
        "20240101 000000",
        "20240101 00:00",
        "20240101000000",
        "202401010000",
        "2024-01-01 12:00 AM",
        "2024-01-01 12:00:00 am",
    ],
)
def test_times_of_every_usual_form_are_read(write: Write, text: str) -> None:
    assert read(write("time,open,high,low,close,volume", f"{text},1,1,1,1,1"))[0][0] == 0
    assert read(write(f"{text},1,1,1,1,1"))[0][0] == 0


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("0x18CC251F400", "is neither a whole number nor a known form of date"),
        ("1_704_067_200", "is neither a whole number nor a known form of date"),
        ("2023-02-29 00:00", "is not a valid date"),
        ("31.04.2024 00:00", "is not a valid date"),
        ("20241301 000000", "is not a valid date"),
        ("2024-01-01 24:00", "has no valid time of day"),
        ("2024-01-01 13:00 PM", "has no valid time of day"),
        ("1704067.2", "is not in the years 1980 to 2099"),
    ],
)
def test_texts_that_are_no_times_are_rejected(write: Write, text: str, reason: str) -> None:
    found = reasons(write("time,open,high,low,close,volume", f"{text},1,1,1,1,1"))
    assert reason in found[2]


def test_local_times_become_utc(write: Write) -> None:
    lines = ["2024-03-10 01:59:00", "2024-03-10 03:00:00", "2024-07-01 12:00:00", f"{T0}"]
    path = write("time,open,high,low,close,volume", *(f"{text},1,1,1,1,1" for text in lines))
    rule = TimeRule("America/New_York")
    assert [t + T0 for t, *_ in read(path, rule=rule)] == [
        T0,
        1_710_053_940,  # 06:59 UTC
        1_710_054_000,  # 07:00 UTC, the next minute
        1_719_849_600,  # 16:00 UTC
    ]


def test_a_local_time_that_happens_twice_or_never_is_rejected(write: Write) -> None:
    lines = ["2024-03-10 02:30:00", "2024-11-03 01:30:00", "2024-11-03 02:00:00"]
    path = write("time,open,high,low,close,volume", *(f"{text},1,1,1,1,1" for text in lines))
    assert reasons(path, rule=TimeRule("America/New_York")) == {
        2: "time '2024-03-10 02:30:00' occurs never in America/New_York",
        3: "time '2024-11-03 01:30:00' occurs twice in America/New_York",
    }


def test_an_unknown_time_zone_is_rejected() -> None:
    with pytest.raises(UserError, match=r"--timezone Mars/Base: no such time zone"):
        TimeRule("Mars/Base")


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("2024-01-01 00:01:00", 0), ("2024-01-01 00:00:59.999", 0), ("1704067259", 0)],
)
def test_times_of_the_end_are_moved_to_the_start(write: Write, text: str, seconds: int) -> None:
    path = write("time,open,high,low,close,volume", f"{text},1,1,1,1,1")
    assert read(path, rule=TimeRule(stamp="close"))[0][0] == seconds
    path = write("time,open,high,low,close,volume", "2024-01-01 00:00:30,1,1,1,1,1")
    assert "is not the start of a minute" in reasons(path, rule=TimeRule(stamp="close"))[2]


def test_a_file_of_close_times_needs_the_option(write: Write) -> None:
    path = write("close_time,open,high,low,close,volume", f"{T0 + 59},1,1,1,1,1")
    with pytest.raises(UserError, match=r"--column-ts close_time --time close"):
        read(path)
    assert read(path, rule=TimeRule(stamp="close"))[0][0] == 0


def test_a_time_of_day_may_have_its_own_column(write: Write) -> None:
    header = "Date,Time,Open,High,Low,Close,Volume"
    for date, clock in (
        ("2024-01-01", "00:02"),
        ("2024.01.01", "00:02:00"),
        ("20240101", "000200"),
        ("20240101", "0002"),
        ("01.01.2024", "12:02 AM"),
    ):
        path = write(header, f"{date},{clock},1,1,1,1,1")
        assert read(path)[0][0] == 120
        # The time of day also counts if an option names the column of dates.
        assert read(path, columns=ColumnMap(ts="Date"))[0][0] == 120


@pytest.mark.parametrize(
    ("dates", "first"),
    [(["31/01/2024", "01/02/2024"], 30), (["01/31/2024", "02/01/2024"], 30)],
)
def test_one_unambiguous_date_sets_the_order_of_day_and_month(
    write: Write, dates: list[str], first: int
) -> None:
    rows = [f"{date} 00:00,1,1,1,1,1" for date in dates]
    days = [t // 86_400 for t, *_ in read(write("time,open,high,low,close,volume", *rows))]
    assert days == [first, first + 1]


def test_an_ambiguous_order_of_day_and_month_is_rejected(write: Write) -> None:
    path = write("time,open,high,low,close,volume", "03/04/2024 00:00,1,1,1,1,1")
    with pytest.raises(
        UserError, match=r"bars\.csv:1: the date .* may have the day or the month first"
    ):
        read(path)


def test_an_epoch_is_preferred_to_a_text(write: Write) -> None:
    path = write("date,unix,open,high,low,close,volume", f"2024-01-01 07:00,{T0},1,1,1,1,1")
    assert read(path)[0][0] == 0


# ---- columns ----


def test_swapped_open_and_close_are_rejected(write: Write) -> None:
    path = write(*bars_as(lambda t, o, h, low, c, v: f"{t},{c},{h},{low},{o},{v}"))
    with pytest.raises(UserError, match=r"bars\.csv:1: .* open and close seem to be swapped"):
        read(path)
    columns = ColumnMap(ts="1", open="5", high="3", low="4", close="2", vol="6")
    assert read(path, columns=columns) == BARS


@pytest.mark.parametrize(
    "form",
    [
        lambda t, o, h, low, c, v: f"{t},{v},{o},{h},{low},{c}",
        lambda t, o, h, low, c, v: f"{t},{h},{o},{low},{c},{v}",
        lambda t, o, h, low, c, v: f"{t},{low},{o},{h},{c},{v},1,1,1",
        lambda t, o, h, low, c, v: f"{t},{o},{h},{low},{c},{v},{v},{v},{v},{v}",
    ],
)
def test_columns_of_ambiguous_order_are_rejected(write: Write, form: Callable[..., str]) -> None:
    with pytest.raises(UserError, match=r"bars\.csv:1: a line of \d+ columns and no header"):
        read(write(*bars_as(form)))


def test_the_volume_in_the_base_currency_is_used(write: Write) -> None:
    header = "time,open,high,low,close,Volume USD,Volume BTC"
    assert read(write(header, f"{T0},1,1,1,1,99,2"))[0][-1] == 2
    with pytest.raises(UserError, match="more than one column may be vol"):
        read(write(header.replace("USD", "ETH"), f"{T0},1,1,1,1,99,2"))


def test_an_option_states_that_there_is_no_volume(write: Write) -> None:
    path = write("time,open,high,low,close", f"{T0},1,1,1,1")
    with pytest.raises(UserError, match="--column-vol none to store a volume of 0"):
        read(path)
    assert read(path, columns=ColumnMap(vol="none")) == [(0, 1, 1, 1, 1, 0)]


def test_rows_without_values_are_counted_as_empty(write: Write) -> None:
    header = "time,open,high,low,close,volume"
    empty = [f"{T0 + 60},,,,,", f"{T0 + 120},nan,NaN,null,NaN,0"]
    path = write(header, f"{T0},1,1,1,1,1", *empty, f"{T0 + 180},1,1,,1,1")
    (batch,) = read_file(path, symbol="A")
    assert (len(batch.line), batch.empty, batch.rows) == (1, 2, 4)
    assert {bad.line: bad.reason for bad in batch.bad} == {5: "low is missing"}


def test_lines_before_the_header_and_comments_are_skipped(write: Write) -> None:
    rows = bars_as(lambda *values: ",".join(map(str, values)))
    header = "time,open,high,low,close,volume"
    path = write("Export of BTC/USDT", "", "# made by hand", header, rows[0], "# a day", *rows[1:])
    assert read(path) == BARS
    assert [number for batch in read_file(path, symbol="A") for number in batch.line] == [
        5,
        7,
        8,
        9,
    ]


def test_a_symbol_may_begin_like_a_comment(write: Write) -> None:
    path = write("symbol,ts,open,high,low,close,vol", f"#1,{T0},1,1,1,1,1", "# a comment")
    (batch,) = read_file(path)
    assert (batch.symbols, batch.line.tolist(), batch.rows) == (("#1",), [2], 1)
    columns = ColumnMap(**dict(zip(("symbol", *FIELDS), "1234567", strict=True)))
    (batch,) = read_file(write(f"#1,{T0},1,1,1,1,1", f"B,{T0},1,1,1,1,1"), columns=columns)
    assert (batch.symbols, batch.line.tolist()) == (("#1", "B"), [1, 2])


def test_a_decimal_comma_is_not_mixed_with_points(write: Write) -> None:
    rows = [f"{T0};1,5;1,5;1,5;1,5;2", f"{T0 + 60};1,5;1,5;1,5;1.500,5;2"]
    path = write("time;open;high;low;close;volume", *rows, f"{T0 + 120};1,5;2;1;1,5;2,25")
    assert reasons(path) == {3: "close '1.500,5' is not a number with a decimal comma"}


# ---- JSON ----


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[", "the JSON cannot be read"),
        ("[]", "the JSON holds no row"),
        ("{}", "no array of rows in the JSON object"),
        ('{"a": [[1]], "b": [[2]]}', "several arrays of rows in the JSON object"),
        ("[[1704067200, 1, 1", "the JSON cannot be read"),
        ("[1, 2]", "the elements of the JSON are neither"),
    ],
)
def test_json_without_bars_is_rejected(write: Write, text: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        read(write(text, name="bars.json"))
    assert "\n" not in str(caught.value)


def test_bad_rows_of_json_are_rejected_with_a_reason(write: Write) -> None:
    rows = [[T0, 1, 1, 1, 1, 1], [T0, 1, 1], "x", [T0 + 60, "1", "1", "2", "1", "1"], [None] * 6]
    assert reasons(write(json.dumps(rows), name="bars.json")) == {
        2: "3 fields where 6 are expected",
        3: "not an array like the first row",
        4: "high 1.0 is below low 2.0",
        5: "ts is missing",
    }


def test_json_lines_are_read(write: Write) -> None:
    lines = [
        json.dumps({"t": T0 + seconds} | dict(zip("ohlcv", values, strict=True)))
        for seconds, *values in BARS
    ]
    assert read(write(*lines, name="bars.jsonl")) == BARS


def test_json_of_columns_is_read(write: Write) -> None:
    columns = dict(zip("tohlcv", map(list, zip(*BARS, strict=True)), strict=True))
    columns["t"] = [T0 + int(t) for t in columns["t"]]
    assert read(write(json.dumps({"s": "ok", **columns}), name="bars.json")) == BARS


# ---- containers ----


def test_archives_and_compressed_files_are_read(tmp_path: Path) -> None:
    text = "\n".join(
        ["time,open,high,low,close,volume", *bars_as(lambda *v: ",".join(map(str, v)))]
    )
    parquet = (DATA / "pandas.parquet").read_bytes()
    packed = {
        "a.csv.zst": pa.compress(text.encode(), codec="zstd", asbytes=True),
        "a.csv.gz": gzip.compress(text.encode()),
        "a.parquet.gz": gzip.compress(parquet),
        "twice.gz": gzip.compress(gzip.compress(text.encode())),
        "a.zip": _zip({"a.csv.gz": gzip.compress(text.encode()), "README.md": b"words"}),
        "nested.zip": _zip({"inner.zip": _zip({"a.parquet": parquet})}),
    }
    for name, content in packed.items():
        path = tmp_path / name
        path.write_bytes(content)
        assert read(path) == BARS


def _zip(files: dict[str, bytes]) -> bytes:
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return made.getvalue()


# ---- any bars, in any layout ----


@st.composite
def tables(draw: st.DrawFn) -> list[Bar]:
    """Draw consecutive bars, each opening at the close before."""
    price = draw(st.floats(0.001, 1e5))
    bars: list[Bar] = []
    minute = 0
    for _ in range(draw(st.integers(1, 12))):
        close = price * draw(st.floats(0.98, 1.02))
        low = min(price, close) * draw(st.floats(0.99, 1))
        high = max(price, close) * draw(st.floats(1, 1.01))
        vol = draw(st.just(0.0) | st.floats(1e-8, 1e9))
        bars.append((minute * 60, price, high, low, close, vol))
        price = close
        minute += draw(st.integers(1, 3))
    return bars


TIMES: dict[str, Callable[[int], str]] = {
    "seconds": str,
    "milliseconds": lambda t: f"{t}000",
    "microseconds": lambda t: f"{t}000000",
    "float": lambda t: f"{t}.0",
    "iso": lambda t: _moment(t, "%Y-%m-%d %H:%M:%S"),
    "zoned": lambda t: _moment(t, "%Y-%m-%dT%H:%M:%SZ"),
    "dotted": lambda t: _moment(t, "%d.%m.%Y %H:%M:%S"),
    "compact": lambda t: _moment(t, "%Y%m%d %H%M%S"),
}
FIELDS = ("ts", "open", "high", "low", "close", "vol")
ENOUGH_ROWS = 5


def _moment(seconds: int, form: str) -> str:
    from datetime import UTC, datetime

    return datetime.fromtimestamp(seconds, UTC).strftime(form)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    bars=tables(),
    time=st.sampled_from(sorted(TIMES)),
    order=st.permutations(FIELDS),
    header=st.booleans(),
    delimiter=st.sampled_from(",;\t|"),
    decimal=st.sampled_from(".,"),
    descending=st.booleans(),
    packing=st.sampled_from(["plain", "gzip", "zstd", "zip"]),
    quoting=st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL]),
)
def test_bars_in_any_layout_are_read_equal_or_rejected(
    tmp_path: Path,
    bars: list[Bar],
    time: str,
    order: list[str],
    header: bool,
    delimiter: str,
    decimal: str,
    descending: bool,
    packing: str,
    quoting: Any,
) -> None:
    rows: Iterable[Bar] = reversed(bars) if descending else bars
    text = io.StringIO()
    writer = csv.writer(text, delimiter=delimiter, quoting=quoting, lineterminator="\n")
    if header:
        writer.writerow(order)
    for t, *values in rows:
        cells = {
            name: repr(value).replace(".", decimal)
            for name, value in zip(FIELDS[1:], values, strict=True)
        }
        writer.writerow([TIMES[time](T0 + t) if name == "ts" else cells[name] for name in order])
    content = text.getvalue().encode()
    path = tmp_path / "bars"
    packed: dict[str, Callable[[bytes], bytes]] = {
        "gzip": gzip.compress,
        "zstd": lambda raw: pa.compress(raw, codec="zstd", asbytes=True),
        "zip": lambda raw: _zip({"bars.csv": raw}),
    }
    path.write_bytes(packed[packing](content) if packing in packed else content)
    try:
        batches = list(read_file(path, symbol="A"))
    except UserError:
        assert not header  # with a header, every layout of these is known
        return
    bad = sum(len(batch.bad) for batch in batches)
    found = sorted(
        bar
        for batch in batches
        for bar in zip(
            (batch.ts // 1_000_000 - T0).tolist(),
            *(getattr(batch, name).tolist() for name in FIELDS[1:]),
            strict=True,
        )
    )
    if header:
        assert (found, bad) == (bars, 0)
    elif found != bars and not bad:
        # A few rows, or rows of equal prices, also fit a known order that is not their own.
        telling = [prices for _, *prices, _ in bars if len(set(prices)) == len(prices)]
        assert len(telling) < ENOUGH_ROWS


STARTS = [
    *(
        b"",
        b"PAR1",
        b"ARROW1\0\0",
        b"\x1f\x8b\x08",
        b"PK\x03\x04",
        b"\x28\xb5\x2f\xfd",
        b"[[",
        b"{",
    ),
    *(b"time,open,high,low,close,volume\n", b"1704067200,1,1,1,1,1\n", b"\xef\xbb\xbf"),
]
TEXTS = st.text('0123456789,.;-:TZ \n\r"[]{}eE#', max_size=200).map(str.encode)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(start=st.sampled_from(STARTS), rest=st.binary(max_size=200) | TEXTS)
def test_any_bytes_give_bars_or_one_line(tmp_path: Path, start: bytes, rest: bytes) -> None:
    path = tmp_path / "bars"
    path.write_bytes(start + rest)
    message = ""
    try:
        batches = list(read_file(path, symbol="A"))
    except UserError as error:
        batches, message = [], str(error)
    assert "\n" not in message
    assert all(one.rows == len(one.line) + len(one.bad) + one.empty for one in batches)
