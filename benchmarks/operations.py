"""What is measured: each row, what it needs, and its goal."""

from collections.abc import Sequence
from dataclasses import replace

import grpc

from benchmarks import cold, echo, events, limits, registry, sessions, threads, turns, usage
from benchmarks.comparing import MANY, Operation, against_echo, always, subject
from benchmarks.places import Place
from benchmarks.rows import ROUNDS, WARM_UP, Comparison, Server, Subject
from benchmarks.textbook import SERVICE as TEXTBOOK
from benchmarks.words import check_exchanges
from twofold.memory.v1 import conversation_pb2, message_pb2
from twofold.registry.v1 import permission_pb2, user_pb2
from twofold.router.v1 import routing_pb2

THREADS = 8
LONG = 100_000
SHORT = 100
_READ_MESSAGES = 80
BATCH = 20
_ROUTING = "/twofold.router.v1.RoutingService"
_CONVERSATIONS = "/twofold.memory.v1.ConversationService"
# Which counter of windows rises for what is measured.
_FROM_COPY = 'completeness="AS_OF",source="L1"'
_CONFIRMED = 'completeness="COMPLETE",source="L1"'
_FROM_POSTGRES = 'source="L2"'
_NO_REDIS = (
    "by a second worker for which nothing listens where its Redis should be: its breaker is open, every read is one query "
    "for head and messages, and nothing is written back. With Redis there, a cold read costs a look before and a fill after"
)
_COPIES = "from the copies in the router's process, under its lease over the registry's stream of changes"

Append = conversation_pb2.AppendTurnRequest
Read = conversation_pb2.ReadWindowRequest


OPERATIONS: Sequence[Operation] = (
    Operation("P1", lambda place: _resolve(place, "P1", MANY, 0.80)),
    Operation("P7-P1", lambda place: _resolve(place, "P7-P1", 1, 1.6)),
    Operation("P2", lambda place: _batch_resolve(place)),
    Operation("P9", lambda place: _check(place)),
    Operation("P3", lambda place: _append(place, "P3", MANY, 0.75)),
    Operation("P7-P3", lambda place: _append(place, "P7-P3", 1, 4)),
    Operation("P4", lambda place: _append_and_textbook(place)),
    Operation("P4-window", lambda place: _window_and_textbook(place)),
    Operation("P5", lambda place: _window_with_token(place, "P5", MANY, 0.80)),
    Operation("P7-P5", lambda place: _window_with_token(place, "P7-P5", 1, 1.7)),
    Operation("P5v", lambda place: _window_verified(place, "P5v", MANY, 0.65)),
    Operation("P7-P5v", lambda place: _window_verified(place, "P7-P5v", 1, 1.7)),
    Operation("P6", lambda place: _window_from_postgres(place)),
    Operation("P8-append", lambda place: _append_far(place)),
    Operation("P8-window", lambda place: _window_far(place)),
    Operation("P8-window-postgres", lambda place: _window_far_from_postgres(place)),
    *limits.OPERATIONS,
    *registry.OPERATIONS,
    *usage.OPERATIONS,
    *events.OPERATIONS,
    *cold.OPERATIONS,
    *sessions.OPERATIONS,
    *turns.OPERATIONS,
)


async def _resolve(place: Place, id_: str, callers: int, goal: float) -> Comparison:
    request = routing_pb2.ResolveRequest(workspace_id=threads.WORKSPACE, user_id="user", agent_id="agent")
    answer = (await place.twofold.routing.Resolve(request)).ByteSize()
    mine = subject(place.router, f"{_ROUTING}/Resolve", [request])
    return await against_echo(place, id_, "Resolve", _from_process(mine), answer, callers, goal, _COPIES)


async def _check(place: Place) -> Comparison:
    request = routing_pb2.CheckRequest(workspace_id=threads.WORKSPACE, user_id="user", agent_id="agent")
    answer = await place.twofold.routing.Check(request)
    assert answer.allowed
    mine = _from_process(subject(place.router, f"{_ROUTING}/Check", [request]))
    return await against_echo(place, "P9", "the router's Check", mine, answer.ByteSize(), MANY, 0.85, _COPIES)


