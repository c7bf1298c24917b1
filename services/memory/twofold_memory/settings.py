"""Settings of the memory service."""

from pydantic import Field

from twofold_chassis.settings import DatabaseSettings, ListenSettings, Port, RedisSettings, ServiceSettings


class MemorySettings(ListenSettings):
    """The service itself."""

    port: Port = Field(default=50052, description="port; 0 takes a free one")
    thread_ttl_hours: float = Field(default=24, gt=0, le=24 * 365, description="how long L1 keeps an idle thread's window")
    user_ttl_days: float = Field(default=30, gt=0, le=3650, description="how long L1 keeps a user's preferences")
    max_thread_messages: int = Field(
        default=50, ge=1, le=250, description="exchanges in a thread's window; it holds twice as many messages"
    )
    commit_lanes: int = Field(default=1, ge=1, le=8, description="group commits under way at a time")
    commit_ms: float = Field(
        default=150, gt=0, le=10_000, description="how long an append waits for Postgres before it goes into the journal"
    )
    journal_ms: float = Field(
        default=150, gt=0, le=10_000, description="how long an append may take to go into the journal; then it is refused"
    )
    confirm_ms: float = Field(
        default=150, gt=0, le=10_000, description="how long a warm read waits for Postgres before it says UNVERIFIED"
    )
    long_pool_size_max: int = Field(
        default=3, ge=1, le=100, description="connections for long work, exports and erasures, besides the others"
    )
    long_command_timeout_s: float = Field(
        default=30, gt=0, le=600, description="the longest that one statement of long work may take"
    )
    retention_look_s: float = Field(
        default=300, gt=0, le=86400, description="how often somebody looks what a workspace has kept for long enough"
    )

    @property
    def window_messages_max(self) -> int:
        """Messages in a window of L1."""
        return 2 * self.max_thread_messages


class Settings(ServiceSettings):
    """All groups of the memory service."""

    database: DatabaseSettings
    redis: RedisSettings = RedisSettings()
    memory: MemorySettings = MemorySettings()
