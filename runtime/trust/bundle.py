"""``model.sig``: the bundle of OpenSSF model signing (OMS), read before anything else.

An in-toto statement lists every file with its SHA-256; a DSSE envelope bears the signature over
it; a Sigstore bundle says by which key. Sources: OMS specification v1.0; DSSE v1.0, "protocol.md";
model_signing 1.1, ``_signing/signing.py``.
"""

import hashlib
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from runtime.errors import ArtifactError

FILE_NAME = "model.sig"
MEDIA_TYPE = "application/vnd.dev.sigstore.bundle.v0.3+json"
PAYLOAD_TYPE = "application/vnd.in-toto+json"
STATEMENT_TYPE = "https://in-toto.io/Statement/v1"
PREDICATE_TYPE = "https://model_signing/signature/v1.0"
# A file takes some 200 of them, and an artifact has few.
MAX_BYTES = 1 << 20


class Certificate(msgspec.Struct, frozen=True, rename="camel"):
    """In DER."""

    raw_bytes: bytes


class Chain(msgspec.Struct, frozen=True):
    """The signer's certificate first, then who issued it."""

    certificates: list[Certificate]


class PublicKey(msgspec.Struct, frozen=True):
    """SHA-256 of the key as PEM, in hexadecimal."""

    hint: str | None = None


class Material(msgspec.Struct, frozen=True, rename="camel", omit_defaults=True):
    """By which key: one of these; ``certificate`` is Sigstore's."""

    public_key: PublicKey | None = None
    x509_certificate_chain: Chain | None = None
    certificate: dict[str, Any] | None = None


class EnvelopeSignature(msgspec.Struct, frozen=True):
    """Of the payload's pre-authentication encoding."""

    sig: bytes
    keyid: str = ""


class Envelope(msgspec.Struct, frozen=True, rename="camel"):
    """DSSE's."""

    payload: bytes
    payload_type: str
    signatures: list[EnvelopeSignature]


class Bundle(msgspec.Struct, frozen=True, rename="camel"):
    """Sigstore's."""

    media_type: str
    verification_material: Material
    dsse_envelope: Envelope


class Subject(msgspec.Struct, frozen=True):
    """The artifact's name, and SHA-256 of all digests of ``resources`` in their order."""

    name: str
    digest: dict[str, str]


class Resource(msgspec.Struct, frozen=True):
    """A file."""

    name: str
    algorithm: str
    digest: str


class Serialization(msgspec.Struct, frozen=True):
    """How files became resources; the public command knows ``files`` alone."""

    method: str
    hash_type: str
    allow_symlinks: bool
    ignore_paths: list[str] = []


class Predicate(msgspec.Struct, frozen=True):
    """What is said of the subject."""

    serialization: Serialization
    resources: list[Resource]


class Statement(msgspec.Struct, frozen=True, rename="camel"):
    """In-toto's."""

    type: str = msgspec.field(name="_type")
    subject: list[Subject]
    predicate_type: str
    predicate: Predicate


@dataclass(frozen=True)
class Signed:
    """What a signature is over.

    Attributes:
        digests: SHA-256 of each file, in hexadecimal.
        ignored: paths that are not part of it.
    """

    digests: Mapping[str, str]
    ignored: frozenset[str]


def read_bundle(folder: Path) -> Bundle:
    """Reads a bundle; nothing in it is believed yet.

    Raises:
        ArtifactError: there is none, or it is damaged, too large, or of another kind.
    """
    path = folder / FILE_NAME
    try:
        status = path.lstat()
        if not stat.S_ISREG(status.st_mode):
            raise ArtifactError(f"{path} is refused: it is not a file")
        if status.st_size > MAX_BYTES:
            raise ArtifactError(
                f"{path} is refused: it has {status.st_size:,} bytes, of at most {MAX_BYTES:,}"
            )
        bundle = msgspec.json.decode(path.read_bytes(), type=Bundle)
    except FileNotFoundError:
        raise ArtifactError(
            f"artifact {folder} is not signed: it holds no {FILE_NAME}. Sign it with 'esm2-export "
            "sign', or load it without a trusted key"
        ) from None
    except OSError as error:
        raise ArtifactError(f"cannot read {path}: {error.strerror}") from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ArtifactError(f"{path} is damaged, it is no bundle of signatures ({error})") from None
    envelope = bundle.dsse_envelope
    for what, found, expected in (
        ("media type", bundle.media_type, MEDIA_TYPE),
        ("payload", envelope.payload_type, PAYLOAD_TYPE),
        ("number of signatures", len(envelope.signatures), 1),
    ):
        if found != expected:
            raise ArtifactError(f"{path} is refused: {what} is {found!r}, expected {expected!r}")
    return bundle


def to_sign(payload: bytes) -> bytes:
    """DSSE's pre-authentication encoding."""
    return f"DSSEv1 {len(PAYLOAD_TYPE)} {PAYLOAD_TYPE} {len(payload)} ".encode() + payload


def root_digest(resources: list[Resource]) -> str:
    """Of all digests in their order.

    Raises:
        ValueError: a digest is not hexadecimal.
    """
    return hashlib.sha256(b"".join(bytes.fromhex(each.digest) for each in resources)).hexdigest()


def signed_files(payload: bytes, path: Path) -> Signed:
    """What a payload says, whose signature has been verified.

    Args:
        payload: the statement in JSON.
        path: of the bundle, for messages.

    Raises:
        ArtifactError: it says nothing that can be checked here.
    """
    try:
        statement = msgspec.json.decode(payload, type=Statement)
        resources = statement.predicate.resources
        how = statement.predicate.serialization
        for what, found, expected in (
            ("statement", statement.type, STATEMENT_TYPE),
            ("predicate", statement.predicate_type, PREDICATE_TYPE),
            ("method", how.method, "files"),
            ("digest", how.hash_type, "sha256"),
            ("root digest", [s.digest for s in statement.subject],
             [{"sha256": root_digest(resources)}]),
        ):  # fmt: skip
            if found != expected:
                raise ValueError(f"its {what} is {found!r}, expected {expected!r}")
        digests = {each.name: each.digest.lower() for each in resources}
        if len(digests) != len(resources):
            raise ValueError("a file is named twice")
    except (msgspec.DecodeError, ValueError, RecursionError) as error:
        raise ArtifactError(f"{path} signs nothing that this runtime can check: {error}") from None
    return Signed(digests, frozenset(how.ignore_paths))