async def _batch_resolve(place: Place) -> Comparison:
    users = [f"batch-{number}" for number in range(BATCH)]
    for user_id in users:
        user = user_pb2.User(workspace_id=threads.WORKSPACE, user_id=user_id, email=f"{user_id}@example.com")
        await place.twofold.users.CreateUser(user_pb2.CreateUserRequest(user=user))
    grants = [permission_pb2.BatchGrantItem(user_id=user_id, agent_id="agent") for user_id in users]
    granted = await place.twofold.permissions.BatchGrant(
        permission_pb2.BatchGrantRequest(workspace_id=threads.WORKSPACE, grants=grants)
    )
    pairs = [routing_pb2.UserAgent(user_id=user_id, agent_id="agent") for user_id in users]
    batch = routing_pb2.BatchResolveRequest(
        workspace_id=threads.WORKSPACE, pairs=pairs, min_revision_token=granted.revision_token
    )
    results = (await place.twofold.routing.BatchResolve(batch)).results
    assert all(result.HasField("answer") for result in results)
    single = routing_pb2.ResolveRequest(workspace_id=threads.WORKSPACE, user_id=users[0], agent_id="agent")
    body = echo.request(single.ByteSize(), results[0].answer.ByteSize())
    base = Subject(await place.echo(), echo.METHOD, lambda _: [body])
    mine = replace(_from_process(subject(place.router, f"{_ROUTING}/BatchResolve", [batch])), each=BATCH)
    base_is = "calls of a bare grpc.aio echo with the sizes of one Resolve, same run"
    return Comparison("P2", f"BatchResolve of {BATCH}, resolves", mine, base, base_is, MANY, 7, _COPIES)


async def _append(place: Place, id_: str, callers: int, goal: float) -> Comparison:
    requests = [threads.append(f"append-{number}") for number in range(THREADS)]
    answer = (await place.twofold.conversations.AppendTurn(requests[0])).ByteSize()
    mine = _appends(place.memory, requests)
    return await against_echo(place, id_, "durable Append", mine, answer, callers, goal)


async def _window_with_token(place: Place, id_: str, callers: int, goal: float) -> Comparison:
    requests = await _reads(place)
    answer = await threads.check_window(place.twofold, requests[0], message_pb2.READ_SOURCE_L1)
    mine = _windows(place.memory, requests, _FROM_COPY)
    return await against_echo(place, id_, "Window of 20 with a token", mine, answer, callers, goal)


async def _window_verified(place: Place, id_: str, callers: int, goal: float) -> Comparison:
    await _reads(place)
    requests = [threads.window(f"read-{number}") for number in range(THREADS)]
    answer = await threads.check_window(place.twofold, requests[0], message_pb2.READ_SOURCE_L1)
    mine = _windows(place.memory, requests, _CONFIRMED)
    return await against_echo(place, id_, "Window of 20, verified", mine, answer, callers, goal)


async def _window_from_postgres(place: Place) -> Comparison:
    await _reads(place)
    server, twofold = await place.without_redis()
    requests = [threads.window(f"read-{number}") for number in range(THREADS)]
    answer = await threads.check_window(twofold, requests[0], message_pb2.READ_SOURCE_L2)
    mine = _windows(server, requests, _FROM_POSTGRES)
    return await against_echo(place, "P6", "Window of 20 from Postgres", mine, answer, MANY, 0.50, _NO_REDIS)


async def _append_and_textbook(place: Place) -> Comparison:
    requests = [threads.append(f"append-{number}") for number in range(THREADS)]
    mine = _appends(place.memory, requests)
    base = await _textbook(place, "AppendTurn", requests)
    note = (
        "the textbook answers when Redis has the exchange and copies it to Postgres behind the answer; what of that is left "
        "when a round ends is waited for before the next, and not counted as its time"
    )
    base_is = "the textbook append behind gRPC, same servers, same run; not durable when it answers"
    return Comparison("P4", "durable Append, and the textbook's", mine, base, base_is, MANY, 3, note)


async def _window_and_textbook(place: Place) -> Comparison:
    requests = await _reads(place)
    await threads.check_window(place.twofold, requests[0], message_pb2.READ_SOURCE_L1)
    mine = _windows(place.memory, requests, _FROM_COPY)
    base = await _textbook(place, "ReadWindow", [threads.window(f"read-{number}") for number in range(THREADS)])
    base_is = "the textbook read (LRANGE, JSON, messages) behind gRPC, same servers, same run; as new as Redis is"
    return Comparison("P4-window", "Window of 20 with a token, and the textbook's", mine, base, base_is, MANY, None)


