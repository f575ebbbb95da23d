"""Signs artifacts as OpenSSF model signing does, with a key or with certificates, offline.

What is signed is every file but the signature itself. Source: OMS specification v1.0; model_signing
1.1, ``_signing/sign_ec_key.py``.
"""

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec

from exporter.errors import ExportError
from runtime.files import MAX_THREADS, sha256
from runtime.threads import usable_cores
from runtime.trust.bundle import (
    FILE_NAME,
    MEDIA_TYPE,
    PAYLOAD_TYPE,
    PREDICATE_TYPE,
    STATEMENT_TYPE,
    Bundle,
    Certificate,
    Chain,
    Envelope,
    EnvelopeSignature,
    Material,
    Predicate,
    PublicKey,
    Resource,
    Serialization,
    Statement,
    Subject,
    root_digest,
    to_sign,
)
from runtime.trust.keys import CURVES, algorithm, hint_of, require_cryptography
from runtime.trust.signature import files_to_sign


class Signer:
    """A private key, and the certificates that vouch for it, where there are some."""

    def __init__(self, private_key: Path, certificates: Sequence[Path] = ()):
        """Reads them.

        Args:
            private_key: ECDSA of P-256, P-384 or P-521, in PEM, not encrypted.
            certificates: in PEM: the key's own first, then who issued it.

        Raises:
            ExportError: they cannot be read, or do not belong to one another.
            UnsupportedError: ``cryptography`` is not installed.
        """
        require_cryptography()
        from cryptography import x509
        from cryptography.hazmat.primitives import serialization
        from cryptography.hazmat.primitives.asymmetric import ec

        try:
            key = serialization.load_pem_private_key(private_key.read_bytes(), None)
            texts = b"".join(path.read_bytes() for path in certificates)
            self._chain = x509.load_pem_x509_certificates(texts) if certificates else []
        except OSError as error:
            raise ExportError(f"cannot read {error.filename}: {error.strerror}") from None
        except Exception as error:  # several classes, of Python and of the library
            read = ", ".join(map(str, (private_key, *certificates)))
            raise ExportError(f"cannot sign with {read}: {error}") from None
        if not isinstance(key, ec.EllipticCurvePrivateKey) or key.curve.name not in CURVES:
            raise ExportError(
                f"{private_key} must be an ECDSA key of P-256, P-384 or P-521: openssl ecparam "
                "-name prime256v1 -genkey -noout"
            )
        if self._chain and self._chain[0].public_key() != key.public_key():
            raise ExportError(f"the first certificate is not of the key {private_key}")
        self._key = key

    def sign(self, folder: Path) -> Path:
        """Writes ``model.sig`` into an artifact, in place of one that is there.

        Raises:
            ArtifactError: the folder holds a link, or something else that is no file.
        """
        payload = msgspec.json.encode(_statement(folder))
        signature = self._key.sign(to_sign(payload), algorithm(self._key.public_key()))
        bundle = Bundle(
            MEDIA_TYPE,
            self._material(),
            Envelope(payload, PAYLOAD_TYPE, [EnvelopeSignature(signature)]),
        )
        path = folder / FILE_NAME
        aside = folder / f".{FILE_NAME}.{os.getpid()}"
        try:
            aside.write_bytes(msgspec.json.encode(bundle))
            aside.chmod(0o444)
            aside.replace(path)
        finally:
            aside.unlink(missing_ok=True)
        return path

    def _material(self) -> Material:
        from cryptography.hazmat.primitives.serialization import Encoding

        if not self._chain:
            return Material(public_key=PublicKey(hint_of(self._key.public_key())))
        certificates = [Certificate(each.public_bytes(Encoding.DER)) for each in self._chain]
        return Material(x509_certificate_chain=Chain(certificates))


def _statement(folder: Path) -> Statement:
    def resource(name: str) -> Resource:
        path = folder / name
        return Resource(name, "sha256", sha256(path, 0, path.stat().st_size))

    with ThreadPoolExecutor(min(usable_cores(), MAX_THREADS)) as pool:
        resources = [*pool.map(resource, files_to_sign(folder))]
    how = Serialization("files", "sha256", False, [FILE_NAME])
    return Statement(
        type=STATEMENT_TYPE,
        subject=[Subject(folder.resolve().name, {"sha256": root_digest(resources)})],
        predicate_type=PREDICATE_TYPE,
        predicate=Predicate(how, resources),
    )
