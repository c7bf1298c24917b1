"""Tool runs: claimed by one worker at a time, changed by who has seen the last version, ended once (M15)."""

import asyncio
from typing import Any

import asyncpg
import grpc
import pytest
from google.protobuf.duration_pb2 import Duration

from tests.memory.rooms import CALL_S, Memory, reason, refused, thread
from twofold.memory.v1.conversation_pb2 import DeleteConversationRequest
from twofold.memory.v1.tool_run_pb2 import (
    CancelToolRunRequest,
    ClaimToolRunRequest,
    ClaimToolRunResponse,
    CompleteToolRunRequest,
    CreateToolRunRequest,
    CreateToolRunResponse,
    FailToolRunRequest,
    GetToolRunRequest,
    HeartbeatToolRunRequest,
    ListToolRunsRequest,
    RetryToolRunRequest,
    ToolRun,
    ToolRunState,
)
from twofold_memory.threads import ThreadKey

PENDING, RUNNING = ToolRunState.TOOL_RUN_STATE_PENDING, ToolRunState.TOOL_RUN_STATE_RUNNING
SUCCEEDED, FAILED = ToolRunState.TOOL_RUN_STATE_SUCCEEDED, ToolRunState.TOOL_RUN_STATE_FAILED
CANCELLED = ToolRunState.TOOL_RUN_STATE_CANCELLED
LONG = Duration(seconds=600)
Sql = asyncpg.Pool


async def create(
    room: Memory, workspace_id: str, tool_run_id: str = "run", *, name: str = "search", request_id: str = "", **given: Any
) -> CreateToolRunResponse:
    run = ToolRun(workspace_id=workspace_id, tool_run_id=tool_run_id, name=name, **given)
    return await room.tool_runs.CreateToolRun(CreateToolRunRequest(tool_run=run, request_id=request_id), timeout=CALL_S)


async def claim(
    room: Memory, workspace_id: str, *names: str, holder: str = "one", run: ToolRun | None = None, request_id: str = ""
) -> ClaimToolRunResponse:
    request = ClaimToolRunRequest(
        workspace_id=workspace_id, names=names, holder=holder, lease_duration=LONG, request_id=request_id
    )
    if run is not None:
        request.tool_run_id, request.version = run.tool_run_id, run.version
    return await room.tool_runs.ClaimToolRun(request, timeout=CALL_S)


async def complete(room: Memory, run: ToolRun, result: str = "done", request_id: str = "") -> ToolRun:
    request = CompleteToolRunRequest(**named(run), attempt=run.attempt, result=result, request_id=request_id)
    return (await room.tool_runs.CompleteToolRun(request, timeout=CALL_S)).tool_run


async def fail(room: Memory, run: ToolRun, error: str = "no luck", *, retryable: bool = True) -> ToolRun:
    request = FailToolRunRequest(**named(run), attempt=run.attempt, error=error, retryable=retryable)
    return (await room.tool_runs.FailToolRun(request, timeout=CALL_S)).tool_run


async def heartbeat(room: Memory, run: ToolRun) -> ToolRun:
    request = HeartbeatToolRunRequest(**named(run), attempt=run.attempt, lease_duration=LONG)
    return (await room.tool_runs.HeartbeatToolRun(request, timeout=CALL_S)).tool_run


async def cancel(room: Memory, run: ToolRun) -> ToolRun:
    return (await room.tool_runs.CancelToolRun(CancelToolRunRequest(**named(run)), timeout=CALL_S)).tool_run


async def retry(room: Memory, run: ToolRun, delay: Duration | None = None) -> ToolRun:
    request = RetryToolRunRequest(**named(run), delay=delay)
    return (await room.tool_runs.RetryToolRun(request, timeout=CALL_S)).tool_run


async def get(room: Memory, workspace_id: str, tool_run_id: str = "run", user_id: str = "") -> ToolRun:
    request = GetToolRunRequest(workspace_id=workspace_id, tool_run_id=tool_run_id, user_id=user_id)
    return (await room.tool_runs.GetToolRun(request, timeout=CALL_S)).tool_run


async def listed(room: Memory, workspace_id: str, size: int = 2, **given: Any) -> list[str]:
    request = ListToolRunsRequest(workspace_id=workspace_id, page_size=size, **given)
    found: list[str] = []
    while True:
        page = await room.tool_runs.ListToolRuns(request, timeout=CALL_S)
        found += [run.tool_run_id for run in page.tool_runs]
        if not page.next_page_token:
            return found
        request.page_token = page.next_page_token


