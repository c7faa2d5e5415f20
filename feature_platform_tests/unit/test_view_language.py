"""Guards against declarations that are accepted though they have no meaning."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from random import Random
from typing import cast

import pytest

from feature_platform import views as v
from feature_platform.errors import UserError
from feature_platform.views import FeatureView, bar
from feature_platform.views.expressions import Expression, parse_span, span_words
from feature_platform.views.files import load_views
from feature_platform.views.view import look_back, warm_up
from feature_platform_tests.view_histories import random_expression

MINUTE = timedelta(minutes=1)


def one(expression: Expression, every: str = "1 minute", **more: str) -> FeatureView:
    return FeatureView(name="momentum_1m", every=every, columns={"x": expression}, **more)


def test_a_span_that_is_no_multiple_of_the_bar_width_is_rejected_with_its_column() -> None:
    with pytest.raises(UserError) as error:
        FeatureView("candles", "15 minutes", {"volatility": v.std(bar.close, "20 minutes")})
    assert str(error.value) == (
        "candles.volatility: span '20 minutes' is not a multiple of every '15 minutes'"
        ' in std(bar.close, "20 minutes")'
    )


@pytest.mark.parametrize(
    ("make", "complaint"),
    [
        (lambda: v.mean(bar.vol, "90 seconds"), "'90 seconds' is not a span"),
        (lambda: v.mean(bar.vol, "0 hours"), "'0 hours' is not a span"),
        (lambda: v.mean(bar.vol, cast("str", 5)), "5 is not a span"),
        (lambda: bar.price, "bar.price is unknown: a bar has open, high"),
        (lambda: v.lag(bar.close, 0), "give a number from 1 to 10000"),
        (lambda: v.lag(bar.close, -1), "give a number from 1 to 10000"),
        (lambda: v.where(bar.close, 1, 0), "the first argument is not a condition"),
        (lambda: bar.close + (bar.close > 1), "a condition is not a number"),
        (lambda: bar.close**3, "only the square"),
        (lambda: bar.close + float("nan"), "neither an expression nor a finite number"),
        (lambda: bar.close * 1e200, "a number is 0 or from 1e-130 to 1e130"),
        (lambda: bool(bar.close > 1), "has no truth value in Python"),
        (lambda: one(v.aggregate("avg; DROP TABLE x", bar.vol, "1 hour")), "is not a name with"),
        (lambda: one(v.aggregate('public."x"', bar.vol, "1 hour")), "is not a name with"),
        (lambda: one(bar.close > 1), "is a condition, use where"),
        (lambda: one(v.mean(bar.vol, "401 days")), "looks back 400 days"),
        (lambda: one(bar.close, every="7 minutes"), "does not divide a day"),
        (lambda: one(bar.close, every="2 days"), "does not divide a day"),
        (lambda: one(bar.close, every="1 hour", offset="1 hour"), "is not less than every"),
        (lambda: FeatureView("Momentum", "1 minute", {"x": bar.vol}), "lower-case letters"),
        (lambda: FeatureView("features_1m", "1 minute", {"x": bar.vol}), "is none of"),
        (lambda: FeatureView("m", "1 minute", {"bucket": bar.vol}), "is none of"),
        (lambda: FeatureView("m", "1 minute", {"xmin": bar.vol}), "is none of"),
        (lambda: FeatureView("m", "1 minute", {"stale": bar.vol}), "is none of"),
        (lambda: FeatureView("m", "1 minute", {'x" int': bar.vol}), "lower-case letters"),
        (lambda: FeatureView("m", "1 minute", {}), "a view has 1 to"),
        (lambda: FeatureView("m", "1 minute", {"x": 1.0}), "1.0 is not an expression"),  # type: ignore[dict-item]
    ],
)
def test_what_has_no_meaning_is_rejected(make: Callable[[], object], complaint: str) -> None:
    with pytest.raises(UserError, match=complaint.replace("(", r"\(")):
        make()


def test_look_back_and_warm_up_add_up_over_nested_windows() -> None:
    nested = v.std(v.lag(v.mean(bar.vol, "10 minutes"), "1 hour"), "5 minutes")
    assert look_back(nested, MINUTE) == timedelta(minutes=9 + 60 + 4)
    assert warm_up(nested, MINUTE) == timedelta(minutes=9 + 4)
    assert look_back(v.lag(bar.close, 3), MINUTE) == timedelta(minutes=3)
    assert warm_up(v.ema(bar.close, "10 minutes"), MINUTE) == timedelta(minutes=30)


def test_equal_expressions_have_one_source() -> None:
    left = v.ln(bar.close / v.lag(bar.close)) + 1
    right = v.ln(bar.close / v.lag(bar.close, 1)) + 1.0
    assert left.key == right.key == "ln(bar.close / lag(bar.close)) + 1"


def test_the_source_of_a_column_makes_the_column_again() -> None:
    examples = Path(__file__).parents[2] / "examples" / "features.py"
    names = {name: getattr(v, name) for name in v.__all__}
    for view in load_views(examples):
        for expression in view.columns.values():
            assert eval(str(expression), names).key == expression.key


def test_the_text_of_an_expression_is_python_without_needless_parentheses() -> None:
    random = Random(7)
    names = {name: getattr(v, name) for name in v.__all__}
    for _ in range(3000):
        expression = random_expression(random, 5, MINUTE)
        assert _tree(eval(str(expression), names)) == _tree(expression)
    close, before = bar.close, v.lag(bar.close)
    assert str(v.max(close - before, "1 hour") - (close - before) / 2 - 1) == (
        'max(bar.close - lag(bar.close), "1 hour") - (bar.close - lag(bar.close)) / 2 - 1'
    )
    assert str((-close) ** 2 + -(close**2)) == "(-bar.close) ** 2 + -bar.close ** 2"


def _tree(expression: Expression) -> tuple[object, ...]:
    """Return the nodes of an expression, which do not depend on its text."""
    kept = {name: value for name, value in vars(expression).items() if name not in _OPERANDS}
    return type(expression), str(kept), tuple(map(_tree, expression.arguments))


_OPERANDS = ("of", "operands")


@pytest.mark.parametrize(
    ("span", "words"),
    [
        ("1 minute", "1 minute"),
        ("968 minutes", "16 hours 8 minutes"),
        ("1439 minutes", "23 hours 59 minutes"),
        ("10079 minutes", "7 days"),
        ("1500 minutes", "1 day 1 hour"),
    ],
)
def test_a_span_is_shown_in_two_units(span: str, words: str) -> None:
    assert span_words(parse_span(span)) == words


def test_no_span_is_shown_as_none() -> None:
    assert span_words(timedelta()) == "none"


def test_a_bad_file_is_reported_with_its_line(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    for text, complaint in (
        ("x = 1\n", "declares no FeatureView"),
        ("import feature_platform.views as v\n\nv.bar.price\n", r"mine.py:3: bar.price is unknown"),
        ("x = (\n", r"mine.py:1: SyntaxError"),
        ("1 / 0\n", r"mine.py:1: ZeroDivisionError"),
    ):
        file.write_text(text)
        with pytest.raises(UserError, match=complaint):
            load_views(file)
    with pytest.raises(UserError, match="is not a file of feature views"):
        load_views(tmp_path / "other.py")
    file.write_text(
        "from feature_platform.views import FeatureView, bar\n"
        "a = FeatureView('m', '1 minute', {'x': bar.vol})\n"
        "b = FeatureView('m', '1 hour', {'x': bar.vol})\n"
    )
    with pytest.raises(UserError, match="two views have the name m"):
        load_views(file)
