"""The containers, as far as they can be known without an engine: all that they name exists, and the roles are right."""

import asyncio
import importlib
import os
import re
import shutil
import subprocess
import time
import tomllib
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import asyncpg
import pytest
import yaml
from pydantic import BaseModel
from redis import Redis
from redis.exceptions import AuthenticationError

import twofold_memory.settings
import twofold_registry.settings
import twofold_router.settings
from twofold_chassis.settings import DatabaseSettings, LogSettings
from twofold_cli.embedded.binaries import find_postgres, find_redis
from twofold_cli.embedded.postgres import APPLICATION, DATABASE, OWNER, SYSTEM, EmbeddedPostgres
from twofold_registry.app import registry

ROOT = Path(__file__).resolve().parents[2]
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text(encoding="utf-8"))
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
ROOMS: Mapping[str, type[BaseModel]] = {
    "registry": twofold_registry.settings.Settings,
    "memory": twofold_memory.settings.Settings,
    "router": twofold_router.settings.Settings,
}
DOCKERFILE = (ROOT / "Dockerfile").read_text(encoding="utf-8")
SCRIPTS = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["scripts"]
EXAMPLE = (ROOT / ".env.example").read_text(encoding="utf-8")


def stage(name: str) -> str:
    """The instructions of one stage of the Dockerfile."""
    found = re.search(rf"^FROM \S+ AS {name}\n(.*?)(?=^FROM |\Z)", DOCKERFILE, re.DOTALL | re.MULTILINE)
    assert found is not None, f"the Dockerfile has no stage {name}"
    return found.group(1)


def settings_of(room: type[BaseModel]) -> set[str]:
    """The names of all settings of a room, as they stand in the environment."""
    names = set()
    for group, field in room.model_fields.items():
        assert field.annotation is not None
        names |= {f"{group}__{name}".upper() for name in field.annotation.model_fields}
    return names


ALL_SETTINGS = set[str]().union(*map(settings_of, ROOMS.values()))


@pytest.mark.parametrize("room", ROOMS)
def test_every_name_in_a_services_environment_is_a_setting_of_it(room: str) -> None:
    assert set(SERVICES[room]["environment"]) <= settings_of(ROOMS[room])
    assert set(re.findall(r"(\w+__\w+)=", stage(room))) <= settings_of(ROOMS[room])


def test_the_migrate_job_is_told_who_owns_and_who_uses() -> None:
    assert set(SERVICES["migrate"]["environment"]) == {"DATABASE__URL", "DATABASE__SYSTEM_URL", "DATABASE__MIGRATE_URL"}


def test_the_registry_keeps_tenants_apart_and_memory_is_not_given_what_it_does_not_use() -> None:
    environment = SERVICES["registry"]["environment"]
    group = {
        name.removeprefix("DATABASE__").lower(): re.sub(r"\$\{.*?\}", "filled", value)
        for name, value in environment.items()
        if name.startswith("DATABASE__") and value is not None
    }
    assert DatabaseSettings.model_validate(group).keeps_tenants_apart
    assert environment["DATABASE__DIRECT_URL"] == environment["DATABASE__SYSTEM_URL"]
    assert environment["DATABASE__SYSTEM_URL"] == SERVICES["migrate"]["environment"]["DATABASE__SYSTEM_URL"]
    assert not [name for name in ("memory", "router") if "SYSTEM" in str(SERVICES[name]["environment"])]


def test_services_do_not_know_the_owners_password() -> None:
    assert not [name for name in ROOMS if "OWNER_PASSWORD" in str(SERVICES[name])]


@pytest.mark.parametrize("room", ROOMS)
def test_a_service_starts_a_console_script_that_exists(room: str) -> None:
    (entry,) = re.findall(r'^ENTRYPOINT \["([\w-]+)"\]$', stage(room), re.MULTILINE)
    assert entry == f"twofold-{room}"
    assert SERVICES[room]["build"] == {"context": ".", "target": room}
    _resolve(SCRIPTS[entry])


def test_the_migrate_job_runs_a_command_of_the_cli() -> None:
    assert re.search(r'^ENTRYPOINT \["twofold"\]$', stage("cli"), re.MULTILINE)
    assert SERVICES["migrate"]["build"]["target"] == "cli"
    _takes("migrate", *SERVICES["migrate"]["command"][1:])


