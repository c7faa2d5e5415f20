"""Compile a feature view to the SQL that keeps it exact.

A view becomes functions, beside the tables of its rows, inner values and cached state:

    reach   which buckets depend on changed minutes of a symbol, by look-ups of existing bars;
    start   from which time on bars are to be read to compute a bucket from bars alone;
    range   the rows of ranges of buckets, from the bars alone, by running sums;
    step    the row of the next bucket of many symbols, from the cached state of the bucket before.

Range and step share the schedule of the expression's nodes and differ in how they compute lags and
windows. All sums are of type numeric, hence exact: both give the same double to the last bit.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import timedelta

from psycopg import sql

from feature_platform.views.expressions import (
    MINUTE,
    SUMMED,
    TWO_ARGUMENTS,
    Bar,
    Call,
    Constant,
    Ema,
    Expression,
    Lag,
    Window,
    walk,
)
from feature_platform.views.plain import aggregate_call, is_integer
from feature_platform.views.view import FeatureView, ema_grid, warm_up

_BRACES = re.compile(r"\{([a-z_][a-z0-9_]*)\}")

# Values of these need no guard: they are values of their arguments, or of a known size.
_IN_RANGE = frozenset({"abs", "sign", "least", "greatest", "where", "ln", "sqrt"})


@dataclass(frozen=True)
class Column:
    """A column of a stage: an SQL text with the columns it reads in braces."""

    name: str
    text: str

    @property
    def reads(self) -> set[str]:
        return set(_BRACES.findall(self.text))


@dataclass
class Stage:
    """One sub-query: the columns that it adds."""

    columns: list[Column] = field(default_factory=list)

    def add(self, name: str, text: str) -> str:
        if all(column.name != name for column in self.columns):
            self.columns.append(Column(name, text))
        return f"{{{name}}}"


def minutes(span: timedelta) -> str:
    """Return a span as an SQL literal; never in days, which follow the session's time zone."""
    return f"interval '{span // MINUTE} minutes'"


@dataclass(frozen=True)
class Term:
    """A sum that windows share: of one value, or of two where both exist.

    kind: n, x or xx for one value; n, x, y, xx, yy or xy for two.
    """

    kind: str
    of: tuple[str, ...]


class Plan:
    """The nodes of a view, numbered, with those whose values are stored.

    inner: nodes whose values are stored for each bucket, as look-ups of earlier buckets need them;
        empty where all look-ups read bars of one minute.
    """

    def __init__(self, view: FeatureView) -> None:
        self.view = view
        self.nodes: dict[str, Expression] = {}
        for expression in view.columns.values():
            for node in walk(expression):
                self.nodes.setdefault(node.key, node)
        self.number = {key: at for at, key in enumerate(self.nodes)}
        looked_up = {
            one.key: one
            for node in self.nodes.values()
            if isinstance(node, Lag | Window)
            for one in node.arguments
            if not isinstance(one, Constant)
        }
        from_bars = view.width == MINUTE and all(isinstance(o, Bar) for o in looked_up.values())
        self.inner: dict[str, Expression] = {} if from_bars else looked_up
        if not from_bars and view.width == MINUTE:
            lags_only = {
                one.key
                for node in self.nodes.values()
                if isinstance(node, Lag) and isinstance(node.of, Bar)
                for one in node.arguments
            }
            windowed = {
                one.key
                for node in self.nodes.values()
                if isinstance(node, Window)
                for one in node.arguments
            }
            for key in lags_only - windowed:  # bars of one minute have it
                del self.inner[key]
        self.windows = [node for node in self.nodes.values() if isinstance(node, Window)]
        self.summed = [node for node in self.windows if node.function in SUMMED]
        self.extremes = [node for node in self.windows if node.function in ("min", "max")]
        self.emas = [node for node in self.nodes.values() if isinstance(node, Ema)]
        # The sums of the cached state: one for each term and span, in this order.
        self.sums: list[tuple[Term, timedelta]] = []
        self.counts: list[tuple[Term, timedelta]] = []
        for node in self.summed:
            for term in self.terms(node).values():
                kept = self.counts if term.kind == "n" else self.sums
                if (term, node.span) not in kept:
                    kept.append((term, node.span))

    def name(self, node: Expression) -> str:
        """Return the column of a node's value before it is brought into range."""
        return node.field if isinstance(node, Bar) else f"n{self.number[node.key]}"

    def value(self, node: Expression) -> str:
        """Return the text of a node's value."""
        if isinstance(node, Constant):
            return f"{node.value!r}::double precision"
        raw = f"{{{self.name(node)}}}"
        return raw if self.in_range(node) else guard(raw)

    def terms(self, node: Window) -> dict[str, Term]:
        """Return the sums that a window needs, by their kind.

        Where a value always exists, the sums of a pair are those of the other value alone.
        """
        of = tuple(one.key for one in node.of)
        if node.function not in TWO_ARGUMENTS:
            kinds = {"count": ("n",), "sum": ("n", "x"), "mean": ("n", "x")}
            found = {kind: Term(kind, of) for kind in kinds.get(node.function, ("n", "x", "xx"))}
            return found if may_be_null(node.of[0]) else found | {"n": Term("n", ())}
        pair = {kind: Term(kind, of) for kind in ("n", "x", "y", "xx", "yy", "xy")}
        x_exists, y_exists = (not may_be_null(one) for one in node.of)
        if y_exists:
            pair |= {"n": Term("n", of[:1]), "x": Term("x", of[:1]), "xx": Term("xx", of[:1])}
        if x_exists:
            pair |= {"n": Term("n", of[1:]), "y": Term("x", of[1:]), "yy": Term("xx", of[1:])}
        if x_exists and y_exists:
            pair["n"] = Term("n", ())
        return pair

    def term_name(self, term: Term) -> str:
        """Return a name of a term, unique in the view."""
        return "_".join([term.kind, *(str(self.number[key]) for key in term.of)])

    def sum_name(self, term: Term, span: timedelta) -> str:
        """Return the column of a term's sum over a span."""
        return f"s{span // MINUTE}_{self.term_name(term)}"

    def term(self, term: Term) -> str:
        """Return the text of a term's part of a bucket, from the columns of exact values."""
        nodes = [self.nodes[key] for key in term.of]
        return term_value(
            term,
            [f"{{d{self.number[node.key]}}}" for node in nodes],
            [f"({self.value(node)}) IS NOT NULL" if may_be_null(node) else "" for node in nodes],
        )

    def in_range(self, node: Expression) -> bool:
        match node:
            case Bar() | Constant() | Lag() | Ema():
                return True
            case Call(function=function):
                return node.is_condition or function in _IN_RANGE
            case Window(function=function):
                return function in ("count", "min", "max", "first", "last")
        return False

    def exact(self, node: Expression) -> str:
        """Return the text of a node's value as a number without rounding."""
        if str(node) == "bar.vol":
            return "{exact_vol}"
        return f"({self.value(node)})::text::numeric"


