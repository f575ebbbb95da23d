"""Whether whom a user trusts has signed: ECDSA by ``cryptography``, imported where needed."""

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING

from runtime.errors import ArtifactError, InputError, UnsupportedError
from runtime.trust.bundle import Bundle, Chain, to_sign
from runtime.trust.whom import Trusted

if TYPE_CHECKING:
    from cryptography import x509
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey

CURVES = {"secp256r1": "SHA256", "secp384r1": "SHA384", "secp521r1": "SHA512"}
_ADVICE = "Do not use this artifact, or give the key of who signed it"


def check_signature(bundle: Bundle, who: Trusted, path: Path) -> None:
    """Compares a bundle's signature with what it is over.

    Args:
        bundle: from ``read_bundle``.
        who: must have signed it.
        path: of the bundle, for messages.

    Raises:
        ArtifactError: it is another's signature, or none.
        InputError: ``who`` is no key that can sign artifacts.
        UnsupportedError: ``cryptography`` is not installed.
    """
    require_cryptography()
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    material = bundle.verification_material
    if material.certificate is not None:
        raise ArtifactError(
            f"{path} was made by Sigstore, which needs a network to be verified: 'model_signing "
            "verify sigstore'. Here signatures by keys and certificates are"
        )
    if who.are_certificates:
        key = _certified(material.x509_certificate_chain, who, path)
    else:
        try:
            loaded = serialization.load_pem_public_key(who.pem)
        except Exception as error:  # several classes, of Python and of the library
            raise InputError(f"{who.source} holds no public key in PEM ({error})") from None
        if not isinstance(loaded, ec.EllipticCurvePublicKey) or loaded.curve.name not in CURVES:
            raise InputError(f"{who.source} must be an ECDSA key of P-256, P-384 or P-521")
        key = loaded
        hint = material.public_key.hint if material.public_key else None
        if hint and hint != hint_of(key):
            raise ArtifactError(f"{path} is by another key than {who.source}. {_ADVICE}")
    envelope = bundle.dsse_envelope
    try:
        key.verify(envelope.signatures[0].sig, to_sign(envelope.payload), algorithm(key))
    except InvalidSignature:
        raise ArtifactError(f"{path} is not a signature by {who.source}. {_ADVICE}") from None


def require_cryptography() -> None:
    """Raises UnsupportedError where it is not installed."""
    try:
        import cryptography  # noqa: F401
    except ModuleNotFoundError:
        raise UnsupportedError(
            "signatures need cryptography. pip install 'esm2-engines[trust]'"
        ) from None


def algorithm(key: "EllipticCurvePublicKey") -> "ec.ECDSA":
    """ECDSA with the digest that goes with the key's curve (OMS, section 4.1)."""
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import ec

    return ec.ECDSA(getattr(hashes, CURVES[key.curve.name])())


def hint_of(key: "EllipticCurvePublicKey") -> str:
    """What bundles name a key by."""
    from cryptography.hazmat.primitives import serialization

    pem = key.public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    return hashlib.sha256(pem).hexdigest()


def _certified(chain: Chain | None, who: Trusted, path: Path) -> "EllipticCurvePublicKey":
    """The signer's key, if ``who`` vouches for it.

    As in model_signing, certificates must have been valid when the signer's began to be: a
    signature does not end with them.
    """
    from cryptography import x509
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509 import verification

    if chain is None or not chain.certificates:
        raise ArtifactError(f"{path} holds no certificates, and {who.source} does. {_ADVICE}")
    try:
        store = verification.Store(x509.load_pem_x509_certificates(who.pem))
    except Exception as error:  # several classes, of Python and of the library
        raise InputError(f"{who.source} holds no certificates in PEM ({error})") from None
    try:
        signer, *others = [x509.load_der_x509_certificate(c.raw_bytes) for c in chain.certificates]
        policies = verification.ExtensionPolicy
        verifier = (
            verification.PolicyBuilder()
            .store(store)
            .time(signer.not_valid_before_utc)
            .extension_policies(
                ca_policy=policies.webpki_defaults_ca(), ee_policy=policies.permit_all()
            )
            .build_client_verifier()
        )
        verifier.verify(signer, others)
        if not _may_sign(signer):
            raise ValueError("the signer's certificate is not for signing")
        key = signer.public_key()
        if not isinstance(key, ec.EllipticCurvePublicKey) or key.curve.name not in CURVES:
            raise ValueError("the signer's key is not ECDSA of P-256, P-384 or P-521")
    except (ValueError, verification.VerificationError, x509.DuplicateExtension) as error:
        raise ArtifactError(
            f"{path} is refused: {who.source} does not vouch for its signer ({error}). {_ADVICE}"
        ) from None
    return key


def _may_sign(signer: "x509.Certificate") -> bool:
    from cryptography import x509
    from cryptography.x509.oid import ExtendedKeyUsageOID

    for kind, holds in (
        (x509.KeyUsage, lambda usage: usage.digital_signature),
        (x509.ExtendedKeyUsage, lambda usage: ExtendedKeyUsageOID.CODE_SIGNING in usage),
    ):
        try:
            if holds(signer.extensions.get_extension_for_class(kind).value):
                return True
        except x509.ExtensionNotFound:
            continue
    return False
