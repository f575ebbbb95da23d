"""The gate on another device than the CPU, as far as a machine without a GPU can show it."""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner

import exporter.parity.gate
import exporter.parity.verify
from exporter.cli import main
from exporter.errors import ExportError
from exporter.model.reference import Reference, WeightsSource, load_reference
from exporter.parity.answers import Answers
from exporter.parity.gate import Gate
from exporter.parity.truth.cross_check import LIMIT, check_against_cpu, checked_pack
from exporter.parity.truth.device import arithmetic_of, reference_device
from exporter.parity.truth.oracle import run_eager
from exporter.parity.truth.packs import Protein
from exporter.parity.verify import verify
from runtime import manifest as manifests
from runtime.manifest_schema import EMBEDDING

WITHOUT_GPU = pytest.mark.skipif(torch.cuda.is_available(), reason="says what happens without one")
WITH_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")


@pytest.fixture(scope="module")
def tiny(tiny_checkpoint: Path) -> Reference:
    return load_reference(WeightsSource("checkpoint", str(tiny_checkpoint)))


def planted(answers: Answers, tensor: str, change: float) -> Answers:
    """``answers`` with one number of ``tensor`` changed by a share of the tensor's norm."""
    values = answers.tensors[tensor].copy()
    values[0, 0] += change * np.linalg.norm(values)
    return replace(answers, tensors={**answers.tensors, tensor: values})


@pytest.mark.parametrize(
    ("tensor", "change", "is_wrong"),
    [
        ("logits", 0.0, False),
        ("logits", 0.5 * LIMIT, False),
        ("logits", 2 * LIMIT, True),
        ("representations.1", 2 * LIMIT, True),
        (EMBEDDING, 2 * LIMIT, True),
        (EMBEDDING, np.nan, True),
    ],
)
def test_the_oracle_of_a_device_is_checked(
    tiny: Reference, tensor: str, change: float, is_wrong: bool
) -> None:
    pack = {"checked": checked_pack()}
    right = run_eager(tiny, pack, (1, 2), "mean", torch.float64)["checked"]
    answers = {"cpu": right, "cuda": planted(right, tensor, change)}
    if is_wrong:
        with pytest.raises(ExportError, match=f"relative L2 of {tensor} is .*at most 1e-12"):
            check_against_cpu(answers.__getitem__, "cuda")
    else:
        assert check_against_cpu(answers.__getitem__, "cuda") <= LIMIT


def test_a_gate_on_a_wrong_card_refuses(
    tiny: Reference, tiny_artifact: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever asks for the GPU gets the CPU with one wrong number, and is found out."""
    devices = []

    def wrong_on_cuda(*arguments: Any, device: str = "cpu", **options: Any) -> dict[str, Answers]:
        devices.append(device)
        found = run_eager(*arguments, **options)
        change = 1e-9 if device == "cuda" else 0.0
        return {name: planted(answers, "logits", change) for name, answers in found.items()}

    monkeypatch.setattr(exporter.parity.gate, "reference_device", lambda device: device)
    monkeypatch.setattr(exporter.parity.gate, "run_eager", wrong_on_cuda)
    manifest = manifests.read(tiny_artifact)
    with pytest.raises(ExportError, match="float64 on cuda is not the CPU's"):
        Gate.prepare(tiny, manifest, {"one": [Protein("MKT")]}, device="cuda")
    assert devices == ["cpu", "cuda"]


def test_auto_leaves_the_reference_on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert [reference_device(name) for name in ("auto", "cpu", "cuda")] == ["cpu", "cpu", "cuda"]


def test_an_unknown_device_is_named() -> None:
    with pytest.raises(ExportError, match="one of auto, cpu, cuda, got 'tpu'"):
        reference_device("tpu")


def test_no_reference_in_tf32() -> None:
    settings = torch.backends.cuda.matmul
    assert not settings.allow_tf32, "PyTorch's default has changed"
    settings.allow_tf32 = True
    try:
        with pytest.raises(ExportError, match="TORCH_ALLOW_TF32_CUBLAS_OVERRIDE"):
            arithmetic_of("cuda")
    finally:
        settings.allow_tf32 = False
    assert arithmetic_of("cpu") == torch.backends.cpu.get_cpu_capability()


def test_the_report_says_where_the_reference_ran(tiny: Reference, tiny_artifact: Path) -> None:
    manifest = manifests.read(tiny_artifact)
    report = verify(tiny_artifact, manifest, tiny, engines=["torchscript"], device="cpu")
    assert report.passed
    assert report.engines[0].device == "cpu"
    assert report.reference["device"] == torch.backends.cpu.get_cpu_capability()


def test_packs_that_a_card_takes_by_default_are_proven(
    tiny: Reference, tiny_artifact: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exporter.parity.verify, "largest_max_tokens", lambda device: 17_000)
    manifest = manifests.read(tiny_artifact)
    report = verify(tiny_artifact, manifest, tiny, engines=["torchscript"])
    assert report.passed
    assert report.engines[0].summary(report.packs).domain.tokens == 17_000


@WITHOUT_GPU
@pytest.mark.parametrize("command", ["build", "verify"])
def test_cuda_without_a_gpu_is_one_line(
    command: str, tiny_checkpoint: Path, tiny_artifact: Path, tmp_path: Path
) -> None:
    arguments = {
        "build": ["--checkpoint", str(tiny_checkpoint), "--out", str(tmp_path / "never")],
        "verify": [str(tiny_artifact)],
    }[command]
    result = CliRunner().invoke(main, [command, *arguments, "--device", "cuda"])
    assert result.exit_code == 2
    lines = [line for line in result.output.splitlines() if line]
    assert len(lines) == 1
    assert re.search("cannot run eager fair-esm on cuda: PyTorch .* sees no GPU", lines[0])
    assert not (tmp_path / "never").exists()


@pytest.mark.gpu
@WITH_GPU
def test_engines_and_reference_on_a_card(tiny: Reference, tiny_artifact: Path) -> None:
    manifest = manifests.read(tiny_artifact)
    report = verify(tiny_artifact, manifest, tiny, engines=["torchscript"], device="cuda")
    assert report.passed
    assert report.engines[0].device == "cuda"
    assert next(tiny.model.parameters()).device.type == "cpu"
