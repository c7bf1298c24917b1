"""The examples of the README and of docs/{calls,registry,router}.md are run as they stand there, against a real stack."""

import json
import re
import shlex
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf import descriptor_pool, json_format, message_factory
from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor
from google.protobuf.message import Message

from twofold import client as _stubs_are_imported
from twofold_cli.demo.agent_process import agent_process
from twofold_cli.stack import Stack, bare_environment, raise_stack
from twofold_cli.up import DEVELOPMENT

README = Path(__file__).parents[2] / "README.md"
CALLS = README.parent / "docs" / "calls.md"
REGISTRY = README.parent / "docs" / "registry.md"
ROUTER = README.parent / "docs" / "router.md"
PROTOS = README.parent / "protos"
AGENT = "http://127.0.0.1:8900"
CALL = re.compile(r"^(registry|memory|router) (\w+)/(\w+) (.+)$", re.MULTILINE)


def examples(page: Path) -> list[tuple[str, str, str, str]]:
    """Room, service, method and body of each example of a page, in order."""
    text = page.read_text(encoding="utf-8").split("<!-- examples")[1].split("```")[1]
    found = [(room, service, method, shlex.split(body)[0]) for room, service, method, body in CALL.findall(text)]
    assert len(found) == sum(bool(line.strip()) for line in text.splitlines())
    return found


def service_of(room: str, name: str) -> ServiceDescriptor:
    return descriptor_pool.Default().FindServiceByName(f"twofold.{room}.v1.{name}")


def services() -> list[ServiceDescriptor]:
    """All services of the contract."""
    found = []
    for path in sorted(PROTOS.rglob("*.proto")):
        names = re.findall(r"^service (\w+)", path.read_text(encoding="utf-8"), re.MULTILINE)
        found += [service_of(path.parent.parent.name, name) for name in names]
    return found


@pytest.fixture(scope="module")
async def stack() -> AsyncIterator[Stack]:
    async with raise_stack(ephemeral=True, settings=DEVELOPMENT, environment=bare_environment()) as raised:
        yield raised


async def called(stack: Stack, method: MethodDescriptor, room: str, body: str) -> list[dict[str, Any]]:
    """The answers to a call, as grpcurl would print them."""
    kind = message_factory.GetMessageClass(method.input_type)
    requests = [json_format.ParseDict(_without_paths(one), kind()) for one in _documents(body)]
    answer = message_factory.GetMessageClass(method.output_type)
    target = {"registry": stack.registry, "memory": stack.memory, "router": stack.router}[room].target
    path = f"/{method.containing_service.full_name}/{method.name}"
    found: list[Message] = []
    async with grpc.aio.insecure_channel(target) as channel:
        if method.client_streaming:
            both: grpc.aio.StreamStreamMultiCallable[bytes, bytes] = channel.stream_stream(path)
            sent = iter([request.SerializeToString() for request in requests])
            found = [answer.FromString(item) async for item in both(sent, timeout=30)]
        elif method.server_streaming:
            stream: grpc.aio.UnaryStreamMultiCallable[bytes, bytes] = channel.unary_stream(path)
            found = [answer.FromString(item) async for item in stream(requests[0].SerializeToString(), timeout=30)]
        else:
            unary: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(path)
            found = [answer.FromString(await unary(requests[0].SerializeToString(), timeout=30))]
    return [json_format.MessageToDict(item, preserving_proto_field_name=True) for item in found]


def _documents(body: str) -> list[dict[str, Any]]:
    """The requests, one after the other, as grpcurl takes those of a stream."""
    found: list[dict[str, Any]] = []
    rest = body.strip()
    while rest:
        document, end = json.JSONDecoder().raw_decode(rest)
        found.append(document)
        rest = rest[end:].lstrip()
    return found


def _without_paths(body: dict[str, Any]) -> dict[str, Any]:
    """grpcurl writes a mask as a message, which protobuf's own JSON does not know (and buf curl the other way round)."""
    if "update_mask" in body:
        words = [re.sub(r"_(\w)", lambda found: found[1].upper(), path) for path in body["update_mask"]["paths"]]
        body["update_mask"] = ",".join(words)
    return body


def test_there_is_an_example_of_every_rpc() -> None:
    assert _stubs_are_imported
    shown = {(room, service, method) for room, service, method, _ in examples(CALLS)}
    there = {
        (service.full_name.split(".")[1], service.name, method.name) for service in services() for method in service.methods
    }
    assert shown == there