@pytest.mark.parametrize("room", ROOMS)
def test_health_is_asked_where_the_service_listens(room: str) -> None:
    port = SERVICES[room]["environment"][f"{room.upper()}__PORT"]
    command = SERVICES[room]["healthcheck"]["test"]
    assert command == ["CMD", "twofold", "health", f"127.0.0.1:{port}"]
    assert f'CMD ["twofold", "health", "127.0.0.1:{port}"]' in stage(room)
    assert f"{room.upper()}__PORT={port}" in stage(room)
    _takes("health")


@pytest.mark.parametrize("room", ROOMS)
def test_a_service_is_published_on_loopback_only(room: str) -> None:
    inside = {SERVICES[room]["environment"][f"{room.upper()}__{name}"] for name in ("PORT", "METRICS_PORT")}
    assert {published.rpartition(":")[2] for published in SERVICES[room]["ports"]} == inside
    assert all(published.startswith("127.0.0.1:") for published in SERVICES[room]["ports"])


def test_the_stores_are_not_published() -> None:
    assert not [name for name in ("postgres", "redis") if "ports" in SERVICES[name]]


@pytest.mark.parametrize("name", [*ROOMS, "migrate"])
def test_our_containers_may_do_no_more_than_they_need(name: str) -> None:
    container = SERVICES[name]
    assert container["read_only"] is True
    assert container["cap_drop"] == ["ALL"]
    assert container["security_opt"] == ["no-new-privileges:true"]


def test_the_image_is_not_root_and_holds_no_tools() -> None:
    runtime = stage("runtime")
    assert re.search(r"^USER 10001:10001$", runtime, re.MULTILINE)
    assert "PYTHONDONTWRITEBYTECODE=1" in runtime
    assert "pip" not in runtime
    assert "-c constraints.txt" in stage("build")
    assert "[" not in re.search(r"install (.*)", stage("build")).group(1), "no extras"  # type: ignore[union-attr]
    assert all(f"FROM runtime AS {name}\n" in DOCKERFILE for name in [*ROOMS, "cli"])


def test_everything_the_build_copies_is_let_in() -> None:
    allowed = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    copied = {
        path for line in re.findall(r"^COPY (?!--from)(.*) \S+$", stage("build"), re.MULTILINE) for path in line.split()
    }
    assert copied == allowed
    assert all((ROOT / path).exists() for path in copied)


def test_nothing_starts_before_what_it_needs() -> None:
    for name, container in SERVICES.items():
        for needed, how in container.get("depends_on", {}).items():
            if how["condition"] == "service_healthy":
                assert "healthcheck" in SERVICES[needed], f"{name} waits for the health of {needed}, which tells none"
            if how["condition"] == "service_completed_successfully":
                assert SERVICES[needed]["restart"] == "no", f"{name} waits for the end of {needed}, which is started again"
    assert all("migrate" in SERVICES[room]["depends_on"] for room in ("registry", "memory"))


def test_losing_redis_stops_nothing_from_starting() -> None:
    assert {SERVICES[room]["depends_on"]["redis"]["condition"] for room in ("memory", "router")} == {"service_started"}


def test_data_is_in_named_volumes() -> None:
    assert set(COMPOSE["volumes"]) == {"postgres", "redis"}
    assert "postgres:/var/lib/postgresql" in SERVICES["postgres"]["volumes"]
    assert "redis:/data" in SERVICES["redis"]["volumes"]


def test_the_stores_have_a_pinned_major_version() -> None:
    major = {name: int(SERVICES[name]["image"].rpartition(":")[2]) for name in ("postgres", "redis")}
    assert major["postgres"] >= 16
    assert major["redis"] >= 7


def redis_script() -> str:
    """What the shell in the container of Redis is told, after compose has done its part."""
    shell, option, script = SERVICES["redis"]["command"]
    assert (shell, option) == ("sh", "-c")
    assert "$" not in script.replace("$$", ""), "what compose fills in stands among the arguments"
    return str(script).replace("$$", "$")


