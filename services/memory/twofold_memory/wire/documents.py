"""Documents on the wire."""

from collections.abc import Sequence

from twofold.memory.v1 import document_pb2 as pb
from twofold_chassis import fields
from twofold_chassis.refusals import InvalidField
from twofold_memory.documents import Document
from twofold_memory.threads import ANSWER_BYTES_MAX

_TITLE_BYTES_MAX = 1024
_URL_BYTES_MAX = 2048
_MEDIA_TYPE_BYTES_MAX = 255


def document(request: pb.LinkDocumentRequest) -> Document:
    """The document that is to be linked."""
    if not request.HasField("document"):
        raise InvalidField("document", "is required")
    given = request.document
    return Document(
        fields.identifier(given.document_id, "document.document_id"),
        fields.line(given.title, "document.title", bytes_max=_TITLE_BYTES_MAX),
        fields.line(given.url, "document.url", bytes_max=_URL_BYTES_MAX),
        fields.line(given.media_type, "document.media_type", bytes_max=_MEDIA_TYPE_BYTES_MAX),
        fields.labels(given.metadata, "document.metadata"),
    )


def message(document: Document) -> pb.Document:
    """A document as it goes out."""
    assert document.created_at is not None
    assert document.updated_at is not None
    return pb.Document(
        document_id=document.document_id,
        title=document.title,
        url=document.url,
        media_type=document.media_type,
        metadata=document.metadata,
        create_time=fields.timestamp(document.created_at),
        update_time=fields.timestamp(document.updated_at),
    )


def query(request: pb.ListDocumentsRequest) -> tuple[object, ...]:
    """What a page token belongs to."""
    return ("ListDocuments", request.workspace_id, request.thread_id, request.user_id)


def after(request: pb.ListDocumentsRequest) -> str:
    """The document that the page begins behind; empty for the first page."""
    place = fields.page_place(request.page_token, query(request), str)
    return "" if place is None else str(place[0])


def list_response(request: pb.ListDocumentsRequest, found: Sequence[Document], size: int) -> pb.ListDocumentsResponse:
    """A page; `found` has one more than `size` if there is another page."""
    response = pb.ListDocumentsResponse()
    taken = 0
    for document in found[:size]:
        linked = message(document)
        taken += linked.ByteSize()
        if response.documents and taken > ANSWER_BYTES_MAX:
            break
        response.documents.append(linked)
    if len(response.documents) < len(found):
        response.next_page_token = fields.page_token(query(request), [response.documents[-1].document_id])
    return response
