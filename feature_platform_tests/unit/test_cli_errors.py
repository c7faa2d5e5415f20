"""Guards against a wrong command line without one clear line and the exit status 2."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command
from typer.testing import CliRunner

from feature_platform.cli.app import app, main
from feature_platform_tests.fix_processes import COMMAND, only_line, rejection, run


def command_paths(command: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Yield the words of each command, without groups."""
    subcommands = getattr(command, "commands", None)
    if subcommands is None:
        yield path
        return
    for name, subcommand in subcommands.items():
        yield from command_paths(subcommand, (*path, name))


COMMANDS = sorted(command_paths(get_command(app)))
GROUPS = [("db",)]


Call = Callable[..., tuple[object, str, str]]


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Call]:
    """Yield a function that runs a command in this process; it returns status, stdout, stderr."""

    def call_main(*words: str) -> tuple[object, str, str]:
        monkeypatch.setattr(sys, "argv", ["feature-platform", *words])
        with pytest.raises(SystemExit) as raised:
            main()
        printed = capsys.readouterr()
        return raised.value.code, printed.out, printed.err

    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}
    yield call_main
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize(
    "words", [words for words in [(), *GROUPS, *COMMANDS] if words != ("db", "psql")], ids=" ".join
)
def test_an_unknown_option_gets_one_line(words: tuple[str, ...], call: Call) -> None:
    status, output, errors = call(*words, "--no-such-option")
    assert (status, output) == (2, "")
    line = only_line(errors)
    assert line.startswith("feature-platform: No such option: --no-such-option")
    assert line.endswith(f"(see {' '.join(('feature-platform', *words))} --help)")


MISTAKES = {
    "nonsense": "No such command 'nonsense' (see feature-platform --help)",
    "db nonsense": "No such command 'nonsense' (see feature-platform db --help)",
    "verify --start foo": (
        "Invalid value for '--start': 'foo' is not an ISO-8601 time such as 2026-02-01T12:00Z"
        " (see feature-platform verify --help)"
    ),
    "refresh --end": "Option '--end' requires an argument (see feature-platform --help)",
    "refresh --force=yes": "Option '--force' does not take a value (see feature-platform --help)",
    "status now": "Got unexpected extra argument(s) (now) (see feature-platform status --help)",
    "import": "give files to import, or --from binance with --symbol and --start",
}


@pytest.mark.parametrize("words", MISTAKES)
def test_a_wrong_command_line_gets_one_line(words: str) -> None:
    assert rejection(run(*words.split())) == MISTAKES[words]


@pytest.mark.parametrize(
    "moment", ["", " ", "2026-13-01", "now", "'; DROP TABLE x", "%s", "a\nb", "12:00", "\udcff"]
)
def test_an_invalid_time_gets_one_line(moment: str, call: Call) -> None:
    status, output, errors = call("refresh", "--start", moment)
    assert (status, output) == (2, "")
    line = only_line(errors)
    odd = "is not valid UTF-8" in line  # the message for any argument
    assert odd or line.startswith("feature-platform: Invalid value for '--start': ")
    assert line.isprintable()


@pytest.mark.parametrize("word", ["a\nb", "\x1b[31m", "%s", "[/]", "\udcff"])
def test_an_unknown_command_gets_one_line(word: str) -> None:
    assert rejection(run(word)).isprintable()


def test_a_missing_file_is_named() -> None:
    line = rejection(run("demo", "/no/such/file.csv"))
    assert line == "/no/such/file.csv: no such file"


def test_a_bad_setting_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    line = rejection(run("status", FEATURE_PLATFORM_HOME=str(tmp_path / "file")))
    assert line == f"FEATURE_PLATFORM_HOME: {tmp_path}/file is not a directory"
    line = rejection(run("refresh", FEATURE_PLATFORM_DATABASE_URL="mysql://me:s3cr3t@host/db"))
    assert line.startswith("FEATURE_PLATFORM_DATABASE_URL: not a PostgreSQL URL")
    assert "s3cr3t" not in line


@pytest.mark.parametrize("words", [(), *GROUPS], ids=" ".join)
def test_a_command_group_without_a_command_shows_its_help(words: tuple[str, ...]) -> None:
    done = run(*words)
    assert (done.returncode, done.stderr) == (2, "")
    assert f"Usage: {' '.join(('feature-platform', *words))} [OPTIONS] COMMAND" in done.stdout


@pytest.mark.parametrize("words", [(), *GROUPS, *COMMANDS], ids=" ".join)
def test_every_command_has_help(words: tuple[str, ...], call: Call) -> None:
    status, output, errors = call(*words, "--help")
    assert (status, errors) in [(None, ""), (0, "")]
    assert f"Usage: {' '.join(('feature-platform', *words))}" in output


def test_help_into_a_closed_pipe_is_no_error() -> None:
    with subprocess.Popen(
        [*COMMAND, "--help"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == ""
        assert process.wait(timeout=60) == 1


def test_the_installed_program_prints_the_same_error() -> None:
    program = Path(sys.executable).with_name("feature-platform")
    if not program.exists():
        pytest.skip(f"{program} is not installed")
    done = subprocess.run(
        [program, "nonsense"], env=os.environ, capture_output=True, text=True, check=False
    )
    assert rejection(done) == "No such command 'nonsense' (see feature-platform --help)"


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_a_help_page_of_80_columns_cuts_no_word(
    command: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    shown = CliRunner().invoke(app, [*command, "--help"])
    assert shown.exit_code == 0
    assert "Usage: " in shown.output
    assert "\u2026" not in shown.output
    assert max(map(len, shown.output.splitlines())) <= 80