def guard(raw: str) -> str:
    return f"CASE WHEN abs({raw}) <= 1e130 THEN CASE WHEN abs({raw}) >= 1e-130 THEN {raw} ELSE 0 END END"


def row_text(node: Call, plan: Plan) -> str:
    """Return the text of an operator or function of values of the same bucket."""
    of = [plan.value(one) for one in node.operands]
    of = [f"({one})" if one.startswith("CASE") else one for one in of]
    match node.function:
        case "neg":
            return f"-{of[0]}"
        case "square":
            return f"power({of[0]}, 2)"
        case "not":
            return f"NOT {of[0]}"
        case "/":
            return f"{of[0]} / nullif({of[1]}, 0)"
        case "ln":
            return f"CASE WHEN {of[0]} > 0 THEN ln({of[0]}) END"
        case "sqrt":
            return f"CASE WHEN {of[0]} >= 0 THEN sqrt({of[0]}) END"
        case "exp":
            return f"CASE WHEN {of[0]} > 300 THEN NULL WHEN {of[0]} < -300 THEN 0 ELSE exp({of[0]}) END"
        case "where":
            return f"CASE WHEN {of[0]} THEN {of[1]} ELSE {of[2]} END"
        case "abs" | "sign" | "least" | "greatest":
            return f"{node.function}({', '.join(of)})"
        case operator:
            return f"{of[0]} {operator} {of[1]}"


def add_moments(node: Window, plan: Plan, stage: Stage) -> None:
    """Add the numbers that a window's value is computed from; windows of a span share them."""
    found = {
        kind: f"{{{plan.sum_name(term, node.span)}}}" for kind, term in plan.terms(node).items()
    }
    named = moment_names(node, plan)
    stage.add(named["n"], f"({found['n']})::double precision")
    if node.function == "count":
        return
    spread = {
        "q": "({n} * {xx} - {x} * {x})",
        "qy": "({n} * {yy} - {y} * {y})",
        "p": "({n} * {xy} - {x} * {y})",
    }

    def exact(which: str) -> str:
        text = spread[which]
        for kind, column in found.items():
            text = text.replace(f"{{{kind}}}", column)
        return text

    if node.function == "beta":  # a quotient of numbers beyond the range of a double
        stage.add(named["pn"], exact("p"))
        stage.add(named["yn"], exact("qy"))
    elif node.function in ("corr", "cov"):
        stage.add(named["p"], f"{exact('p')}::double precision")
        if node.function == "corr":
            stage.add(named["q"], f"{exact('q')}::double precision")
            stage.add(named["qy"], f"{exact('qy')}::double precision")
    else:
        stage.add(named["x"], f"({found['x']})::double precision")
        if "xx" in found:
            stage.add(named["q"], f"{exact('q')}::double precision")


def moment_names(node: Window, plan: Plan) -> dict[str, str]:
    """Return the columns of `add_moments`."""
    terms = plan.terms(node)
    span = node.span // MINUTE

    def name(letter: str, kind: str) -> str:
        return f"{letter}{span}_{plan.term_name(terms[kind])}" if kind in terms else ""

    return {
        "n": name("mn", "n"),
        "x": name("mx", "x"),
        "q": name("mq", "xx"),
        "qy": name("mq", "yy"),
        "p": name("mp", "xy"),
        "pn": name("mpn", "xy"),
        "yn": name("mqn", "yy"),
    }


def summed_text(node: Window, plan: Plan) -> str:
    """Return the value of a window from its moments."""
    names = {key: f"{{{name}}}" for key, name in moment_names(node, plan).items()}
    n, x, q, qy, p, pn, yn = names.values()
    if node.function == "count":
        return n
    warm = f"{{bucket}} >= {{first}} + {minutes(warm_up(node, plan.view.width))}"
    deviations = f"(sqrt({q}) * sqrt({qy}))"
    text = {
        "sum": x,
        "mean": f"{x} / {n}",
        "std": f"sqrt({q}) / {n}",
        "var": f"{q} / {n} / {n}",
        "zscore": f"({plan.value(node.of[0])} - {x} / {n}) / nullif(sqrt({q}) / {n}, 0)",
        "cov": f"{p} / {n} / {n}",
        "beta": f"CASE WHEN {yn} = 0 OR abs({pn}) > 1e130 * {yn} THEN NULL"
        f" WHEN abs({pn}) < 1e-130 * {yn} THEN 0"
        f" ELSE {pn}::double precision / {yn}::double precision END",
        "corr": f"CASE WHEN {deviations} = 0 THEN NULL"
        f" WHEN {deviations} >= 1e-150 AND abs({p}) < {deviations} * 1e-130 THEN 0"
        f" ELSE greatest(-1, least(1, {p} / {deviations})) END",
    }[node.function]
    return f"CASE WHEN {warm} AND {n} > 0 THEN {text} END"


class Schedule:
    """The order of the nodes: rounds of row values and rounds of lags and windows."""

    def __init__(self, plan: Plan) -> None:
        self.rounds: list[tuple[str, list[Expression]]] = []
        done = {key for key, node in plan.nodes.items() if isinstance(node, Bar | Constant)}
        left = {key: node for key, node in plan.nodes.items() if key not in done}
        while left:
            ready = {
                key: node
                for key, node in left.items()
                if all(one.key in done for one in node.arguments)
            }
            rows: list[Expression] = [node for node in ready.values() if isinstance(node, Call)]
            kind, nodes = ("row", rows) if rows else ("window", list(ready.values()))
            self.rounds.append((kind, nodes))
            done |= {node.key for node in nodes}
            left = {key: node for key, node in left.items() if key not in done}


def term_value(term: Term, exact: Sequence[str], exists: Sequence[str]) -> str:
    """Return the text of a term's part of one bucket; NULL adds nothing.

    exact: the text of each argument's exact value; exists: of whether it is not NULL, "" for always.
    """
    if term.kind == "n":
        conditions = [one for one in exists if one]
        return f"CASE WHEN {' AND '.join(conditions)} THEN 1 END" if conditions else "1"
    x, y = exact[0], exact[-1]
    value = {"x": x, "y": y, "xx": f"{x} * {x}", "yy": f"{y} * {y}", "xy": f"{x} * {y}"}[term.kind]
    if len(exact) == 1 or term.kind == "xy":
        return value
    other = exists[1] if term.kind in ("x", "xx") else exists[0]
    return f"CASE WHEN {other} THEN {value} END" if other else value


def may_be_null(node: Expression) -> bool:
    return not isinstance(node, Bar | Constant)


def exact_columns(nodes: Iterable[Window], plan: Plan, stage: Stage) -> None:
    """Add the exact value of each argument that is summed."""
    for node in nodes:
        if node.function in SUMMED and node.function != "count":
            for one in node.of:
                stage.add(f"d{plan.number[one.key]}", plan.exact(one))


