"""Comments, docstrings, messages of the schema and pages use the field's words.

A reader who learned English as a second language must understand each sentence at the first
reading. Words that made sentences hard to read are banned; the list says what to write instead.
"""

from __future__ import annotations

import ast
import io
import re
import subprocess
import tokenize
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

from feature_platform.counted import counted

ROOT = Path(__file__).parents[2]

# A pattern, and the words to use in its place.
BANNED = {
    r"venues?": "exchange",
    r"markets?(?! (data|feature|features|hours))": "symbol",
    r"say|says|said|saying": "name the thing: a setting sets, a message states, a file holds",
    r"tell|tells|told|telling": "report, show, distinguish",
    r"hear|hears|heard|hearing": "receive",
    r"ask|asks|asked|asking": "request, query",
    r"holes?": "gap, missing minutes",
    r"refus(e|es|ed|ing|al)": "reject",
    r"(leaves?|leaving|left) (it |them |him )?(out|alone)": "reject, ignore, skip, give up",
    r"bells?|nudges?|rings|rung": "stop event, wake-up, notification",
    r"accounts?(?! for)": "OS user",
    r"whoever|nobody|somebody|anybody": "client, caller, user, no process",
    r"utters?|lest|anew|wherein|whereof|offend\w*": "plain words",
}
_BANNED = {re.compile(rf"\b(?:{words})\b", re.IGNORECASE): use for words, use in BANNED.items()}
_SUBJECT = re.compile(r"(?:^|[.:;] )(?:What|Who|Whoever|Nothing|Nobody) [a-z]")
MOST_WHAT = 1.0  # in 1,000 words


def _python(path: Path) -> Iterator[tuple[int, str]]:
    source = path.read_text(encoding="utf-8")
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            first = node.body[0] if node.body else None
            if (
                isinstance(first, ast.Expr)
                and isinstance(first.value, ast.Constant)
                and isinstance(first.value.value, str)
            ):
                for at, line in enumerate(first.value.value.splitlines()):
                    yield first.lineno + at, line
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            yield token.start[0], token.string.lstrip("# ")


def _sql(path: Path) -> Iterator[tuple[int, str]]:
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if comment := re.search(r"--\s(.*)", line):
            yield number, comment[1]
        if comment := re.search(r"(?:COMMENT ON .* IS|HINT =) '(.*)'", line):
            yield number, comment[1]


def _page(path: Path) -> Iterator[tuple[int, str]]:
    is_code = False
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if line.startswith("```"):
            is_code = not is_code
        elif not is_code and not line.startswith("    "):
            yield number, re.sub(r"`[^`]*`", "", line)


def _comments(path: Path) -> Iterator[tuple[int, str]]:
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if comment := re.search(r"(?:^|\s)#+\s(.*)", line):
            yield number, comment[1]


def _dashboard(path: Path) -> Iterator[tuple[int, str]]:
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if text := re.search(r'"(?:title|description|label)": "(.*)"', line):
            yield number, text[1]


_READERS = {".py": _python, ".sql": _sql, ".md": _page}
_DASHBOARDS = "deploy/grafana/dashboards/"
_COMMENTED = (".yml", ".yaml", ".toml", ".sh", "Makefile", "Dockerfile", ".env.example", "run")


def prose() -> Iterator[tuple[str, int, str]]:
    """Yield each line of prose of the project: its file, its line and its text."""
    listed = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    for name in listed.stdout.splitlines():
        path = ROOT / name
        reader = _READERS.get(path.suffix) or (_comments if name.endswith(_COMMENTED) else None)
        if name.startswith(_DASHBOARDS):
            reader = _dashboard
        if reader is not None and path.exists() and path != Path(__file__):
            for number, line in reader(path):
                yield name, number, line


def test_prose_has_no_banned_words() -> None:
    found = []
    for name, number, line in prose():
        for pattern, use in _BANNED.items():
            found += [
                f"{name}:{number}: {m[0]!r}, use: {use}: {line.strip()}"
                for m in pattern.finditer(line)
            ]
        if _SUBJECT.search(line.strip()):
            found.append(f"{name}:{number}: begins with a pronoun: {line.strip()}")
    assert not found, "\n" + "\n".join(found)


def test_prose_names_things_instead_of_what() -> None:
    lines = [line for _, _, line in prose()]
    words = sum(len(line.split()) for line in lines)
    whats = sum(len(re.findall(r"\bwhat\b", line, re.IGNORECASE)) for line in lines)
    assert 1000 * whats / words <= MOST_WHAT


def test_names_of_the_schema_and_of_metrics_have_no_banned_words() -> None:
    """A name of the database or of a metric is part of the interface."""
    found = []
    files = [*(ROOT / "sql").glob("*.sql"), *(ROOT / "sql" / "queries").glob("*.sql")]
    for path in (*files, ROOT / "feature_platform" / "service" / "metrics.py"):
        for name in re.findall(r"\b[a-z]+(?:_[a-z]+)*", path.read_text(encoding="utf-8")):
            words = name.removeprefix("un").replace("_", " ")
            # `account_minutes` accounts for them.
            found += [
                f"{path.name}: {name}"
                for pattern in _BANNED
                if "account" not in pattern.pattern and pattern.search(words)
            ]
    assert not found, "\n".join(found)


# Nouns of messages. A number before them needs `counted`, or a condition for 1.
_COUNTED = re.compile(
    r"^ (?:(?!of )[a-z]+ )?(?:bars|buckets|columns|commits|days|events|files|gaps|minutes"
    r"|partitions|refreshes|rows|slices|symbols|versions|writes)\b"
)


def _plurals(source: str) -> Iterator[int]:
    """Yield the lines of messages such as f"{count:,} rows", outside of conditions."""
    tree = ast.parse(source)
    conditions = [node for node in ast.walk(tree) if isinstance(node, ast.IfExp)]
    conditional = {id(part) for node in conditions for part in ast.walk(node)}
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr) and id(node) not in conditional:
            for number, text in pairwise(node.values):
                if (
                    isinstance(number, ast.FormattedValue)
                    and number.format_spec is not None
                    and ast.unparse(number.format_spec) == "f','"
                    and isinstance(text, ast.Constant)
                    and _COUNTED.match(str(text.value))
                ):
                    yield node.lineno


def test_messages_count_one_thing_in_the_singular() -> None:
    assert list(_plurals('f"{count:,} rows"')) == [1]
    assert counted(1, "row") == "1 row"
    assert counted(2000, "row") == "2,000 rows"
    found = [
        f"{path.relative_to(ROOT)}:{line}"
        for path in sorted((ROOT / "feature_platform").rglob("*.py"))
        if path.name != "demo.py"  # its numbers are large
        for line in _plurals(path.read_text(encoding="utf-8"))
    ]
    assert not found, "\n".join(found)
