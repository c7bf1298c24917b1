"""Revisions of the registry's own: the versions of its resources. Places in its history are the chassis'."""

import hashlib
from datetime import datetime

from twofold_chassis.revisions import Revision, RevisionNotReached, revision_of

__all__ = ["Revision", "RevisionNotReached", "etag", "revision_of"]


def etag(kind: str, *ids: str, revision: int, at: datetime) -> str:
    """The version of one resource: another one for each revision that changed it, and for each other resource.

    With the time, as a restored database gives the same revisions once more.
    """
    told = "\0".join((kind, *ids, str(revision), at.isoformat()))  # no id holds a NUL, so no two resources are told alike
    return hashlib.sha256(told.encode()).hexdigest()[:16]
