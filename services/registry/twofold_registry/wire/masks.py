"""Field masks: which fields an update changes, and their new values."""

from collections.abc import Callable, Mapping

from google.protobuf.field_mask_pb2 import FieldMask

from twofold_chassis.refusals import InvalidField
from twofold_registry.resources import Edit

Readers = Mapping[str, Callable[[], object]]


def edit(mask: FieldMask, readers: Readers) -> Edit:
    """The edit that a mask asks for; only fields it names are read. `readers` are the fields that can be changed."""
    if not mask.paths:
        raise InvalidField("update_mask", "is required")
    paths = set(mask.paths)
    unknown = paths - readers.keys()
    if unknown:
        raise InvalidField("update_mask", f"may name {', '.join(readers)}; not {min(unknown)[:100]!r}")
    return Edit({path: readers[path]() for path in sorted(paths)})
