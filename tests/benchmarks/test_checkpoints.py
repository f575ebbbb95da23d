from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.checkpoints import checkpoints_of
from exporter.model.reference import Reference, WeightsSource, load_reference
from exporter.model.sources.hugging_face import read_folder
from exporter.model.sources.names import rename_to_hugging_face
from exporter.parity.truth.oracle import run_eager
from exporter.parity.truth.packs import protein


@pytest.fixture(scope="module")
def tiny(tiny_checkpoint: Path) -> Reference:
    return load_reference(WeightsSource("checkpoint", str(tiny_checkpoint)))


@pytest.fixture(scope="module")
def folder(tiny: Reference, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return checkpoints_of(tiny, tmp_path_factory.mktemp("checkpoints"))


def test_hugging_face_folder_is_read_back_bit_by_bit(tiny: Reference, folder: Path) -> None:
    read = read_folder(folder)
    state = read.state
    expected = tiny.model.state_dict()
    assert read.shape == (2, 48, 4)
    assert read.token_dropout
    assert state.keys() == expected.keys()
    assert len(state) > 30
    for name, tensor in expected.items():
        assert state[name].dtype == tensor.dtype
        assert torch.equal(state[name], tensor), name


def test_fair_esm_file_is_read_back_bit_by_bit(tiny: Reference, folder: Path) -> None:
    again = load_reference(WeightsSource("checkpoint", str(folder / "esm2.pt")))
    assert again.origin.state_sha256 == tiny.origin.state_sha256


def test_written_once(tiny: Reference, folder: Path) -> None:
    before = (folder / "model.safetensors").stat().st_mtime_ns
    assert checkpoints_of(tiny, folder.parent) == folder
    assert (folder / "model.safetensors").stat().st_mtime_ns == before
    assert not list(folder.parent.glob(".*"))


def test_a_name_that_the_table_lacks_is_no_name_of_hugging_face() -> None:
    with pytest.raises(KeyError, match="layers.0.fc3"):
        rename_to_hugging_face({"layers.0.fc3.weight": 0})


@pytest.mark.parametrize("peer", ["huggingface_sdpa", "fair_esm"])
def test_peers_of_this_environment_agree_with_the_oracle(
    peer: str, tiny: Reference, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the worker runs them: one padded batch, proteins of several lengths, masks."""
    monkeypatch.syspath_prepend(Path("benchmarks/peers").resolve())
    from benchmarks.peers.serve import PaddedPeer

    threads = torch.get_num_threads()
    try:
        contender = PaddedPeer(peer, folder, threads, 1)
    finally:
        torch.set_num_threads(threads)
    random = np.random.default_rng(1)
    pack = [protein(random, 40), protein(random, 3), protein(random, 25, masked=0.3)]
    answers = run_eager(tiny, {"x": pack}, (2,), "mean", torch.float64)["x"]
    proteins = np.split(answers.input_ids, answers.cu_seqlens[1:-1])
    rows = contender.rows(contender.prepare(proteins)(), proteins)
    expected = answers.tensors["representations.2"]
    assert rows.shape == expected.shape
    assert np.linalg.norm(rows - expected) <= 2e-6 * np.linalg.norm(expected)
