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

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import timedelta

from psycopg import sql

from feature_platform.views.aggregates import aggregate_call
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
from feature_platform.views.stages import (
    Column,
    Ref,
    Stage,
    double,
    interval,
    listed,
    named,
    refs,
    render,
    text,
)
from feature_platform.views.view import FeatureView, ema_grid, look_back, warm_up

# Values of these need no guard: they are values of their arguments, or of a known size.
_IN_RANGE = frozenset({"abs", "sign", "least", "greatest", "where", "ln", "log_ratio", "sqrt"})


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
    long: the keys of the stored values that look back more than half as far as the view, where the
        others have at least as many windows. Beyond the reach of the others, a change makes only
        these dirty.
    stored: the nodes of the columns and of the inner values, by key.
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
            beside = {
                one.key
                for node in self.nodes.values()
                if isinstance(node, Lag) and (node.span is not None or node.rows == 1)
                for one in node.arguments
            }
            windowed = {
                one.key
                for node in self.nodes.values()
                if isinstance(node, Window)
                for one in node.arguments
            }
            for key in lags_only - windowed - beside:  # bars of one minute have it
                del self.inner[key]
        self.stored = {one.key: one for one in [*view.columns.values(), *self.inner.values()]}
        backs = {key: look_back(one, view.width) for key, one in self.stored.items()}
        long = {key for key, back in backs.items() if 2 * back > max(backs.values())}
        of_long, of_short = (
            {node.key for key in keys for node in walk(self.nodes[key]) if isinstance(node, Window)}
            for keys in (long, backs.keys() - long)
        )
        self.long = long if of_short and len(of_short) >= len(of_long) else set()
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

    def value(self, node: Expression) -> sql.Composable:
        """Return the text of a node's value."""
        if isinstance(node, Constant):
            return double(node.value)
        raw = Ref(self.name(node))
        return raw if self.in_range(node) else guard(raw)

    def operand(self, node: Expression) -> sql.Composable:
        """Return the text of a node's value as part of a larger expression."""
        value = self.value(node)
        if isinstance(node, Constant) or self.in_range(node):
            return value
        return text("({value})", value=value)

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

    def term(self, term: Term) -> sql.Composable:
        """Return the text of a term's part of a bucket, from the columns of exact values."""
        nodes = [self.nodes[key] for key in term.of]
        return term_value(
            term,
            [Ref(f"d{self.number[node.key]}") for node in nodes],
            [
                text("({value}) IS NOT NULL", value=self.value(node)) if may_be_null(node) else None
                for node in nodes
            ],
        )

    def in_range(self, node: Expression) -> bool:
        """Return whether a node's value is in range without a guard."""
        match node:
            case Bar() | Constant() | Lag() | Ema():
                return True
            case Call(function=function):
                return node.is_condition or function in _IN_RANGE
            case Window(function=function):
                return function in ("count", "min", "max", "first", "last")
        return False

    def exact(self, node: Expression) -> sql.Composable:
        """Return the text of a node's value as a number without rounding."""
        if str(node) == "bar.vol":
            return Ref("exact_vol")
        return text("({value})::text::numeric", value=self.value(node))


def guard(raw: sql.Composable) -> sql.Composed:
    """Return the text of a value that is NULL above 1e130 in magnitude, and 0 below 1e-130."""
    return text(
        "CASE WHEN abs({raw}) <= 1e130 THEN CASE WHEN abs({raw}) >= 1e-130 THEN {raw} ELSE 0 END END",
        raw=raw,
    )


def row_text(node: Call, plan: Plan) -> sql.Composed:
    """Return the text of an operator or function of values of the same bucket."""
    of = [plan.operand(one) for one in node.operands]
    match node.function:
        case "neg":
            template = "-{0}"
        case "square":
            template = "power({0}, 2)"
        case "not":
            template = "NOT {0}"
        case "/":
            template = "{0} / nullif({1}, 0)"
        case "ln":
            template = "CASE WHEN {0} > 0 THEN ln({0}) END"
        case "log_ratio":
            template = "CASE WHEN {0} / nullif({1}, 0) > 0 THEN ln({0} / {1}) END"
        case "sqrt":
            template = "CASE WHEN {0} >= 0 THEN sqrt({0}) END"
        case "exp":
            template = "CASE WHEN {0} > 300 THEN NULL WHEN {0} < -300 THEN 0 ELSE exp({0}) END"
        case "where":
            template = "CASE WHEN {0} THEN {1} ELSE {2} END"
        case "abs" | "sign" | "least" | "greatest":
            places = ", ".join(f"{{{at}}}" for at in range(len(of)))
            template = f"{node.function}({places})"
        case operator:
            template = f"{{0}} {operator} {{1}}"
    return sql.SQL(template).format(*of)


def add_moments(node: Window, plan: Plan, stage: Stage) -> None:
    """Add the numbers that a window's value is computed from; windows of a span share them."""
    found = {kind: Ref(plan.sum_name(term, node.span)) for kind, term in plan.terms(node).items()}
    names = moment_names(node, plan)

    def add(which: str, template: str) -> None:
        stage.add(names[which], text(template, **found))

    add("n", "({n})::double precision")
    if node.function == "count":
        return
    stage.add(warm_name(node, plan), is_warm(node, plan))
    q, qy = "({n} * {xx} - {x} * {x})", "({n} * {yy} - {y} * {y})"
    p = "({n} * {xy} - {x} * {y})"
    if node.function == "beta":  # a quotient of numbers beyond the range of a double
        add("pn", p)
        add("yn", qy)
    elif node.function in ("corr", "cov"):
        add("p", p + "::double precision")
        if node.function == "corr":
            add("r", f"sqrt({q}::double precision)")
            add("ry", f"sqrt({qy}::double precision)")
    else:
        add("x", "({x})::double precision")
        if node.function == "var":
            add("q", q + "::double precision")
        elif "xx" in found:
            add("r", f"sqrt({q}::double precision)")


def moment_names(node: Window, plan: Plan) -> dict[str, str]:
    """Return the columns of `add_moments`."""
    terms = plan.terms(node)
    span = node.span // MINUTE
    of = {
        "n": ("mn", "n"),
        "x": ("mx", "x"),
        "q": ("mq", "xx"),
        "r": ("mr", "xx"),
        "ry": ("mr", "yy"),
        "p": ("mp", "xy"),
        "pn": ("mpn", "xy"),
        "yn": ("mqn", "yy"),
    }
    return {
        which: f"{letter}{span}_{plan.term_name(terms[kind])}"
        for which, (letter, kind) in of.items()
        if kind in terms
    }


_SUMMED_TEXT = {
    "sum": "{x}",
    "mean": "{x} / {n}",
    "std": "{r} / {n}",
    "var": "{q} / {n} / {n}",
    "zscore": "({value} - {x} / {n}) / nullif({r} / {n}, 0)",
    "cov": "{p} / {n} / {n}",
    "beta": "CASE WHEN {yn} = 0 OR abs({pn}) > 1e130 * {yn} THEN NULL"
    " WHEN abs({pn}) < 1e-130 * {yn} THEN 0"
    " ELSE {pn}::double precision / {yn}::double precision END",
    "corr": "CASE WHEN {r} * {ry} = 0 THEN NULL"
    " WHEN {r} * {ry} >= 1e-150 AND abs({p}) < {r} * {ry} * 1e-130 THEN 0"
    " ELSE greatest(-1, least(1, {p} / ({r} * {ry}))) END",
}


def summed_text(node: Window, plan: Plan) -> sql.Composable:
    """Return the value of a window from its moments."""
    found = {which: Ref(name) for which, name in moment_names(node, plan).items()}
    if node.function == "count":
        return found["n"]
    value = text(_SUMMED_TEXT[node.function], **found, value=plan.value(node.of[0]))
    return text(
        "CASE WHEN {warm} AND {n} > 0 THEN {summed} END",
        warm=Ref(warm_name(node, plan)),
        n=found["n"],
        summed=value,
    )


def is_warm(node: Window | Ema, plan: Plan) -> sql.Composed:
    """Return the condition that a window is full."""
    return text("{bucket} >= {first} + {warm}", warm=interval(warm_up(node, plan.view.width)))


def warm_name(node: Window, plan: Plan) -> str:
    """Return the column of `is_warm`, which the windows of a span share."""
    return f"w{warm_up(node, plan.view.width) // MINUTE}"


