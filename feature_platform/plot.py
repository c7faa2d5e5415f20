"""Pictures of features: close and volume_z with the missing minutes marked, and distributions.

matplotlib and pillow take long to import, so they are imported by the first picture.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import psycopg

from feature_platform.counted import counted
from feature_platform.errors import UserError
from feature_platform.queries import queries

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from feature_platform.drift import Drift

_PRICE = "#1f4e79"
_SCORE = "#5b7f95"
_SPIKE = "#c0392b"
_MISSING = "#f2c14e"
_SPIKE_Z = 3.0
_COLUMNS_DRAWN = 6
_STYLE: dict[Any, Any] = {
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.edgecolor": "#888888",
    "axes.grid": True,
    "axes.titlelocation": "left",
    "axes.titleweight": "bold",
    "grid.color": "#e6e6e6",
    "grid.linewidth": 0.6,
    "font.size": 9,
}


def plot_features(
    connection: psycopg.Connection[Any], symbols: Sequence[str], path: Path, *, days: int = 7
) -> Path:
    """Draw close and volume_z of each symbol's last days into a PNG file, one column per symbol.

    Minutes without a row are shaded, and no line crosses them; values of volume_z above 3 are
    marked. Raises UserError for a symbol without rows.
    """
    import matplotlib as mpl
    from matplotlib.figure import Figure

    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(5.6 * len(symbols), 5.6), layout="constrained")
        axes = figure.subplots(2, len(symbols), sharex="col", squeeze=False, height_ratios=(3, 2))
        for column, symbol in enumerate(symbols):
            frame = _by_the_minute(connection, symbol, days)
            _draw_close(axes[0, column], symbol, frame)
            _draw_score(axes[1, column], frame)
            first, last = frame.index[0], frame.index[-1]
            # The range of a single minute has no width.
            margin = max((last - first) / 20, pd.Timedelta(minutes=5))
            for axis in axes[:, column]:
                _shade_missing(axis, frame)
                axis.set_xlim(first - margin, last + margin)
        figure.savefig(path, dpi=110)
    return path


def window_png(
    connection: psycopg.Connection[Any], symbols: Sequence[str], start: datetime, end: datetime
) -> bytes:
    """Draw the minutes start <= bucket < end as `plot_features` does, the symbols one below the
    other, and return the PNG; small enough to be stored with each day.

    A minute before a symbol's first minute, or one that has not ended, is not missing.
    """
    import matplotlib as mpl
    from matplotlib.figure import Figure

    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(9.6, 3.6 * len(symbols)), layout="constrained")
        axes = figure.subplots(
            2 * len(symbols), 1, squeeze=False, height_ratios=(3, 2) * len(symbols)
        )
        for number, symbol in enumerate(symbols):
            frame = _window(connection, symbol, start, end)
            close, score = axes[2 * number, 0], axes[2 * number + 1, 0]
            _draw_close(close, symbol, frame)
            _draw_score(score, frame)
            close.sharex(score)
            close.tick_params(labelbottom=False)
            for axis in (close, score):
                _shade_missing(axis, frame)
                axis.set_xlim(start, end)
        return _small_png(figure)


def drift_png(columns: Sequence[Drift]) -> bytes:
    """Draw the last day's distribution of some columns beside the reference's, and return the PNG.

    columns: the first six are drawn. A bin has a twentieth of the reference's values, so without
    drift all bars are about as high as the line.
    """
    import matplotlib as mpl
    from matplotlib.figure import Figure

    drawn = columns[:_COLUMNS_DRAWN]
    across = min(len(drawn), 3)
    down = -(-len(drawn) // across)
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(3.6 * across, 2.7 * down), layout="constrained")
        axes = figure.subplots(down, across, squeeze=False).ravel()
        for axis, one in zip(axes, drawn, strict=False):
            _draw_bins(axis, one)
        for axis in axes[len(drawn) :]:
            axis.set_axis_off()
        return _small_png(figure)


def _draw_bins(axis: Axes, one: Drift) -> None:
    bins = 100 * one.bins
    places = (np.arange(len(bins)) + 0.5) * 100 / len(bins)
    colour = _SPIKE if one.alarms else _SCORE
    axis.bar(places, bins, width=90 / len(bins), color=colour, label="last day")
    axis.set_axisbelow(True)
    axis.axhline(100 / len(bins), color=_PRICE, linewidth=1.2, label="reference")
    axis.set_title(f"{one.symbol}\n{one.column}", parse_math=False, fontsize=9)
    # The scale of a column without drift, so that small differences look small.
    axis.set_ylim(0, max(4 * 100 / len(bins), 1.1 * float(bins.max())))
    axis.set_ylabel("% of the last day")
    shift = "not judged" if np.isnan(one.shift + one.shift_limit) else f"{one.shift:+.2f} std"
    axis.set_xlabel(
        f"percentile of the reference\nPSI {one.psi:.2f}, KS {one.ks:.2f}, last hour {shift}"
    )
    axis.legend(loc="upper center", frameon=False, fontsize=7, ncols=2)


def _small_png(figure: Figure) -> bytes:
    """Return a figure as a PNG of a quarter of the size: a few lines need few colours."""
    from PIL import Image

    drawn, small = BytesIO(), BytesIO()
    figure.savefig(drawn, format="png", dpi=80)
    # The octree keeps rare colours.
    picture = Image.open(drawn).convert("RGB").quantize(64, Image.Quantize.FASTOCTREE)
    picture.save(small, "png", optimize=True)
    return small.getvalue()


def _by_the_minute(connection: psycopg.Connection[Any], symbol: str, days: int) -> pd.DataFrame:
    """Return one row for every minute, all NaN if the table has none."""
    frame = _frame(
        connection.execute(queries["plot_features"], {"symbol": symbol, "days": days}).fetchall()
    )
    if frame.empty:
        raise UserError(f"there are no features of {symbol!r} to plot")
    return frame.reindex(pd.date_range(frame.index[0], frame.index[-1], freq="min"))


def _window(
    connection: psycopg.Connection[Any], symbol: str, start: datetime, end: datetime
) -> pd.DataFrame:
    """Return one row for every minute of a window in which a symbol can have a row."""
    window = {"symbol": symbol, "start": start, "end": end}
    bounds = connection.execute(queries["plot_window_bounds"], window).fetchone()
    assert bounds is not None, "the statement always gives one row"
    rows = connection.execute(queries["plot_window"], window).fetchall()
    # In UTC, whatever the time zone of the session.
    first, after = pd.to_datetime(list(bounds), utc=True)
    return _frame(rows).reindex(
        pd.date_range(first, after, freq="min", inclusive="left").as_unit("us")
    )


def _frame(rows: Sequence[tuple[Any, ...]]) -> pd.DataFrame:
    frame = pd.DataFrame(rows, columns=["bucket", "last_close", "volume_z"])
    index = pd.DatetimeIndex(pd.to_datetime(frame.pop("bucket"), utc=True))
    return frame.set_index(index).astype(float)


def _draw_close(axis: Axes, symbol: str, frame: pd.DataFrame) -> None:
    axis.plot(frame.index, frame["last_close"], color=_PRICE, linewidth=0.9)
    axis.set_title(symbol, parse_math=False)  # a $ begins no formula
    axis.set_ylabel("close")


def _draw_score(axis: Axes, frame: pd.DataFrame) -> None:
    from matplotlib.dates import AutoDateLocator, ConciseDateFormatter

    score = frame["volume_z"]
    spikes = score[score > _SPIKE_Z]
    axis.plot(score.index, score, color=_SCORE, linewidth=0.5)
    axis.plot(spikes.index, spikes, ".", color=_SPIKE, markersize=3, label=f"above {_SPIKE_Z:.0f}")
    axis.axhline(0, color="#888888", linewidth=0.6)
    axis.set_ylabel("volume_z (1 day)")
    locator = AutoDateLocator(minticks=3, maxticks=8)  # type: ignore[no-untyped-call]
    axis.xaxis.set_major_locator(locator)
    axis.xaxis.set_major_formatter(
        ConciseDateFormatter(locator)  # type: ignore[no-untyped-call]
    )
    missing = int(frame["last_close"].isna().sum())
    axis.set_xlabel(f"UTC; {missing:,} of {counted(len(frame), 'minute')} missing")
    if len(spikes):
        axis.legend(loc="lower right", bbox_to_anchor=(1, 0.97), frameon=False, fontsize=8)


def _shade_missing(axis: Axes, frame: pd.DataFrame) -> None:
    missing = frame["last_close"].isna().to_numpy()
    edges = np.flatnonzero(np.diff(np.concatenate(([False], missing, [False])).astype(int)))
    minute = pd.Timedelta(minutes=1)
    for first, after in edges.reshape(-1, 2):
        axis.axvspan(
            frame.index[first],
            frame.index[after - 1] + minute,
            color=_MISSING,
            alpha=0.5,
            linewidth=0.8,
        )
