"""C14: no change without its audit entry, no entry without its change, and nothing of it can be rewritten unnoticed."""

import asyncio
import base64
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import asyncpg
import grpc
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.databases import own_database, settings_of_database
from tests.registry.chains import exported, tampering, told, verified
from tests.registry.stubs import URL, Connection, Registry, insist, invalid, refused, settings_of, unknown
from twofold import audit
from twofold.errors.v1.reason_pb2 import Reason
from twofold.registry.v1 import agent_pb2, workspace_pb2
from twofold.registry.v1 import audit_pb2 as pb
from twofold_chassis.refusals import Overloaded
from twofold_cli.embedded.postgres import EmbeddedPostgres
from twofold_registry import audit_chains
from twofold_registry.app import registry
from twofold_registry.audit import FIRST_LINK, Chained, Entry, Head, Link, link_hash, moment
from twofold_registry.audit_chains import Batch, Chains, Kept, Walk
from twofold_registry.audit_keys import AuditKeys, private_key

WRITERS = 200
WORKSPACES = 4
KEY = base64.b64encode(bytes(range(32))).decode()
ENTRIES = 12
TEXTS = ("actor", "action", "resource_kind", "resource_id", "before_json", "after_json", "request_id")
RECORDS = """
    SELECT (SELECT revision FROM registry.registry_head) AS head,
        (SELECT array_agg(DISTINCT revision) FROM registry.audit_entries) AS audited,
        (SELECT array_agg(DISTINCT revision) FROM registry.changes) AS changed,
        (SELECT count(*) FROM registry.audit_entries) AS entries,
        (SELECT count(*) FROM registry.agents) AS agents
"""


@dataclass(frozen=True)
class Room:
    """A registry with a database and a key of its own, and that database as somebody sees it who may do everything."""

    api: Registry
    superuser: str


@pytest.fixture(scope="module")
async def room(postgres_server: EmbeddedPostgres) -> AsyncIterator[Room]:
    async with (
        own_database(postgres_server, "audit_chains") as urls,
        registry(settings_of(settings_of_database(urls), audit_signing_key=KEY)) as running,
        grpc.aio.insecure_channel(f"127.0.0.1:{running.port}") as channel,
    ):
        yield Room(Registry(channel), urls.superuser)


async def create(api: Registry, workspace_id: str, agent_id: str) -> None:
    draft = agent_pb2.Agent(workspace_id=workspace_id, agent_id=agent_id, display_name="A", url=URL)
    request = agent_pb2.CreateAgentRequest(agent=draft, request_id=agent_id)
    await insist(lambda: api.agents.CreateAgent(request))