def named(run: ToolRun) -> dict[str, Any]:
    return {"workspace_id": run.workspace_id, "tool_run_id": run.tool_run_id, "version": run.version}


async def pass_time(sql: "Sql[Any]", workspace_id: str) -> None:
    """Whatever waits for a time has waited long enough."""
    await sql.execute(
        "UPDATE memory.tool_runs SET due_at = now() - interval '1 second' WHERE workspace_id = $1 AND due_at IS NOT NULL",
        workspace_id,
    )


async def test_a_run_goes_from_its_creation_to_its_result(room: Memory, other_room: Memory, workspace_id: str) -> None:
    """M17."""
    arguments, result = '{"q": "🙂\\n"}' + "x" * 900_000, "a\r\n" + "y" * 900_000
    made = (await create(room, workspace_id, arguments=arguments, metadata={"a": "b"})).tool_run
    assert (made.state, made.version, made.attempt, made.attempts_max) == (PENDING, 1, 0, 3)
    claimed = (await claim(other_room, workspace_id, "other", "search")).tool_run
    assert (claimed.state, claimed.version, claimed.attempt, claimed.holder) == (RUNNING, 2, 1, "one")
    assert (claimed.arguments, dict(claimed.metadata)) == (arguments, {"a": "b"})
    assert 590 < claimed.lease_expire_time.seconds - claimed.update_time.seconds < 610
    beaten = await heartbeat(room, claimed)
    done = await complete(other_room, beaten, result)
    assert (done.state, done.version, done.holder) == (SUCCEEDED, 4, "")
    found = await get(room, workspace_id)
    assert (found.result, found.arguments, found.HasField("error"), found.version) == (result, arguments, False, 4)
    assert not (await claim(room, workspace_id, "search")).HasField("tool_run")


async def test_of_many_workers_that_claim_at_once_each_gets_another_run(
    room: Memory, other_room: Memory, workspace_id: str
) -> None:
    for index in range(8):
        await create(room, workspace_id, f"run-{index}")
    claims = await asyncio.gather(
        *(claim((room, other_room)[index % 2], workspace_id, "search", holder=f"w{index}") for index in range(12))
    )
    got = [answer.tool_run.tool_run_id for answer in claims if answer.HasField("tool_run")]
    assert sorted(got) == [f"run-{index}" for index in range(8)]


async def test_of_two_that_expect_the_same_version_exactly_one_succeeds(
    room: Memory, other_room: Memory, workspace_id: str
) -> None:
    """M15."""
    await create(room, workspace_id, attempts_max=100)
    for _ in range(6):
        run = await get(room, workspace_id)
        told = await asyncio.gather(
            *(claim((room, other_room)[index % 2], workspace_id, run=run, holder=f"w{index}") for index in range(4)),
            return_exceptions=True,
        )
        (won,) = [answer for answer in told if isinstance(answer, ClaimToolRunResponse)]
        lost = [reason(error) for error in told if isinstance(error, grpc.aio.AioRpcError)]
        assert lost == ["REASON_VERSION_MISMATCH"] * 3
        ends = await asyncio.gather(
            fail(room, won.tool_run),
            cancel_or_fail(other_room, won.tool_run),
            heartbeat(room, won.tool_run),
            return_exceptions=True,
        )
        assert sum(isinstance(end, ToolRun) for end in ends) == 1
        now = await get(room, workspace_id)
        assert now.version == won.tool_run.version + 1
        if now.state == RUNNING:
            now = await fail(room, now)
        now = await retry(room, now, Duration(nanos=1000))


async def cancel_or_fail(room: Memory, run: ToolRun) -> ToolRun:
    return await fail(room, run, "otherwise")


async def test_a_run_whose_worker_is_gone_is_claimed_by_another_and_the_first_can_change_nothing(
    room: Memory, other_room: Memory, workspace_id: str, sql: "Sql[Any]"
) -> None:
    """M14, for tools."""
    await create(room, workspace_id)
    first = (await claim(room, workspace_id, "search", holder="one")).tool_run
    assert not (await claim(other_room, workspace_id, "search", holder="two")).HasField("tool_run")
    async with refused(grpc.StatusCode.FAILED_PRECONDITION, "REASON_TOOL_RUN_STATE"):
        await claim(other_room, workspace_id, run=first, holder="two")
    await pass_time(sql, workspace_id)
    second = (await claim(other_room, workspace_id, "search", holder="two")).tool_run
    assert (second.attempt, second.version, second.holder) == (2, 3, "two")
    for late in (complete(room, first), fail(room, first), heartbeat(room, first)):
        async with refused(grpc.StatusCode.ABORTED, "REASON_LEASE_LOST"):
            await late
    assert (await complete(other_room, second)).state == SUCCEEDED


