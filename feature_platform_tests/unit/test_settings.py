"""Guards against settings that are read wrong, and errors that show a password."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from feature_platform.errors import UserError, redact
from feature_platform.settings import Settings, get_settings

SECRET = "s3cr3t"


@pytest.fixture(autouse=True)
def in_an_empty_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FEATURE_PLATFORM_HOME")
    monkeypatch.chdir(tmp_path)
    get_settings.cache_clear()


def test_the_defaults_are_the_embedded_server_and_a_local_home(tmp_path: Path) -> None:
    settings = get_settings()
    assert settings.database_url is None
    assert settings.home == tmp_path / ".feature_platform"


def test_settings_are_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    before = get_settings()
    monkeypatch.setenv("FEATURE_PLATFORM_HOME", "elsewhere")
    assert get_settings() is before


def test_the_home_does_not_change_with_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FEATURE_PLATFORM_HOME", "here")
    settings = get_settings()
    monkeypatch.chdir("/")
    assert settings.home == tmp_path / "here"


def test_a_tilde_stands_for_the_users_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("FEATURE_PLATFORM_HOME", "~/platform")
    assert get_settings().home == tmp_path / "platform"


def test_empty_values_mean_the_default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEATURE_PLATFORM_DATABASE_URL", "")
    monkeypatch.setenv("FEATURE_PLATFORM_HOME", "")
    assert get_settings() == Settings(database_url=None, home=tmp_path / ".feature_platform")


@pytest.mark.parametrize("setting", ["HOME", "LAKE"])
def test_the_home_of_an_unknown_user_is_an_error(
    setting: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(f"FEATURE_PLATFORM_{setting}", "~no-such-user/data")
    with pytest.raises(UserError, match=f"{setting}: ~no-such-user/data names a user that this"):
        get_settings()


def test_a_lake_that_its_library_reads_as_another_directory_is_an_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("FEATURE_PLATFORM_LAKE", "/data/my%20lake")
    with pytest.raises(UserError, match="LAKE: /data/my%20lake has %20 in its name: choose"):
        get_settings()
    get_settings.cache_clear()
    monkeypatch.setenv("FEATURE_PLATFORM_LAKE", "/data/my lake, 50%")
    assert get_settings().lake == "/data/my lake, 50%"


@pytest.mark.parametrize(
    "url",
    [
        f"postgresql://me:{SECRET}@db.example:5433/bars",
        f"postgres://me:{SECRET}@one,two:5432,5433/bars?target_session_attrs=any",
        f"postgresql://me@/bars?host=/var/run&password={SECRET}",
        f"host=db.example dbname=bars password={SECRET}",
    ],
)
def test_every_form_of_url_is_accepted(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEATURE_PLATFORM_DATABASE_URL", url)
    settings = get_settings()
    assert settings.database_url is not None
    assert settings.database_url.get_secret_value() == url
    assert SECRET not in repr(settings)


@pytest.mark.parametrize(
    "url",
    [
        SECRET,
        f"mysql//{SECRET}",
        f"postgresql://me:{SECRET}@host/db?no_such_option=1",
        f"postgresql://me:{SECRET}%zz@host/db",
        f"postgresql://me:p@{SECRET}@host/db",
        f"postgresql://me:p/{SECRET}@host/db",
        f"postgresql://me:12/{SECRET}@host/db",
        f"postgresql://me:{SECRET}@host:{SECRET}/db",
    ],
)
def test_the_error_of_a_bad_url_names_the_setting_and_hides_the_url(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FEATURE_PLATFORM_DATABASE_URL", url)
    with pytest.raises(UserError, match=r"^FEATURE_PLATFORM_DATABASE_URL: ") as caught:
        get_settings()
    assert SECRET not in str(caught.value)
    assert "\n" not in str(caught.value)
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__


def test_a_file_cannot_be_the_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("FEATURE_PLATFORM_HOME", "file")
    with pytest.raises(UserError, match=r"^FEATURE_PLATFORM_HOME: .*/file is not a directory$"):
        get_settings()


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("postgresql://me:s@host:1/db", "postgresql://me:***@host:1/db"),
        ("postgresql://me@host/db", "postgresql://me@host/db"),
        ("postgresql://host/db", "postgresql://host/db"),
        ("postgresql://me:s@s/s@host/db", "postgresql://me:***@host/db"),
        (
            "postgresql://h/d?password=s&sslmode=require",
            "postgresql://h/d?password=***&sslmode=require",
        ),
        ("host=h password=s dbname=d", "host=h password=*** dbname=d"),
        (r"host=h password = 's \' s' dbname=d", "host=h password = *** dbname=d"),
        ("host=h password='s s", "host=h password=***"),
        ("host=h sslpassword=s", "host=h sslpassword=***"),
    ],
)
def test_redact_hides_the_password_of_each_form(url: str, shown: str) -> None:
    assert redact(url) == shown


@given(password=st.text(min_size=1).map(lambda text: f"<{text}>"))
def test_redact_hides_any_password_in_a_url(password: str) -> None:
    shown = redact(f"postgresql://me:{password}@host:5432/db")
    assert shown == "postgresql://me:***@host:5432/db"
