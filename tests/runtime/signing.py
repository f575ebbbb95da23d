"""Keys, certificates and damage for tests of signatures."""

import datetime
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from runtime import manifest as manifests
from runtime.files import file_entry

_FIRST = datetime.datetime(2020, 1, 1)


@dataclass(frozen=True)
class Pair:
    """Files of a private key and what to trust."""

    private: Path
    public: Path
    key: ec.EllipticCurvePrivateKey


def new_pair(folder: Path, name: str, curve: ec.EllipticCurve | None = None) -> Pair:
    key = ec.generate_private_key(curve or ec.SECP256R1())
    private, public = folder / f"{name}.pem", folder / f"{name}.pub"
    private.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )  # fmt: skip
    public.write_bytes(
        key.public_key().public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )
    )
    return Pair(private, public, key)


def certificate(
    folder: Path, name: str, subject: Pair, issuer: Pair, is_ca: bool = False,
    signs: bool = True, days: int = 30,
) -> Path:  # fmt: skip
    """Of ``subject``'s key, by ``issuer``'s; expired for years, as signers' are some day."""
    usage = dict.fromkeys(
        ("content_commitment", "key_encipherment", "data_encipherment", "key_agreement",
         "crl_sign", "encipher_only", "decipher_only"),
        False,
    )  # fmt: skip
    names = [
        x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, pair.public.stem)])
        for pair in (subject, issuer)
    ]
    made = (
        x509.CertificateBuilder()
        .subject_name(names[0])
        .issuer_name(names[1])
        .public_key(subject.key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(_FIRST)
        .not_valid_after(_FIRST + datetime.timedelta(days))
        .add_extension(x509.BasicConstraints(is_ca, None), critical=True)
        .add_extension(
            x509.KeyUsage(digital_signature=signs, key_cert_sign=is_ca, **usage), critical=True
        )
        .add_extension(
            x509.SubjectKeyIdentifier.from_public_key(subject.key.public_key()), critical=False
        )
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer.key.public_key()),
            critical=False,
        )
        .sign(issuer.key, hashes.SHA256())
    )
    path = folder / f"{name}.crt"
    path.write_bytes(made.public_bytes(serialization.Encoding.PEM))
    return path


def _flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    rewrite(path, bytes(data))


def rewrite(path: Path, data: bytes) -> None:
    """Whatever its mode; as new files are."""
    path.unlink(missing_ok=True)
    path.write_bytes(data)


def reseal(folder: Path) -> None:
    """As who rewrites an artifact on purpose does: every digest is right again."""
    import msgspec

    manifest = manifests.read(folder, check_files=False)
    files = {name: file_entry(folder / name) for name in manifest.files}
    (folder / manifests.FILE_NAME).unlink()
    manifests.write(msgspec.structs.replace(manifest, files=files), folder)


def _changed_and_resealed(folder: Path) -> None:
    _flip(folder / "weights.safetensors")
    reseal(folder)


def _moved_out(folder: Path) -> None:
    outside = folder.parent / "outside"
    (folder / "model.ts").rename(outside)
    (folder / "model.ts").symlink_to(outside)


def _linked_inside(folder: Path) -> None:
    (folder / "model.ts").rename(folder / "golden.copy")
    (folder / "model.ts").symlink_to("golden.copy")


def _huge_bundle(folder: Path) -> None:
    rewrite(folder / "model.sig", b"")
    os.truncate(folder / "model.sig", 12 << 30)


def _linked_bundle(folder: Path) -> None:
    (folder / "model.sig").rename(folder.parent / "elsewhere.sig")
    (folder / "model.sig").symlink_to("../elsewhere.sig")


# What is done to a signed artifact, and what is then said.
DAMAGE_OF_FILES: dict[str, tuple[Callable[[Path], object], str]] = {
    "changed": (lambda a: _flip(a / "weights.safetensors"), "weights.safetensors was changed"),
    "changed and resealed": (
        _changed_and_resealed,
        "manifest.json was changed",
    ),
    "cut": (lambda a: rewrite(a / "model.ts", b"short"), "model.ts has 5 bytes"),
    "added": (lambda a: (a / "lib.so").write_bytes(b"x"), "lib.so was added"),
    "added, empty": (lambda a: (a / "lib.so").write_bytes(b""), "lib.so was added"),
    "added in a folder": (
        lambda a: ((a / "lib").mkdir(), (a / "lib" / "x.so").write_bytes(b"x")),
        "lib/x.so was added",
    ),
    "removed": (lambda a: (a / "model.ts").unlink(), "model.ts is missing"),
    "golden removed": (lambda a: (a / "golden.npz").unlink(), "golden.npz is missing"),
    "a link out": (_moved_out, "model.ts is a link"),
    "a link inside": (_linked_inside, "model.ts is a link"),
    "a pipe": (lambda a: os.mkfifo(a / "pipe"), "pipe is not a file"),
}
DAMAGE_OF_BUNDLES: dict[str, tuple[Callable[[Path], object], str]] = {
    "none": (lambda a: (a / "model.sig").unlink(), "is not signed"),
    "empty": (lambda a: rewrite(a / "model.sig", b""), "no bundle of signatures"),
    "garbage": (lambda a: rewrite(a / "model.sig", bytes(range(256))), "no bundle of signatures"),
    "truncated": (
        lambda a: rewrite(a / "model.sig", (a / "model.sig").read_bytes()[:-9]),
        "no bundle of signatures",
    ),
    "nested": (lambda a: rewrite(a / "model.sig", b"[" * 100_000), "no bundle of signatures"),
    "of 12 GB": (_huge_bundle, "of at most"),
    "a link": (_linked_bundle, "is not a file"),
    "a folder": (
        lambda a: ((a / "model.sig").unlink(), (a / "model.sig").mkdir()), "is not a file",
    ),
}  # fmt: skip
