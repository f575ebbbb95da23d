"""Artifacts that somebody changed and sealed anew, without a key: refused in one line, or right.

What engines' libraries do with files that were changed on purpose is not here: there is the
signature for it (``test_trust.py``). Thousands of others: ``make fuzz``.
"""

import json
import os
import random
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from runtime import golden
from runtime import manifest as manifests
from runtime.errors import ArtifactError, EngineError, Esm2Error, UnsupportedError
from runtime.golden import packs_of, read_golden
from runtime.loading import load
from runtime.model import load_model
from tests.fuzz.mutations import (
    ARRAYS,
    DELETED,
    VALUES,
    changed,
    paths,
    reseal,
    rewrite,
    seal,
)

# In the tests a sample; all of them took 400 s.
COPIES = 150


@pytest.fixture
def fields(ready_artifact: Path) -> dict[str, Any]:
    """Of the newest schema."""
    manifests.write(manifests.read(ready_artifact), ready_artifact)
    return json.loads((ready_artifact / "manifest.json").read_text())  # type: ignore[no-any-return]


def refuse_or_pass(folder: Path, **options: Any) -> str | None:
    """What is said; None of an artifact that loads. Any other exception is a test's failure."""
    try:
        manifest = manifests.read(folder, **options)
        read_golden(folder, manifest)
        for name in manifest.engines:
            load(folder, name, check_files=False).close()
    except Esm2Error as error:
        assert "\n" not in str(error)
        return str(error)
    return None


def test_manifests_with_fields_of_any_kind(ready_artifact: Path, fields: dict[str, Any]) -> None:
    everything = [(path, value) for path in paths(fields) for value in VALUES]
    refused = 0
    for path, value in random.Random(0).sample(everything, COPIES):
        seal(changed(fields, path, value), ready_artifact)
        refused += refuse_or_pass(ready_artifact) is not None
    assert refused > COPIES / 2


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        (("dtype",), "x", "dtype is 'x'"),
        (("signature", "outputs"), [], "no output representations.1"),
        (("signature", "outputs", 0), DELETED, "limit for 'logits', which is no output"),
        (("signature", "outputs", 1), DELETED, "no output representations.1"),
        (("golden", "limits", "logits"), 0, "limit of 0.* for logits"),
        (("golden", "limits", "embedding"), -1, "limit of -1.* for embedding"),
        (("layers",), [], "no layer is exported"),
        (("pool",), "x", "pool is 'x'"),
        (("golden", "limits", "pooled"), DELETED, "golden.limits has none for pooled"),
        (("golden", "limits", "logits"), DELETED, "holds logits, which have no limit"),
        (("signature", "outputs", 0, "shape"), [], "has 0 dimensions, expected 2"),
        (("architecture", "embed_dim"), 96, "not rows of embed_dim"),
        (
            ("head",),
            {"kind": "x", "rows": "proteins", "problem_type": "regression", "id2label": {"a": "x"}},
            "head.id2label does not name columns",
        ),
    ],
    ids=str,
)
def test_what_contradicts_itself(
    ready_artifact: Path, fields: dict[str, Any], path: tuple[Any, ...], value: Any, said: str
) -> None:
    seal(changed(fields, path, value), ready_artifact)
    with pytest.raises(ArtifactError, match=said):
        load(ready_artifact, "onnx", validate=True)


def _without(fields: dict[str, Any], output: str) -> dict[str, Any]:
    kept = [each for each in fields["signature"]["outputs"] if each["name"] != output]
    limits = {name: limit for name, limit in fields["golden"]["limits"].items() if name != output}
    golden = {**fields["golden"], "limits": limits}
    return {**fields, "signature": {**fields["signature"], "outputs": kept}, "golden": golden}


def test_an_output_that_the_manifest_does_not_name(
    ready_artifact: Path, fields: dict[str, Any]
) -> None:
    seal(_without(fields, "logits"), ready_artifact)
    with load_model(ready_artifact, engine="onnx") as model:
        with pytest.raises(UnsupportedError, match="gives no logits"):
            model.logits(["MKT"])
        with pytest.raises(UnsupportedError, match="gives no logits"):
            model.perplexity(["MKT"])
    with load_model(ready_artifact, engine="torchscript") as model:
        with pytest.raises(EngineError, match="gives 4 outputs, the manifest names 3") as error:
            model.embed(["MKT"])
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("damage", [lambda data: b"x" * 99, lambda data: data[:-9], lambda _: b""])
def test_a_package_that_is_none(ready_artifact: Path, damage: Callable[[bytes], bytes]) -> None:
    path = ready_artifact / "model.ts"
    rewrite(path, damage(path.read_bytes()))
    with pytest.raises(EngineError, match="model.ts: it is no archive"):
        load(ready_artifact, "torchscript", check_files=False)


