"""Real Postgres and real Valkey out of wheels: no Docker, no compiler, no orphan left behind."""

from twofold_cli.embedded.postgres import EmbeddedPostgres
from twofold_cli.embedded.redis import EmbeddedRedis
from twofold_cli.embedded.service import ServiceProcess

__all__ = ["EmbeddedPostgres", "EmbeddedRedis", "ServiceProcess"]
