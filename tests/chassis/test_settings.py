"""Settings: a wrong one is named, and none is repeated."""

from pathlib import Path

import pytest

from twofold_chassis.settings import DatabaseSettings, ListenSettings, RedisSettings, ServiceSettings, load
from twofold_chassis.start import StartError


class Room(ListenSettings):
    names: tuple[str, ...] = ()


class Some(ServiceSettings):
    database: DatabaseSettings
    room: Room = Room()


@pytest.fixture(autouse=True)
def nothing_is_set(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DATABASE__URL", raising=False)


def refused() -> str:
    with pytest.raises(StartError) as told:
        load(Some)
    return str(told.value)


def test_of_a_group_that_is_missing_the_settings_are_named_that_it_needs() -> None:
    assert refused() == "wrong settings: DATABASE__URL: Field required"


def test_a_setting_that_is_missing_in_its_group_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATABASE__MIGRATE", "no")
    assert refused() == "wrong settings: DATABASE__URL: Field required"


def test_a_list_that_is_not_json_is_named_wherever_it_stands(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATABASE__URL", "postgresql://app:s3cret@host/db")
    monkeypatch.setenv("ROOM__NAMES", "s3cret")
    assert refused() == "wrong settings: ROOM__NAMES: must be written as JSON"
    monkeypatch.setenv("ROOM__NAMES", '["a"]')
    Path(".env").write_text("ROOM__NAMES=s3cret\nROOM__PORT=1\nOTHER=x\nLOG=s3cret\n")
    assert refused() == "wrong settings: LOG: must be written as JSON; ROOM__NAMES: must be written as JSON"
    Path(".env").write_text("ROOM__PORT=1\n")
    assert load(Some).room.names == ("a",)


def test_a_file_that_is_not_utf_8_is_named() -> None:
    Path(".env").write_bytes("DATABASE__URL=postgresql://app:s3crét@host/db".encode("latin-1"))
    assert refused() == "wrong settings: the file .env is not UTF-8"


@pytest.mark.parametrize(
    "url",
    [
        "mysql://app:s3cret@host/db",
        "postgresql://app:s3cret/pw@host/db",
        "postgresql://app:s3cret#pw@host/db",
        "postgresql://app:s3cret@host:port/db",
        "postgresql://app:s3cret@[host/db",
    ],
)
def test_a_wrong_url_is_refused_without_a_word_of_it(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    monkeypatch.setenv("DATABASE__URL", url)
    with pytest.raises(StartError, match="DATABASE__URL") as told:
        load(Some)
    assert not any(word in str(told.value) for word in ("s3cret", "pw@", "host", "port/"))


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://app:p%2Fw@host:5432/db?sslmode=require",
        "postgresql://one:5432,two:5433/db?target_session_attrs=read-write",
        "postgresql:///db?host=/run/postgresql",
        "postgres://app@[::1]:5432/db",
    ],
)
def test_the_urls_that_servers_are_named_by_are_taken(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    class Some(ServiceSettings):
        database: DatabaseSettings

    monkeypatch.setenv("DATABASE__URL", url)
    assert load(Some).database.url.get_secret_value() == url


def redis_of(monkeypatch: pytest.MonkeyPatch, **settings: str) -> RedisSettings:
    class Some(ServiceSettings):
        redis: RedisSettings = RedisSettings()

    for name, value in settings.items():
        monkeypatch.setenv(f"REDIS__{name}", value)
    return load(Some).redis


def test_sentinels_are_named_by_host_and_port(monkeypatch: pytest.MonkeyPatch) -> None:
    found = redis_of(monkeypatch, SENTINELS="one:26379, two:26380,[::1]:1", SENTINEL_MASTER="main")
    assert found.sentinel_addresses == [("one", 26379), ("two", 26380), ("::1", 1)]


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"SENTINELS": "one", "SENTINEL_MASTER": "main"}, "REDIS__SENTINELS: .*host:port"),
        ({"SENTINELS": "one:2,", "SENTINEL_MASTER": "main"}, "REDIS__SENTINELS: .*host:port"),
        ({"SENTINELS": "one:70000", "SENTINEL_MASTER": "main"}, "REDIS__SENTINELS: .*host:port"),
        ({"SENTINELS": "one:1"}, "REDIS: .*SENTINEL_MASTER"),
        ({"SENTINEL_MASTER": "main"}, "REDIS: .*SENTINELS"),
        ({"CLUSTER": "true", "DB": "1"}, "REDIS: .*CLUSTER"),
        ({"CLUSTER": "true", "SENTINELS": "one:1", "SENTINEL_MASTER": "main"}, "REDIS: .*CLUSTER"),
    ],
)
def test_kinds_of_redis_that_cannot_be_meant_together_are_refused(
    monkeypatch: pytest.MonkeyPatch, settings: dict[str, str], told: str
) -> None:
    with pytest.raises(StartError, match=told):
        redis_of(monkeypatch, **settings)