def test_a_package_that_would_fill_the_memory(ready_artifact: Path) -> None:
    """Its checksums are right: who changes it on purpose writes them anew."""
    path = ready_artifact / "model.ts"
    rewrite(path, b"")
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("model/data/0", bytes(1 << 20))
    reseal(ready_artifact, "model.ts")
    with pytest.raises(EngineError, match="its members have 1,048,576 bytes, of a file of"):
        load(ready_artifact, "torchscript")


def _sparse(path: Path) -> None:
    rewrite(path, b"{")
    os.truncate(path, 12 << 30)


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (_sparse, "more than 16,777,216 bytes"),
        (lambda path: (path.unlink(), os.mkfifo(path)), "is not a file"),
        (lambda path: (path.unlink(), path.mkdir()), "is not a file"),
        (lambda path: (path.unlink(), path.symlink_to(path.name)), "Too many levels"),
        (lambda path: rewrite(path, b"[" * 1_000_000), "is not JSON"),
        (lambda path: rewrite(path, b"\xff" * 99), "is not JSON"),
        (lambda path: rewrite(path, b""), "is not JSON"),
        (lambda path: rewrite(path, b'{"schema_version": 1e400}'), "is not JSON|no schema_version"),
        (lambda path: rewrite(path, b'{"schema_version": true}'), "no schema_version"),
        (lambda path: rewrite(path, b'{"schema_version": 9}'), "was changed|does not follow"),
    ],
)
def test_manifests_that_are_none(
    ready_artifact: Path, damage: Callable[[Path], object], said: str
) -> None:
    damage(ready_artifact / "manifest.json")
    with pytest.raises(ArtifactError, match=said) as error:
        load(ready_artifact)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("how", ARRAYS)
def test_golden_arrays_of_any_kind(ready_artifact: Path, how: str) -> None:
    """What is read can be made packs of, and each answer has its rows."""
    manifest = manifests.read(ready_artifact)
    path = ready_artifact / manifest.golden.file
    with np.load(path) as file:
        arrays = dict(file)
    refused = 0
    for name, array in arrays.items():
        value = ARRAYS[how](array)
        path.unlink()
        np.savez(path, **{n: a for n, a in {**arrays, name: value}.items() if a is not None})
        try:
            for pack in packs_of(read_golden(ready_artifact, manifest)):
                assert {a.ndim for a in pack.answers.values()} == {2}
        except ArtifactError as error:
            assert "\n" not in str(error)
            refused += 1
    assert refused >= len(arrays) / 2 or how in ("flat", "not numbers", "texts")


def test_golden_arrays_of_declared_terabytes(
    ready_artifact: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = manifests.read(ready_artifact)
    monkeypatch.setattr(golden, "MAX_BYTES", 1000)
    with pytest.raises(ArtifactError, match="of at most 1,000"):
        read_golden(ready_artifact, manifest)


@pytest.mark.parametrize("name", ["weights.safetensors", "manifest.json"])
def test_files_that_cannot_be_read(
    ready_artifact: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Root may read all that has a mode, so that the disk is at fault."""

    def fails(self: Path, *args: Any, **options: Any) -> Any:
        if self.name == name:
            raise OSError(5, "Input/output error")
        return opened(self, *args, **options)

    opened = Path.open
    monkeypatch.setattr(Path, "open", fails)
    with pytest.raises(ArtifactError, match=f"{name}.*Input/output error"):
        load(ready_artifact, "onnx")


def test_unsealed_damage_of_every_file(ready_artifact: Path, fields: dict[str, Any]) -> None:
    """Flipped, cut, longer, gone, empty: refused by the file's name, before an engine is loaded."""
    rng = random.Random(1)
    for name in [*fields["files"], "manifest.json"]:
        path = ready_artifact / name
        data = path.read_bytes()
        place = rng.randrange(len(data))
        flipped = bytearray(data)
        flipped[place] ^= 1 << rng.randrange(8)
        for damaged in (bytes(flipped), data[:place], data + b"\0", b"", None):
            path.unlink(missing_ok=True)
            if damaged is not None:
                path.write_bytes(damaged)
            said = refuse_or_pass(ready_artifact)
            assert said is not None and name in said
        rewrite(path, data)
    assert refuse_or_pass(ready_artifact) is None