class Range:
    """The stages that compute ranges of buckets from bars alone."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.stages: list[Stage] = []
        for kind, nodes in Schedule(plan).rounds:
            if kind == "row":
                stage = self._stage()
                for node in nodes:
                    assert isinstance(node, Call)
                    stage.add(plan.name(node), row_text(node, plan))
            else:
                self._windows(nodes)

    def _stage(self) -> Stage:
        self.stages.append(Stage())
        return self.stages[-1]

    def _windows(self, nodes: list[Expression]) -> None:
        plan, width = self.plan, self.plan.view.width
        exact, running, packed, gone, result = Stage(), Stage(), Stage(), Stage(), Stage()
        windows = [node for node in nodes if isinstance(node, Window)]
        exact_columns(windows, plan, exact)
        ordered = "(PARTITION BY {k} ORDER BY {bucket} ROWS UNBOUNDED PRECEDING)"
        # Running sums in one array, of which a frame a span gives those that have left the window.
        spans: dict[timedelta, list[Term]] = {}
        for window in windows:
            if window.function in SUMMED:
                of_span = spans.setdefault(window.span, [])
                of_span += [one for one in plan.terms(window).values() if one not in of_span]
        at = len(self.stages)
        for array, kind, is_count in ((f"pn{at}", "bigint", True), (f"ps{at}", "numeric", False)):
            chosen = dict.fromkeys(
                one for terms in spans.values() for one in terms if (one.kind == "n") is is_count
            )
            if not chosen:
                continue
            places = {term: place for place, term in enumerate(chosen, 1)}
            for term in places:
                running.add(self._running(term), f"sum({plan.term(term)}) OVER {ordered}")
            listed = ", ".join(f"{{{self._running(term)}}}" for term in places)
            packed.add(array, f"ARRAY[{listed}]::{kind}[]")
            for span, terms in spans.items():
                own = [term for term in terms if term in places]
                if not own:
                    continue
                left = f"{array}_{span // MINUTE}"
                gone.add(
                    left,
                    f"last_value({{{array}}}) OVER (PARTITION BY {{k}} ORDER BY {{bucket}}"
                    f" RANGE BETWEEN UNBOUNDED PRECEDING AND {minutes(span)} PRECEDING)",
                )
                for term in own:
                    result.add(
                        plan.sum_name(term, span),
                        f"coalesce({{{self._running(term)}}}, 0)"
                        f" - coalesce(({{{left}}})[{places[term]}], 0)",
                    )
        moments = Stage()
        values = Stage()
        for node in nodes:
            frame = ""
            if isinstance(node, Window):
                frame = (
                    f"(PARTITION BY {{k}} ORDER BY {{bucket}} RANGE BETWEEN"
                    f" {minutes(node.span - width)} PRECEDING AND CURRENT ROW)"
                )
            name = plan.name(node)
            match node:
                case Lag(rows=int() as rows):
                    running.add(
                        name,
                        f"lag({plan.value(node.of)}, {rows}) OVER"
                        " (PARTITION BY {k} ORDER BY {bucket})",
                    )
                case Lag(span=timedelta() as span):
                    gone.add(
                        name,
                        f"last_value({plan.value(node.of)}) OVER (PARTITION BY {{k}} ORDER BY {{bucket}}"
                        f" RANGE BETWEEN UNBOUNDED PRECEDING AND {minutes(span)} PRECEDING)",
                    )
                case Ema():
                    self._ema(node, exact, running, result)
                case Window(function="min" | "max"):
                    self._extreme(node, exact, running, gone, result, frame)
                case Window(function="first" | "last"):
                    gone.add(
                        f"a{plan.number[node.key]}",
                        f"array_agg({plan.value(node.of[0])})"
                        f" FILTER (WHERE ({plan.value(node.of[0])}) IS NOT NULL) OVER {frame}",
                    )
                    array = f"{{a{plan.number[node.key]}}}"
                    which = "1" if node.function == "first" else f"cardinality({array})"
                    result.add(name, self._warm(node, f"({array})[{which}]"))
                case Window(function="aggregate"):
                    gone.add(
                        f"a{plan.number[node.key]}",
                        f"array_agg({plan.value(node.of[0])})"
                        f" FILTER (WHERE ({plan.value(node.of[0])}) IS NOT NULL) OVER {frame}",
                    )
                    call = aggregate_call(node.aggregate or "").as_string()
                    result.add(
                        name,
                        self._warm(
                            node,
                            f"(SELECT {call} FROM unnest({{a{plan.number[node.key]}}})"
                            " WITH ORDINALITY AS u (value, place))",
                        ),
                    )
                case Window():
                    add_moments(node, plan, moments)
                    values.add(name, summed_text(node, plan))
        for stage in (exact, running, packed, gone, result, moments, values):
            if stage.columns:
                self.stages.append(stage)

    def _running(self, term: Term) -> str:
        return f"r_{self.plan.term_name(term)}"

    def _warm(self, node: Window | Ema, text: str) -> str:
        warm = minutes(warm_up(node, self.plan.view.width))
        return f"CASE WHEN {{bucket}} >= {{first}} + {warm} THEN {text} END"

    def _extreme(
        self, node: Window, exact: Stage, running: Stage, gone: Stage, result: Stage, frame: str
    ) -> None:
        """Add the extremes of span-long blocks: van Herk's prefix and suffix of each block."""
        at, value = self.plan.number[node.key], self.plan.value(node.of[0])
        seconds = node.span // MINUTE * 60
        block = exact.add(
            f"b{seconds}", f"floor(extract(epoch FROM {{bucket}}) / {seconds})::bigint"
        )
        call = f"{node.function}({value}) OVER (PARTITION BY {{k}}, {block} ORDER BY {{bucket}}"
        running.add(f"pre{at}", f"{call} ROWS UNBOUNDED PRECEDING)")
        running.add(f"suf{at}", f"{call} DESC ROWS UNBOUNDED PRECEDING)")
        gone.add(f"fs{at}", f"first_value({{suf{at}}}) OVER {frame}")
        gone.add(f"fb{at}", f"first_value({block}) OVER {frame}")
        better = "least" if node.function == "min" else "greatest"
        text = (
            f"CASE WHEN {{fb{at}}} = {block} THEN {{pre{at}}}"
            f" ELSE {better}({{pre{at}}}, {{fs{at}}}) END"
        )
        result.add(self.extreme_name(node), text)
        result.add(self.plan.name(node), self._warm(node, text))

    def extreme_name(self, node: Window) -> str:
        return f"e{self.plan.number[node.key]}"

    def _ema(self, node: Ema, exact: Stage, running: Stage, result: Stage) -> None:
        at, value = self.plan.number[node.key], self.plan.value(node.of)
        grid = ema_grid(node.span, self.plan.view.width) // MINUTE * 60
        block = exact.add(f"b{grid}", f"floor(extract(epoch FROM {{bucket}}) / {grid})::bigint")
        call = (
            f"feature_platform.ema_run({value}, extract(epoch FROM {{bucket}})::double precision,"
            f" {base_text(node, self.plan)}) OVER (PARTITION BY {{k}},"
        )
        tail = "ORDER BY {bucket} ROWS UNBOUNDED PRECEDING)"
        running.add(f"even{at}", f"{call} {block} >> 1 {tail}")
        running.add(f"odd{at}", f"{call} ({block} + 1) >> 1 {tail}")
        used, other = f"{{even{at}}}", f"{{odd{at}}}"
        result.add(f"used{at}", f"CASE WHEN {block} & 1 = 1 THEN {used} ELSE {other} END")
        result.add(f"next{at}", f"CASE WHEN {block} & 1 = 1 THEN {other} ELSE {used} END")
        result.add(
            self.plan.name(node),
            self._warm(node, f"(CASE WHEN {block} & 1 = 1 THEN {used} ELSE {other} END)[1]"),
        )


