"""Faults of reading checkpoints: the loader of the format itself must give each of them away."""

import copy
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from exporter.errors import ExportError
from exporter.model.checkpoint_files import write_hugging_face
from exporter.model.packed_forward import NoLMHead
from exporter.model.reference import Reference, WeightsSource, load_reference
from exporter.parity.prove.loader_faults import (
    LoaderFault,
    fair_esm_faults,
    hugging_face_faults,
    prove_loader,
)
from exporter.parity.report.schema import EVERY_ENGINE, FaultVerdict
from exporter.parity.rules.verdict import OWN_LOADER
from tests.conftest import save_checkpoint

pytestmark = pytest.mark.slow

FAULTS = [*fair_esm_faults(), *hugging_face_faults()]
pytest.importorskip("transformers", reason="reads Hugging Face's folder")


@pytest.fixture(scope="module")
def deep(tmp_path_factory: pytest.TempPathFactory) -> Reference:
    """More layers and heads than what is planted in."""
    path = save_checkpoint(tmp_path_factory.mktemp("deep") / "deep.pt", (3, 96, 6))
    return load_reference(WeightsSource("checkpoint", str(path)))


def test_what_was_trained_on_top_is_left_out(deep: Reference, tmp_path: Path) -> None:
    model = copy.deepcopy(deep.model)
    model.head = torch.nn.Linear(96, 3)
    found = prove_loader(replace(deep, model=model), tmp_path)
    assert set(outcomes(found).values()) == {"rejected"}


def outcomes(found: list[FaultVerdict]) -> dict[str, str]:
    return {verdict.fault: verdict.outcome for verdict in found}


@pytest.mark.parametrize("has_lm_head", [True, False])
def test_every_fault_is_given_away(deep: Reference, tmp_path: Path, has_lm_head: bool) -> None:
    reference = deep
    if not has_lm_head:
        reference = load_reference(WeightsSource("checkpoint", str(without_lm_head(tmp_path))))
        assert isinstance(reference.model.lm_head, NoLMHead)
    found = prove_loader(reference, tmp_path)
    assert [verdict.fault for verdict in found] == [fault.name for fault in FAULTS]
    assert len(set(outcomes(found))) == len(FAULTS) == 10
    for verdict in found:
        assert verdict.outcome == "rejected", verdict
        assert verdict.rules == [OWN_LOADER]
        assert verdict.engine == EVERY_ENGINE
        asked = "fair-esm" if "fair-esm" in verdict.fault else "transformers"
        assert f"read by {asked} otherwise than here: " in verdict.by
        assert verdict.by.endswith(" differ")


def without_lm_head(folder: Path) -> Path:
    path = save_checkpoint(folder / "body.pt", (2, 48, 4))
    contents = torch.load(path, weights_only=False)
    state = {name: x for name, x in contents["model"].items() if "lm_head" not in name}
    torch.save({**contents, "model": state}, path)
    return path


def test_without_a_witness_all_are_accepted(
    deep: Reference, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("unlike_fair_esms", "unlike_transformers"):
        monkeypatch.setattr(f"exporter.model.reference.{name}", lambda *_: [])
    assert set(outcomes(prove_loader(deep, tmp_path)).values()) == {"accepted"}


def test_without_transformers_its_folder_is_not_run(
    deep: Reference, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    found = prove_loader(deep, tmp_path)
    for verdict in found:
        of_folder = "Hugging Face" in verdict.fault
        assert verdict.outcome == ("not run" if of_folder else "rejected")
        if of_folder:
            assert verdict.note.endswith("transformers is not installed")
            assert not verdict.rules


@pytest.mark.parametrize("fault", [FAULTS[0], FAULTS[-1]], ids=lambda fault: fault.name)
def test_a_file_that_is_refused_without_a_fault_proves_nothing(
    deep: Reference, tmp_path: Path, fault: LoaderFault
) -> None:
    with fault.plant(), pytest.raises(ExportError, match="without one it refuses .* otherwise"):
        prove_loader(deep, tmp_path)


def test_what_changes_nothing_does_not_apply(deep: Reference, tmp_path: Path) -> None:
    """fair-esm's initialisation leaves biases at zero."""
    path = save_checkpoint(tmp_path / "untrained.pt", (2, 48, 4))
    contents = torch.load(path, weights_only=False)
    contents["model"]["encoder.sentence_encoder.layers.0.fc1.bias"].zero_()
    torch.save(contents, path)
    found = prove_loader(load_reference(WeightsSource("checkpoint", str(path))), tmp_path)
    other = {name for name, outcome in outcomes(found).items() if outcome != "rejected"}
    assert other == {
        f"a bias left at zero, {of}" for of in ("fair-esm's file", "Hugging Face's folder")
    }
    assert {v.outcome for v in found if v.fault in other} == {"does not apply"}


def test_rounded_frequencies_of_half_precision_are_no_fault(
    deep: Reference, tmp_path: Path
) -> None:
    """Not every version of transformers reads them from the folder."""
    state = {name: tensor.bfloat16() for name, tensor in deep.model.state_dict().items()}
    folder = tmp_path / "half"
    folder.mkdir()
    write_hugging_face(folder, deep.architecture, state)
    assert not load_reference(WeightsSource("checkpoint", str(folder))).notes
