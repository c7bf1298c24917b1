"""M7 and M9 for the scripts together: whatever order they come in, twice, late or never, L1 is a run of the thread."""

import uuid

import redis
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from twofold_chassis.settings import RedisSettings
from twofold_memory import keys
from twofold_memory.cache.scripts import script
from twofold_memory.threads import ThreadKey

TTL_MS = 60_000
WINDOW_MAX = 6
SCRIPTS = {
    "extend": script("extend", behind="window"),
    "fill": script("fill"),
    "fence": script("fence"),
    "look": script("look"),
}
CHOICE = st.integers(0, 10**6)

Command = tuple[str, list[str | int]]


class Windows(RuleBasedStateMachine):
    """Postgres is a list an epoch; commands to Redis are put aside and delivered in any order, repeated, or dropped."""

    client: redis.Redis

    def __init__(self) -> None:
        super().__init__()
        key = ThreadKey("machine", uuid.uuid4().hex)
        self.names = keys.all_of_thread(key)
        self.epoch = 1
        self.logs: dict[int, list[str]] = {1: []}
        self.turns: list[tuple[int, int]] = []
        self.under_way: list[Command] = []

    @property
    def log(self) -> list[str]:
        return self.logs[self.epoch]

    @rule(size=st.integers(1, 4), told=st.booleans())
    def commit(self, size: int, told: bool) -> None:
        first = len(self.log) + 1
        self.log.extend(("t" if not part else "m") + f"{self.epoch}:{first + part}" for part in range(size))
        self.turns.append((first, first + size - 1))
        if told:
            self.tell(-1, with_elements=True)

    @precondition(lambda self: self.turns)
    @rule(which=CHOICE)
    def find_a_turn_stored(self, which: int) -> None:
        self.tell(which % len(self.turns), with_elements=False)

    def tell(self, index: int, *, with_elements: bool) -> None:
        first, last = self.turns[index]
        elements = self.log[first - 1 : last] if with_elements else []
        self.under_way.append(("extend", [TTL_MS, WINDOW_MAX, 10**6, "", self.epoch, first, last, len(elements), *elements]))

    @precondition(lambda self: self.log)
    @rule(count=st.integers(1, 2 * WINDOW_MAX))
    def read_a_snapshot(self, count: int) -> None:
        newest = self.log[-count:]
        self.under_way.append(("fill", [self.epoch, len(self.log) + 1, TTL_MS, "", *newest]))

    @rule()
    def change_the_past(self) -> None:
        self.epoch += 1
        edited = [element.replace(f"{self.epoch - 1}:", f"{self.epoch}:") for element in self.logs[self.epoch - 1]]
        self.logs[self.epoch] = edited
        self.under_way.append(("fence", [self.epoch, TTL_MS, 0]))

    @precondition(lambda self: self.under_way)
    @rule(which=CHOICE, again=st.booleans())
    def deliver(self, which: int, again: bool) -> None:
        index = which % len(self.under_way)
        name, arguments = self.under_way[index]
        self.client.eval(SCRIPTS[name].source, 4, *self.names, *arguments)
        if not again:
            del self.under_way[index]

    @precondition(lambda self: self.under_way)
    @rule()
    def deliver_in_order(self) -> None:
        for name, arguments in self.under_way:
            self.client.eval(SCRIPTS[name].source, 4, *self.names, *arguments)
        self.under_way.clear()

    @rule(which=st.sampled_from([(0,), (1,), (0, 1)]))
    def evict(self, which: tuple[int, ...]) -> None:
        self.client.delete(*(self.names[index] for index in which))

    @invariant()
    def a_window_is_a_run_of_its_epoch(self) -> None:
        looked, _ = self.client.eval(SCRIPTS["look"].source, 4, *self.names, 100)
        if looked is not None:
            epoch, first, following, _, elements = looked
            run = self.logs[int(epoch)][int(first) - 1 : int(following) - 1]
            assert [element.decode() for element in elements] == run
            assert run

    @invariant()
    def every_key_has_a_time_to_live(self) -> None:
        for name in self.names:
            ttl = self.client.pttl(name)
            assert ttl == -2 or 0 < ttl <= TTL_MS

    def teardown(self) -> None:
        self.client.delete(*self.names)


def test_m7_m9_l1_is_absent_or_a_run_of_the_thread_after_any_schedule(redis_settings: RedisSettings) -> None:
    """M7, M9."""
    assert redis_settings.password is not None
    password = redis_settings.password.get_secret_value()
    with redis.Redis(host=redis_settings.host, port=redis_settings.port, password=password) as client:
        machine = type("Windows", (Windows,), {"client": client})
        run_state_machine_as_test(
            machine,
            settings=settings(
                max_examples=120, stateful_step_count=30, deadline=None, suppress_health_check=list(HealthCheck)
            ),
        )