def base_text(node: Ema, plan: Plan) -> str:
    """Return the weight of a bucket's predecessor and the bar width, as arguments of ema_run."""
    base = 1 - 2 / (node.span / plan.view.width + 1)
    return f"{base!r}::double precision, {plan.view.width // MINUTE * 60}::double precision"


def render(
    stages: list[Stage], carried: set[str], wanted: set[str], first: str
) -> tuple[str, str, set[str]]:
    """Return the stages as a chain of named sub-queries, the name of the last, and the columns that
    the first reads.

    carried: columns of the relation `first`, which the first stage reads.
    wanted: columns of the last stage.
    """
    needed: list[set[str]] = []
    after = set(wanted)
    for stage in reversed(stages):
        stage.columns = [column for column in stage.columns if column.name in after]
        needed.append(after - {column.name for column in stage.columns})
        after = needed[-1] | {one for column in stage.columns for one in column.reads}
    missing = after - carried
    if missing:
        raise AssertionError(f"no stage computes {sorted(missing)}")
    parts, before = [], first
    for at, (stage, kept) in enumerate(zip(stages, reversed(needed), strict=True), 1):
        if not stage.columns:
            continue
        columns = [f"{{{name}}}" for name in sorted(kept)]
        columns += [f"{column.text} AS {{{column.name}}}" for column in stage.columns]
        listed = ",\n           ".join(columns)
        parts.append(f"s{at} AS (\n    SELECT {listed}\n    FROM {before} OFFSET 0\n)")
        before = f"s{at}"
    return ",\n".join(parts), before, after


# The cached states that a symbol keeps: a correction of one of its last buckets begins from the
# state before it, not from the bars of the whole look-back.
STATES = 8

_BAR_TEXT = {  # of a minute that is one row, b
    "open": "b.open",
    "high": "b.high",
    "low": "b.low",
    "close": "b.close",
    "vol": "b.vol + 0.0",  # a negative zero is a zero
    "exact_vol": "b.vol::text::numeric",
    "vwap": "CASE WHEN b.vol > 0 THEN ((b.open + b.high + b.low + b.close) / 4 * b.vol) / b.vol"
    " ELSE (b.open + b.high + b.low + b.close) / 4 END",
    "n": "1::double precision",
}
_GROUP_TEXT = {  # of a bucket with several rows
    "open": "(array_agg(b.open ORDER BY b.ts))[1]",
    "high": "max(b.high)",
    "low": "min(b.low)",
    "close": "(array_agg(b.close ORDER BY b.ts DESC))[1]",
    "vol": "sum(b.vol::text::numeric)::double precision",
    "exact_vol": "sum(b.vol::text::numeric)",
    "vwap": "CASE WHEN max(b.vol) > 0"
    " THEN sum((b.open + b.high + b.low + b.close) / 4 * b.vol ORDER BY b.ts) / sum(b.vol ORDER BY b.ts)"
    " ELSE avg((b.open + b.high + b.low + b.close) / 4 ORDER BY b.ts) END",
    "n": "count(DISTINCT feature_platform.bucket_of(b.ts))::double precision",
}