def when_warm(node: Window | Ema, plan: Plan, value: sql.Composable) -> sql.Composed:
    """Return the value where its window is full."""
    return text("CASE WHEN {warm} THEN {value} END", warm=is_warm(node, plan), value=value)


class Schedule:
    """The order of the nodes: rounds of row values and rounds of lags and windows.

    A node is computed in the last round that is early enough, so that windows share their scans,
    and values of the wanted rows alone are computed after them.
    """

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
        self.rounds += [(kind, []) for kind, _ in self.rounds if kind == "row"]
        self._delay()

    def _delay(self) -> None:
        """Move each node to the last round before its first use."""
        first_use: dict[str, int] = {}
        placed: list[list[Expression]] = [[] for _ in self.rounds]
        for kind, nodes in reversed(self.rounds):
            for node in nodes:
                last = first_use.get(node.key, len(self.rounds))
                place = max(at for at in range(last) if self.rounds[at][0] == kind)
                placed[place].append(node)
                for one in node.arguments:
                    first_use[one.key] = min(place, first_use.get(one.key, place))
        self.rounds = [
            (kind, nodes) for (kind, _), nodes in zip(self.rounds, placed, strict=True) if nodes
        ]


_TERM_TEXT = {"x": "{x}", "y": "{y}", "xx": "{x} * {x}", "yy": "{y} * {y}", "xy": "{x} * {y}"}


def term_value(
    term: Term, exact: Sequence[sql.Composable], exists: Sequence[sql.Composable | None]
) -> sql.Composable:
    """Return the text of a term's part of one bucket; NULL adds nothing.

    exact: the text of each argument's exact value; exists: of whether it is not NULL, None for
        always.
    """
    if term.kind == "n":
        conditions = [one for one in exists if one is not None]
        if not conditions:
            return sql.SQL("1")
        return text("CASE WHEN {exist} THEN 1 END", exist=listed(conditions, " AND "))
    value = text(_TERM_TEXT[term.kind], x=exact[0], y=exact[-1])
    if len(exact) == 1 or term.kind == "xy":
        return value
    other = exists[1] if term.kind in ("x", "xx") else exists[0]
    if other is None:
        return value
    return text("CASE WHEN {other} THEN {value} END", other=other, value=value)


def may_be_null(node: Expression) -> bool:
    """Return whether a node's value may be NULL."""
    return not isinstance(node, Bar | Constant)


def exact_columns(nodes: Iterable[Window], plan: Plan, stage: Stage) -> None:
    """Add the exact value of each argument that is summed."""
    for node in nodes:
        if node.function in SUMMED and node.function != "count":
            for one in node.of:
                stage.add(f"d{plan.number[one.key]}", plan.exact(one))


class Range:
    """The stages that compute ranges of buckets from bars alone.

    backs: for each span the column of `placed` with the distance, in rows, from a row to the newest
        one that has left the span; NULL where there is none.
    """

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.stages: list[Stage] = []
        spans = {node.span for node in plan.summed}
        spans |= {node.span for node in plan.nodes.values() if isinstance(node, Lag) and node.span}
        self.backs = {span: f"back{span // MINUTE}" for span in sorted(spans)}
        rounds = Schedule(plan).rounds
        last = max((at for at, (kind, _) in enumerate(rounds) if kind == "window"), default=-1)
        for at, (kind, nodes) in enumerate(rounds):
            if kind == "row":
                stage = Stage(is_last=at > last)
                self.stages.append(stage)
                for node in nodes:
                    assert isinstance(node, Call)
                    stage.add(plan.name(node), row_text(node, plan))
            else:
                self._windows(nodes, is_last=at == last)

    def _windows(self, nodes: list[Expression], *, is_last: bool) -> None:
        """Add the stages of a round of lags and windows."""
        plan = self.plan
        exact, running, packed, gone = Stage(), Stage(), Stage(), Stage()
        offsets, result, moments, values = (Stage(is_last=is_last) for _ in range(4))
        backs = self.backs
        if is_last:  # only the wanted rows look up
            backs = {span: f"last_{name}" for span, name in backs.items()}
            for span, name in backs.items():
                back = Ref(self.backs[span])
                offsets.add(name, text("CASE WHEN {bucket} >= {lo} THEN {back} END", back=back))
        windows = [node for node in nodes if isinstance(node, Window)]
        exact_columns(windows, plan, exact)
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
            for span, terms in spans.items():
                for term in terms:
                    if term in places and not term.of:  # the number of buckets
                        result.add(
                            plan.sum_name(term, span),
                            text(
                                "least({all}, {back})",
                                all=Ref(self._running(term)),
                                back=Ref(self.backs[span]),
                            ),
                        )
            for term in places:
                running.add(self._running(term), over_all("sum({value})", plan.term(term)))
            packed.add(array, array_of([Ref(self._running(term)) for term in places], kind))
            for span, terms in spans.items():
                own = [term for term in terms if term in places and term.of]
                if not own:
                    continue
                left = gone.add(f"{array}_{span // MINUTE}", left_text(Ref(array), backs[span]))
                for term in own:
                    result.add(
                        plan.sum_name(term, span),
                        text(
                            "coalesce({running}, 0) - coalesce(({left})[{place}], 0)",
                            running=Ref(self._running(term)),
                            left=left,
                            place=sql.Literal(places[term]),
                        ),
                    )
        for node in nodes:
            name = plan.name(node)
            match node:
                case Lag(rows=int() as rows):
                    running.add(
                        name,
                        over_all("lag({value}, {rows})", plan.value(node.of), sql.Literal(rows)),
                    )
                case Lag(span=timedelta() as span):
                    gone.add(name, left_text(plan.value(node.of), backs[span]))
                case Ema():
                    self._ema(node, exact, running, result)
                case Window(function="min" | "max"):
                    self._extreme(node, exact, running, gone, result)
                case Window(function="first" | "last" | "aggregate"):
                    self._array(node, gone, result)
                case Window():
                    add_moments(node, plan, moments)
                    values.add(name, summed_text(node, plan))
        # Rows before the wanted ones are needed by later windows only.
        for stage in self.stages:
            stage.where = None
        result.where = text("{bucket} >= {lo}")
        for stage in (exact, running, packed, offsets, gone, result, moments, values):
            if stage.columns or stage.where is not None:
                self.stages.append(stage)

    def skip_short(self, wanted: set[str]) -> None:
        """Compute what only short columns need for whole rows alone.

        wanted: the columns of the last stage that long columns need.
        """
        for stage in reversed(self.stages):
            for at, column in enumerate(stage.columns):
                if column.name in wanted:
                    wanted = wanted | set(refs(column.value))
                elif stage.is_last:
                    value = text("CASE WHEN {whole} THEN {value} END", value=column.value)
                    stage.columns[at] = Column(column.name, value)

    def _running(self, term: Term) -> str:
        return f"r_{self.plan.term_name(term)}"

    def _frame(self, node: Window) -> sql.Composed:
        return text(
            "(PARTITION BY {k} ORDER BY {bucket} RANGE BETWEEN {back} PRECEDING AND CURRENT ROW)",
            back=interval(node.span - self.plan.view.width),
        )

    def _array(self, node: Window, gone: Stage, result: Stage) -> None:
        """Add the value of a window from an array of its values."""
        plan = self.plan
        array = gone.add(
            f"a{plan.number[node.key]}",
            text(
                "array_agg({value}) FILTER (WHERE ({value}) IS NOT NULL) OVER {frame}",
                value=plan.value(node.of[0]),
                frame=self._frame(node),
            ),
        )
        match node.function:
            case "first":
                found = text("({array})[1]", array=array)
            case "last":
                found = text("({array})[cardinality({array})]", array=array)
            case _:
                found = aggregated(node, array)
        result.add(plan.name(node), when_warm(node, plan, found))

    def _extreme(
        self, node: Window, exact: Stage, running: Stage, gone: Stage, result: Stage
    ) -> None:
        """Add the extremes of span-long blocks: van Herk's prefix and suffix of each block."""
        plan, at = self.plan, self.plan.number[node.key]
        seconds = node.span // MINUTE * 60
        block = exact.add(f"b{seconds}", block_text(Ref("bucket"), seconds))
        part = {
            "extreme": sql.SQL(node.function),
            "value": plan.value(node.of[0]),
            "block": block,
            "frame": self._frame(node),
            "better": sql.SQL("least" if node.function == "min" else "greatest"),
        }
        over = "{extreme}({value}) OVER (PARTITION BY {k}, {block} ORDER BY {bucket}"
        part["prefix"] = running.add(f"pre{at}", text(over + " ROWS UNBOUNDED PRECEDING)", **part))
        suffix = running.add(f"suf{at}", text(over + " DESC ROWS UNBOUNDED PRECEDING)", **part))
        part["suffix"] = gone.add(
            f"fs{at}", text("first_value({suffix}) OVER {frame}", suffix=suffix, **part)
        )
        part["begins"] = gone.add(f"fb{at}", text("first_value({block}) OVER {frame}", **part))
        found = text(
            "CASE WHEN {begins} = {block} THEN {prefix} ELSE {better}({prefix}, {suffix}) END",
            **part,
        )
        result.add(f"e{at}", found)
        result.add(plan.name(node), when_warm(node, plan, found))

    def _ema(self, node: Ema, exact: Stage, running: Stage, result: Stage) -> None:
        plan, at = self.plan, self.plan.number[node.key]
        grid = ema_grid(node.span, plan.view.width) // MINUTE * 60
        part: dict[str, sql.Composable] = {
            "block": exact.add(f"b{grid}", block_text(Ref("bucket"), grid)),
            "value": plan.value(node.of),
            "base": base_text(node, plan),
        }
        over = (
            "feature_platform.ema_run({value}, extract(epoch FROM {bucket})::double precision,"
            " {base}) OVER (PARTITION BY {k}, %s >> 1 ORDER BY {bucket} ROWS UNBOUNDED PRECEDING)"
        )
        part["even"] = running.add(f"even{at}", text(over.replace("%s", "{block}"), **part))
        part["odd"] = running.add(f"odd{at}", text(over.replace("%s", "({block} + 1)"), **part))
        used = text("CASE WHEN {block} & 1 = 1 THEN {even} ELSE {odd} END", **part)
        result.add(f"used{at}", used)
        result.add(
            f"next{at}", text("CASE WHEN {block} & 1 = 1 THEN {odd} ELSE {even} END", **part)
        )
        result.add(plan.name(node), when_warm(node, plan, text("({used})[1]", used=used)))