async def test_c14_two_hundred_writers_leave_one_entry_a_change_and_chains_that_verify(
    postgres_server: EmbeddedPostgres,
) -> None:
    async with own_database(postgres_server, "audit_writers") as urls:
        async with (
            registry(settings_of(settings_of_database(urls))) as running,
            grpc.aio.insecure_channel(f"127.0.0.1:{running.port}") as channel,
        ):
            api = Registry(channel)
            workspaces = [(await api.make_workspace("")).workspace_id for _ in range(WORKSPACES)]
            await asyncio.gather(*(create(api, workspaces[n % WORKSPACES], f"agent-{n}") for n in range(WRITERS)))
            for workspace_id in workspaces:
                entries = await exported(api, workspace_id)
                assert [entry.seq for entry in entries] == list(range(1, WRITERS // WORKSPACES + 2))
                end = audit.verify(entries)
                result = await verified(api, workspace_id)
                assert told(result) is None
                assert (result.entry_count, result.verified.seq, result.verified.hash) == (end.seq, end.seq, end.hash)
        owner = await asyncpg.connect(urls.owner)
        row = await owner.fetchrow(RECORDS)
        await owner.close()
    assert row is not None
    assert row["agents"] == WRITERS
    assert row["entries"] == row["head"] == WRITERS + WORKSPACES
    assert sorted(row["audited"]) == sorted(row["changed"]) == list(range(1, row["head"] + 1))


# What somebody may do to a chain of ENTRIES entries, and the kind and place of the fault that must be found.
Tampering = tuple[list[str], str, int]
PLACES = st.integers(1, ENTRIES)
OF = "workspace_id = 'tampered'"


def _flip(places: list[int], column: str) -> Tampering:
    change = {
        "created_at": "created_at + interval '1 microsecond'",
        "revision": "revision + 1000000",
        "ordinal": "ordinal + 1",
        "hash": "set_byte(hash, 31, get_byte(hash, 31) # 1)",
        "prev_hash": "set_byte(prev_hash, 0, get_byte(prev_hash, 0) # 128)",
    }.get(column, f"{column} || ' '")
    where = f"seq IN ({', '.join(map(str, places))})"
    kind = "PREV_HASH" if column == "prev_hash" else "HASH"
    return [f"UPDATE registry.audit_entries SET {column} = {change} WHERE {OF} AND {where}"], kind, min(places)


def _delete(places: list[int]) -> Tampering:
    where = f"seq IN ({', '.join(map(str, places))})"
    return [f"DELETE FROM registry.audit_entries WHERE {OF} AND {where}"], "MISSING", min(places)


def _swap(pair: tuple[int, int]) -> Tampering:
    one, two = pair
    swap = f"UPDATE registry.audit_entries SET seq = {one + two} - seq WHERE {OF} AND seq IN ({one}, {two})"
    return [swap], "PREV_HASH", min(pair)


def _swap_contents(pair: tuple[int, int]) -> Tampering:
    one, two = pair
    swap = f"""
        UPDATE registry.audit_entries a SET actor = b.actor, after_json = b.after_json, before_json = b.before_json,
            resource_id = b.resource_id, action = b.action, resource_kind = b.resource_kind
        FROM registry.audit_entries b
        WHERE a.{OF} AND b.{OF} AND a.seq IN ({one}, {two}) AND b.seq = {one + two} - a.seq
    """
    return [swap], "HASH", min(pair)


def _insert(place: int, source: int) -> Tampering:
    copy = f"""
        INSERT INTO registry.audit_entries (workspace_id, seq, revision, ordinal, actor, action, resource_kind, resource_id,
            before_json, after_json, request_id, created_at, prev_hash, hash)
        SELECT workspace_id, {place}, revision, ordinal, actor, action, resource_kind, resource_id, before_json, after_json,
            request_id, created_at, prev_hash, hash
        FROM registry.audit_entries WHERE {OF} AND seq = {source}
    """
    return [copy], "BEHIND_HEAD" if place > ENTRIES else "EXTRA", place


def _head(what: str) -> Tampering:
    change, kind, place = {
        "gone": ("DELETE FROM registry.audit_heads", "HEAD", 0),
        "hash": ("UPDATE registry.audit_heads SET hash = set_byte(hash, 5, get_byte(hash, 5) # 1)", "HEAD", ENTRIES),
        "longer": ("UPDATE registry.audit_heads SET seq = seq + 1", "MISSING", ENTRIES + 1),
        "shorter": ("UPDATE registry.audit_heads SET seq = seq - 1", "BEHIND_HEAD", ENTRIES),
    }[what]
    return [f"{change} WHERE {OF}"], kind, place


SEVERAL = st.lists(PLACES, min_size=1, max_size=3, unique=True)
PAIRS = st.tuples(PLACES, PLACES).filter(lambda pair: pair[0] != pair[1])
COLUMNS = st.sampled_from([*TEXTS, "created_at", "revision", "ordinal", "hash", "prev_hash"])
TAMPERINGS = st.one_of(
    st.builds(_flip, SEVERAL, COLUMNS),
    st.builds(_delete, SEVERAL),
    st.builds(_swap, PAIRS),
    st.builds(_swap_contents, st.sampled_from([(2, 7), (3, 1), (12, 5), (10, 11)])),
    st.builds(_insert, st.integers(-2, ENTRIES + 9), PLACES),
    st.builds(_head, st.sampled_from(["gone", "hash", "longer", "shorter"])),
)


@pytest.fixture(scope="module")
async def tampered(room: Room) -> AsyncIterator[Connection]:
    """The chain `tampered`, free for everything; batches are small, so that there are edges between them."""
    await room.api.make_workspace("tampered")
    for index in range(ENTRIES - 1):
        await room.api.make_agent("tampered", f"agent-{index}")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(audit_chains, "PLACES_AT_ONCE", 5)
        async with tampering(room.superuser) as connection:
            await connection.execute(
                """
                ALTER TABLE registry.audit_entries DROP CONSTRAINT audit_places_are_unique;
                ALTER TABLE registry.audit_entries DROP CONSTRAINT audit_entries_pkey;
                CREATE TABLE public.good AS SELECT * FROM registry.audit_entries WHERE workspace_id = 'tampered';
                CREATE TABLE public.good_head AS SELECT * FROM registry.audit_heads WHERE workspace_id = 'tampered'
                """
            )
            yield connection


async def restore(connection: Connection) -> None:
    await connection.execute(
        f"""
        BEGIN;
        DELETE FROM registry.audit_entries WHERE {OF};
        DELETE FROM registry.audit_heads WHERE {OF};
        INSERT INTO registry.audit_entries SELECT * FROM public.good;
        INSERT INTO registry.audit_heads SELECT * FROM public.good_head;
        COMMIT
        """
    )


@settings(max_examples=120, deadline=None, suppress_health_check=list(HealthCheck))
@given(done=TAMPERINGS)
async def test_c14_whatever_is_flipped_deleted_swapped_or_inserted_is_found_at_its_first_place(
    room: Room, tampered: Connection, done: Tampering
) -> None:
    statements, kind, place = done
    await restore(tampered)
    assert told(await verified(room.api, "tampered")) is None
    for statement in statements:
        await tampered.execute(statement)
    result = await verified(room.api, "tampered")
    assert told(result) == (kind, place)
    assert result.verified.seq == (place if kind == "HEAD" else max(0, min(place - 1, ENTRIES)))
    if kind in ("HASH", "PREV_HASH"):
        with pytest.raises(audit.ChainBroken) as broken:
            audit.verify(await exported(room.api, "tampered"))
        assert broken.value.seq == place


async def test_c14_what_is_cut_off_or_rewritten_as_a_whole_is_found_by_a_signed_head(
    room: Room, tampered: Connection
) -> None:
    await restore(tampered)
    answer = await room.api.audit.ExportAuditHead(pb.ExportAuditHeadRequest(workspace_id="tampered"))
    head = answer.signed_head
    good = await exported(room.api, "tampered")
    assert (head.seq, head.hash, head.revision) == (ENTRIES, good[-1].hash, good[-1].revision)
    assert told(await verified(room.api, "tampered", signed_head=head)) is None
    audit.verify(good, head=head)
    for cut in (1, 4):
        await tampered.execute(f"DELETE FROM registry.audit_entries WHERE {OF} AND seq > {ENTRIES - cut}")
        await tampered.execute(
            f"""
            UPDATE registry.audit_heads h SET seq = e.seq, hash = e.hash FROM registry.audit_entries e
            WHERE h.{OF} AND e.{OF} AND e.seq = {ENTRIES - cut}
            """
        )
        assert told(await verified(room.api, "tampered")) is None  # nothing in the database tells of it
        assert told(await verified(room.api, "tampered", signed_head=head)) == ("KNOWN_HEAD", ENTRIES)
        with pytest.raises(audit.ChainBroken):
            audit.verify(await exported(room.api, "tampered"), head=head)
    await restore(tampered)
    await rewrite(tampered, good, 3)
    assert told(await verified(room.api, "tampered")) is None
    assert told(await verified(room.api, "tampered", signed_head=head)) == ("KNOWN_HEAD", ENTRIES)
    known = {"after_seq": 6, "after_hash": good[5].hash}
    assert told(await verified(room.api, "tampered", **known)) == ("KNOWN_HEAD", 6)
    # Whoever goes on from the very place of the head has to have met it there.
    rewritten = await exported(room.api, "tampered")
    known = {"after_seq": ENTRIES, "after_hash": rewritten[-1].hash, "signed_head": head}
    assert told(await verified(room.api, "tampered", **known)) == ("KNOWN_HEAD", ENTRIES)
    with pytest.raises(audit.ChainBroken, match="history was rewritten"):
        audit.verify([], after=audit.Link(ENTRIES, rewritten[-1].hash), head=head)
    await restore(tampered)
    assert told(await verified(room.api, "tampered", **known | {"after_hash": good[-1].hash})) is None
    assert audit.verify([], after=audit.Link(ENTRIES, good[-1].hash), head=head).seq == ENTRIES


@pytest.mark.parametrize("time", ["infinity", "-infinity", "4000-01-01 BC", "294276-12-31"])
async def test_c14_a_time_that_is_none_is_a_fault_of_its_entry_and_not_of_the_service(
    room: Room, tampered: Connection, time: str
) -> None:
    await restore(tampered)
    await tampered.execute(
        f"UPDATE registry.audit_entries SET created_at = $1::text::timestamptz WHERE {OF} AND seq = 4", time
    )
    assert told(await verified(room.api, "tampered")) == ("HASH", 4)
    with pytest.raises(audit.ChainBroken) as broken:
        audit.verify(await exported(room.api, "tampered"))
    assert broken.value.seq == 4
    await restore(tampered)


async def test_nothing_of_an_exported_entry_or_head_can_be_changed_below_the_microsecond(
    room: Room, workspace_id: str
) -> None:
    await room.api.make_workspace(workspace_id)
    (entry,) = await exported(room.api, workspace_id)
    answer = await room.api.audit.ExportAuditHead(pb.ExportAuditHeadRequest(workspace_id=workspace_id))
    entry.create_time.nanos += 1
    with pytest.raises(audit.ChainBroken) as broken:
        audit.verify([entry])
    assert broken.value.seq == 1
    answer.signed_head.time.nanos += 1
    assert not audit.signed_by(answer.signed_head, answer.public_key)
    with invalid("signed_head.time"):
        await verified(room.api, workspace_id, signed_head=answer.signed_head)


async def test_a_head_before_the_place_that_is_gone_on_from_is_no_proof(room: Room, workspace_id: str) -> None:
    await room.api.make_workspace(workspace_id)
    answer = await room.api.audit.ExportAuditHead(pb.ExportAuditHeadRequest(workspace_id=workspace_id))
    await room.api.make_agent(workspace_id, "helper")
    entries = await exported(room.api, workspace_id)
    with pytest.raises(ValueError, match="lies before"):
        audit.verify([], after=audit.Link(2, entries[1].hash), head=answer.signed_head)


async def test_what_is_verified_has_a_revision_also_where_nothing_has_come_since(room: Room, workspace_id: str) -> None:
    await room.api.make_workspace(workspace_id)
    (entry,) = await exported(room.api, workspace_id)
    result = await verified(room.api, workspace_id, after_seq=1, after_hash=entry.hash)
    assert (result.verified.seq, result.verified.revision) == (1, entry.revision)


async def rewrite(connection: Connection, entries: list[pb.AuditEntry], place: int) -> None:
    """Another actor at one place, and all hashes from there on, with the head, made anew."""
    last = entries[place - 2].hash
    for entry in entries[place - 1 :]:
        forged = pb.AuditEntry()
        forged.CopyFrom(entry)
        forged.prev_hash = last
        if entry.seq == place:
            forged.actor = "nobody"
        last = audit.link_hash(forged)
        await connection.execute(
            f"UPDATE registry.audit_entries SET actor = $1, prev_hash = $2, hash = $3 WHERE {OF} AND seq = $4",
            forged.actor,
            forged.prev_hash,
            last,
            entry.seq,
        )
    await connection.execute(f"UPDATE registry.audit_heads SET hash = $1 WHERE {OF}", last)


async def test_a_signed_head_is_checked_by_anybody_who_has_the_key(room: Room, workspace_id: str) -> None:
    await room.api.make_workspace(workspace_id)
    answer = await room.api.audit.ExportAuditHead(pb.ExportAuditHeadRequest(workspace_id=workspace_id))
    key = await room.api.audit.GetAuditKey(pb.GetAuditKeyRequest())
    assert key.public_key == answer.public_key == private_key(KEY).public_key().public_bytes_raw()
    assert key.key_id == answer.signed_head.key_id == audit.key_id(key.public_key)
    assert audit.signed_by(answer.signed_head, key.public_key)
    other = private_key(base64.b64encode(b"o" * 32).decode()).public_key().public_bytes_raw()
    assert not audit.signed_by(answer.signed_head, other)
    changes = {"seq": 2, "hash": b"x" * 32, "revision": 9, "epoch": 9, "key_id": "x", "workspace_id": "x"}
    for field, value in changes.items():
        forged = pb.SignedAuditHead()
        forged.CopyFrom(answer.signed_head)
        setattr(forged, field, value)
        assert not audit.signed_by(forged, key.public_key), field
        if field != "workspace_id":
            assert told(await verified(room.api, workspace_id, signed_head=forged)) == ("SIGNATURE", forged.seq)
    forged = pb.SignedAuditHead()
    forged.CopyFrom(answer.signed_head)
    forged.time.seconds += 1
    assert not audit.signed_by(forged, key.public_key)
    # A key of another length, which the head names as its own.
    long = key.public_key + b"x"
    forged.key_id = audit.key_id(long)
    assert not audit.signed_by(forged, long)


async def test_without_a_key_heads_are_refused_by_the_name_of_the_setting(api: Registry, workspace: str) -> None:
    missing = refused(grpc.StatusCode.FAILED_PRECONDITION, Reason.REASON_AUDIT_KEY_MISSING)
    with missing:
        await api.audit.ExportAuditHead(pb.ExportAuditHeadRequest(workspace_id=workspace))
    with pytest.raises(grpc.aio.AioRpcError, match="REGISTRY__AUDIT_SIGNING_KEY is not set"):
        await api.audit.GetAuditKey(pb.GetAuditKeyRequest())


def test_a_former_key_still_vouches_for_what_it_signed() -> None:
    old, new = private_key(KEY), private_key(base64.b64encode(b"n" * 32).decode())
    signed = AuditKeys(old).sign(Head("acme", 7, bytes(32), 9, 1_700_000_000_000, moment(1_700_000_000_000_001)))
    assert not AuditKeys(new).vouches(signed)
    assert AuditKeys(new, [old.public_key()]).vouches(signed)


@pytest.mark.parametrize(
    "text", ["", "abc", "not base64!", base64.b64encode(b"short").decode(), "-----BEGIN PRIVATE KEY-----\nx"]
)
def test_what_is_no_key_is_refused_without_a_word_of_it(text: str) -> None:
    with pytest.raises(ValueError, match="is not an Ed25519 private key") as caught:
        private_key(text)
    assert not text or text not in str(caught.value)


async def test_a_walk_is_gone_on_with_from_its_last_progress(room: Room, workspace_id: str) -> None:
    await room.api.make_workspace(workspace_id)
    for index in range(6):
        await room.api.make_agent(workspace_id, f"agent-{index}")
    entries = await exported(room.api, workspace_id)
    assert await exported(room.api, workspace_id, 4) == entries[4:]
    assert await exported(room.api, workspace_id, 100) == []
    result = await verified(room.api, workspace_id, after_seq=4, after_hash=entries[3].hash)
    assert told(result) is None
    assert (result.entry_count, result.verified.seq) == (3, 7)
    result = await verified(room.api, workspace_id, after_seq=7, after_hash=entries[6].hash)
    assert (told(result), result.entry_count) == (None, 0)
    assert told(await verified(room.api, workspace_id, after_seq=8, after_hash=bytes(32))) == ("KNOWN_HEAD", 8)


async def test_the_chain_of_a_deleted_workspace_is_still_proved(room: Room, workspace_id: str) -> None:
    await room.api.make_workspace(workspace_id)
    await room.api.workspaces.DeleteWorkspace(workspace_pb2.DeleteWorkspaceRequest(workspace_id=workspace_id))
    assert told(await verified(room.api, workspace_id)) is None
    assert [entry.action for entry in await exported(room.api, workspace_id)] == ["workspace.create", "workspace.delete"]
    with unknown(Reason.REASON_WORKSPACE_UNKNOWN):
        await verified(room.api, "nowhere")
    with unknown(Reason.REASON_WORKSPACE_UNKNOWN):
        await verified(room.api, "nowhere", after_seq=1, after_hash=bytes(32))
    with unknown(Reason.REASON_WORKSPACE_UNKNOWN):
        await exported(room.api, "nowhere")
    with unknown(Reason.REASON_WORKSPACE_UNKNOWN):
        await room.api.audit.ExportAuditHead(pb.ExportAuditHeadRequest(workspace_id="nowhere"))


async def test_bad_places_are_refused_by_field(room: Room) -> None:
    head = pb.SignedAuditHead(workspace_id="w", seq=1)
    refusals: list[tuple[str, dict[str, Any]]] = [
        ("after_hash", {"after_seq": 1}),
        ("after_seq", {"after_hash": bytes(32)}),
        ("signed_head.workspace_id", {"signed_head": pb.SignedAuditHead(workspace_id="another")}),
        ("signed_head.seq", {"signed_head": head, "after_seq": 2, "after_hash": bytes(32)}),
        ("signed_head.time", {"signed_head": head}),
    ]
    for field, values in refusals:
        with invalid(field):
            await verified(room.api, "w", **values)


class OneBatch:
    """A store that waits until it is told to answer."""

    def __init__(self) -> None:
        self.asked = asyncio.Event()
        self.go = asyncio.Event()

    async def batch(self, workspace_id: str, after: int, last: int) -> Batch:
        self.asked.set()
        await self.go.wait()
        return Batch(last=last, head=FIRST_LINK, lowest=None, behind=None, entries=[], following=None)

    async def kept(self, workspace_id: str, seq: int) -> Kept | None:
        return None


async def test_those_who_take_their_time_to_listen_keep_nobody_from_verifying() -> None:
    class Endless(OneBatch):
        """A chain with an entry more at each look."""

        async def batch(self, workspace_id: str, after: int, last: int) -> Batch:
            chained = Chained(entry_of(after + 1, "a"), bytes(32), bytes(32))
            return Batch(last=last, head=Link(2**40, b""), lowest=1, behind=None, entries=[chained], following=after + 2)

    chains = Chains(Endless())
    async with contextlib.AsyncExitStack() as stack:
        for _ in range(10):
            walk = await stack.enter_async_context(contextlib.aclosing(chains.export("w", 0)))
            await anext(walk)
        async with contextlib.aclosing(chains.verify("w", None, None, AuditKeys(None))) as verifying:
            assert [type(told) async for told in verifying] == [audit_chains.Progress, audit_chains.Result]


async def test_only_so_many_walks_are_under_way_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(audit_chains, "_WALKS_MAX", 4)
    store = OneBatch()
    chains = Chains(store)

    async def walk() -> int:
        return len([batch async for batch in chains.export("w", 0)])

    under_way = [asyncio.create_task(walk()) for _ in range(4)]
    await store.asked.wait()
    with pytest.raises(Overloaded):
        await walk()
    store.go.set()
    assert await asyncio.gather(*under_way) == [0] * 4
    assert await walk() == 0


def test_what_does_not_fit_into_a_batch_is_not_missing() -> None:
    first = entry_of(1, "a")
    hash_of = link_hash(bytes(32), "w", first)
    batch = Batch(500, Link(2, b"h" * 32), 1, None, [Chained(first, bytes(32), hash_of)], following=2)
    walk = Walk("w", FIRST_LINK, None)
    assert walk.step(batch) is None
    assert (walk.end, walk.done) == (Link(1, hash_of), False)
    doubled = Batch(500, Link(2, b"h" * 32), 1, None, [Chained(first, bytes(32), hash_of)], following=1)
    fault = Walk("w", FIRST_LINK, None).step(doubled)
    assert fault is not None
    assert (fault.kind, fault.seq) == (audit_chains.FaultKind.EXTRA, 1)


def entry_of(seq: int, text: str, at_us: int = 0, revision: int = 1, ordinal: int = 0) -> Entry:
    return Entry(seq, revision, ordinal, text, text, text, text, text, text, text, moment(at_us))


NUMBERS = st.integers(0, 2**63 - 1)
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
TIMES = st.integers(-62_135_596_800_000_000, 253_402_300_799_999_999)


@settings(max_examples=200, deadline=None)
@given(NUMBERS, TEXT, TIMES, NUMBERS, st.integers(0, 2**31 - 1), st.binary(min_size=32, max_size=32))
def test_the_client_computes_the_hash_that_the_service_computes(
    seq: int, text: str, at_us: int, revision: int, ordinal: int, prev: bytes
) -> None:
    entry = entry_of(seq, text, at_us, revision, ordinal)
    message = pb.AuditEntry(
        workspace_id="w",
        seq=seq,
        revision=revision,
        ordinal=ordinal,
        actor=text,
        action=text,
        resource_kind=text,
        resource_id=text,
        before_json=text,
        after_json=text,
        request_id=text,
        prev_hash=prev,
    )
    message.create_time.FromDatetime(entry.at)
    assert audit.link_hash(message) == link_hash(prev, "w", entry)
