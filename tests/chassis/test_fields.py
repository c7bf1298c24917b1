"""Fields: ids, texts, tokens; whatever is damaged is refused by its field, never a defect."""

import base64
import contextlib
from datetime import UTC, datetime

import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from hypothesis import assume, given
from hypothesis import strategies as st

from twofold_chassis import fields, keys
from twofold_chassis.refusals import InvalidField, InvalidPageToken, InvalidToken

TEXT = st.text(max_size=40)
JSON = st.lists(st.integers() | TEXT, max_size=4)


def test_new_ids_are_different_and_lie_side_by_side() -> None:
    ids = [fields.new_id() for _ in range(1000)]
    assert ids == sorted(set(ids))


@pytest.mark.parametrize("value", ["", "a\0", "a\n", "\x7f", "\x85", "x" * 256, "é" * 128])
def test_an_id_that_breaks_the_rule_is_refused_by_its_field(value: str) -> None:
    with pytest.raises(InvalidField) as told:
        fields.identifier(value, "thread_id")
    assert told.value.field == "thread_id"


@pytest.mark.parametrize("value", ["a", "x" * 255, "ü" * 127, "a b", "🙂", "\u2028", "../..", "{}", "0"])
def test_a_legal_id_is_taken_as_it_is(value: str) -> None:
    assert fields.identifier(value, "thread_id") == value


@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=300))
def test_an_id_is_legal_exactly_if_it_is_short_and_without_control_characters(value: str) -> None:
    controls = {chr(code) for code in (*range(0x20), *range(0x7F, 0xA0))}
    legal = 0 < len(value.encode()) <= 255 and not controls & set(value)
    try:
        fields.identifier(value, "id")
    except InvalidField:
        assert not legal
    else:
        assert legal


@given(st.binary(max_size=60))
def test_a_sealed_token_comes_back_for_its_kind_only(content: bytes) -> None:
    token = fields.seal("thread", content)
    assert fields.unseal("thread", token, "thread_token") == content
    with pytest.raises(InvalidToken):
        fields.unseal("page", token, "thread_token")


@given(st.binary(max_size=40), st.data())
def test_a_damaged_token_is_refused(content: bytes, data: st.DataObject) -> None:
    token = bytearray(fields.seal("thread", content))
    place = data.draw(st.integers(0, len(token) - 1))
    match data.draw(st.sampled_from(["flip", "cut", "insert"])):
        case "flip":
            token[place] ^= 1 << data.draw(st.integers(0, 7))
        case "cut":
            del token[place]
        case _:
            token.insert(place, data.draw(st.integers(0, 255)))
    assume(bytes(token) != fields.seal("thread", content))
    with pytest.raises(InvalidToken):
        fields.unseal("thread", bytes(token), "t")


@given(st.binary(max_size=5000))
def test_any_bytes_as_a_token_are_refused_or_read_and_never_a_defect(token: bytes) -> None:
    with contextlib.suppress(InvalidToken):
        fields.unseal("thread", token, "t")


IDS = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=200) | st.text("ab~%{}/:.é", min_size=1)


@given(JSON, JSON, IDS, st.integers(0, 2**63 - 1))
def test_a_page_token_gives_its_place_back_to_its_own_query_only(
    query: list[object], other: list[object], name: str, number: int
) -> None:
    assume(fits(name))
    token = fields.page_token(query, [number, name])
    assert fields.page_place(token, query, int, str) == [number, name]
    if other != query:
        with pytest.raises(InvalidPageToken):
            fields.page_place(token, other, int, str)


def fits(name: str) -> bool:
    try:
        return bool(fields.identifier(name, "name"))
    except InvalidField:
        return False


@pytest.mark.parametrize(
    "place",
    [[], [1], ["a", 1], [1, "a", 2], [1, ""], [-1, "a"], [2**63, "a"], [True, "a"], [1, "a\0b"], [1, "\ud800"], [1, None]],
)
def test_a_forged_place_is_damage(place: list[object]) -> None:
    with pytest.raises(InvalidPageToken):
        fields.page_place(fields.page_token("query", place), "query", int, str)


@given(st.text(max_size=60) | st.binary(max_size=60).map(lambda raw: base64.urlsafe_b64encode(raw).decode()))
def test_any_text_as_a_page_token_is_refused_and_never_a_defect(token: str) -> None:
    if token:
        with pytest.raises(InvalidPageToken):
            fields.page_place(token, "query", int)


@given(st.binary(max_size=60))
def test_a_forged_page_token_with_a_right_checksum_is_refused_and_never_a_defect(content: bytes) -> None:
    token = base64.urlsafe_b64encode(fields.seal("page", content)).decode()
    with contextlib.suppress(InvalidPageToken):
        assert isinstance(fields.page_place(token, "query", int), list)


@pytest.mark.parametrize("moment", [Timestamp(seconds=2**62), Timestamp(nanos=-1), Timestamp(nanos=10**9)])
def test_a_time_out_of_range_is_refused(moment: Timestamp) -> None:
    with pytest.raises(InvalidField):
        fields.moment(moment, "since")


@given(st.datetimes(datetime(1, 1, 1), datetime(9999, 12, 31)))
def test_times_are_kept_to_the_microsecond(at: datetime) -> None:
    assert fields.moment(fields.timestamp(at.replace(tzinfo=UTC)), "at") == at.replace(tzinfo=UTC)


@given(st.dictionaries(TEXT, TEXT, max_size=40))
def test_labels_are_refused_or_taken_whole(value: dict[str, str]) -> None:
    with contextlib.suppress(InvalidField):
        assert fields.labels(value, "metadata") == value


@given(IDS, IDS)
def test_two_ids_never_share_a_key_part(one: str, other: str) -> None:
    assert (keys.part(one) == keys.part(other)) == (one == other)


@given(IDS)
def test_a_key_part_is_short_and_safe_in_braces(identifier: str) -> None:
    part = keys.part(identifier)
    assert 0 < len(part) <= 120
    assert set(part) <= set("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._-%~")


def test_an_id_that_looks_like_an_encoded_one_is_another() -> None:
    long = "é" * 100
    assert len({keys.part(identifier) for identifier in ("a/b", "a%2Fb", "a~b", "a%7Eb", long, keys.part(long))}) == 6