def left_text(value: sql.Composable, back: str) -> sql.Composed:
    """Return the value so many rows before; back: the column of the number."""
    return over_all("lag({value}, {rows})", value, Ref(back))


def array_of(items: Iterable[sql.Composable], kind: str) -> sql.Composed:
    """Return an array of a type."""
    return text("ARRAY[{items}]::{kind}[]", items=listed(items), kind=sql.SQL(kind))


def over_all(call: str, value: sql.Composable, rows: sql.Composable | None = None) -> sql.Composed:
    """Return a window function over all buckets up to the row's."""
    return text(
        call + " OVER (PARTITION BY {k} ORDER BY {bucket} ROWS UNBOUNDED PRECEDING)",
        value=value,
        **{} if rows is None else {"rows": rows},
    )


def block_text(time: sql.Composable, seconds: int) -> sql.Composed:
    """Return the number of the block of so many seconds that a time is in."""
    return text(
        "floor(extract(epoch FROM {time}) / {seconds})::bigint",
        time=time,
        seconds=sql.Literal(seconds),
    )


def aggregated(node: Window, array: sql.Composable) -> sql.Composed:
    """Return the value of an aggregate over an array of the window's values."""
    return text(
        "(SELECT {call} FROM unnest({array}) WITH ORDINALITY AS u (value, place))",
        call=aggregate_call(node.aggregate or ""),
        array=array,
    )


