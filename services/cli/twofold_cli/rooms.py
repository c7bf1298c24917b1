"""The settings of the three services as they will read them, checked before anything is started."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pydantic_settings import EnvSettingsSource

import twofold_memory.settings
import twofold_registry.settings
import twofold_router.settings
from twofold_chassis.settings import ListenSettings, RedisSettings, Settings, load
from twofold_chassis.start import StartError
from twofold_cli.embedded.ports import Place, Wish

# Where people expect them; others are taken where these are not free.
PORTS = {"registry": (50051, 9101), "memory": (50052, 9102), "router": (50053, 9103)}
# Stands for the database of the stack's own, which is not there yet.
_DATABASE = {"DATABASE__URL": "postgresql://the-stack/twofold"}
# What a service does at its end besides waiting for calls: its last statements, closing what it had open.
_DRAIN_MARGIN_S = 10.0


@dataclass(frozen=True)
class Rooms:
    """What each service was told about itself, and where they find Redis."""

    services: dict[str, ListenSettings]
    redis: RedisSettings
    keep_s: float

    def drain_s(self, name: str) -> float:
        """How long the end of a service may take; the router also keeps the turns that were answered."""
        return self.services[name].drain_s + (self.keep_s if name == "router" else 0) + _DRAIN_MARGIN_S


def rooms_of(environment: Mapping[str, str]) -> Rooms:
    """Raises StartError that names what is wrong."""
    environment = _DATABASE | dict(environment)
    registry = loaded(twofold_registry.settings.Settings, environment)
    memory = loaded(twofold_memory.settings.Settings, environment)
    router = loaded(twofold_router.settings.Settings, environment)
    services: dict[str, ListenSettings] = {
        "registry": registry.registry,
        "memory": memory.memory,
        "router": router.router,
    }
    return Rooms(services, router.redis, router.router.keep_s)


def loaded(kind: type[Settings], environment: Mapping[str, str]) -> Settings:
    """As a process with this environment and no `.env` reads them. Raises StartError."""

    def only_these(_: type[Settings], /, settings_cls: type[Settings], **__: Any) -> tuple[EnvSettingsSource]:
        source = EnvSettingsSource(settings_cls)
        source.env_vars = {name.lower(): value for name, value in environment.items()}
        return (source,)

    # Settings read os.environ of their own accord: this sort of them reads what it is given.
    return load(type(kind.__name__, (kind,), {"settings_customise_sources": classmethod(only_these)}))


def places_of(rooms: Rooms, *, ephemeral: bool) -> dict[str, Place]:
    """Named ports, else the usual ones; free ones for a stack that is ephemeral. Raises StartError if one is named twice."""
    if ephemeral:
        return {name: Place(listen.host) for name, listen in rooms.services.items()}
    named = named_ports(rooms)
    places = {}
    for name, listen in rooms.services.items():
        wishes = [
            _wish(name, listen, field, usual, named)
            for field, usual in zip(("port", "metrics_port"), PORTS[name], strict=True)
        ]
        places[name] = Place(listen.host, *wishes)
    return places


def named_ports(rooms: Rooms) -> dict[tuple[str, int], str]:
    """The settings that name a port, by host and port. Raises StartError if two name the same."""
    named: dict[tuple[str, int], str] = {}
    for name, listen in rooms.services.items():
        for field in ("port", "metrics_port"):
            port = getattr(listen, field)
            if field not in listen.model_fields_set or not port:
                continue
            setting = f"{name.upper()}__{field.upper()}"
            if other := named.get((listen.host, port)):
                raise StartError(f"{other} and {setting} both name port {port}")
            named[listen.host, port] = setting
    return named


def _wish(name: str, listen: ListenSettings, field: str, usual: int, named: dict[tuple[str, int], str]) -> Wish:
    if field in listen.model_fields_set:
        return Wish(getattr(listen, field) or None, f"{name.upper()}__{field.upper()}")
    return Wish(usual, spoken_for=(listen.host, usual) in named)