async def test_a_lease_that_nobody_took_over_still_counts(room: Memory, workspace_id: str, sql: "Sql[Any]") -> None:
    await create(room, workspace_id)
    run = (await claim(room, workspace_id, "search")).tool_run
    await pass_time(sql, workspace_id)
    run = await heartbeat(room, run)
    assert not (await claim(room, workspace_id, "search")).HasField("tool_run")
    await pass_time(sql, workspace_id)
    assert (await complete(room, run)).state == SUCCEEDED


async def test_a_failed_run_is_retried_after_its_backoff_and_not_more_often_than_it_may(
    room: Memory, workspace_id: str, sql: "Sql[Any]"
) -> None:
    run = (await create(room, workspace_id, attempts_max=3, backoff=Duration(seconds=20))).tool_run
    waits = []
    for _ in range(2):
        run = await fail(room, (await claim(room, workspace_id, "search")).tool_run)
        assert (run.state, run.retryable) == (FAILED, True)
        run = await retry(room, run)
        waits.append(run.due_time.seconds - run.update_time.seconds)
        assert (run.state, (await get(room, workspace_id)).error) == (PENDING, "no luck")
        assert not (await claim(room, workspace_id, "search")).HasField("tool_run")
        await pass_time(sql, workspace_id)
    assert waits == [20, 40]
    run = await fail(room, (await claim(room, workspace_id, "search")).tool_run)
    assert run.attempt == 3
    async with refused(grpc.StatusCode.FAILED_PRECONDITION, "REASON_TOOL_RUN_STATE"):
        await retry(room, run)


async def test_a_delay_of_the_callers_goes_before_the_backoff_and_what_failed_for_good_is_not_retried(
    room: Memory, workspace_id: str
) -> None:
    await create(room, workspace_id, "a")
    run = await retry(room, await fail(room, (await claim(room, workspace_id, "search")).tool_run), Duration(seconds=90))
    assert run.due_time.seconds - run.update_time.seconds == 90
    await create(room, workspace_id, "b")
    run = await fail(room, (await claim(room, workspace_id, "search")).tool_run, retryable=False)
    async with refused(grpc.StatusCode.FAILED_PRECONDITION, "REASON_TOOL_RUN_STATE"):
        await retry(room, run)


async def test_illegal_transitions_are_refused_and_name_state_and_wish(room: Memory, workspace_id: str) -> None:
    pending = (await create(room, workspace_id)).tool_run
    pending.attempt = 0
    with pytest.raises(grpc.aio.AioRpcError) as told:
        await retry(room, pending)
    assert (told.value.code(), reason(told.value)) == (grpc.StatusCode.FAILED_PRECONDITION, "REASON_TOOL_RUN_STATE")
    assert "PENDING" in (told.value.details() or "")
    assert "retry" in (told.value.details() or "")
    ended = await cancel(room, pending)
    assert ended.state == CANCELLED
    for wish in (cancel(room, ended), retry(room, ended), claim(room, workspace_id, run=ended)):
        async with refused(grpc.StatusCode.FAILED_PRECONDITION, "REASON_TOOL_RUN_STATE"):
            await wish
    assert (await get(room, workspace_id)).version == ended.version


async def test_creating_is_idempotent_by_the_id_and_by_the_request(
    room: Memory, other_room: Memory, workspace_id: str
) -> None:
    answers = await asyncio.gather(
        *(create((room, other_room)[index % 2], workspace_id, "run", arguments="{}") for index in range(6))
    )
    assert sorted(answer.duplicate for answer in answers) == [False] + [True] * 5
    claimed = (await claim(room, workspace_id, "search")).tool_run
    again = await create(room, workspace_id, "run", arguments="{}")
    assert (again.duplicate, again.tool_run.state, again.tool_run.version) == (True, RUNNING, claimed.version)
    async with refused(grpc.StatusCode.ALREADY_EXISTS, "REASON_TOOL_RUN_EXISTS"):
        await create(room, workspace_id, "run", arguments="{ }")
    first = await create(room, workspace_id, "", request_id="r")
    assert await create(other_room, workspace_id, "", request_id="r") == first
    async with refused(grpc.StatusCode.ALREADY_EXISTS, "REASON_REQUEST_REUSED"):
        await create(room, workspace_id, "", name="other", request_id="r")


