"""The keys of the audit: the end of a chain, signed, proves later that the chain was not cut or rewritten since."""

import base64
import binascii
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from twofold_chassis.refusals import FailedPrecondition, Reason
from twofold_registry.audit import Head, written

KEY_ID_LENGTH = 16
SIGNATURE_BYTES = 64
_KEY_BYTES = 32
_SETTING = "REGISTRY__AUDIT_SIGNING_KEY"
_PURPOSE = b"twofold audit head v1\n"


class AuditKeyMissing(FailedPrecondition):
    """There is no key to sign with, or to check a signature with."""

    reason = Reason.REASON_AUDIT_KEY_MISSING

    def __init__(self) -> None:
        super().__init__(f"heads of the audit cannot be signed: {_SETTING} is not set", setting=_SETTING)


@dataclass(frozen=True, slots=True)
class SignedHead:
    """A head, and the signature of it."""

    head: Head
    key_id: str
    signature: bytes


class AuditKeys:
    """The key that signs, and those that did before it."""

    def __init__(self, private: Ed25519PrivateKey | None, former: Sequence[Ed25519PublicKey] = ()) -> None:
        self._private = private
        known = [*former, private.public_key()] if private else []
        self._known = {key_id(key.public_bytes_raw()): key for key in known}

    @property
    def public_key(self) -> bytes:
        """Raises AuditKeyMissing."""
        return self._signing().public_key().public_bytes_raw()

    def sign(self, head: Head) -> SignedHead:
        """Raises AuditKeyMissing."""
        private = self._signing()
        name = key_id(private.public_key().public_bytes_raw())
        return SignedHead(head, name, private.sign(signed_bytes(head, name)))

    def vouches(self, signed: SignedHead) -> bool:
        """Whether one of these keys has signed this. Raises AuditKeyMissing."""
        self._signing()
        public = self._known.get(signed.key_id)
        if public is None:
            return False
        try:
            public.verify(signed.signature, signed_bytes(signed.head, signed.key_id))
        except InvalidSignature:
            return False
        return True

    def _signing(self) -> Ed25519PrivateKey:
        if self._private is None:
            raise AuditKeyMissing
        return self._private


def signed_bytes(head: Head, name: str) -> bytes:
    """What a signature is of; the form is told in audit.proto."""
    values = (head.workspace_id, head.seq, head.hash, head.revision, head.epoch, head.at, name)
    return _PURPOSE + b"".join([written(value) for value in values])


def key_id(public: bytes) -> str:
    """The name of a public key."""
    return hashlib.sha256(public).hexdigest()[:KEY_ID_LENGTH]


def private_key(text: str) -> Ed25519PrivateKey:
    """The key in PEM (PKCS #8, without a password), or its 32 bytes in base64. Raises ValueError, without any of it."""
    try:
        if text.lstrip().startswith("-----"):
            # Where a setting cannot hold several lines, they are written with \\n.
            found = load_pem_private_key(text.strip().replace("\\n", "\n").encode(), password=None)
            if isinstance(found, Ed25519PrivateKey):
                return found
        else:
            return Ed25519PrivateKey.from_private_bytes(_decoded(text))
    except (ValueError, TypeError, UnsupportedAlgorithm):
        pass
    raise ValueError("is not an Ed25519 private key: 32 bytes in base64, or PEM (PKCS #8) without a password")


def public_key(text: str) -> Ed25519PublicKey:
    """The 32 bytes of a public key in base64. Raises ValueError."""
    try:
        return Ed25519PublicKey.from_public_bytes(_decoded(text))
    except ValueError:
        raise ValueError("is not an Ed25519 public key: 32 bytes in base64") from None


def _decoded(text: str) -> bytes:
    try:
        raw = base64.b64decode(text.strip(), validate=True)
    except binascii.Error:
        raw = b""
    if len(raw) != _KEY_BYTES:
        raise ValueError("has another length")
    return raw