def test_redis_evicts_nothing_keeps_a_log_and_asks_for_a_password() -> None:
    begin, *lines, end = redis_script().splitlines()
    assert begin == "exec docker-entrypoint.sh valkey-server - <<END"  # it is the image's entrypoint that gives up root
    assert end == "END"
    options = dict(line.split(maxsplit=1) for line in lines)
    assert options["maxmemory-policy"] == "noeviction"
    assert options["appendonly"] == "yes"
    assert options["requirepass"] == '"$REDISCLI_AUTH"'
    assert "REDIS_PASSWORD" in SERVICES["redis"]["environment"]["REDISCLI_AUTH"]


def test_no_password_is_an_argument() -> None:
    for container in SERVICES.values():
        for arguments in (
            container.get("command"),
            container.get("entrypoint"),
            container.get("healthcheck", {}).get("test"),
        ):
            assert "PASSWORD" not in str(arguments)


def test_redis_starts_so_that_only_it_knows_the_password(tmp_path: Path) -> None:
    entrypoint = tmp_path / "docker-entrypoint.sh"
    entrypoint.write_text('#!/bin/sh\nexec "$@"\n')
    entrypoint.chmod(0o755)
    (tmp_path / "valkey-server").symlink_to(find_redis().server)
    socket = tmp_path / "redis"
    script = redis_script().replace("\nEND", f'\nport 0\nunixsocket "{socket}"\ndir "{tmp_path}"\nEND')
    environment = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "REDISCLI_AUTH": "s3cret"}
    process = subprocess.Popen(["sh", "-c", script], env=environment, stdout=subprocess.DEVNULL)
    try:
        ends_at = time.monotonic() + 20
        while not socket.exists() and process.poll() is None and time.monotonic() < ends_at:
            time.sleep(0.02)
        arguments = Path(f"/proc/{process.pid}/cmdline")
        if arguments.exists():  # the shell has become the server: signals reach it
            assert arguments.read_bytes().startswith(b"valkey-server")
            assert b"s3cret" not in arguments.read_bytes()
        with Redis(unix_socket_path=str(socket), protocol=2) as stranger, pytest.raises(AuthenticationError):
            stranger.ping()
        with Redis(unix_socket_path=str(socket), protocol=2, password="s3cret", decode_responses=True) as client:
            told = client.config_get("*")
        assert (told["appendonly"], told["save"], told["maxmemory-policy"]) == ("yes", "", "noeviction")
        assert told["maxmemory"] == str(512 * 2**20)
    finally:
        process.terminate()
        assert process.wait(20) == 0


@pytest.mark.parametrize("room", ROOMS)
def test_a_service_is_given_the_time_that_its_end_may_take(room: str) -> None:
    options = ROOMS[room].model_fields[room].get_default(call_default_factory=True)
    needed_s = options.drain_s + getattr(options, "keep_s", 0.0)
    assert float(SERVICES[room]["stop_grace_period"].removesuffix("s")) >= needed_s + 5


def test_the_example_names_everything_that_compose_asks_for() -> None:
    asked = set(re.findall(r"\$\{(\w+)", (ROOT / "docker-compose.yml").read_text(encoding="utf-8")))
    handed_through = {
        name for room in SERVICES.values() for name, value in room.get("environment", {}).items() if value is None
    }
    named = set(re.findall(r"^(?:# )?(\w+)=", EXAMPLE, re.MULTILINE))
    required = set(re.findall(r"\$\{(\w+):\?", (ROOT / "docker-compose.yml").read_text(encoding="utf-8")))
    assert asked | handed_through <= named
    assert required == set(re.findall(r"^(\w+)=", EXAMPLE, re.MULTILINE))


def test_every_setting_in_the_example_is_one() -> None:
    assert set(re.findall(r"^(?:# )?(\w+__\w+)=", EXAMPLE, re.MULTILINE)) <= ALL_SETTINGS