async def test_a_claim_or_a_result_whose_answer_was_lost_is_told_again(
    room: Memory, other_room: Memory, workspace_id: str
) -> None:
    await create(room, workspace_id, "a", arguments="the arguments")
    await create(room, workspace_id, "b")
    first = await claim(room, workspace_id, "search", request_id="r")
    assert first.tool_run.arguments == "the arguments"
    assert await claim(other_room, workspace_id, "search", request_id="r") == first
    done = await complete(room, first.tool_run, request_id="r2")
    assert await complete(other_room, first.tool_run, request_id="r2") == done


async def test_who_has_lost_the_last_attempt_is_given_up(room: Memory, workspace_id: str, sql: "Sql[Any]") -> None:
    await create(room, workspace_id, attempts_max=1)
    run = (await claim(room, workspace_id, "search")).tool_run
    await pass_time(sql, workspace_id)
    assert not (await claim(room, workspace_id, "search")).HasField("tool_run")
    async with refused(grpc.StatusCode.FAILED_PRECONDITION, "REASON_TOOL_RUN_STATE"):
        await claim(room, workspace_id, run=run)
    assert (await heartbeat(room, run)).state == RUNNING  # nobody else will: it may go on


async def test_a_user_is_not_listed_the_runs_of_all(room: Memory, workspace_id: str) -> None:
    async with refused(grpc.StatusCode.INVALID_ARGUMENT, "REASON_INVALID_FIELD"):
        await listed(room, workspace_id, user_id="grace")


async def test_they_are_listed_by_conversation_state_and_name(room: Memory, workspace_id: str, sql: "Sql[Any]") -> None:
    talk = thread(workspace_id)
    await room.append(talk, "q", user_id="ada")
    for index in range(6):
        await create(
            room,
            workspace_id,
            f"r{index}",
            name=("search", "clock")[index % 2],
            thread_id=talk.thread_id if index < 4 else "",
        )
    await claim(room, workspace_id, "search")
    assert await listed(room, workspace_id) == ["r5", "r4", "r3", "r2", "r1", "r0"]
    assert await listed(room, workspace_id, name="clock") == ["r5", "r3", "r1"]
    assert await listed(room, workspace_id, state=RUNNING) == ["r0"]
    assert await listed(room, workspace_id, name="search", state=PENDING) == ["r4", "r2"]
    assert await listed(room, workspace_id, thread_id=talk.thread_id) == ["r3", "r2", "r1", "r0"]
    assert await listed(room, workspace_id, thread_id=talk.thread_id, name="clock", state=PENDING) == ["r3", "r1"]
    async with refused(grpc.StatusCode.NOT_FOUND, "REASON_CONVERSATION_UNKNOWN"):
        await listed(room, workspace_id, thread_id=talk.thread_id, user_id="bob")


async def test_a_run_is_there_as_long_as_its_conversation_is(room: Memory, workspace_id: str) -> None:
    talk, missing = thread(workspace_id), ThreadKey(workspace_id, "missing")
    await room.append(talk, "q", user_id="ada")
    async with refused(grpc.StatusCode.NOT_FOUND, "REASON_CONVERSATION_UNKNOWN"):
        await create(room, workspace_id, thread_id=missing.thread_id)
    run = (await create(room, workspace_id, thread_id=talk.thread_id, turn_id="t", tool_call_id="c")).tool_run
    assert (run.thread_id, run.turn_id, run.tool_call_id) == (talk.thread_id, "t", "c")
    async with refused(grpc.StatusCode.NOT_FOUND, "REASON_TOOL_RUN_UNKNOWN"):
        await get(room, workspace_id, user_id="bob")
    await room.conversations.DeleteConversation(
        DeleteConversationRequest(workspace_id=workspace_id, thread_id=talk.thread_id), timeout=CALL_S
    )
    for late in (get(room, workspace_id), cancel(room, run), claim(room, workspace_id, run=run)):
        async with refused(grpc.StatusCode.NOT_FOUND, "REASON_TOOL_RUN_UNKNOWN"):
            await late
    assert not (await claim(room, workspace_id, "search")).HasField("tool_run")
    assert await listed(room, workspace_id) == []


async def test_what_is_remembered_of_a_request_holds_no_words(room: Memory, workspace_id: str, sql: "Sql[Any]") -> None:
    """M11."""
    await create(room, workspace_id, arguments="secret", metadata={"note": "secret"}, request_id="r1")
    run = (await claim(room, workspace_id, "search", request_id="r2")).tool_run
    await complete(room, run, "secret", request_id="r3")
    answers = await sql.fetch("SELECT answer FROM memory.requests WHERE workspace_id = $1", workspace_id)
    assert len(answers) == 3
    assert not any(b"secret" in row["answer"] for row in answers)
