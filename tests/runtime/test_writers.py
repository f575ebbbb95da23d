import os
import zipfile
from pathlib import Path

import h5py
import numpy as np
import pytest
from pyarrow import parquet

from runtime import Embedding, InputError
from runtime.writers import write_embeddings
from tests.runtime.outputs import ENDINGS, assert_same, embeddings, read


@pytest.fixture(params=ENDINGS)
def output(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return tmp_path / f"x{request.param}"


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("runtime.writers.blocks.BLOCK_BYTES", 4096)


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("residues", [None, 5])
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_what_is_written_is_read(output: Path, residues: int | None, dtype: str) -> None:
    """Over many blocks, so that offsets go on from one to the next."""
    expected = list(embeddings(100, residues=residues, dtype=dtype))
    write_embeddings(output, iter(expected), {"engine": "onnx"})
    assert_same(read(output), expected)
    assert list(output.parent.iterdir()) == [output]


@pytest.mark.usefixtures("small_blocks")
def test_a_protein_larger_than_a_block(output: Path) -> None:
    expected = [Embedding(f"p{n}", n + 2, np.full((n, 8), n, "float32")) for n in (3, 5000, 4, 0)]
    write_embeddings(output, iter(expected), {})
    assert_same(read(output), expected)


def test_only_residues_of_nothing(output: Path) -> None:
    expected = [Embedding("none", 2, np.zeros((0, 8), "float32"))]
    write_embeddings(output, iter(expected), {})
    assert_same(read(output), expected)


def test_nothing_to_write(output: Path) -> None:
    with pytest.raises(InputError, match="there are no embeddings"):
        write_embeddings(output, iter(()), {})
    assert not list(output.parent.iterdir())


@pytest.mark.parametrize("name", ["α-actin é", "a,b\tc", "x" * 300, '"quoted\\"'])
def test_any_id(output: Path, name: str) -> None:
    write_embeddings(output, iter([Embedding(name, 3, np.ones(8, "float32"))]), {"a": "é"})
    assert read(output)[0].id == name


def test_through_a_symbolic_link(output: Path) -> None:
    folder = output.parent / "far"
    folder.mkdir()
    output.symlink_to(folder / output.name)
    write_embeddings(output, embeddings(2), {})
    assert output.is_symlink()
    assert len(read(folder / output.name)) == 2


class TestNpz:
    def test_is_one_that_numpy_wrote(self, tmp_path: Path) -> None:
        """Members, dtypes and the archive's own checksums."""
        path = tmp_path / "x.npz"
        write_embeddings(path, embeddings(30, residues=3), {"engine": "onnx", "layer": "6"})
        with np.load(path, allow_pickle=False) as file:
            found = {name: (file[name].dtype.str, file[name].shape) for name in file.files}
            assert str(file["engine"]) == "onnx"
            assert file["offsets"][0] == 0
        assert found == {
            "embeddings": ("<f4", (sum(n % 4 for n in range(30)), 8)),
            "ids": ("<U3", (30,)),
            "num_tokens": ("<i8", (30,)),
            "offsets": ("<i8", (31,)),
            "engine": ("<U4", ()),
            "layer": ("<U1", ()),
        }
        with zipfile.ZipFile(path) as archive:
            assert archive.testzip() is None

    def test_its_header_is_the_same_length_for_any_number_of_rows(self) -> None:
        from runtime.writers.npz import _npy_header

        dtype = np.dtype("<f4")
        assert len({len(_npy_header(dtype, (10**n, 1280))) for n in range(19)}) == 1

    def test_more_than_a_zip_file_without_extensions_holds(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """4 GiB, were the limit not lowered: sizes and places stand in the extended records."""
        monkeypatch.setattr("zipfile.ZIP64_LIMIT", 1000)
        path = tmp_path / "x.npz"
        expected = list(embeddings(30, residues=3))
        write_embeddings(path, iter(expected), {})
        monkeypatch.undo()
        with zipfile.ZipFile(path) as archive:
            assert archive.testzip() is None
            assert len(archive.getinfo("embeddings.npy").extra) > 0
        assert_same(read(path), expected)

    def test_one_long_id_among_many(self, tmp_path: Path) -> None:
        """Was 106 MB: every id took the place of the longest."""
        path = tmp_path / "x.npz"
        names = [f"p{i}" for i in range(4999)] + ["x" * 5000]
        vector = np.zeros(1, "float32")
        write_embeddings(path, (Embedding(name, 3, vector) for name in names), {})
        assert path.stat().st_size < 1e6
        assert [e.id for e in read(path)] == names


def test_hdf5_is_the_plain_drivers(tmp_path: Path) -> None:
    """Written through a file object; nothing of it shows."""
    path = tmp_path / "x.h5"
    write_embeddings(path, embeddings(30, residues=3), {"engine": "onnx"})
    with h5py.File(path) as file:
        assert dict(file.attrs) == {"engine": "onnx"}
        assert set(file) == {"ids", "num_tokens", "embeddings", "offsets"}
        assert file["ids"].dtype == h5py.string_dtype()
        assert file["embeddings"].chunks == (64, 8)
    assert path.stat().st_size < 100_000


def test_parquet_says_its_types_and_groups_rows_by_bytes(tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    write_embeddings(path, embeddings(3000, width=320), {"engine": "onnx"})
    file = parquet.ParquetFile(path)
    assert file.schema_arrow.metadata == {b"engine": b"onnx"}
    assert str(file.schema_arrow.field("embeddings").type).startswith("fixed_size_list<")
    assert file.num_row_groups == 1
    file.close()


def test_as_readable_as_any_new_file(output: Path) -> None:
    old = os.umask(0o022)
    try:
        write_embeddings(output, embeddings(2), {})
    finally:
        os.umask(old)
    assert output.stat().st_mode & 0o777 == 0o644