async def test_the_roles_hold_no_more_rights_than_they_need(own_postgres: EmbeddedPostgres) -> None:
    await _make_roles_with_psql(own_postgres)
    owner = await asyncpg.connect(_url(own_postgres, OWNER))
    app = await asyncpg.connect(_url(own_postgres, APPLICATION))
    system = await asyncpg.connect(_url(own_postgres, SYSTEM))
    try:
        assert await _attributes(owner) == [(APPLICATION, False), (OWNER, False), (SYSTEM, False)]
        await owner.execute("CREATE SCHEMA memory; CREATE TABLE memory.turns (id int)")
        for forbidden in ("CREATE SCHEMA mine", "CREATE TABLE public.mine ()", "CREATE TEMPORARY TABLE mine ()"):
            for role in (app, system):
                with pytest.raises(asyncpg.InsufficientPrivilegeError):
                    await role.execute(forbidden)
        for role in (app, system):
            with pytest.raises(asyncpg.InsufficientPrivilegeError):
                await role.fetch("SELECT * FROM memory.turns")
        await owner.execute(f"GRANT USAGE ON SCHEMA memory TO {APPLICATION}; GRANT SELECT ON memory.turns TO {APPLICATION}")
        assert await app.fetch("SELECT * FROM memory.turns") == []
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await app.execute("DROP TABLE memory.turns")
    finally:
        await owner.close()
        await app.close()
        await system.close()


async def test_the_registry_starts_with_the_roles_that_the_container_makes(own_postgres: EmbeddedPostgres) -> None:
    await _make_roles_with_psql(own_postgres)
    urls = {"url": APPLICATION, "system_url": SYSTEM, "direct_url": SYSTEM, "migrate_url": OWNER}
    database = DatabaseSettings.model_validate({name: _url(own_postgres, role) for name, role in urls.items()})
    for migrate in (True, False):  # by the migrate job; then the service, which does not know the owner
        settings = database.model_copy(update={"migrate": migrate})
        log = LogSettings(level="error")
        started = twofold_registry.settings.Settings(
            database=settings, registry=twofold_registry.settings.RegistrySettings(port=0, drain_s=0), log=log
        )
        async with registry(started) as running:
            assert running.port


async def _make_roles_with_psql(server: EmbeddedPostgres) -> None:
    """As the container does, on a server that is as empty as its volume: with psql, in the environment of compose."""
    connection = await asyncpg.connect(server.url("postgres", "postgres"))
    await connection.execute(f"DROP DATABASE {DATABASE}")
    await connection.execute(f"DROP ROLE {OWNER}, {APPLICATION}, {SYSTEM}")
    await connection.close()
    psql = find_postgres().program("psql")
    if shutil.which(psql) is None:
        pytest.skip("these Postgres binaries come without psql")
    script = ROOT / "deploy/postgres/roles.sql"
    assert f"./{script.relative_to(ROOT)}:/docker-entrypoint-initdb.d/roles.sql:ro" in SERVICES["postgres"]["volumes"]
    process = await asyncio.create_subprocess_exec(
        psql,
        *("-v", "ON_ERROR_STOP=1", "--no-password", "--no-psqlrc", "-f", str(script), server.url("postgres", "postgres")),
        env={"OWNER_PASSWORD": "owner's", "APP_PASSWORD": "app", "SYSTEM_PASSWORD": "system"},
        stderr=subprocess.PIPE,
    )
    _, told = await process.communicate()
    assert process.returncode == 0, told.decode()


def _url(server: EmbeddedPostgres, role: str) -> str:
    password = {OWNER: "owner's", APPLICATION: "app", SYSTEM: "system"}[role]
    return f"postgresql://{role}:{password}@{server.host}:{server.port}/{DATABASE}"


async def _attributes(connection: "asyncpg.Connection[Any]") -> list[tuple[str, bool]]:
    """Of our roles: whether they may anything beyond their own things."""
    rows = await connection.fetch(
        "SELECT rolname, rolsuper OR rolcreaterole OR rolcreatedb OR rolreplication OR rolbypassrls AS mighty"
        " FROM pg_roles WHERE rolname LIKE 'twofold%' ORDER BY rolname"
    )
    return [(row["rolname"], row["mighty"]) for row in rows]


def _resolve(script: str) -> Any:
    module, _, function = script.partition(":")
    return getattr(importlib.import_module(module), function)


def _takes(command: str, *arguments: str) -> None:
    """Whether the CLI knows the command: its help ends well, an unknown one's does not."""
    (entry,) = metadata.entry_points(group="console_scripts", name="twofold")
    main = entry.load()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["twofold", command, *arguments, "--help"])
        with pytest.raises(SystemExit) as ended:
            main()
    assert ended.value.code in (0, None)
