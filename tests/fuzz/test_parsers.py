"""Whatever bytes a parser is given, it reads them or refuses them in one line.

Bodies of HTTP requests: ``tests/server/test_faults.py``. Many more examples: ``make fuzz``.
"""

import bz2
import gzip
import json
import lzma
import random
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from backports import zstd
from hypothesis import given, settings
from hypothesis import strategies as st

from exporter.errors import ExportError
from exporter.model.sources.tensor_files import read_folder_tensors
from runtime import manifest as manifests
from runtime.errors import ArtifactError, Esm2Error, InputError
from runtime.golden import packs_of, read_golden
from runtime.readers.fasta import read_fasta
from runtime.trust.bundle import read_bundle, signed_files
from runtime.weights import read_places
from tests.conftest import STORED_SCHEMAS, stored_artifact
from tests.fuzz.mutations import BYTES, Random, changed, paths, rewrite, seal

EXAMPLES = 60
numbers = st.integers() | st.integers(min_value=-9, max_value=9) | st.floats()
anything = st.recursive(
    st.none() | st.booleans() | numbers | st.text(max_size=9),
    lambda inside: (
        st.lists(inside, max_size=4) | st.dictionaries(st.text(max_size=9), inside, max_size=4)
    ),
    max_leaves=9,
)
seeds = st.integers(0, 2**32)


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return stored_artifact(max(STORED_SCHEMAS), tmp_path_factory.mktemp("parsers"))


def few(test: Callable[..., None]) -> Callable[..., None]:
    """So many examples in the tests as take a second, unless a profile wants more."""
    wanted = settings.default.max_examples if settings.default else 0
    return settings(max_examples=max(EXAMPLES, wanted if wanted > 100 else 0), deadline=None)(test)


def refused_in_one_line(read: Callable[[], object], error: type[Exception]) -> None:
    """Any other exception is a test's failure."""
    try:
        read()
    except error as refusal:
        assert str(refusal) and "\n" not in str(refusal)


def damaged(data: bytes, seed: int) -> bytes:
    """As one of ``BYTES`` leaves it."""
    rng = Random(seed)
    return BYTES[rng.choice(list(BYTES))](data, rng)


@few
@given(seed=seeds, value=anything)
def test_manifests(artifact: Path, seed: int, value: Any) -> None:
    path = artifact / "manifest.json"
    whole = path.read_bytes()
    rng = random.Random(seed)
    try:
        fields = json.loads(whole)
        seal(changed(fields, rng.choice(paths(fields)), value), artifact)
        refused_in_one_line(lambda: manifests.read(artifact, check_files=False), ArtifactError)
        rewrite(path, damaged(whole, seed))
        refused_in_one_line(lambda: manifests.read(artifact, check_files=False), ArtifactError)
    finally:
        rewrite(path, whole)


@few
@given(seed=seeds)
def test_golden_answers(artifact: Path, seed: int) -> None:
    manifest = manifests.read(artifact, check_files=False)
    path = artifact / manifest.golden.file
    whole = path.read_bytes()
    try:
        rewrite(path, damaged(whole, seed))
        refused_in_one_line(lambda: list(packs_of(read_golden(artifact, manifest))), ArtifactError)
    finally:
        rewrite(path, whole)


@few
@given(
    header=st.binary(max_size=60)
    | anything.map(lambda value: json.dumps(value).encode())
    | st.dictionaries(
        st.text(max_size=5),
        st.fixed_dictionaries(
            {
                "dtype": anything | st.just("F32"),
                "shape": anything | st.lists(numbers, max_size=3),
                "data_offsets": anything | st.tuples(numbers, numbers),
            }
        ),
        max_size=3,
    ).map(lambda value: json.dumps(value).encode()),
    length=st.none() | st.integers(0, 2**64 - 1),
    rest=st.binary(max_size=40),
)
def test_headers_of_safetensors(
    tmp_path_factory: pytest.TempPathFactory, header: bytes, length: int | None, rest: bytes
) -> None:
    path = tmp_path_factory.getbasetemp() / "header.safetensors"
    path.write_bytes(struct.pack("<Q", len(header) if length is None else length) + header + rest)

    def read() -> None:
        for place in read_places(path).values():
            assert 8 <= place.offset <= place.offset + place.length <= path.stat().st_size

    refused_in_one_line(read, ArtifactError)


@few
@given(index=st.fixed_dictionaries({"weight_map": anything}) | anything)
def test_indices_of_safetensors(tmp_path_factory: pytest.TempPathFactory, index: Any) -> None:
    name = "model.safetensors.index.json"
    folder = tmp_path_factory.getbasetemp()
    (folder / name).write_text(json.dumps(index))
    refused_in_one_line(lambda: read_folder_tensors(folder, name), ExportError)


@few
@given(
    data=st.binary() | st.text(">ACDX*-\n\r\t <mask>;#|\0é").map(str.encode),
    pack=st.sampled_from([bytes, gzip.compress, bz2.compress, lzma.compress, zstd.compress]),
    seed=st.none() | seeds,
)
def test_fasta(
    tmp_path_factory: pytest.TempPathFactory, data: bytes, pack: Callable[[bytes], bytes],
    seed: int | None,
) -> None:  # fmt: skip
    path = tmp_path_factory.getbasetemp() / "x.fasta"
    packed = pack(data)
    path.write_bytes(packed if seed is None else damaged(packed, seed))
    refused_in_one_line(lambda: list(read_fasta(path)), InputError)


@few
@given(payload=anything, text=st.binary() | anything.map(lambda value: json.dumps(value).encode()))
def test_signatures(tmp_path_factory: pytest.TempPathFactory, payload: Any, text: bytes) -> None:
    folder = tmp_path_factory.getbasetemp()
    (folder / "model.sig").write_bytes(text)
    refused_in_one_line(lambda: read_bundle(folder), Esm2Error)
    said = json.dumps(payload).encode()
    refused_in_one_line(lambda: signed_files(said, folder / "model.sig"), Esm2Error)
