"""Bad requests made out of a good one: each breaks the rule of one field and leaves all others as they were."""

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

from tests.house.contract import fields_of, output_only, required
from tests.house.rules import Rule, rule_of
from tests.house.together import TOGETHER

_OURS = "twofold."
# Here a caller's value is refused; elsewhere output-only fields are read over, so that what was read can be sent back.
_MUST_BE_EMPTY = "twofold.memory.v1.Message"
# Neither among the fields that can be changed nor among those that say which one: not looked at.
_READ_OVER = {("twofold.memory.v1.UpdateConversationRequest", "conversation.user_id")}

Reach = Callable[[Any], Any]


@dataclass(frozen=True)
class BadRequest:
    """A request, what is wrong with it, and the fields (one, as a rule) that the refusal may name, with which reasons."""

    what: str
    fields: Sequence[str]
    reasons: Sequence[str]
    request: Message


def bad_requests(rpc: str, example: Message) -> Iterator[BadRequest]:
    """All there are for one rpc."""
    yield from _of_fields(example, example, "", lambda request: request)
    for together in TOGETHER.get(rpc, ()):
        request = copy.deepcopy(example)
        together.change(request)
        yield BadRequest(together.what, together.fields, together.reasons, request)


def _of_fields(root: Message, message: Message, above: str, reach: Reach) -> Iterator[BadRequest]:
    for field in fields_of(message):
        path = f"{above}{field.name}"
        if message.DESCRIPTOR.full_name == _MUST_BE_EMPTY and output_only(field):
            yield _changed(root, reach, f"{path}: set by the caller", path, partial(_fill, field=field))
            continue
        if output_only(field) and not (field.name == "etag" and "update_mask" in root.DESCRIPTOR.fields_by_name):
            continue
        if (root.DESCRIPTOR.full_name, path) in _READ_OVER:
            continue
        if required(field):
            yield _changed(root, reach, f"{path}: missing", path, partial(_clear, field=field))
        rule = rule_of(field)
        for what, value in rule.bad(getattr(message, field.name)):
            yield _changed(root, reach, f"{path}: {what}", path, partial(_put, field=field, value=value), rule.reasons)
        if _is_ours(field):
            yield from _below(root, message, field, path, reach)


def _below(root: Message, message: Message, field: FieldDescriptor, path: str, reach: Reach) -> Iterator[BadRequest]:
    if not field.is_repeated:
        if field.containing_oneof is not None and not message.HasField(field.name):
            return  # the example sets another one of these here, and this one elsewhere
        assert message.HasField(field.name), f"the example must set {path}, so that its fields can be tried"
        yield from _of_fields(root, getattr(message, field.name), f"{path}.", partial(_inside, reach=reach, name=field.name))
        return
    for index, element in enumerate(getattr(message, field.name)):
        into = partial(_inside, reach=reach, name=field.name, index=index)
        yield from _of_fields(root, element, f"{path}[{index}].", into)


def _inside(request: Any, *, reach: Reach, name: str, index: int | None = None) -> Any:
    value = getattr(reach(request), name)
    return value if index is None else value[index]


def _changed(
    root: Message,
    reach: Reach,
    what: str,
    path: str,
    change: Callable[[Any], object],
    reasons: Sequence[str] = Rule.reasons,
) -> BadRequest:
    request = copy.deepcopy(root)
    change(reach(request))
    return BadRequest(what, [path], reasons, request)


def _clear(at: Any, field: FieldDescriptor) -> None:
    at.ClearField(field.name)


def _put(at: Any, field: FieldDescriptor, value: Any) -> None:
    if isinstance(value, Message):
        getattr(at, field.name).CopyFrom(value)
    elif isinstance(value, list):
        values = [copy.deepcopy(item) if isinstance(item, Message) else item for item in value]
        del getattr(at, field.name)[:]
        getattr(at, field.name).extend(values)
    elif isinstance(value, dict):
        getattr(at, field.name).clear()
        getattr(at, field.name).update(value)
    else:
        setattr(at, field.name, value)


def _fill(at: Any, field: FieldDescriptor) -> None:
    if field.type == FieldDescriptor.TYPE_MESSAGE:
        getattr(at, field.name).seconds = 1
    else:
        setattr(at, field.name, "x" if field.type == FieldDescriptor.TYPE_STRING else 1)


def _is_ours(field: FieldDescriptor) -> bool:
    kind = field.message_type
    return kind is not None and kind.full_name.startswith(_OURS) and not kind.GetOptions().map_entry
