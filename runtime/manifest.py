"""``manifest.json``: read, sealed with its own digest, and proof that its files are whole."""

import hashlib
import re
from pathlib import Path
from typing import Any

import msgspec

from runtime.coherence import contradictions, problems_with_names
from runtime.errors import ArtifactError
from runtime.files import problem_with_files
from runtime.manifest_schema import UNSEALED, Manifest
from runtime.manifest_upgrades import SCHEMA_VERSION, UPGRADES, upgraded
from runtime.trust.whom import Trust, trusted

FILE_NAME = "manifest.json"
# That of 15B in blocks of 64 MiB, with every engine, has less than 1 MB.
MAX_BYTES = 16 << 20

_SEAL = re.compile(rb'("manifest_sha256": ")([0-9a-f]{64})(")')


def write(manifest: Manifest, folder: Path) -> None:
    """Writes ``manifest.json`` into ``folder``, sealed with a digest of its own bytes."""
    text = msgspec.json.format(msgspec.json.encode(manifest, order="deterministic"), indent=2)
    text = _SEAL.sub(rb"\g<1>" + UNSEALED + rb"\g<3>", text + b"\n")
    seal = hashlib.sha256(text).hexdigest().encode()
    (folder / FILE_NAME).write_bytes(_SEAL.sub(rb"\g<1>" + seal + rb"\g<3>", text))


def read(folder: Path, check_files: bool = True, trust: Trust | None = None) -> Manifest:
    """Reads an artifact's manifest. Whatever loads an artifact begins here.

    Manifests of older schemas are upgraded as they are read. Every name in it must be of a file in
    the folder that it lists; nothing else of the artifact is opened before that is known. Where
    somebody is trusted, the manifest is not parsed before it is known to be what they signed, and
    every file is compared.

    Args:
        folder: the artifact.
        check_files: compare the size and SHA-256 of every file.
        trust: a public key or certificates in PEM, or a file with them; None takes
            ``ESM2_TRUSTED_KEY``, and without that trusts everybody.

    Raises:
        ArtifactError: missing, damaged, unreadable, or of a newer schema; names the file. Or not
            signed by whom is trusted.
        InputError: what is trusted is no key.
        UnsupportedError: somebody is trusted, and ``cryptography`` is not installed.
    """
    path = folder / FILE_NAME
    signature = None
    if who := trusted(trust):
        from runtime.trust.signature import read_signature

        signature = read_signature(folder, who)
    try:
        if path.exists() and not path.is_file():  # a pipe would be waited for
            raise ArtifactError(f"{path} is refused: it is not a file")
        with path.open("rb") as file:
            text = file.read(MAX_BYTES + 1)
    except (FileNotFoundError, NotADirectoryError):
        what = "is not a folder" if not folder.is_dir() else f"holds no {FILE_NAME}"
        raise ArtifactError(
            f"{folder} is not an artifact: it {what}. Build one with 'esm2-export build'"
        ) from None
    except OSError as error:
        raise ArtifactError(f"cannot read {path}: {error.strerror}") from None
    if len(text) > MAX_BYTES:
        raise ArtifactError(f"{path} is refused: it has more than {MAX_BYTES:,} bytes")
    if signature:
        signature.check_bytes(FILE_NAME, text)
    fields = _decoded(text, path)
    seal = _SEAL.search(text)
    unsealed = _SEAL.sub(rb"\g<1>" + UNSEALED + rb"\g<3>", text)
    if seal is None or hashlib.sha256(unsealed).hexdigest().encode() != seal.group(2):
        raise ArtifactError(f"{path} was changed after it was built. Export again or copy it anew")
    try:
        manifest = msgspec.convert(upgraded(fields), Manifest)
    except (msgspec.ValidationError, KeyError, TypeError) as error:
        raise ArtifactError(f"{path} does not follow the schema: {error}") from None
    if problems := [*contradictions(manifest), *problems_with_names(manifest, folder)]:
        raise ArtifactError(
            f"{path} is refused: {'; '.join(problems)}. Export again or copy it anew"
        )
    if signature:
        signature.check_files(manifest.files, FILE_NAME)
    elif check_files:
        check(manifest, folder)
    return manifest


def check(manifest: Manifest, folder: Path, names: list[str] | None = None) -> None:
    """Compares files with what was built.

    Args:
        manifest: of the artifact.
        folder: the artifact.
        names: keys of ``manifest.files``; None takes all of them.

    Raises:
        ArtifactError: files are missing, changed or unreadable; names each.
    """
    files = {name: manifest.files[name] for name in (manifest.files if names is None else names)}
    if problems := problem_with_files(folder, files):
        raise ArtifactError(
            f"artifact {folder} is damaged: {'; '.join(problems)}. Export again or copy it anew"
        )


def _decoded(text: bytes, path: Path) -> dict[str, Any]:
    """The fields of a manifest whose schema this runtime reads."""
    advice = "Export again or copy it anew"
    try:
        fields: Any = msgspec.json.decode(text)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ArtifactError(f"{path} is damaged, it is not JSON ({error}). {advice}") from None
    version = fields.get("schema_version") if isinstance(fields, dict) else None
    if type(version) is not int:  # True is one, to isinstance
        raise ArtifactError(f"{path} is damaged: no schema_version. {advice}")
    oldest = min(UPGRADES)
    if not oldest <= version <= SCHEMA_VERSION:
        raise ArtifactError(
            f"{path} has schema version {version}, this runtime reads {oldest} to "
            f"{SCHEMA_VERSION}. "
            f"{'Upgrade esm2-engines' if version > SCHEMA_VERSION else 'Export again'}"
        )
    return dict(fields)