class Step:
    """The stages that compute the next bucket of many symbols from cached state.

    looked_up: the look-ups of earlier buckets, as LATERAL sub-queries of the first relation.
    """

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.stages: list[Stage] = []
        self.looked_up: list[str] = []
        self.columns: set[str] = set()
        self._leaving()
        for kind, nodes in Schedule(plan).rounds:
            if kind == "row":
                stage = Stage()
                for node in nodes:
                    assert isinstance(node, Call)
                    stage.add(plan.name(node), row_text(node, plan))
                self.stages.append(stage)
            else:
                self._round(nodes)

    def _from(self, lo: str, hi: str, lo_sign: str, hi_sign: str, look: timedelta) -> str:
        """Return FROM and WHERE of the earlier buckets between two times."""
        plan = self.plan
        relation, time = ("public.ohlcv_1m", "ts") if not plan.inner else ("$inner$", "bucket")
        back = minutes(look)
        return (
            f"FROM {relation} b WHERE b.symbol = r.symbol AND b.{time} {lo_sign} {lo}"
            f" AND b.{time} {hi_sign} {hi}"
            f" AND b.{time} >= reads_from - {back} AND b.{time} < reads_until"
        )

    def _value(self, node: Expression) -> str:
        """Return the text of a node's value in a row b of earlier buckets."""
        if isinstance(node, Constant):
            return self.plan.value(node)
        if self.plan.inner and node.key in self.plan.inner:
            column = f"b.x{self.plan.number[node.key]}"
            return f"{column}::double precision" if str(node) == "bar.vol" else column
        assert isinstance(node, Bar)
        return f"({_BAR_TEXT[node.field]})"

    def _exact(self, node: Expression) -> str:
        if str(node) == "bar.vol":
            return f"b.x{self.plan.number[node.key]}" if self.plan.inner else "b.vol::text::numeric"
        return f"({self._value(node)})::text::numeric"

    def _leaving(self) -> None:
        """Look up the values that leave each window, in one scan a span."""
        plan = self.plan
        spans: dict[timedelta, list[Term]] = {}
        for term, span in [*plan.sums, *plan.counts]:
            spans.setdefault(span, []).append(term)
        for span, of_span in spans.items():
            columns = []
            for term in of_span:
                nodes = [plan.nodes[key] for key in term.of]
                text = term_value(
                    term,
                    [self._exact(node) for node in nodes],
                    [
                        f"{self._value(node)} IS NOT NULL" if may_be_null(node) else ""
                        for node in nodes
                    ],
                )
                name = f"l{plan.sum_name(term, span)}"
                self.columns.add(name)
                columns.append(f"sum({text}) AS {name}")
            back = minutes(span)
            where = self._from(f"r.at - {back}", f"r.bucket - {back}", ">", "<=", span)
            self.looked_up.append(f"SELECT {', '.join(columns)} {where} OFFSET 0")

    def _round(self, nodes: list[Expression]) -> None:
        plan = self.plan
        exact, total, moments, values = Stage(), Stage(), Stage(), Stage()
        windows = [node for node in nodes if isinstance(node, Window)]
        exact_columns(windows, plan, exact)
        for window in windows:
            if window.function in SUMMED:
                for term in plan.terms(window).values():
                    column = plan.sum_name(term, window.span)
                    kept, array = (
                        (plan.counts, "counts") if term.kind == "n" else (plan.sums, "sums")
                    )
                    place = kept.index((term, window.span)) + 1
                    total.add(
                        column,
                        f"({{{array}}})[{place}] + coalesce({plan.term(term)}, 0)"
                        f" - coalesce({{l{column}}}, 0)",
                    )
        for node in nodes:
            name = plan.name(node)
            match node:
                case Lag():
                    self._lag(node)
                case Ema():
                    self._ema(node, exact, total, values)
                case Window(function="min" | "max"):
                    self._extreme(node, exact, total)
                case Window(function="first" | "last" | "aggregate"):
                    self._scan(node, exact, total)
                case Window():
                    add_moments(node, plan, moments)
                    values.add(name, summed_text(node, plan))
        for stage in (exact, total, moments, values):
            if stage.columns:
                self.stages.append(stage)

    def _warm(self, node: Window | Ema, text: str) -> str:
        warm = minutes(warm_up(node, self.plan.view.width))
        return f"CASE WHEN {{bucket}} >= {{first}} + {warm} THEN {text} END"

    def _lag(self, node: Lag) -> None:
        plan = self.plan
        name = plan.name(node)
        self.columns.add(name)
        of = node.of
        if isinstance(of, Constant):
            value, stored = plan.value(of), False
        else:
            stored = of.key in plan.inner
            value = self._value(of)
        relation, time = ("$inner$", "bucket") if stored else ("public.ohlcv_1m", "ts")
        if isinstance(of, Constant) and plan.inner:
            relation, time = "$inner$", "bucket"
        where = f"b.symbol = r.symbol AND b.{time} < reads_until AND b.{time} "
        if node.span is not None:
            tail = f"{where}<= r.bucket - {minutes(node.span)} ORDER BY b.{time} DESC LIMIT 1"
        else:
            tail = f"{where}< r.bucket ORDER BY b.{time} DESC OFFSET {(node.rows or 1) - 1} LIMIT 1"
        self.looked_up.append(
            f"SELECT (SELECT {value} FROM {relation} b WHERE {tail}) AS {name} OFFSET 0"
        )

    def _extreme(self, node: Window, exact: Stage, total: Stage) -> None:
        """Keep the extreme and its bucket; scan the window only when that bucket has left it."""
        plan, at = self.plan, self.plan.number[node.key]
        place = [one.key for one in plan.extremes].index(node.key) + 1
        better, order = ("<=", "ASC") if node.function == "min" else (">=", "DESC")
        back = minutes(node.span)
        stored = self._value(node.of[0])
        where = self._from(f"r.bucket - {back}", "r.bucket", ">", "<", node.span)
        time = "bucket" if plan.inner else "ts"
        self.looked_up.append(
            f"SELECT (found).value AS ov{at}, (found).place AS op{at} FROM (SELECT CASE"
            f" WHEN (r.extreme_at)[{place}] > r.bucket - {back}"
            f" THEN ROW((r.extremes)[{place}], (r.extreme_at)[{place}])::feature_platform.view_extreme"
            f" ELSE (SELECT ROW({stored}, b.{time})::feature_platform.view_extreme {where}"
            f" AND {stored} IS NOT NULL ORDER BY {stored} {order}, b.{time} DESC LIMIT 1) END AS found"
            " OFFSET 0) AS o"
        )
        self.columns |= {f"ov{at}", f"op{at}"}
        new = exact.add(f"v{at}", plan.value(node.of[0]))
        wins = f"{{ov{at}}} IS NULL OR {new} {better} {{ov{at}}}"
        total.add(
            f"e{at}", f"CASE WHEN {wins} THEN coalesce({new}, {{ov{at}}}) ELSE {{ov{at}}} END"
        )
        total.add(
            f"p{at}",
            f"CASE WHEN {new} IS NOT NULL AND ({wins}) THEN {{bucket}} ELSE {{op{at}}} END",
        )
        total.add(
            plan.name(node),
            self._warm(
                node,
                f"CASE WHEN {wins} THEN coalesce({new}, {{ov{at}}}) ELSE {{ov{at}}} END",
            ),
        )

    def _scan(self, node: Window, exact: Stage, total: Stage) -> None:
        plan, at = self.plan, self.plan.number[node.key]
        stored, back = self._value(node.of[0]), minutes(node.span)
        time = "bucket" if plan.inner else "ts"
        where = self._from(f"r.bucket - {back}", "r.bucket", ">", "<", node.span)
        if node.function == "aggregate":
            picked = (
                f"array_agg({stored} ORDER BY b.{time}) AS a{at} {where} AND {stored} IS NOT NULL"
            )
        else:
            order = "" if node.function == "first" else " DESC"
            picked = (
                f"(SELECT {stored} {where} AND {stored} IS NOT NULL"
                f" ORDER BY b.{time}{order} LIMIT 1) AS a{at}"
            )
        self.columns.add(f"a{at}")
        self.looked_up.append(f"SELECT {picked} OFFSET 0")
        new = exact.add(f"v{at}", plan.value(node.of[0]))
        if node.function == "first":
            text = f"coalesce({{a{at}}}, {new})"
        elif node.function == "last":
            text = f"coalesce({new}, {{a{at}}})"
        else:
            call = aggregate_call(node.aggregate or "").as_string()
            text = (
                f"(SELECT {call} FROM unnest({{a{at}}} || CASE WHEN {new} IS NOT NULL"
                f" THEN ARRAY[{new}] END) WITH ORDINALITY AS u (value, place))"
            )
        total.add(plan.name(node), self._warm(node, text))

    def _ema(self, node: Ema, exact: Stage, total: Stage, values: Stage) -> None:
        plan, at = self.plan, self.plan.number[node.key]
        first = 4 * [one.key for one in plan.emas].index(node.key) + 1
        grid = ema_grid(node.span, plan.view.width) // MINUTE * 60
        block = exact.add(
            f"m{grid}",
            f"floor(extract(epoch FROM {{bucket}}) / {grid})::bigint"
            f" - floor(extract(epoch FROM {{at}}) / {grid})::bigint",
        )
        new = exact.add(f"v{at}", plan.value(node.of))
        when = exact.add("epoch", "extract(epoch FROM {bucket})::double precision")
        base = base_text(node, plan)
        none = "NULL::double precision[]"
        used = f"({{emas}})[{first}:{first + 1}]"
        after = f"({{emas}})[{first + 2}:{first + 3}]"
        total.add(
            f"used{at}",
            f"feature_platform.ema_next(CASE {block} WHEN 0 THEN {used} WHEN 1 THEN {after}"
            f" ELSE {none} END, {new}, {when}, {base})",
        )
        total.add(
            f"next{at}",
            f"feature_platform.ema_next(CASE {block} WHEN 0 THEN {after} ELSE {none} END,"
            f" {new}, {when}, {base})",
        )
        values.add(plan.name(node), self._warm(node, f"({{used{at}}})[1]"))