def base_text(node: Ema, plan: Plan) -> sql.Composed:
    """Return the weight of a bucket's predecessor and the bar width, as arguments of ema_run."""
    base = 1 - 2 / (node.span / plan.view.width + 1)
    return listed([double(base), double(plan.view.width // MINUTE * 60)])


# The cached states that a symbol keeps: a correction of one of its last buckets begins from the
# state before it, not from the bars of the whole look-back. A prime, so that a symbol with a bar
# every 2, 5 or 10 minutes uses all slots.
STATES = 7

_BAR_TEXT = {  # of a minute that is one row, b
    "open": sql.SQL("b.open"),
    "high": sql.SQL("b.high"),
    "low": sql.SQL("b.low"),
    "close": sql.SQL("b.close"),
    "vol": sql.SQL("b.vol + 0.0"),  # a negative zero is a zero
    "exact_vol": sql.SQL("b.vol::text::numeric"),
    "vwap": sql.SQL(
        "CASE WHEN b.vol > 0 THEN ((b.open + b.high + b.low + b.close) / 4 * b.vol) / b.vol"
        " ELSE (b.open + b.high + b.low + b.close) / 4 END"
    ),
    "n": sql.SQL("1::double precision"),
}
_GROUP_TEXT = {  # of a bucket with several rows
    "open": sql.SQL("(array_agg(b.open ORDER BY b.ts))[1]"),
    "high": sql.SQL("max(b.high)"),
    "low": sql.SQL("min(b.low)"),
    "close": sql.SQL("(array_agg(b.close ORDER BY b.ts DESC))[1]"),
    "vol": sql.SQL("sum(b.vol::text::numeric)::double precision"),
    "exact_vol": sql.SQL("sum(b.vol::text::numeric)"),
    "vwap": sql.SQL(
        "CASE WHEN max(b.vol) > 0"
        " THEN sum((b.open + b.high + b.low + b.close) / 4 * b.vol ORDER BY b.ts) / sum(b.vol ORDER BY b.ts)"
        " ELSE avg((b.open + b.high + b.low + b.close) / 4 ORDER BY b.ts) END"
    ),
    "n": sql.SQL("count(DISTINCT feature_platform.bucket_of(b.ts))::double precision"),
}
BAR_COLUMNS = frozenset(_BAR_TEXT)

# Where the earlier buckets are looked up: the relation, and its column of time.
_Source = tuple[sql.Composable, sql.Composable]
_BARS: _Source = (sql.SQL("public.ohlcv_1m"), sql.SQL("ts"))


class Step:
    """The stages that compute the next bucket of many symbols from cached state.

    looked_up: the look-ups of earlier buckets, as LATERAL sub-queries of the first relation.
    beside: values of the buckets at some points, by the name of the column.
    points: the columns of these times by their distance from the bucket; 0 is the bucket before.
    after_gap: the look-ups that only a bucket after a gap needs.
    """

    def __init__(self, plan: Plan, inner: sql.Composable) -> None:
        self.plan = plan
        self.inner: _Source = (inner, sql.SQL("bucket"))
        self.source = self.inner if plan.inner else _BARS
        self.stages: list[Stage] = []
        self.looked_up: list[sql.Composable] = []
        self.columns: set[str] = set()
        self.points: dict[timedelta, sql.Identifier] = {}
        self.beside: dict[str, sql.Composable] = {}
        self.after_gap: list[sql.Composable] = []
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

    def _found(self, name: str, value: sql.Composable) -> sql.Composed:
        """Return an entry of a look-up's SELECT list."""
        self.columns.add(name)
        return named(value, name)

    def _from(self, look: timedelta, bounds: str, **parts: sql.Composable) -> sql.Composed:
        """Return FROM and WHERE of the earlier buckets within bounds, of at most a span."""
        relation, time = self.source
        return text(
            "FROM {relation} b WHERE b.symbol = r.symbol AND " + bounds + " AND b.{time} >="
            " reads_from - {look} AND b.{time} < reads_until",
            relation=relation,
            time=time,
            look=interval(look),
            **parts,
        )

    def _window_from(self, node: Window) -> sql.Composed:
        """Return FROM and WHERE of the earlier buckets of a window."""
        return self._from(node.span, "b.{time} > r.bucket - {look} AND b.{time} < r.bucket")

    def _value(self, node: Expression) -> sql.Composable:
        """Return the text of a node's value in a row b of earlier buckets."""
        if isinstance(node, Constant):
            return self.plan.value(node)
        if self.plan.inner and node.key in self.plan.inner:
            template = "b.{column}::double precision" if str(node) == "bar.vol" else "b.{column}"
            return text(template, column=self._inner_column(node))
        assert isinstance(node, Bar)
        return text("({value})", value=_BAR_TEXT[node.field])

    def _inner_column(self, node: Expression) -> sql.Identifier:
        return sql.Identifier(f"x{self.plan.number[node.key]}")

    def _exact(self, node: Expression) -> sql.Composable:
        """Return the text of a node's value in a row b as a number without rounding."""
        if str(node) == "bar.vol":
            if self.plan.inner:
                return text("b.{column}", column=self._inner_column(node))
            return _BAR_TEXT["exact_vol"]
        return text("({value})::text::numeric", value=self._value(node))

    def _beside(self, node: Expression, span: timedelta | None) -> Ref:
        """Return a node's value at bucket - span, or without a span at the bucket before."""
        return self._at_point(
            f"v{self._point(span)}_{self.plan.number[node.key]}",
            span,
            text("max({value})", value=self._stored(node)),
        )

    def _is_beside(self, span: timedelta) -> Ref:
        """Return how many buckets, 0 or 1, there are at bucket - span."""
        return self._at_point(f"has{self._point(span)}", span, sql.SQL("count(*)"))

    def _point(self, span: timedelta | None) -> int:
        return 0 if span is None else span // MINUTE

    def _at_point(self, name: str, span: timedelta | None, value: sql.Composable) -> Ref:
        point = sql.Identifier("at" if span is None else f"p{self._point(span)}")
        self.points[span or timedelta()] = point
        self.beside[name] = text(
            "{value} FILTER (WHERE b.{time} = r.{point}) AS {name}",
            value=value,
            time=self.source[1],
            point=point,
            name=sql.Identifier(name),
        )
        return Ref(name)

    def _stored(self, node: Expression) -> sql.Composable:
        """Return the stored form of a node's value in a row b: exact where it is stored so."""
        if self.plan.inner and str(node) == "bar.vol":
            return self._exact(node)
        return self._value(node)

    def _leaving(self) -> None:
        """Look up the values that leave each window.

        Without a gap before the bucket, one bucket leaves each window, and one scan finds all of
        them. After a gap, a scan a span sums the values.
        """
        plan = self.plan
        exact, leaving = Stage(), Stage()
        spans: dict[timedelta, list[Term]] = {}
        for term, span in [*plan.sums, *plan.counts]:
            spans.setdefault(span, []).append(term)
        for span, of_span in spans.items():
            columns = []
            for term in of_span:
                nodes = [plan.nodes[key] for key in term.of]
                value = term_value(
                    term,
                    [self._exact(node) for node in nodes],
                    [
                        text("{value} IS NOT NULL", value=self._value(node))
                        if may_be_null(node)
                        else None
                        for node in nodes
                    ],
                )
                name = plan.sum_name(term, span)
                columns.append(self._found(f"g{name}", text("sum({value})", value=value)))
                leaving.add(
                    f"l{name}",
                    text(
                        "CASE WHEN {bucket} = {at} + {width} THEN {one} ELSE {several} END",
                        width=interval(plan.view.width),
                        one=self._one_leaving(term, span, nodes, exact),
                        several=Ref(f"g{name}"),
                    ),
                )
            where = self._from(span, "b.{time} > r.at - {look} AND b.{time} <= r.bucket - {look}")
            self.after_gap.append(
                text("SELECT {columns} {where} OFFSET 0", columns=listed(columns), where=where)
            )
        self.stages += [exact, leaving]

    def _one_leaving(
        self, term: Term, span: timedelta, nodes: Sequence[Expression], exact: Stage
    ) -> sql.Composable:
        """Return the text of a term's part of the bucket at bucket - span."""
        if not nodes or (term.kind == "n" and not any(map(may_be_null, nodes))):
            return self._is_beside(span)
        values = [
            self._beside(node, span) if not isinstance(node, Constant) else self._value(node)
            for node in nodes
        ]
        return term_value(
            term,
            [
                value
                if self.plan.inner and str(node) == "bar.vol"
                else exact.add(
                    f"d{self._point(span)}_{self.plan.number[node.key]}",
                    text("({value})::text::numeric", value=value),
                )
                for node, value in zip(nodes, values, strict=True)
            ],
            [
                text("{value} IS NOT NULL", value=value) if may_be_null(node) else None
                for node, value in zip(nodes, values, strict=True)
            ],
        )

    def _look_up(self, template: str, **parts: sql.Composable) -> None:
        self.looked_up.append(text(template, **parts))

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
                    total.add(
                        column,
                        text(
                            "({array})[{place}] + coalesce({enters}, 0) - coalesce({leaves}, 0)",
                            array=Ref(array),
                            place=sql.Literal(kept.index((term, window.span)) + 1),
                            enters=plan.term(term),
                            leaves=Ref(f"l{column}"),
                        ),
                    )
        for node in nodes:
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
                    values.add(plan.name(node), summed_text(node, plan))
        for stage in (exact, total, moments, values):
            if stage.columns:
                self.stages.append(stage)

    def _lag(self, node: Lag) -> None:
        plan = self.plan
        of = node.of
        if isinstance(of, Constant):
            value, is_stored = plan.value(of), bool(plan.inner)
        else:
            value, is_stored = self._value(of), of.key in plan.inner
        relation, time = self.inner if is_stored else _BARS
        if node.span is not None:
            newest = text(
                "<= r.bucket - {span} ORDER BY b.{time} DESC LIMIT 1",
                span=interval(node.span),
                time=time,
            )
        else:
            newest = text(
                "< r.bucket ORDER BY b.{time} DESC OFFSET {skipped} LIMIT 1",
                time=time,
                skipped=sql.Literal((node.rows or 1) - 1),
            )
        found: sql.Composable = text(
            "(SELECT {value} FROM {relation} b"
            " WHERE b.symbol = r.symbol AND b.{time} < reads_until AND b.{time} {newest})",
            value=value,
            relation=relation,
            time=time,
            newest=newest,
        )
        if not isinstance(of, Constant) and (relation, time) == self.source:
            if node.rows == 1:
                found = self._beside_value(of, None)
            elif node.span is not None:
                found = text(
                    "CASE WHEN {is_beside} > 0 THEN {beside} ELSE {found} END",
                    is_beside=self._is_beside(node.span),
                    beside=self._beside_value(of, node.span),
                    found=found,
                )
        self._look_up("SELECT {column} OFFSET 0", column=self._found(plan.name(node), found))

    def _beside_value(self, node: Expression, span: timedelta | None) -> sql.Composable:
        value = self._beside(node, span)
        if self.plan.inner and str(node) == "bar.vol":
            return text("{value}::double precision", value=value)
        return value

    def _extreme(self, node: Window, exact: Stage, total: Stage) -> None:
        """Keep the extreme and its bucket; scan the window only when that bucket has left it."""
        plan, at = self.plan, self.plan.number[node.key]
        is_min = node.function == "min"
        self._look_up(
            "SELECT {value}, {place} FROM (SELECT CASE"
            " WHEN (r.extreme_at)[{number}] > r.bucket - {back}"
            " THEN ROW((r.extremes)[{number}], (r.extreme_at)[{number}])::feature_platform.view_extreme"
            " ELSE (SELECT ROW({stored}, b.{time})::feature_platform.view_extreme {where}"
            " AND {stored} IS NOT NULL ORDER BY {stored} {order}, b.{time} DESC LIMIT 1) END AS found"
            " OFFSET 0) AS o",
            value=self._found(f"ov{at}", sql.SQL("(found).value")),
            place=self._found(f"op{at}", sql.SQL("(found).place")),
            number=sql.Literal([one.key for one in plan.extremes].index(node.key) + 1),
            back=interval(node.span),
            stored=self._value(node.of[0]),
            time=self.source[1],
            where=self._window_from(node),
            order=sql.SQL("ASC" if is_min else "DESC"),
        )
        part: dict[str, sql.Composable] = {
            "new": exact.add(f"v{at}", plan.value(node.of[0])),
            "old": Ref(f"ov{at}"),
            "old_place": Ref(f"op{at}"),
            "better": sql.SQL("<=" if is_min else ">="),
        }
        part["wins"] = text("{old} IS NULL OR {new} {better} {old}", **part)
        found = text("CASE WHEN {wins} THEN coalesce({new}, {old}) ELSE {old} END", **part)
        total.add(f"e{at}", found)
        total.add(
            f"p{at}",
            text(
                "CASE WHEN {new} IS NOT NULL AND ({wins}) THEN {bucket} ELSE {old_place} END",
                **part,
            ),
        )
        total.add(plan.name(node), when_warm(node, plan, found))

    def _scan(self, node: Window, exact: Stage, total: Stage) -> None:
        """Read all earlier values of a window."""
        plan, at = self.plan, self.plan.number[node.key]
        part: dict[str, sql.Composable] = {
            "stored": self._value(node.of[0]),
            "where": self._window_from(node),
            "time": self.source[1],
        }
        if node.function == "aggregate":
            earlier = self._found(f"a{at}", text("array_agg({stored} ORDER BY b.{time})", **part))
            self._look_up(
                "SELECT {earlier} {where} AND {stored} IS NOT NULL OFFSET 0",
                earlier=earlier,
                **part,
            )
        else:
            order = "" if node.function == "first" else " DESC"
            earlier = self._found(
                f"a{at}",
                text(
                    "(SELECT {stored} {where} AND {stored} IS NOT NULL"
                    " ORDER BY b.{time}" + order + " LIMIT 1)",
                    **part,
                ),
            )
            self._look_up("SELECT {earlier} OFFSET 0", earlier=earlier)
        new = exact.add(f"v{at}", plan.value(node.of[0]))
        old = Ref(f"a{at}")
        match node.function:
            case "first":
                found = text("coalesce({old}, {new})", old=old, new=new)
            case "last":
                found = text("coalesce({new}, {old})", old=old, new=new)
            case _:
                values = text(
                    "{old} || CASE WHEN {new} IS NOT NULL THEN ARRAY[{new}] END", old=old, new=new
                )
                found = aggregated(node, values)
        total.add(plan.name(node), when_warm(node, plan, found))

    def _ema(self, node: Ema, exact: Stage, total: Stage, values: Stage) -> None:
        plan, at = self.plan, self.plan.number[node.key]
        first = 4 * [one.key for one in plan.emas].index(node.key) + 1
        grid = ema_grid(node.span, plan.view.width) // MINUTE * 60
        moved = text(
            "{here} - {before}",
            here=block_text(Ref("bucket"), grid),
            before=block_text(Ref("at"), grid),
        )
        pair = "({emas})[{lo}:{hi}]"
        part: dict[str, sql.Composable] = {
            "block": exact.add(f"m{grid}", moved),
            "new": exact.add(f"v{at}", plan.value(node.of)),
            "when": exact.add("epoch", text("extract(epoch FROM {bucket})::double precision")),
            "base": base_text(node, plan),
            "none": sql.SQL("NULL::double precision[]"),
            "used": text(pair, lo=sql.Literal(first), hi=sql.Literal(first + 1)),
            "after": text(pair, lo=sql.Literal(first + 2), hi=sql.Literal(first + 3)),
        }
        used = total.add(
            f"used{at}",
            text(
                "feature_platform.ema_next(CASE {block} WHEN 0 THEN {used} WHEN 1 THEN {after}"
                " ELSE {none} END, {new}, {when}, {base})",
                **part,
            ),
        )
        total.add(
            f"next{at}",
            text(
                "feature_platform.ema_next(CASE {block} WHEN 0 THEN {after} ELSE {none} END,"
                " {new}, {when}, {base})",
                **part,
            ),
        )
        values.add(plan.name(node), when_warm(node, plan, text("({used})[1]", used=used)))


# Columns by name, with the text of each.
_Named = list[tuple[str, sql.Composable]]


def state_columns(plan: Plan, *, has_places: bool) -> _Named:
    """Return the columns of the cached state and the text of each, at one bucket."""
    found: _Named = []
    for array, kept, kind in (("sums", plan.sums, "numeric"), ("counts", plan.counts, "bigint")):
        if kept:
            sums = [Ref(plan.sum_name(term, span)) for term, span in kept]
            found.append((array, array_of(sums, kind)))
    if plan.extremes:
        numbers = [plan.number[node.key] for node in plan.extremes]
        values = [Ref(f"e{at}") for at in numbers]
        places = [Ref(f"p{at}") if has_places else sql.SQL("NULL") for at in numbers]
        found.append(("extremes", array_of(values, "double precision")))
        found.append(("extreme_at", array_of(places, "timestamptz")))
    if plan.emas:
        parts = [
            text(
                "({mean})[{place}]",
                mean=Ref(f"{which}{plan.number[node.key]}"),
                place=sql.Literal(place),
            )
            for node in plan.emas
            for which in ("used", "next")
            for place in (1, 2)
        ]
        found.append(("emas", array_of(parts, "double precision")))
    return found


def outputs(plan: Plan) -> _Named:
    """Return the view's columns and the text of each."""
    found: _Named = []
    for name, expression in plan.view.columns.items():
        value = plan.value(expression)
        if expression.is_integer:
            value = text("({value})::integer", value=value)
        found.append((name, value))
    return found


def inner_columns(plan: Plan) -> _Named:
    """Return the columns of the inner values and the text of each."""
    return [
        (
            f"x{plan.number[key]}",
            Ref("exact_vol") if str(node) == "bar.vol" else plan.value(node),
        )
        for key, node in plan.inner.items()
    ]


def bar_relation(plan: Plan, fields: set[str], *, ticks: str) -> sql.Composed:
    """Return the bars of one item r, by bucket; fields: the columns that are read."""
    part: dict[str, sql.Composable] = {
        "single": listed(
            [sql.SQL(", ") + named(_BAR_TEXT[one], one) for one in sorted(fields)], ""
        ),
        "several": listed(
            [sql.SQL(", ") + named(_GROUP_TEXT[one], one) for one in sorted(fields)], ""
        ),
        "bucket": bin_text(plan.view, sql.SQL("b.ts")),
        "ticks": sql.SQL(ticks),
        "bounds": sql.SQL(
            "b.symbol = r.symbol AND b.ts >= r.start AND b.ts < r.hi"
            " AND b.ts >= reads_from AND b.ts < reads_until"
        ),
    }
    grouped = text(
        "SELECT {bucket} AS bucket{several}\n        FROM public.ohlcv_1m b WHERE {bounds}", **part
    )
    if plan.view.width != MINUTE:
        return text("{grouped} GROUP BY 1", grouped=grouped)
    return text(
        "SELECT b.ts AS bucket{single}\n"
        "        FROM public.ohlcv_1m b WHERE NOT {ticks} AND {bounds}\n"
        "        UNION ALL\n        {grouped} AND {ticks} GROUP BY 1",
        grouped=grouped,
        **part,
    )


def bin_text(view: FeatureView, time: sql.Composable) -> sql.Composed:
    """Return the bucket of a time."""
    if view.width == MINUTE:
        return text("feature_platform.bucket_of({time})", time=time)
    return text(
        "date_bin({width}, {time}, {origin})",
        width=interval(view.width),
        time=time,
        origin=origin_text(view),
    )


def origin_text(view: FeatureView) -> sql.Composed:
    """Return the start of a bucket."""
    return text("(timestamptz '1970-01-01 00:00:00+00' + {shift})", shift=interval(view.shift))


class Names:
    """The names of a version's tables and functions: feature_views.v7_rows.

    schema, prefix: of all names. Without `rows` the table of the rows is one of them.
    """

    def __init__(self, schema: str, prefix: str, rows: sql.Identifier | None = None) -> None:
        self.schema, self.prefix = schema, prefix
        self.key = self._short("rows_pkey")
        self.index = self._short("rows_bucket_idx")
        self.history_index = self._short("history_idx")
        self.until_index = self._short("history_until_idx")
        self.changed = self._short("changed")
        self.history = self._full("history")
        self.versions = self._full("versions")
        self.rows = rows or self._full("rows")
        self.inner = self._full("inner")
        self.state = self._full("state")
        self.reach = self._full("reach")
        self.reach_short = self._full("reach_short")
        self.start = self._full("start")
        self.range = self._full("range")
        self.step = self._full("step")

    def _short(self, suffix: str) -> sql.Identifier:
        return sql.Identifier(f"{self.prefix}_{suffix}")

    def _full(self, suffix: str) -> sql.Identifier:
        return sql.Identifier(self.schema, f"{self.prefix}_{suffix}")


def compiled(view: FeatureView, number: int) -> sql.Composed:
    """Return the SQL that keeps a view exact: its tables and its functions.

    number: of the version, which begins their names in the schema feature_views: "v7_rows".
    """
    plan, names = Plan(view), Names("feature_views", f"v{number}")
    short = [node for key, node in plan.stored.items() if key not in plan.long]
    reach_short = _reach(plan, names.reach_short, short)
    return listed([_tables(plan, names), *_maintenance(plan, names), reach_short], "\n")


def compiled_beside(view: FeatureView, schema: str, rows: sql.Identifier) -> sql.Composed:
    """Return the SQL that keeps a view exact whose table of rows exists, always in all columns.

    schema: of the table of states and of the functions, whose names begin with the view's.
    """
    plan, names = Plan(view), Names(schema, view.name, rows)
    return listed(_maintenance(plan, names), "\n")


def _maintenance(plan: Plan, names: Names) -> list[sql.Composed]:
    """Return the SQL of the table of states and of the functions."""
    return [
        text(_STATE_TABLE, state=names.state),
        _reach(plan, names.reach, plan.nodes.values()),
        _start(plan, names),
        _range(plan, names),
        _step(plan, names),
    ]


def has_inner(view: FeatureView) -> bool:
    """Return whether values of earlier buckets are stored, for windows and lags."""
    return bool(Plan(view).inner)


_SETTINGS = sql.SQL("""LANGUAGE plpgsql
    SET search_path = pg_catalog, pg_temp
    SET extra_float_digits = 1                  -- from 1 on, double -> text -> numeric loses nothing
    SET jit = off""")

_TABLES = """
CREATE TABLE IF NOT EXISTS {rows} (
    symbol text COLLATE "C" NOT NULL,
    bucket timestamptz NOT NULL,
{columns}    refresh_no bigint NOT NULL,
    CONSTRAINT {key} PRIMARY KEY (symbol, bucket)
);
CREATE INDEX IF NOT EXISTS {index} ON {rows} (bucket DESC);

-- The versions of rows that refreshes have changed or deleted, and a view of all versions.
CREATE TABLE IF NOT EXISTS {history} (
    symbol text COLLATE "C" NOT NULL,
    bucket timestamptz NOT NULL,
{columns}    since bigint NOT NULL,
    until bigint NOT NULL
);
CREATE INDEX IF NOT EXISTS {history_index} ON {history} (symbol, bucket, until);
CREATE INDEX IF NOT EXISTS {until_index} ON {history} USING brin (until);
CREATE OR REPLACE VIEW {versions} AS
SELECT symbol, bucket, {names}, refresh_no AS since, NULL::bigint AS until FROM {rows}
UNION ALL
SELECT symbol, bucket, {names}, since, until FROM {history};
CREATE OR REPLACE TRIGGER {changed} AFTER UPDATE ON {rows}
    REFERENCING OLD TABLE AS old_rows NEW TABLE AS new_rows
    FOR EACH STATEMENT EXECUTE FUNCTION feature_platform.keep_versions({history_text});
"""

_STATE_TABLE = """
CREATE TABLE IF NOT EXISTS {state} (
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

_INNER_TABLE = """
CREATE TABLE IF NOT EXISTS {inner} (
    symbol text COLLATE "C" NOT NULL,
    bucket timestamptz NOT NULL,
{columns}    PRIMARY KEY (symbol, bucket)
);
"""


def _tables(plan: Plan, names: Names) -> sql.Composed:
    def declared(name: str, kind: str) -> sql.Composed:
        return text("    {name} {kind},\n", name=sql.Identifier(name), kind=sql.SQL(kind))

    made = text(
        _TABLES,
        rows=names.rows,
        key=names.key,
        index=names.index,
        history=names.history,
        history_index=names.history_index,
        until_index=names.until_index,
        history_text=sql.Literal(names.history.as_string()),
        versions=names.versions,
        changed=names.changed,
        names=_each("{it}", plan.view.columns),
        columns=listed(
            [
                declared(name, "integer" if one.is_integer else "double precision")
                for name, one in plan.view.columns.items()
            ],
            "",
        ),
    )
    if plan.inner:
        columns = [
            declared(
                f"x{plan.number[key]}",
                "numeric" if str(node) == "bar.vol" else "double precision",
            )
            for key, node in plan.inner.items()
        ]
        made += text(_INNER_TABLE, inner=names.inner, columns=listed(columns, ""))
    return made


# How a value depends on earlier buckets, one step from an expression to its argument: a window of a
# span, so many rows, a span and the newest row at or before it, the anchors of a mean.
Path = tuple[tuple[str, int], ...]


def paths(plan: Plan, wanted: Iterable[Expression]) -> list[Path]:
    """Return how some nodes of a view depend on bars, from the bar to the node; spans in minutes.

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
    for path in {path for node in wanted for path in of_node[node.key]}:
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


_REACH = """
-- Which buckets of a symbol depend on its bars in these minutes, up to its last bucket: of all columns
-- and inner values, or of those with a short look-back.
CREATE OR REPLACE FUNCTION {name}(
    of_symbol text, changed tstzmultirange, last_bucket timestamptz) RETURNS tstzmultirange
    LANGUAGE sql STABLE
BEGIN ATOMIC
    WITH changed_bucket AS MATERIALIZED (
        SELECT {lo} AS lo,
               {hi} AS hi
        FROM unnest(changed) AS r
    )
    SELECT coalesce(range_agg(reached.r), '{{}}') FROM (
        {parts}
    ) AS reached;
END;
"""


def _reach(plan: Plan, name: sql.Identifier, of: Iterable[Expression]) -> sql.Composed:
    view = plan.view
    parts = []
    for path in paths(plan, of):
        lo: sql.Composable = sql.SQL("c.lo")
        hi: sql.Composable = sql.SQL("c.hi")
        for kind, number in path:
            part: dict[str, sql.Composable] = {
                "lo": lo,
                "hi": hi,
                "span": interval(number * MINUTE),
                "width": interval(view.width),
                "grid": _grid(view),
                "number": sql.Literal(number),
            }
            after = "feature_platform.bucket_after(of_symbol, {hi}, {number}, {grid}, last_bucket)"
            match kind:
                case "window":
                    hi = text("{hi} + {span}", **part)
                case "rows":
                    lo = text("{lo} + {width}", **part)
                    hi = text(after, **part)
                case "span":
                    lo = text("{lo} + {span}", **part)
                    hi = text(
                        after + " + {more}",
                        **part | {"number": sql.Literal(1)},
                        more=interval(number * MINUTE - view.width),
                    )
                case "anchor":
                    hi = text(
                        "to_timestamp((floor(extract(epoch FROM {hi}) / {seconds}) + 2)"
                        " * {seconds}) - {width}",
                        **part,
                        seconds=sql.Literal(number * 60),
                    )
        parts.append(
            text(
                "SELECT tstzrange({lo}, least({hi}, last_bucket) + {width}) AS r"
                " FROM changed_bucket c WHERE {lo} <= least({hi}, last_bucket)",
                lo=lo,
                hi=hi,
                width=interval(view.width),
            )
        )
    return text(
        _REACH,
        name=name,
        lo=bin_text(view, sql.SQL("lower(r)")),
        hi=bin_text(view, sql.SQL("upper(r) - interval '1 microsecond'")),
        parts=listed(parts, " UNION ALL "),
    )


def _grid(view: FeatureView) -> sql.Composed:
    return listed([interval(view.width), origin_text(view)])


_START = """
-- From which time on the bars are to be read, to compute a bucket from bars alone.
CREATE OR REPLACE FUNCTION {name}(of_symbol text, wanted timestamptz) RETURNS timestamptz
    LANGUAGE sql STABLE
    RETURN least({starts});
"""


def _start(plan: Plan, names: Names) -> sql.Composed:
    view = plan.view
    starts: dict[str, sql.Composable] = {}
    for path in paths(plan, plan.nodes.values()):
        at: sql.Composable = sql.SQL("wanted")
        for kind, number in reversed(path):
            part: dict[str, sql.Composable] = {
                "at": at,
                "span": interval(number * MINUTE),
                "width": interval(view.width),
                "grid": _grid(view),
                "number": sql.Literal(number),
                "seconds": sql.Literal(number * 60),
            }
            match kind:
                case "window":
                    at = text("{at} - {span}", **part)
                case "rows":
                    at = text(
                        "feature_platform.bucket_before(of_symbol, {at}, {number}, {grid})", **part
                    )
                case "span":
                    at = text(
                        "feature_platform.bucket_before(of_symbol, {at} - {span}"
                        " + {width}, 1, {grid})",
                        **part,
                    )
                case "anchor":
                    at = text(
                        "to_timestamp((floor(extract(epoch FROM {at}) / {seconds}) - 1)"
                        " * {seconds})",
                        **part,
                    )
        starts[at.as_string()] = at
    return text(_START, name=names.start, starts=listed([starts[key] for key in sorted(starts)]))


_STORED = """{name} AS (
    INSERT INTO {table} AS f (symbol, bucket, {columns}{number})
    SELECT c.symbol, c.bucket, {values}{number_value} FROM computed c{where}
    ON CONFLICT (symbol, bucket) DO UPDATE
    SET {assigned}{number_assigned}
    WHERE ({old}) IS DISTINCT FROM
          ({new}){returning}
)"""

_NUMBERED = (
    ", refresh_no",
    ", of_refresh",
    ", refresh_no = of_refresh",
    "\n    RETURNING 1",
)

_STATE_STORED = """state_stored AS (
    INSERT INTO {state} AS s (symbol, slot, bucket{columns})
    SELECT DISTINCT ON (c.symbol, {slot}) c.symbol, {slot}, c.bucket{values}
    FROM computed c WHERE c.keeps_state ORDER BY c.symbol, {slot}, c.bucket DESC
    ON CONFLICT (symbol, slot) DO UPDATE
    SET bucket = excluded.bucket{assigned}
)"""


def _each(template: str, names: Iterable[str], separator: str = ", ") -> sql.Composed:
    """Return a text for each of some column names, {it}."""
    return listed([text(template, it=sql.Identifier(name)) for name in names], separator)


# A bar without a row yet has an unprocessed mark, which stores the whole row. The fence keeps the
# look-up a scan of one key.
_HAS_ROW = """ WHERE NOT c.whole AND EXISTS (
        SELECT FROM {table} o WHERE o.symbol = c.symbol AND o.bucket = c.bucket
            AND o.bucket >= reads_from AND o.bucket < reads_until OFFSET 0)"""


def _rows_stored(
    name: str, table: sql.Identifier, columns: dict[str, str], where: str, *, is_rows: bool
) -> sql.Composed:
    """Return the sub-query that stores columns in a table; columns: of `computed`, by the table's.

    is_rows: the table is that of the rows; they have the number of the refresh, and are counted.
    """
    number, number_value, number_assigned, returning = _NUMBERED if is_rows else ("",) * 4
    return text(
        _STORED,
        name=sql.Identifier(name),
        table=table,
        columns=_each("{it}", columns),
        values=_each("c.{it}", columns.values()),
        assigned=_each("{it} = excluded.{it}", columns),
        old=_each("f.{it}", columns),
        new=_each("excluded.{it}", columns),
        where=text(where, table=table),
        returning=sql.SQL(returning),
        number=sql.SQL(number),
        number_value=sql.SQL(number_value),
        number_assigned=sql.SQL(number_assigned),
    )


def _stored(plan: Plan, names: Names, *, has_places: bool, splits: bool) -> list[sql.Composed]:
    """Return the sub-queries that store rows, inner values and states of `computed`.

    splits: whether rows that are not whole store the values of long columns only.
    """
    columns = {
        name: (f"o{at}", one.key) for at, (name, one) in enumerate(plan.view.columns.items())
    }
    inner = {f"x{plan.number[key]}": (f"x{plan.number[key]}", key) for key in plan.inner}
    made = []
    for prefix, keys, where in (
        ("", plan.stored.keys(), " WHERE c.whole" if splits else ""),
        ("long_", plan.long if splits else (), _HAS_ROW),
    ):
        for name, table, of in (
            (f"{prefix}stored", names.rows, columns),
            (f"{prefix}inner_stored", names.inner, inner),
        ):
            chosen = {column: value for column, (value, key) in of.items() if key in keys}
            if chosen:
                is_rows = table is names.rows
                made.append(_rows_stored(name, table, chosen, where, is_rows=is_rows))
    state = [name for name, _ in state_columns(plan, has_places=has_places)]
    made.append(
        text(
            _STATE_STORED,
            state=names.state,
            columns=_each(", {it}", state, ""),
            values=_each(", c.{it}", [f"st_{name}" for name in state], ""),
            assigned=_each(", {it} = excluded.{it}", state, ""),
            slot=slot_text(plan.view, sql.SQL("c.bucket")),
        )
    )
    return made


def slot_text(view: FeatureView, bucket: sql.Composable) -> sql.Composed:
    """Return the slot of a bucket's cached state."""
    return text(
        "((extract(epoch FROM {bucket}) - {shift}) / {seconds})::bigint % {states}",
        bucket=bucket,
        shift=sql.Literal(view.shift // MINUTE * 60),
        seconds=sql.Literal(view.width // MINUTE * 60),
        states=sql.Literal(STATES),
    )


_COMPUTED = """computed AS MATERIALIZED (
    SELECT symbol, bucket, {keeps} AS keeps_state, {columns}
    FROM {before} {more}
)"""


def _computed(
    plan: Plan, before: str, keeps: str, *, has_places: bool, more: str = ""
) -> sql.Composed:
    columns: list[sql.Composable] = [Ref("until" if has_places else "whole")]
    # Names of their own, because a column may be named like anything in here.
    columns += [named(value, f"o{at}") for at, (_, value) in enumerate(outputs(plan))]
    columns += [named(value, name) for name, value in inner_columns(plan)]
    for name, value in state_columns(plan, has_places=has_places):
        kept = text("CASE WHEN {keeps} THEN {value} END", keeps=sql.SQL(keeps), value=value)
        columns.append(named(kept, f"st_{name}"))
    return text(
        _COMPUTED,
        keeps=sql.SQL(keeps),
        columns=listed(columns),
        before=sql.Identifier(before),
        more=sql.SQL(more),
    )


def _wanted(plan: Plan, *, has_places: bool) -> set[str]:
    values = outputs(plan) + inner_columns(plan) + state_columns(plan, has_places=has_places)
    return {one for _, value in values for one in refs(value)}


# By the snapshot that reads the bars.
_HAS_TICKS = sql.SQL(""", EXISTS (
        SELECT FROM public.ohlcv_1m b
        WHERE b.symbol = i.symbol AND b.ts >= i.start AND b.ts < i.hi AND b.ts >= reads_from AND b.ts < reads_until
          AND b.ts <> date_bin('1 minute', b.ts, '1970-01-01 00:00:00+00')) AS has_ticks""")

_RANGE_BARS = """item AS MATERIALIZED (
    SELECT i.*{ticks}, feature_platform.has_new_marks(i.symbol, i.start, i.hi, i.first) AS skipped
    FROM unnest(items) WITH ORDINALITY AS i (symbol, lo, hi, start, first, state_from, whole, k)
), bar AS (
    SELECT r.k, r.symbol, r.lo, r.first, r.state_from, r.whole IS NULL OR r.whole @> b.bucket AS whole, b.*
    FROM item r
    CROSS JOIN LATERAL (
        {bars}
    ) AS b
    WHERE NOT r.skipped
)"""

# How many rows before each the newest one is that has left a span: a constant without gaps.
_RANGE_PLACES = """gapless AS (
    SELECT b.k FROM bar b GROUP BY b.k HAVING max(b.bucket) - min(b.bucket) = (count(*) - 1) * {width}
), placed AS (
    SELECT b.*, NULL AS place, {constants} FROM bar b WHERE (b.k IN (SELECT k FROM gapless)) IS TRUE
    UNION ALL
    SELECT b.*, {counted}
    FROM (SELECT b.*, row_number() OVER (PARTITION BY b.k ORDER BY b.bucket) AS place
          FROM bar b WHERE (b.k IN (SELECT k FROM gapless)) IS NOT TRUE OFFSET 0) AS b
)"""

_RANGE = """
-- The rows of these ranges from the bars alone, stored as rows of a refresh. A range that reads a bar of an
-- unprocessed mark is skipped. Returns how many rows differed from what was stored, and what was skipped.
CREATE OR REPLACE FUNCTION {name}(
    items feature_platform.view_item[], of_refresh bigint,
    OUT written bigint, OUT skipped_symbols text[], OUT skipped tstzrange[])
    {settings}
    SET plan_cache_mode = force_custom_plan
    SET work_mem = '64MB'
AS $$
#variable_conflict use_column
DECLARE
    reads_from CONSTANT timestamptz := (SELECT min(i.start) FROM unnest(items) AS i);
    reads_until CONSTANT timestamptz := (SELECT max(i.hi) FROM unnest(items) AS i);
BEGIN
    WITH {body}
    SELECT {written}, coalesce(array_agg(i.symbol) FILTER (WHERE i.skipped), '{{}}'),
           coalesce(array_agg(tstzrange(i.lo, i.hi)) FILTER (WHERE i.skipped), '{{}}')
    INTO written, skipped_symbols, skipped FROM item i;
END
$$;
"""


def _range(plan: Plan, names: Names) -> sql.Composed:
    splits = bool(plan.long)
    always = {"k", "symbol", "lo", "first", "state_from", "whole", "bucket"}
    wanted = _wanted(plan, has_places=False) | always
    stages = Range(plan)
    if splits:
        stages.skip_short({one for key in plan.long for one in refs(plan.value(plan.nodes[key]))})
    backs = stages.backs
    carried = always | BAR_COLUMNS | set(backs.values())
    chain, last, fields = render(stages.stages, carried, wanted, "placed" if backs else "bar")
    bars = text(
        _RANGE_BARS,
        ticks=_HAS_TICKS if plan.view.width == MINUTE else sql.SQL(""),
        bars=bar_relation(plan, fields & BAR_COLUMNS, ticks="r.has_ticks"),
    )
    computed = _computed(
        plan, last, "bucket >= state_from", has_places=False, more="WHERE bucket >= lo"
    )
    places = [_places(plan, backs)] if backs else []
    body = [bars, *places, *chain, computed, *_stored(plan, names, has_places=False, splits=splits)]
    stored = ("stored", "long_stored") if splits else ("stored",)
    written = listed(
        [text("(SELECT count(*) FROM {one})", one=sql.Identifier(one)) for one in stored], " + "
    )
    return text(
        _RANGE,
        name=names.range,
        settings=_SETTINGS,
        body=listed(body, ",\n"),
        written=written,
    )


def _places(plan: Plan, backs: dict[timedelta, str]) -> sql.Composed:
    counted = (
        "(b.place - last_value(b.place) OVER (PARTITION BY b.k ORDER BY b.bucket"
        " RANGE BETWEEN UNBOUNDED PRECEDING AND {span} PRECEDING))::integer"
    )
    return text(
        _RANGE_PLACES,
        width=interval(plan.view.width),
        constants=listed(
            [named(sql.Literal(span // plan.view.width), name) for span, name in backs.items()]
        ),
        counted=listed(
            [named(text(counted, span=interval(span)), name) for span, name in backs.items()]
        ),
    )


_STEP_BARS = """requested AS (
    SELECT * FROM unnest(symbols, ats, untils, firsts) AS a (symbol, at, until, first)
), r AS MATERIALIZED (
    SELECT a.symbol, a.at, a.first, a.until, next.*{points}{state}
    FROM requested a
    JOIN {states} s ON s.symbol = a.symbol AND s.slot = {slot} AND s.bucket = a.at
    CROSS JOIN LATERAL (
        SELECT {next} FROM public.ohlcv_1m b
        WHERE b.symbol = a.symbol AND b.ts >= a.at + {width} AND b.ts < a.until
          AND b.ts >= reads_from AND b.ts < reads_until
        ORDER BY b.ts LIMIT 1
    ) AS next
    CROSS JOIN LATERAL (
        SELECT max(upper(coalesce(l.changed, l.buckets))) AS until, bool_or(l.removed) AS removed
        FROM feature_platform.dirty_log l
        WHERE l.symbol = a.symbol AND NOT l.reach_known AND lower(l.buckets) < a.until
    ) AS mark
    WHERE CASE WHEN mark.until IS NULL THEN true
               ELSE NOT mark.removed AND mark.until <= {start}(a.symbol, a.at) END
    OFFSET 0
), bar AS (
    SELECT r.*{looked_up}
    FROM r{rows}{beside}{after_gap}{look_ups}
    OFFSET 0
)"""

_STEP_ROWS = """
    CROSS JOIN LATERAL (
        SELECT {columns} FROM public.ohlcv_1m b
        WHERE b.symbol = r.symbol AND b.ts >= r.bucket AND b.ts < r.bucket + {width}
          AND b.ts >= reads_from AND b.ts < reads_until OFFSET 0
    ) AS b"""

_BESIDE = """
    CROSS JOIN LATERAL (
        SELECT {columns}
        FROM {relation} b
        WHERE b.symbol = r.symbol AND b.{time} = ANY (ARRAY[{points}])
          AND b.{time} >= reads_from - {look} AND b.{time} < reads_until OFFSET 0
    ) AS beside"""

_AFTER_GAP = """
    LEFT JOIN LATERAL (
        SELECT {columns} FROM {look_ups} WHERE r.bucket > r.at + {width} OFFSET 0
    ) AS after_gap ON true"""

_STEP = """
-- The row of the next bucket of these symbols, from the state of the bucket before it. A symbol with
-- an unprocessed mark is skipped where its state may lack the change that the look-ups see: unless all
-- changes are older than what the state holds. Without bars that were deleted, its first bar is known.
CREATE OR REPLACE FUNCTION {name}(
    symbols text[], ats timestamptz[], untils timestamptz[], firsts timestamptz[], of_refresh bigint,
    OUT stepped text[], OUT buckets timestamptz[], OUT ends timestamptz[], OUT written bigint)
    {settings}
    SET plan_cache_mode = force_generic_plan
    SET enable_seqscan = off
    SET enable_bitmapscan = off
    SET enable_memoize = off
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
"""


def _step(plan: Plan, names: Names) -> sql.Composed:
    view = plan.view
    step = Step(plan, names.inner)
    state = [name for name, _ in state_columns(plan, has_places=True)]
    always = {"symbol", "first", "bucket", "until"}
    carried = always | BAR_COLUMNS | step.columns | {"at", *state} | set(step.beside)
    wanted = _wanted(plan, has_places=True) | always
    chain, last, read = render(step.stages, carried, wanted, "bar")
    texts = _BAR_TEXT if view.width == MINUTE else _GROUP_TEXT
    fields = [named(texts[one], one) for one in sorted(read & BAR_COLUMNS)]
    places = [sql.Identifier(f"l{at}") for at in range(len(step.looked_up))]
    look_ups = [
        text("\n    CROSS JOIN LATERAL ({look_up}) AS {place}", look_up=look_up, place=place)
        for look_up, place in zip(step.looked_up, places, strict=True)
    ]
    relation, time = step.source
    beside = text(
        _BESIDE,
        columns=listed(step.beside.values()),
        relation=relation,
        time=time,
        points=listed([text("r.{point}", point=point) for point in step.points.values()]),
        look=interval(max(step.points, default=timedelta())),
    )
    gaps = [sql.Identifier(f"g{at}") for at in range(len(step.after_gap))]
    after_gap = text(
        _AFTER_GAP,
        columns=listed([text("{gap}.*", gap=gap) for gap in gaps]),
        look_ups=listed(
            [
                text("({look_up}) AS {gap}", look_up=look_up, gap=gap)
                for look_up, gap in zip(step.after_gap, gaps, strict=True)
            ],
            " CROSS JOIN ",
        ),
        width=interval(view.width),
    )
    next_bucket = named(bin_text(view, sql.SQL("b.ts")), "bucket")
    rows: sql.Composable = sql.SQL("")
    looked_up: list[sql.Composable] = []
    if view.width != MINUTE and fields:
        rows = text(_STEP_ROWS, columns=listed(fields), width=interval(view.width))
        looked_up.append(sql.SQL(", b.*"))
    looked_up += [sql.SQL(", beside.*")] if step.beside else []
    looked_up += [sql.SQL(", after_gap.*")] if gaps else []
    bars = text(
        _STEP_BARS,
        slot=slot_text(view, sql.SQL("a.at")),
        beside=beside if step.beside else sql.SQL(""),
        after_gap=after_gap if gaps else sql.SQL(""),
        state=_each(", s.{it}", state, ""),
        states=names.state,
        start=names.start,
        points=listed(
            [
                text(", next.bucket - {span} AS {point}", span=interval(span), point=point)
                for span, point in step.points.items()
                if span
            ],
            "",
        ),
        next=listed([next_bucket, *(fields if view.width == MINUTE else [])]),
        rows=rows,
        width=interval(view.width),
        looked_up=listed([*looked_up, *[text(", {place}.*", place=place) for place in places]], ""),
        look_ups=listed(look_ups, ""),
    )
    computed = _computed(plan, last, "true", has_places=True)
    body = [bars, *chain, computed, *_stored(plan, names, has_places=True, splits=False)]
    return text(_STEP, name=names.step, settings=_SETTINGS, body=listed(body, ",\n"))
