"""ToolRunService: read, ask, answer."""

from datetime import datetime

from twofold.memory.v1 import tool_run_pb2 as pb
from twofold.memory.v1 import tool_run_pb2_grpc as stubs
from twofold_chassis import fields
from twofold_chassis.edge import Context
from twofold_chassis.requests import attempt
from twofold_memory.store.tool_runs import PostgresToolRuns
from twofold_memory.tool_runs import ToolRun
from twofold_memory.wire import reads
from twofold_memory.wire import tool_runs as wire


class ToolRunService(stubs.ToolRunServiceServicer):
    """Runs of tools."""

    def __init__(self, runs: PostgresToolRuns) -> None:
        self._runs = runs

    async def CreateToolRun(self, request: pb.CreateToolRunRequest, context: Context) -> pb.CreateToolRunResponse:
        new, user_id = wire.new_tool_run(request), fields.optional_identifier(request.user_id, "user_id")
        call = attempt(new.workspace_id, "CreateToolRun", request, request.request_id)
        answer = await self._runs.create(
            call,
            new,
            user_id,
            lambda run, duplicate: wire.changed(pb.CreateToolRunResponse(duplicate=duplicate), run),
        )
        return pb.CreateToolRunResponse.FromString(answer)

    async def ClaimToolRun(self, request: pb.ClaimToolRunRequest, context: Context) -> pb.ClaimToolRunResponse:
        claim = wire.claim(request)
        call = attempt(claim.workspace_id, "ClaimToolRun", request, request.request_id)

        def claimed(run: ToolRun, now: datetime) -> ToolRun:
            if claim.run is not None:
                run.expect(claim.run.version)
            return run.claimed(claim.holder, claim.lease, now)

        def answered(run: ToolRun) -> bytes:
            return wire.changed(pb.ClaimToolRunResponse(), run)

        if claim.run is not None:
            answer = await self._runs.change(call, claim.run.tool_run_id, claimed, answered)
        else:
            answer = await self._runs.change_due(call, claim.names, claimed, answered)
        response = pb.ClaimToolRunResponse.FromString(answer)
        if not response.HasField("tool_run"):
            return response
        _, contents = await self._runs.get(claim.workspace_id, response.tool_run.tool_run_id, None)
        return wire.claim_response(response, contents)

    async def HeartbeatToolRun(self, request: pb.HeartbeatToolRunRequest, context: Context) -> pb.HeartbeatToolRunResponse:
        held, lease = wire.held(request), wire.lease(request)
        call = attempt(held.workspace_id, "HeartbeatToolRun", request, request.request_id)

        def prolonged(run: ToolRun, now: datetime) -> ToolRun:
            run.expect(held.version, held.attempt)
            return run.prolonged(lease, now)

        answer = await self._runs.change(
            call, held.tool_run_id, prolonged, lambda run: wire.changed(pb.HeartbeatToolRunResponse(), run)
        )
        return pb.HeartbeatToolRunResponse.FromString(answer)

    async def CompleteToolRun(self, request: pb.CompleteToolRunRequest, context: Context) -> pb.CompleteToolRunResponse:
        held, result = wire.held(request), wire.result(request)
        call = attempt(held.workspace_id, "CompleteToolRun", request, request.request_id)

        def completed(run: ToolRun, _: datetime) -> ToolRun:
            run.expect(held.version, held.attempt)
            return run.completed()

        answer = await self._runs.change(
            call, held.tool_run_id, completed, lambda run: wire.changed(pb.CompleteToolRunResponse(), run), result=result
        )
        return pb.CompleteToolRunResponse.FromString(answer)

    async def FailToolRun(self, request: pb.FailToolRunRequest, context: Context) -> pb.FailToolRunResponse:
        held, error = wire.held(request), wire.error(request)
        call = attempt(held.workspace_id, "FailToolRun", request, request.request_id)

        def failed(run: ToolRun, _: datetime) -> ToolRun:
            run.expect(held.version, held.attempt)
            return run.failed(retryable=request.retryable)

        answer = await self._runs.change(
            call, held.tool_run_id, failed, lambda run: wire.changed(pb.FailToolRunResponse(), run), error=error
        )
        return pb.FailToolRunResponse.FromString(answer)

    async def CancelToolRun(self, request: pb.CancelToolRunRequest, context: Context) -> pb.CancelToolRunResponse:
        expected = wire.expected(request)
        call = attempt(expected.workspace_id, "CancelToolRun", request, request.request_id)

        def cancelled(run: ToolRun, _: datetime) -> ToolRun:
            run.expect(expected.version)
            return run.cancelled()

        answer = await self._runs.change(
            call, expected.tool_run_id, cancelled, lambda run: wire.changed(pb.CancelToolRunResponse(), run)
        )
        return pb.CancelToolRunResponse.FromString(answer)

    async def RetryToolRun(self, request: pb.RetryToolRunRequest, context: Context) -> pb.RetryToolRunResponse:
        expected, delay = wire.expected(request), wire.delay(request)
        call = attempt(expected.workspace_id, "RetryToolRun", request, request.request_id)

        def retried(run: ToolRun, now: datetime) -> ToolRun:
            run.expect(expected.version)
            return run.retried(delay, now)

        answer = await self._runs.change(
            call, expected.tool_run_id, retried, lambda run: wire.changed(pb.RetryToolRunResponse(), run)
        )
        return pb.RetryToolRunResponse.FromString(answer)

    async def GetToolRun(self, request: pb.GetToolRunRequest, context: Context) -> pb.GetToolRunResponse:
        workspace_id = fields.identifier(request.workspace_id, "workspace_id")
        tool_run_id = fields.identifier(request.tool_run_id, "tool_run_id")
        user_id = fields.optional_identifier(request.user_id, "user_id")
        return pb.GetToolRunResponse(tool_run=wire.message(*await self._runs.get(workspace_id, tool_run_id, user_id)))

    async def ListToolRuns(self, request: pb.ListToolRunsRequest, context: Context) -> pb.ListToolRunsResponse:
        asked = wire.filter_of(request)
        query = ("ListToolRuns", asked)
        size, before = fields.page_size(request.page_size), reads.seq_cursor(request.page_token, query)
        page = await self._runs.page(asked.workspace_id, asked.key, asked.user_id, asked.state, asked.name, before, size)
        return wire.list_response(page, query)
