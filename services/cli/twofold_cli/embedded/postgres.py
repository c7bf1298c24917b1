"""A real Postgres of our own: loopback only, passwords on, fsync on, gone when we are gone."""

import secrets
from dataclasses import dataclass
from signal import SIGCONT, SIGINT, SIGKILL, SIGQUIT, SIGSTOP, Signals
from typing import Any

import asyncpg

from twofold_chassis.start import StartError
from twofold_cli.embedded import cluster
from twofold_cli.embedded.binaries import Binaries, find_postgres
from twofold_cli.embedded.child import send
from twofold_cli.embedded.ports import LOOPBACK
from twofold_cli.embedded.processes import children_of, is_alive, until
from twofold_cli.embedded.server import EmbeddedServer

SUPERUSER = "postgres"
OWNER = "twofold_owner"
APPLICATION = "twofold_app"
SYSTEM = "twofold_system"
ROLES = (SUPERUSER, OWNER, APPLICATION, SYSTEM)
DATABASE = "twofold"

CONNECT_S = 10.0
CHILDREN_GONE_S = 10.0

SETTINGS = {
    "listen_addresses": LOOPBACK,
    "unix_socket_directories": "",
    "max_connections": "200",
    "shared_buffers": "64MB",
    "fsync": "on",
    "timezone": "UTC",
    "log_timezone": "UTC",
}


@dataclass(frozen=True)
class DatabaseUrls:
    """The same database, as seen by who may do what."""

    owner: str
    app: str
    system: str
    superuser: str


class EmbeddedPostgres(EmbeddedServer):
    """With a role that owns the database, those of services, which may only use it, and the database `twofold`."""

    name = "Postgres"
    # Immediate shutdown: it does not wait for backends that may be stopped; crash recovery loses nothing.
    death_signal = SIGQUIT
    # Fast, then immediate, at whose end Postgres itself kills what is left of its children after 5 s.
    shutdown = ((SIGINT, 10.0), (SIGQUIT, 7.0))

    def url(self, role: str, database: str = DATABASE) -> str:
        return f"postgresql://{role}:{self._password(role)}@{self.host}:{self.port}/{database}"

    @property
    def urls(self) -> DatabaseUrls:
        return self._urls(DATABASE)

    def _urls(self, database: str) -> DatabaseUrls:
        return DatabaseUrls(*(self.url(role, database) for role in (OWNER, APPLICATION, SYSTEM, SUPERUSER)))

    @property
    def owner_url(self) -> str:
        return self.url(OWNER)

    @property
    def app_url(self) -> str:
        return self.url(APPLICATION)

    @property
    def system_url(self) -> str:
        return self.url(SYSTEM)

    @property
    def superuser_url(self) -> str:
        return self.url(SUPERUSER)

    async def start(self) -> None:
        """The first start makes the cluster, the roles and the database."""
        await super().start()
        try:
            await self._make_roles()
        except (OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError) as error:
            await self.stop()
            raise StartError(f"Postgres ended while its roles were made ({type(error).__name__})") from None

    async def kill(self) -> None:
        """kill -9 of the postmaster; returns when its children, which notice that, are gone as well."""
        if not self.running:
            return
        # A stopped postmaster forks no child that the listing would miss.
        self.child.signal(SIGSTOP)
        children = children_of(self.pid)
        await super().kill()
        _send_all(children, SIGCONT)
        if not await until(lambda: not any(map(is_alive, children)), CHILDREN_GONE_S):
            _send_all([pid for pid in children if is_alive(pid)], SIGKILL)

    def pause(self) -> None:
        super().pause()
        _send_all(children_of(self.pid), SIGSTOP)

    def resume(self) -> None:
        _send_all(children_of(self.pid), SIGCONT)
        super().resume()

    async def create_database(self, name: str) -> DatabaseUrls:
        """An empty database that the owner role owns and the application may only use."""
        await self._as_superuser(
            ("CREATE DATABASE %I OWNER %I", name, OWNER),
            ("REVOKE TEMPORARY ON DATABASE %I FROM PUBLIC", name),
        )
        return self._urls(name)

    async def drop_database(self, name: str) -> None:
        """Whoever is connected to it is thrown out."""
        await self._as_superuser(("DROP DATABASE IF EXISTS %I WITH (FORCE)", name))

    async def _make_roles(self) -> None:
        """At every start, as an earlier one may have been cut short between any two of these."""
        connection = await self._connect(self.port, CONNECT_S)
        try:
            roles = {row["rolname"] for row in await connection.fetch("SELECT rolname FROM pg_roles")}
            databases = {row["datname"] for row in await connection.fetch("SELECT datname FROM pg_database")}
        finally:
            await connection.close()
        for role in {OWNER, APPLICATION, SYSTEM} - roles:
            await self._as_superuser(("CREATE ROLE %I LOGIN PASSWORD %L", role, self._password(role)))
        if DATABASE not in databases:
            await self.create_database(DATABASE)

    async def _as_superuser(self, *statements: tuple[str, ...]) -> None:
        connection = await self._connect(self.port, CONNECT_S)
        try:
            for statement, *values in statements:
                # These statements take no parameters: the server itself does the quoting.
                quote = "SELECT format($1, VARIADIC $2::text[])"
                await connection.execute(await connection.fetchval(quote, statement, values))
        finally:
            await connection.close()

    async def _connect(self, port: int, timeout_s: float) -> "asyncpg.Connection[Any]":
        return await asyncpg.connect(
            host=self.host,
            port=port,
            user=SUPERUSER,
            password=self._password(SUPERUSER),
            database="postgres",
            ssl=False,
            timeout=timeout_s,
        )

    # What differs from other servers ---------------------------------------------------------------------

    def _password(self, role: str) -> str:
        password: str = self._state["passwords"][role]
        return password

    def _find(self) -> Binaries:
        return find_postgres()

    def _remembered(self) -> dict[str, Any]:
        state = self.folder.read_state()
        if state and SYSTEM not in state["passwords"]:  # made before there was this role
            state["passwords"][SYSTEM] = secrets.token_hex(24)
            self.folder.write_state(state)
        if not state:
            if self.folder.data.exists():
                raise StartError(
                    f"the passwords (state.json) of the Postgres in {self.folder.path} are lost: "
                    "put that file back, or move the folder away to begin with an empty database"
                )
            state = {"passwords": {role: secrets.token_hex(24) for role in ROLES}}
            self.folder.write_state(state)
        return state

    async def _make_data(self, binaries: Binaries) -> None:
        if not self.folder.data.exists():
            password = self._password(SUPERUSER)
            await cluster.make_cluster(self.folder, binaries, self._account, SUPERUSER, password)
        cluster.refuse_other_version(self.folder, cluster.major_of(binaries, self._account))
        cluster.clear_stale_pid(self.folder)

    def _argv(self, binaries: Binaries, port: int) -> list[str]:
        settings = SETTINGS | {"port": str(port)}
        options = [part for name, value in settings.items() for part in ("-c", f"{name}={value}")]
        return [binaries.server, "-D", str(self.folder.data), *options]

    async def _answers(self, port: int, timeout_s: float) -> bool:
        try:
            connection = await self._connect(port, timeout_s)
        except (OSError, TimeoutError, asyncpg.PostgresError):
            return False
        await connection.close()
        return True


def _send_all(pids: list[int], number: Signals) -> None:
    for pid in pids:
        send(pid, number)