def state_columns(plan: Plan, *, has_places: bool) -> list[tuple[str, str]]:
    """Return the columns of the cached state and the text of each, at one bucket."""
    found = []

    for array, kept, kind in (("sums", plan.sums, "numeric"), ("counts", plan.counts, "bigint")):
        if kept:
            listed = ", ".join(f"{{{plan.sum_name(term, span)}}}" for term, span in kept)
            found.append((array, f"ARRAY[{listed}]::{kind}[]"))
    if plan.extremes:
        numbers = [plan.number[node.key] for node in plan.extremes]
        values = ", ".join(f"{{e{at}}}" for at in numbers)
        places = ", ".join(f"{{p{at}}}" if has_places else "NULL" for at in numbers)
        found.append(("extremes", f"ARRAY[{values}]::double precision[]"))
        found.append(("extreme_at", f"ARRAY[{places}]::timestamptz[]"))
    if plan.emas:
        parts = [
            f"({{{which}{plan.number[node.key]}}})[{place}]"
            for node in plan.emas
            for which in ("used", "next")
            for place in (1, 2)
        ]
        found.append(("emas", f"ARRAY[{', '.join(parts)}]::double precision[]"))
    return found


def outputs(plan: Plan) -> list[tuple[str, str]]:
    """Return the view's columns and the text of each."""
    found = []
    for name, expression in plan.view.columns.items():
        text = plan.value(expression)
        if is_integer(expression):
            text = f"({text})::integer"
        found.append((sql.Identifier(name).as_string(), text))
    return found


def inner_columns(plan: Plan) -> list[tuple[str, str]]:
    """Return the columns of the inner values and the text of each."""
    return [
        (
            f"x{plan.number[key]}",
            "{exact_vol}" if str(node) == "bar.vol" else plan.value(node),
        )
        for key, node in plan.inner.items()
    ]


BAR_COLUMNS = frozenset(_BAR_TEXT)


def bar_relation(plan: Plan, fields: set[str], *, ticks: str) -> str:
    """Return the bars of one item r, by bucket; fields: the columns that are read."""
    single = ", ".join(f"{_BAR_TEXT[one]} AS {one}" for one in sorted(fields))
    several = ", ".join(f"{_GROUP_TEXT[one]} AS {one}" for one in sorted(fields))
    bounds = (
        "b.symbol = r.symbol AND b.ts >= r.start AND b.ts < r.hi"
        " AND b.ts >= reads_from AND b.ts < reads_until"
    )
    grouped = (
        f"SELECT {bin_text(plan.view, 'b.ts')} AS bucket{', ' if several else ''}{several}\n"
        f"        FROM public.ohlcv_1m b WHERE {bounds}"
    )
    if plan.view.width != MINUTE:
        return f"{grouped} GROUP BY 1"
    return (
        f"SELECT b.ts AS bucket{', ' if single else ''}{single}\n"
        f"        FROM public.ohlcv_1m b WHERE NOT {ticks} AND {bounds}\n"
        f"        UNION ALL\n        {grouped} AND {ticks} GROUP BY 1"
    )


def bin_text(view: FeatureView, time: str) -> str:
    """Return the bucket of a time."""
    if view.width == MINUTE:
        return f"feature_platform.bucket_of({time})"
    return f"date_bin({minutes(view.width)}, {time}, {origin_text(view)})"


def origin_text(view: FeatureView) -> str:
    return f"(timestamptz '1970-01-01 00:00:00+00' + {minutes(view.shift)})"


_SETTINGS = """LANGUAGE plpgsql
    SET search_path = pg_catalog, pg_temp
    SET extra_float_digits = 1                  -- from 1 on, double -> text -> numeric loses nothing
    SET jit = off"""


def compiled(view: FeatureView, number: int) -> str:
    """Return the SQL that keeps a view exact: its tables and its functions.

    number: of the version, which begins their names in the schema feature_views: "v7_rows".
    """
    prefix = f"v{number}"
    table = f"feature_views.{prefix}_rows"
    return "\n".join(
        part.replace("$inner$", f"feature_views.{prefix}_inner")
        for part in (
            _tables(Plan(view), prefix, table),
            _reach(Plan(view), prefix),
            _start(Plan(view), prefix),
            _range(Plan(view), prefix, table),
            _step(Plan(view), prefix, table),
        )
    )


def has_inner(view: FeatureView) -> bool:
    """Return whether values of earlier buckets are stored, for windows and lags."""
    return bool(Plan(view).inner)


def _tables(plan: Plan, prefix: str, table: str) -> str:
    columns = "".join(
        f"    {sql.Identifier(name).as_string()} {'integer' if is_integer(one) else 'double precision'},\n"
        for name, one in plan.view.columns.items()
    )
    inner = "".join(
        f"    x{plan.number[key]} {'numeric' if str(node) == 'bar.vol' else 'double precision'},\n"
        for key, node in plan.inner.items()
    )
    text = f"""
CREATE TABLE IF NOT EXISTS {table} (
    symbol text COLLATE "C" NOT NULL,
    bucket timestamptz NOT NULL,
{columns}    CONSTRAINT {prefix}_rows_pkey PRIMARY KEY (symbol, bucket)
);
CREATE INDEX IF NOT EXISTS {prefix}_rows_bucket_idx ON {table} (bucket DESC);
CREATE TABLE IF NOT EXISTS feature_views.{prefix}_state (
    symbol text COLLATE "C" NOT NULL,
    slot smallint NOT NULL,
    bucket timestamptz NOT NULL,
    sums numeric[],
    counts bigint[],
    extremes double precision[],
    extreme_at timestamptz[],
    emas double precision[],
    PRIMARY KEY (symbol, slot)
) WITH (fillfactor = 50, autovacuum_vacuum_scale_factor = 0.0, autovacuum_vacuum_threshold = 5000);
"""
    if plan.inner:
        text += f"""
CREATE TABLE IF NOT EXISTS feature_views.{prefix}_inner (
    symbol text COLLATE "C" NOT NULL,
    bucket timestamptz NOT NULL,
{inner}    PRIMARY KEY (symbol, bucket)
);
"""
    return text


# How a value depends on earlier buckets, one step from an expression to its argument: a window of a
# span, so many rows, a span and the newest row at or before it, the anchors of a mean.
Path = tuple[tuple[str, int], ...]