@pytest.mark.parametrize("page", [README, CALLS], ids=["README", "calls"])
async def test_every_example_works_in_its_order(stack: Stack, page: Path) -> None:
    said: list[str] = []
    async with agent_process(stack) as url:
        for room, name, method, body in examples(page):
            descriptor = service_of(room, name).methods_by_name[method]
            answers = await called(stack, descriptor, room, body.replace(AGENT, url))
            assert answers, (name, method)
            said.append("".join(answer.get("delta", {}).get("text", "") for answer in answers))
    assert page is README or "Your name is Ada." in said


async def test_the_life_of_a_workspace_goes_as_it_is_told(stack: Stack) -> None:
    answers: dict[str, list[dict[str, Any]]] = {}
    for room, name, method, body in examples(REGISTRY):
        descriptor = service_of(room, name).methods_by_name[method]
        answers.setdefault(method, []).append((await called(stack, descriptor, room, body))[-1])
    assert [check["reason"] for check in answers["Check"]] == ["CHECK_REASON_NO_GRANT", "CHECK_REASON_GRANT"]
    assert [recorded["duplicates"] for recorded in answers["RecordUsage"]] == [[False, False], [True], [False]]
    january, february = answers["GetBill"]
    assert january["totals"] == [{"currency": "USD", "amount_micros": "6000"}]
    assert [line["about_month"] for line in february["lines"]] == ["2026-01"]
    assert answers["GetCaps"][0]["caps"]["state"] == "CAP_STATE_SOFT"
    assert answers["GetInvoice"][0]["invoice"]["totals"] == january["totals"]
    assert [explained.get("allowed", False) for explained in answers["ExplainPermission"]] == [True, False]
    assert all("fault" not in verified["result"] for verified in answers["VerifyAudit"])


async def test_what_the_router_promises_goes_as_it_is_told(stack: Stack) -> None:
    answers: dict[str, list[list[dict[str, Any]]]] = {}
    async with agent_process(stack) as url:
        for room, name, method, body in examples(ROUTER):
            descriptor = service_of(room, name).methods_by_name[method]
            answers.setdefault(method, []).append(await called(stack, descriptor, room, body.replace(AGENT, url)))
    first, second, again = answers["Run"]
    assert [_text(turn) for turn in (second, again)] == ["Your name is Mia."] * 2
    assert [turn[0]["started"].get("replayed", False) for turn in (first, second, again)] == [False, False, True]
    assert _text(answers["Attach"][0]) == "Your name is Mia."[5:]
    assert answers["CancelTurn"] == [[{}]]
    own, repeated, own_2, peeked = (answer for (answer,) in answers["Resolve"])
    assert [answer.get("duplicate", False) for answer in (own, repeated, own_2)] == [False, True, False]
    assert [limit["would_refuse"] for limit in own["limits"] if "shadow" in limit] == [True]
    assert [limit.get("would_refuse", False) for limit in peeked["limits"]] == [True, False]
    results = answers["BatchResolve"][0][0]["results"]
    assert [result["refusal"]["reason"] for result in results if "refusal" in result] == ["REASON_LIMIT_REACHED"]
    known = {limit["kind"]: int(limit.get("used", 0)) for limit in answers["GetLimits"][0][0]["limits"]}
    assert known["LIMIT_KIND_USER_HOUR_MESSAGES"] == 5
    assert 700 <= known["LIMIT_KIND_WORKSPACE_DAY_TOKENS"] < 2000
    assert answers["GetSession"][0][0]["session"]["pod_id"] == "gate-9"
    assert "report.ready" in str(answers["Subscribe"])
    assert [answer.get("allowed", False) for (answer,) in answers["Check"]] == [False, False]


def _text(turn: list[dict[str, Any]]) -> str:
    return "".join(event.get("delta", {}).get("text", "") for event in turn)


def test_the_call_of_the_readme_through_the_router_is_one_of_its_page() -> None:
    shown = re.search(
        r"grpcurl -plaintext -d '([^']+)' \\\n  127.0.0.1:50053 twofold.router.v1.(\S+)", README.read_text(encoding="utf-8")
    )
    assert shown is not None
    assert shown.groups() in [(body, f"{name}/{method}") for _, name, method, body in examples(ROUTER)]


async def test_the_first_call_is_one_of_those_that_up_prints() -> None:
    first = re.search(r"grpcurl -plaintext -d '([^']+)' \\\n  127.0.0.1:50051 (\S+)", README.read_text(encoding="utf-8"))
    assert first is not None
    assert json.loads(first[1]) == {"workspace": {"workspace_id": "acme", "display_name": "Acme"}}
    assert first[2] == "twofold.registry.v1.WorkspaceService/CreateWorkspace"
