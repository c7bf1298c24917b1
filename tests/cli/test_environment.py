"""What a person said about the stack, refused in one sentence where it cannot be what was meant."""

import os
from pathlib import Path

import pytest

from twofold_chassis.start import StartError
from twofold_cli.embedded.ports import Place
from twofold_cli.environment import bare_environment, person_environment, settled
from twofold_cli.rooms import places_of, rooms_of


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder, in which there is no `.env` yet; and no settings of ours around it."""
    monkeypatch.chdir(tmp_path)
    for name in os.environ.keys() - bare_environment().keys():
        monkeypatch.delenv(name)
    return tmp_path


def test_the_environment_wins_over_the_file_in_whatever_case_both_are(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (here / ".env").write_text("registry__port=1\nROUTER__PORT=2\nmine__too=3\n")
    monkeypatch.setenv("REGISTRY__Port", "4")
    seen = person_environment()
    assert (seen["REGISTRY__PORT"], seen["ROUTER__PORT"], seen["mine__too"]) == ("4", "2", "3")


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"A=1\n\nB=\xff\n", r"^line 3 of .*\.env is not UTF-8 text$"),
        (b"A=1\nB=\0\n", r"^line 2 of .*\.env is not UTF-8 text$"),
        (b"A=1\n\n\nthis is wrong\nB=2\n", r"^line 4 of .*\.env is not NAME=value$"),
        (b"REDIS__HOST\n", r"^line 1 of .*\.env is not NAME=value$"),
    ],
)
def test_a_line_that_cannot_be_read_is_named_with_its_file(here: Path, content: bytes, sentence: str) -> None:
    (here / ".env").write_bytes(content)
    with pytest.raises(StartError, match=sentence):
        person_environment()


@pytest.mark.parametrize("name", ["REDIS__PORT", "REDIS__PASSWORD", "REDIS__DB", "DATABASE__MIGRATE_URL"])
def test_an_address_without_its_server_is_refused_and_an_empty_one_is_none(name: str) -> None:
    with pytest.raises(StartError, match=f"{name} is set, but (REDIS__HOST|DATABASE__URL) is not"):
        settled({name: "1"})
    assert settled({name: "", "REDIS__BUDGET_MS": "5", "DATABASE__POOL_SIZE_MAX": "3"}) == {
        "REDIS__BUDGET_MS": "5",
        "DATABASE__POOL_SIZE_MAX": "3",
    }


@pytest.mark.parametrize(
    ("name", "value"),
    [("REGISTRY__PORT", "x"), ("MEMORY__PROT", "1"), ("ROUTER__KEEP_S", "-1"), ("DATABASE__POOL_SIZE_MAX", "0")],
)
def test_a_wrong_setting_of_any_service_is_named_before_anything_starts(name: str, value: str) -> None:
    with pytest.raises(StartError, match=f"wrong settings: {name}"):
        rooms_of({name: value})


def test_the_settings_of_this_process_are_none_of_the_stacks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REGISTRY__PORT", "x")
    assert rooms_of({"MEMORY__PORT": "7"}).services["memory"].port == 7


def test_a_service_may_take_as_long_to_end_as_it_was_told() -> None:
    rooms = rooms_of({"MEMORY__DRAIN_S": "100", "ROUTER__DRAIN_S": "100", "ROUTER__KEEP_S": "50"})
    assert rooms.drain_s("memory") > 100
    assert rooms.drain_s("router") > 150


def test_a_port_is_named_by_one_setting_and_used_by_one_service() -> None:
    with pytest.raises(StartError, match="REGISTRY__PORT and MEMORY__METRICS_PORT both name port 7"):
        places_of(rooms_of({"REGISTRY__PORT": "7", "MEMORY__METRICS_PORT": "7"}), ephemeral=False)
    places = places_of(rooms_of({"REGISTRY__PORT": "50052"}), ephemeral=False)
    assert places["memory"].port.granted("127.0.0.1") != 50052


def test_who_listens_on_every_address_is_reached_on_loopback() -> None:
    assert Place("0.0.0.0").reached == "127.0.0.1"
    assert Place("127.0.0.2").reached == "127.0.0.2"
