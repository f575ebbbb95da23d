"""Files of linear probes: what they mean, and what is wrong with them."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from exporter.errors import CheckpointError
from exporter.model.heads.head import Head
from exporter.model.sources.probe import RESIDUES, ProbeSource, read_probe
from runtime.predict.scores import scores_of

WIDTH = 8
WEIGHT = np.linspace(-1, 1, 3 * WIDTH).reshape(3, WIDTH)


def npz(folder: Path, **arrays: Any) -> Path:
    path = folder / "probe.npz"
    np.savez(path, **arrays)
    return path


def read(path: Path, on: str = "mean") -> Head:
    return read_probe(ProbeSource(str(path), on), WIDTH)


def refused(path: Path) -> str:
    with pytest.raises(CheckpointError) as error:
        read(path)
    assert "\n" not in str(error.value)
    return str(error.value)


def said(head: Head, x: torch.Tensor) -> np.ndarray[Any, Any]:
    return head(x, torch.arange(len(x) + 1)).double().numpy()


def test_scikit_learns_classifier(tmp_path: Path) -> None:
    classes = np.array(["a", "b", "c"])
    head = read(npz(tmp_path, coef_=WEIGHT, intercept_=np.arange(3.0), classes_=classes))
    assert head.entry.labels == ("a", "b", "c")
    assert head.entry.problem_type == "single_label_classification"
    assert (head.entry.rows, head.entry.pool) == ("proteins", "mean")


def test_of_two_classes_it_is_the_logistic_function(tmp_path: Path) -> None:
    weight, bias = WEIGHT[:1], np.array([0.3])
    path = npz(tmp_path, coef_=weight, intercept_=bias, classes_=np.array([0, 1]))
    head = read(path, RESIDUES)
    assert head.entry.labels == ("0", "1")
    x = torch.randn(5, WIDTH)
    expected = 1 / (1 + np.exp(-(x.double().numpy() @ weight.T + bias)))
    scores = scores_of(said(head, x), head.entry.problem_type)
    np.testing.assert_allclose(scores[:, 1:], expected, atol=1e-6)


def test_a_ridge_regression(tmp_path: Path) -> None:
    head = read(npz(tmp_path, coef_=WEIGHT[0], intercept_=np.float64(2.0)))
    assert head.entry.problem_type == "regression"
    assert head.num_labels == 1


def test_safetensors(tmp_path: Path) -> None:
    path = tmp_path / "probe.safetensors"
    metadata = {
        "classes": json.dumps(["x", "y", "z"]),
        "problem_type": "multi_label_classification",
    }
    save_file({"weight": torch.from_numpy(WEIGHT).float()}, path, metadata)
    head = read(path)
    assert head.entry.labels == ("x", "y", "z")
    assert head.entry.problem_type == "multi_label_classification"
    assert not head.out_proj.bias.any()  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("arrays", "expected"),
    [
        ({"coef_": WEIGHT[:, :5], "intercept_": np.zeros(3)}, "[3, 5] instead of [3, 8]"),
        ({"coef_": WEIGHT, "intercept_": np.zeros(2)}, "out_proj.bias is [2] instead of [3]"),
        ({"coef_": WEIGHT, "mean_": np.zeros(WIDTH)}, "holds mean_, which a linear probe has not"),
        ({"coef_": np.zeros((3, WIDTH, 2))}, "such a head would mix proteins"),
        ({"intercept_": np.zeros(3)}, "neither weight nor coef_"),
        ({"coef_": WEIGHT * np.nan}, "holds NaN or Inf"),
        ({"coef_": WEIGHT, "classes_": np.array(["a", "b"])}, "names 2 classes"),
        ({"coef_": WEIGHT, "classes_": np.array(["a", "b", "a"])}, "several classes of one name"),
        ({"coef_": WEIGHT, "classes_": np.array(["a", "b", "c"], object)}, "pickled objects"),
        ({"coef_": WEIGHT, "problem_type": np.array("ranking")}, "problem_type 'ranking'"),
    ],
)
def test_what_is_wrong(tmp_path: Path, arrays: dict[str, Any], expected: str) -> None:
    assert expected in refused(npz(tmp_path, **arrays))


def test_no_such_file(tmp_path: Path) -> None:
    assert "No such file" in refused(tmp_path / "probe.npz")
    assert "probe.safetensors" in refused(tmp_path / "probe.safetensors")
    (tmp_path / "text.npz").write_text("no archive")
    assert "is not read" in refused(tmp_path / "text.npz")
