"""Following all changes, on the wire."""

from collections.abc import AsyncIterator, Sequence
from functools import lru_cache

from twofold.registry.v1 import change_pb2 as pb
from twofold_chassis import fields
from twofold_chassis.refusals import InvalidField
from twofold_registry.history import ItemKind
from twofold_registry.routers import Registered, RouterKey
from twofold_registry.watching import (
    Ack,
    Changed,
    Checkpoint,
    Command,
    Leave,
    Open,
    Opened,
    Ping,
    Place,
    Resync,
    State,
    Thing,
    Told,
)

_NUMBER_MAX = 2**63 - 1
_KINDS = {
    ItemKind.WORKSPACE: (pb.WATCH_ITEM_KIND_WORKSPACE, "workspace"),
    ItemKind.PLAN: (pb.WATCH_ITEM_KIND_PLAN, ""),
    ItemKind.USER: (pb.WATCH_ITEM_KIND_USER, "user"),
    ItemKind.AGENT: (pb.WATCH_ITEM_KIND_AGENT, "agent"),
    ItemKind.ROUTE: (pb.WATCH_ITEM_KIND_ROUTE, "agent"),
    ItemKind.PERMISSION: (pb.WATCH_ITEM_KIND_PERMISSION, "grant"),
}


async def opening(requests: AsyncIterator[pb.WatchRequest]) -> Open:
    """The first message."""
    async for request in requests:
        if request.WhichOneof("command") != "open":
            break
        draft = request.open
        return Open(
            router=_router(draft.router) if draft.HasField("router") else None,
            place=_place(draft.place) if draft.HasField("place") else None,
            wants_state=draft.state,
            until_caught_up=draft.until_caught_up,
        )
    raise InvalidField("open", "is required, first")


async def commands(requests: AsyncIterator[pb.WatchRequest], order: Open) -> AsyncIterator[Command]:
    """The messages behind the first."""
    async for request in requests:
        yield _command(request, order)


def _command(request: pb.WatchRequest, order: Open) -> Command:
    told = request.WhichOneof("command")
    if told == "ping":
        if not request.ping.nonce:
            raise InvalidField("ping.nonce", "is required")
        return Ping(request.ping.nonce)
    if told not in ("ack", "leave"):
        raise InvalidField(told or "command", "is sent once, first" if told else "is required")
    if order.router is None:
        raise InvalidField(told, "is for routers: open.router was not given")
    if told == "leave":
        return Leave()
    # An empty registry has revision 0.
    revision = fields.whole(request.ack.revision, "ack.revision", least=0, most=_NUMBER_MAX)
    return Ack(_number(request.ack.epoch, "ack.epoch"), revision)


def told(one: Told) -> pb.WatchResponse:
    match one:
        case Changed():
            return _changed(one)
        case Checkpoint():
            return pb.WatchResponse(checkpoint=_checkpoint(one))
        case State(things):
            return pb.WatchResponse(state=pb.WatchState(items=map(_item, things)))
        case Opened(place, resumed):
            form = pb.WatchPlace(epoch=place.epoch, revision=place.revision, tag=place.tag)
            return pb.WatchResponse(start=pb.WatchStart(place=form, resumed=resumed))
        case Resync(why):
            reason = pb.WatchResyncReason.Value(f"WATCH_RESYNC_REASON_{why.upper()}")
            return pb.WatchResponse(resync=pb.WatchResync(reason=reason))


def listed(routers: Sequence[Registered]) -> pb.ListRoutersResponse:
    return pb.ListRoutersResponse(routers=map(_registered, routers))


@lru_cache(maxsize=256)  # all who watch are told the same; one may hold an agent with 64 KiB of instructions
def _changed(change: Changed) -> pb.WatchResponse:
    form = pb.WatchChange(
        revision=change.revision,
        tag=change.tag,
        change_time=fields.timestamp(change.at),
        items=map(_item, change.things),
        wait=change.wait,
    )
    return pb.WatchResponse(change=form)


def _item(thing: Thing) -> pb.WatchItem:
    item = thing.item
    kind, resource = _KINDS[item.kind]
    form = pb.WatchItem(kind=kind, workspace_id=thing.workspace_id, user_id=item.user_id, agent_id=item.agent_id)
    if item.after is not None and resource:
        getattr(form, resource).MergeFromString(item.after)
    return form


def _checkpoint(one: Checkpoint) -> pb.WatchCheckpoint:
    return pb.WatchCheckpoint(
        nonce=one.nonce,
        epoch=one.epoch,
        revision=one.revision,
        read_time=fields.timestamp(one.at),
        registered_ms=one.registered_ms,
        routers=one.routers,
    )


def _registered(router: Registered) -> pb.RegisteredRouter:
    key, epoch, revision = router.acked
    return pb.RegisteredRouter(
        router_id=key.router_id,
        incarnation=key.incarnation,
        expire_time=fields.timestamp(router.expires_at),
        acked_epoch=epoch,
        acked_revision=revision,
    )


def _router(draft: pb.WatchRouter) -> RouterKey:
    return RouterKey(
        fields.identifier(draft.router_id, "open.router.router_id"),
        fields.identifier(draft.incarnation, "open.router.incarnation"),
    )


def _place(draft: pb.WatchPlace) -> Place:
    epoch = fields.whole(draft.epoch, "open.place.epoch", least=1, most=_NUMBER_MAX)
    revision = fields.whole(draft.revision, "open.place.revision", least=0, most=_NUMBER_MAX)
    return Place(epoch, revision, draft.tag)


def _number(value: int, field: str) -> int:
    return fields.whole(value, field, least=1, most=_NUMBER_MAX)
