"""Metrics: every one is explained to operators."""

import re
from pathlib import Path

from tests.registry.scrapes import scrape
from tests.registry.stubs import settings_of
from twofold_chassis.settings import DatabaseSettings
from twofold_registry.app import registry

OPERATIONS = Path(__file__).parents[2] / "docs/operations.md"
OURS = r"twofold_(?:registry|postgres)_\w+"


async def test_every_metric_of_the_room_is_explained_to_operators(database_settings: DatabaseSettings) -> None:
    database = database_settings.model_copy(update={"replica_url": database_settings.url})
    async with registry(settings_of(database, metrics_port=0)) as running:
        assert running.metrics_port is not None
        told = set(re.findall(rf"^# TYPE ({OURS}) ", await scrape(running.metrics_port), re.MULTILINE))
    told = {name for name in told if not name.endswith("_created")}
    explained = set(re.findall(rf"^\| `({OURS})", OPERATIONS.read_text(encoding="utf-8"), re.MULTILINE))
    assert told == explained