async def _append_far(place: Place) -> Comparison:
    """Of the short threads each round has new ones, since they grow while they are measured."""
    names = [[f"short-{number}-{thread}" for thread in range(THREADS)] for number in range(ROUNDS)]
    names.append([f"short-warm-{thread}" for thread in range(THREADS)])
    assert len(names) == WARM_UP + 1
    await threads.make_threads(place.twofold, [name for row in names for name in row], SHORT)
    far = [threads.append(name).SerializeToString() for name in await _long(place)]
    near = [[threads.append(name).SerializeToString() for name in row] for row in names]
    mine = _appends(place.memory, [])
    return Comparison(
        "P8-append",
        f"durable Append at {LONG:,} messages",
        replace(mine, bodies=lambda _: far),
        replace(mine, bodies=lambda number: near[number]),
        f"the same at {SHORT} messages, in new threads each round",
        MANY,
        0.77,
    )


async def _window_far(place: Place) -> Comparison:
    return await _far_reads(place, "P8-window", ", verified", place.memory, _CONFIRMED)


async def _window_far_from_postgres(place: Place) -> Comparison:
    server, _ = await place.without_redis()
    return await _far_reads(place, "P8-window-postgres", " from Postgres", server, _FROM_POSTGRES, _NO_REDIS)


async def _far_reads(place: Place, id_: str, how: str, server: Server, wanted: str, note: str = "") -> Comparison:
    near = [f"near-{thread}" for thread in range(THREADS)]
    far = await _long(place)
    await _made_once(place, near, SHORT)
    for name in (*near, *far):
        await place.twofold.conversations.ReadWindow(threads.window(name))
    return Comparison(
        id_,
        f"Window of 20{how}, at {LONG:,} messages",
        _windows(server, [threads.window(name) for name in far], wanted),
        _windows(server, [threads.window(name) for name in near], wanted),
        f"the same at {SHORT} messages",
        MANY,
        0.77,
        note,
    )


async def _reads(place: Place) -> list[Read]:
    """Threads to read, with some past: a request with a token for each."""
    names = [f"read-{number}" for number in range(THREADS)]
    tokens = await _made_once(place, names, _READ_MESSAGES)
    return [threads.window(name, token) for name, token in zip(names, tokens, strict=True)]


async def _long(place: Place) -> list[str]:
    names = [f"long-{thread}" for thread in range(THREADS)]
    await _made_once(place, names, LONG)
    return names


async def _made_once(place: Place, names: Sequence[str], message_count: int) -> list[bytes]:
    """Makes the threads, or finds them made by another row; the tokens of their ends as they are now."""
    answers = [await place.twofold.conversations.ReadWindow(threads.window(name)) for name in names]
    if all(answer.as_of_seq >= message_count for answer in answers):
        return [answer.thread_token for answer in answers]
    return await threads.make_threads(place.twofold, names, message_count)


async def _textbook(place: Place, method: str, requests: Sequence[Append | Read]) -> Subject:
    """The same requests to the textbook, whose threads have a past as well."""
    server = await place.textbook()
    async with grpc.aio.insecure_channel(server.target) as channel:
        append = channel.unary_unary(
            f"/{TEXTBOOK}/AppendTurn",
            request_serializer=conversation_pb2.AppendTurnRequest.SerializeToString,
            response_deserializer=conversation_pb2.AppendTurnResponse.FromString,
        )
        read = channel.unary_unary(
            f"/{TEXTBOOK}/ReadWindow",
            request_serializer=conversation_pb2.ReadWindowRequest.SerializeToString,
            response_deserializer=conversation_pb2.ReadWindowResponse.FromString,
        )
        names = [request.thread_id for request in requests]
        for name in names:
            # Its copies race for making the conversation and lose what comes second: not here, it is not the question.
            await append(threads.append(name))
            await place.settled()
            for _ in range(_READ_MESSAGES // 2 - 1):
                await append(threads.append(name))
        await place.settled()
        for name in names:
            check_exchanges([message.content for message in (await read(threads.window(name))).messages])
    return Subject(server, f"/{TEXTBOOK}/{method}", always(requests), place.settled)


def _from_process(asked: Subject) -> Subject:
    """Answered from the copies in the router's process."""
    return replace(asked, outcomes="twofold_router_copies_total", wanted='source="process"')


def _appends(server: Server, requests: Sequence[Append]) -> Subject:
    """Durable ones: what went into the journal instead is not what is measured."""
    return replace(subject(server, f"{_CONVERSATIONS}/AppendTurn", requests), outcomes="twofold_memory_journaled_total")


def _windows(server: Server, requests: Sequence[Read], wanted: str) -> Subject:
    """Windows from where they are meant to come from."""
    read = subject(server, f"{_CONVERSATIONS}/ReadWindow", requests)
    return replace(read, outcomes="twofold_memory_windows_total", wanted=wanted)
