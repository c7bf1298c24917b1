"""A read replica of an embedded Postgres: a real standby, made by pg_basebackup of the same binaries."""

import asyncio
from pathlib import Path
from signal import SIGKILL
from typing import Any

import asyncpg
import pytest

from tests.waiting import until
from twofold_cli.embedded.binaries import Binaries, find_postgres
from twofold_cli.embedded.child import Child
from twofold_cli.embedded.postgres import SUPERUSER, EmbeddedPostgres


class EmbeddedStandby(EmbeddedPostgres):
    """It follows `primary`, which runs when this one is started for the first time."""

    name = "standby Postgres"

    def __init__(self, folder: Path, primary: EmbeddedPostgres) -> None:
        if not Path(find_postgres().program("pg_basebackup")).exists():
            pytest.skip("these Postgres binaries come without pg_basebackup")
        super().__init__(folder, start_s=20.0)
        self._primary = primary

    async def replayed(self) -> None:
        """Returns when it has replayed everything that is in the primary now."""
        primary = await asyncpg.connect(self._primary.superuser_url)
        end = await primary.fetchval("SELECT pg_current_wal_flush_lsn()::text")
        await primary.close()
        standby = await asyncpg.connect(self.superuser_url)

        async def is_there() -> bool:
            return bool(await standby.fetchval("SELECT pg_last_wal_replay_lsn() >= $1::text::pg_lsn", end))

        await until(is_there)
        await standby.close()

    def _remembered(self) -> dict[str, Any]:
        passwords = {role: self._primary._password(role) for role in self._primary._state["passwords"]}
        state = {"passwords": passwords, **(self.folder.read_state() or {})}
        self.folder.write_state(state)
        return state

    async def _make_data(self, binaries: Binaries) -> None:
        if self.folder.data.exists():
            return
        draft = self.folder.make_draft()
        child = Child("pg_basebackup", self.folder.log, death_signal=SIGKILL, account=self._account)
        source = self._primary.url(SUPERUSER, "postgres")
        argv = [binaries.program("pg_basebackup"), "--pgdata", str(draft), "--dbname", source]
        await child.start([*argv, "--write-recovery-conf", "--checkpoint=fast", "--no-sync"], folder=self.folder.path)
        async with asyncio.timeout(60):
            assert await child.returned() == 0, child.log.tail()
        await child.end()
        draft.replace(self.folder.data)