def paths(plan: Plan) -> list[Path]:
    """Return how the nodes of a view depend on bars, from the bar to the node; spans in minutes.

    Paths of the same form that differ in their windows only are one, with the longest windows.
    """
    width = plan.view.width
    of_node: dict[str, set[Path]] = {}
    for key, node in plan.nodes.items():
        # Each value also depends on its own bucket: whether there is one.
        below = {path for one in node.arguments for path in of_node[one.key]} | {()}
        step: tuple[str, int] | None = None
        match node:
            case Window(span=span):
                step = ("window", (span - width) // MINUTE)
            case Lag(rows=int() as rows):
                step = ("rows", rows)
            case Lag(span=timedelta() as span):
                step = ("span", span // MINUTE)
            case Ema(span=span):
                step = ("anchor", ema_grid(span, width) // MINUTE)
        of_node[key] = {_joined(path, step) for path in below} if step else below
    longest: dict[tuple[object, ...], Path] = {}
    for path in {path for found in of_node.values() for path in found}:
        form = tuple(kind if kind == "window" else (kind, number) for kind, number in path)
        known = longest.get(form, path)
        longest[form] = tuple(
            (kind, max(number, other))
            for (kind, number), (_, other) in zip(path, known, strict=True)
        )
    return sorted(longest.values())


def _joined(path: Path, step: tuple[str, int]) -> Path:
    if path and path[-1][0] == step[0] == "window":
        return (*path[:-1], ("window", path[-1][1] + step[1]))
    return (*path, step)


def _reach(plan: Plan, prefix: str) -> str:
    view = plan.view
    width = view.width // MINUTE
    parts = []
    for path in paths(plan):
        lo, hi = "c.lo", "c.hi"
        for kind, number in path:
            span = f"interval '{number} minutes'"
            match kind:
                case "window":
                    hi = f"{hi} + {span}"
                case "rows":
                    lo = f"{lo} + interval '{width} minutes'"
                    hi = f"feature_platform.bucket_after(of_symbol, {hi}, {number}, {_grid(view)}, last_bucket)"
                case "span":
                    lo = f"{lo} + {span}"
                    hi = (
                        f"feature_platform.bucket_after(of_symbol, {hi}, 1, {_grid(view)}, last_bucket)"
                        f" + interval '{number - width} minutes'"
                    )
                case "anchor":
                    hi = (
                        f"to_timestamp((floor(extract(epoch FROM {hi}) / {number * 60}) + 2)"
                        f" * {number * 60}) - interval '{width} minutes'"
                    )
        parts.append(
            f"SELECT tstzrange({lo}, least({hi}, last_bucket) + interval '{width} minutes') AS r"
            f" FROM changed_bucket c WHERE {lo} <= least({hi}, last_bucket)"
        )
    return f"""
-- Which buckets of a symbol depend on its bars in these minutes, up to its last bucket.
CREATE OR REPLACE FUNCTION feature_views.{prefix}_reach(
    of_symbol text, changed tstzmultirange, last_bucket timestamptz) RETURNS tstzmultirange
    LANGUAGE sql STABLE
BEGIN ATOMIC
    WITH changed_bucket AS MATERIALIZED (
        SELECT {bin_text(view, "lower(r)")} AS lo,
               {bin_text(view, "upper(r) - interval '1 microsecond'")} AS hi
        FROM unnest(changed) AS r
    )
    SELECT coalesce(range_agg(reached.r), '{{}}') FROM (
        {" UNION ALL ".join(parts)}
    ) AS reached;
END;
"""


def _grid(view: FeatureView) -> str:
    return f"{minutes(view.width)}, {origin_text(view)}"


def _start(plan: Plan, prefix: str) -> str:
    view = plan.view
    starts = set()
    for path in paths(plan):
        at = "wanted"
        for kind, number in reversed(path):
            span = f"interval '{number} minutes'"
            match kind:
                case "window":
                    at = f"{at} - {span}"
                case "rows":
                    at = f"feature_platform.bucket_before(of_symbol, {at}, {number}, {_grid(view)})"
                case "span":
                    at = (
                        f"feature_platform.bucket_before(of_symbol, {at} - {span}"
                        f" + {minutes(view.width)}, 1, {_grid(view)})"
                    )
                case "anchor":
                    at = (
                        f"to_timestamp((floor(extract(epoch FROM {at}) / {number * 60}) - 1)"
                        f" * {number * 60})"
                    )
        starts.add(at)
    return f"""
-- From which time on the bars are to be read, to compute a bucket from bars alone.
CREATE OR REPLACE FUNCTION feature_views.{prefix}_start(of_symbol text, wanted timestamptz) RETURNS timestamptz
    LANGUAGE sql STABLE
    RETURN least({", ".join(sorted(starts))});
"""


def _stored(plan: Plan, prefix: str, table: str, relation: str, *, has_places: bool) -> str:
    """Return the sub-queries that store rows, inner values and states of the relation."""
    names = [name for name, _ in outputs(plan)]
    text = f"""stored AS (
    INSERT INTO {table} AS f (symbol, bucket, {", ".join(names)})
    SELECT c.symbol, c.bucket, {", ".join(f"c.o{at}" for at in range(len(names)))} FROM {relation} c
    ON CONFLICT (symbol, bucket) DO UPDATE
    SET {", ".join(f"{name} = excluded.{name}" for name in names)}
    WHERE ({", ".join(f"f.{name}" for name in names)}) IS DISTINCT FROM
          ({", ".join(f"excluded.{name}" for name in names)})
    RETURNING 1
)"""
    if plan.inner:
        inner = [name for name, _ in inner_columns(plan)]
        text += f""", inner_stored AS (
    INSERT INTO feature_views.{prefix}_inner AS f (symbol, bucket, {", ".join(inner)})
    SELECT c.symbol, c.bucket, {", ".join(f"c.{name}" for name in inner)} FROM {relation} c
    ON CONFLICT (symbol, bucket) DO UPDATE
    SET {", ".join(f"{name} = excluded.{name}" for name in inner)}
    WHERE ({", ".join(f"f.{name}" for name in inner)}) IS DISTINCT FROM
          ({", ".join(f"excluded.{name}" for name in inner)})
)"""
    state = [name for name, _ in state_columns(plan, has_places=has_places)]
    names_text = "".join(f", {name}" for name in state)
    seconds = plan.view.width // MINUTE * 60
    shift = plan.view.shift // MINUTE * 60
    text += f""", state_stored AS (
    INSERT INTO feature_views.{prefix}_state AS s (symbol, slot, bucket{names_text})
    SELECT c.symbol, ((extract(epoch FROM c.bucket) - {shift}) / {seconds})::bigint % {STATES}, c.bucket{"".join(f", c.st_{name}" for name in state)}
    FROM {relation} c WHERE c.keeps_state
    ON CONFLICT (symbol, slot) DO UPDATE
    SET bucket = excluded.bucket{"".join(f", {name} = excluded.{name}" for name in state)}
)"""
    return text


def _computed(plan: Plan, before: str, keeps: str, *, has_places: bool, more: str = "") -> str:
    columns = ["until"] if has_places else []
    # Names of their own, because a column may be named like anything in here.
    columns += [f"{text} AS o{at}" for at, (_, text) in enumerate(outputs(plan))]
    columns += [f"{text} AS {name}" for name, text in inner_columns(plan)]
    columns += [
        f"CASE WHEN {keeps} THEN {text} END AS st_{name}"
        for name, text in state_columns(plan, has_places=has_places)
    ]
    return f"""computed AS MATERIALIZED (
    SELECT symbol, bucket, {keeps} AS keeps_state, {", ".join(columns)}
    FROM {before} {more}
)"""


def _wanted(plan: Plan, *, has_places: bool) -> set[str]:
    texts = [text for _, text in outputs(plan)]
    texts += [text for _, text in inner_columns(plan)]
    texts += [text for _, text in state_columns(plan, has_places=has_places)]
    return {one for text in texts for one in _BRACES.findall(text)}


def _plain(text: str) -> str:
    """Return the text with its columns in braces as plain names."""
    return _BRACES.sub(lambda match: match[1], text)


# By the snapshot that reads the bars.
_HAS_TICKS = """, EXISTS (
        SELECT FROM public.ohlcv_1m b
        WHERE b.symbol = i.symbol AND b.ts >= i.start AND b.ts < i.hi AND b.ts >= reads_from AND b.ts < reads_until
          AND b.ts <> date_bin('1 minute', b.ts, '1970-01-01 00:00:00+00')) AS has_ticks"""


def _range(plan: Plan, prefix: str, table: str) -> str:
    stages = Range(plan).stages
    always = {"k", "symbol", "lo", "first", "state_from", "bucket"}
    wanted = _wanted(plan, has_places=False) | always
    chain, last, fields = render(stages, always | BAR_COLUMNS, wanted, "bar")
    keeps = "bucket >= state_from"
    ticks = _HAS_TICKS if plan.view.width == MINUTE else ""
    body = ",\n".join(
        [
            f"""item AS MATERIALIZED (
    SELECT i.*{ticks}
    FROM unnest(items) WITH ORDINALITY AS i (symbol, lo, hi, start, first, state_from, k)
), bar AS (
    SELECT r.k, r.symbol, r.lo, r.first, r.state_from, b.*
    FROM item r
    CROSS JOIN LATERAL (
        {bar_relation(plan, fields & BAR_COLUMNS, ticks="r.has_ticks")}
    ) AS b
)""",
            *([chain] if chain else []),
            _computed(plan, last, keeps, has_places=False, more="WHERE bucket >= lo"),
            _stored(plan, prefix, table, "computed", has_places=False),
        ]
    )
    return _plain(f"""
-- The rows of these ranges from the bars alone; returns how many differed from what was stored.
CREATE OR REPLACE FUNCTION feature_views.{prefix}_range(items feature_platform.view_item[]) RETURNS bigint
    {_SETTINGS}
    SET plan_cache_mode = force_custom_plan
    SET work_mem = '64MB'
AS $$
#variable_conflict use_column
DECLARE
    reads_from CONSTANT timestamptz := (SELECT min(i.start) FROM unnest(items) AS i);
    reads_until CONSTANT timestamptz := (SELECT max(i.hi) FROM unnest(items) AS i);
    written bigint;
BEGIN
    WITH {body}
    SELECT count(*) INTO written FROM stored;
    RETURN written;
END
$$;
""")


def _step(plan: Plan, prefix: str, table: str) -> str:
    step = Step(plan)
    state = [name for name, _ in state_columns(plan, has_places=True)]
    always = {"symbol", "first", "bucket", "until"}
    carried = always | BAR_COLUMNS | step.columns | {"at", *state}
    wanted = _wanted(plan, has_places=True) | always
    chain, last, read = render(step.stages, carried, wanted, "bar")
    fields = sorted(read & BAR_COLUMNS)
    view = plan.view
    text = _BAR_TEXT if view.width == MINUTE else _GROUP_TEXT
    columns = ", ".join(f"{text[one]} AS {one}" for one in fields) or "1 AS one"
    look_ups = "".join(
        f"\n    CROSS JOIN LATERAL ({look_up}) AS l{at}"
        for at, look_up in enumerate(step.looked_up)
    )
    body = ",\n".join(
        [
            f"""asked AS (
    SELECT * FROM unnest(symbols, ats, untils, firsts) AS a (symbol, at, until, first)
), r AS MATERIALIZED (
    SELECT a.symbol, a.at, a.first, a.until, next.bucket{"".join(f", s.{name}" for name in state)}
    FROM asked a
    JOIN feature_views.{prefix}_state s ON s.symbol = a.symbol AND s.bucket = a.at
    CROSS JOIN LATERAL (
        SELECT {bin_text(view, "b.ts")} AS bucket FROM public.ohlcv_1m b
        WHERE b.symbol = a.symbol AND b.ts >= a.at + {minutes(view.width)} AND b.ts < a.until
          AND b.ts >= reads_from AND b.ts < reads_until
        ORDER BY b.ts LIMIT 1
    ) AS next
    WHERE NOT EXISTS (SELECT FROM feature_platform.dirty_log l
                      WHERE l.symbol = a.symbol AND NOT l.reach_known AND lower(l.buckets) < a.until)
    OFFSET 0
), bar AS (
    SELECT r.*, b.*{"".join(f", l{at}.*" for at in range(len(step.looked_up)))}
    FROM r
    CROSS JOIN LATERAL (
        SELECT {columns} FROM public.ohlcv_1m b
        WHERE b.symbol = r.symbol AND b.ts >= r.bucket AND b.ts < r.bucket + {minutes(view.width)}
          AND b.ts >= reads_from AND b.ts < reads_until OFFSET 0
    ) AS b{look_ups}
)""",
            *([chain] if chain else []),
            _computed(plan, last, "true", has_places=True),
            _stored(plan, prefix, table, "computed", has_places=True),
        ]
    )
    return _plain(f"""
-- The row of the next bucket of these symbols, from the state of the bucket before it. A symbol with
-- an unprocessed mark is skipped: its state may lack the change that the look-ups see.
CREATE OR REPLACE FUNCTION feature_views.{prefix}_step(
    symbols text[], ats timestamptz[], untils timestamptz[], firsts timestamptz[],
    OUT stepped text[], OUT buckets timestamptz[], OUT ends timestamptz[], OUT written bigint)
    {_SETTINGS}
    SET plan_cache_mode = force_generic_plan
    SET enable_seqscan = off
AS $$
#variable_conflict use_column
DECLARE
    reads_from CONSTANT timestamptz := (SELECT min(a) FROM unnest(ats) AS a);
    reads_until CONSTANT timestamptz := (SELECT max(u) FROM unnest(untils) AS u);
BEGIN
    WITH {body}
    SELECT (SELECT count(*) FROM stored), array_agg(c.symbol), array_agg(c.bucket), array_agg(c.until)
    INTO written, stepped, buckets, ends FROM computed c;
END
$$;
""")
