"""A linear probe: weights of a linear model in ``.safetensors``, or scikit-learn's in ``.npz``."""

import json
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from safetensors import SafetensorError, safe_open

from exporter.errors import CheckpointError
from exporter.model.heads.head import Head, refuse_mixing
from exporter.model.heads.table import head_of
from runtime.manifest_schema import HeadEntry, ProblemType

RESIDUES = "residues"
# scikit-learn's attributes -> ours.
NAMES = {"coef_": "weight", "intercept_": "bias", "classes_": "classes"}
KNOWN = {"weight", "bias", "classes", "problem_type"}
# scikit-learn's attributes that do not change what a linear model says.
UNUSED = {"n_iter_", "n_features_in_", "feature_names_in_"}


@dataclass(frozen=True)
class ProbeSource:
    """Where a probe lies, and what it reads: vectors by a pooling, or ``RESIDUES``."""

    path: str
    on: str = "mean"


def read_probe(source: ProbeSource, width: int) -> Head:
    """A linear head from a file.

    Args:
        source: the file holds ``weight`` ``[C, E]`` and ``bias`` ``[C]``, or scikit-learn's
            ``coef_`` and ``intercept_``; beside them ``classes``, the names of its outputs, and
            ``problem_type``. Of a ``.safetensors`` these two are JSON in its metadata.
        width: E of the model.

    Raises:
        CheckpointError: no such file, or it does not fit the model.
    """
    path = Path(source.path).expanduser()
    try:
        found = _read_npz(path) if path.suffix == ".npz" else _read_safetensors(path)
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror or error}") from None
    if unknown := sorted(found.keys() - KNOWN - UNUSED):
        raise CheckpointError(
            f"{path} holds {', '.join(unknown)}, which a linear probe has not: expected "
            "weight and bias, or coef_ and intercept_. Fold a scaler into them: weight / scale, "
            "bias - weight @ (mean / scale)"
        )
    if "weight" not in found:
        raise CheckpointError(f"{path} holds no linear model: it has neither weight nor coef_")
    weight = torch.as_tensor(found["weight"])
    refuse_mixing("weight", weight, str(path))
    weight = weight.reshape(1, -1) if weight.ndim < 2 else weight
    bias = torch.as_tensor(found.get("bias", np.zeros(len(weight)))).reshape(-1)
    classes = found.get("classes")
    if classes is not None and len(classes) == 2 and len(weight) == 1:
        # Of two classes scikit-learn keeps the second's score; the first's is then 0.
        weight = torch.cat([torch.zeros_like(weight), weight])
        bias = torch.cat([torch.zeros_like(bias), bias])
    entry = HeadEntry(
        kind="linear_probe",
        rows="tokens" if source.on == RESIDUES else "proteins",
        problem_type=_problem_type(found.get("problem_type"), classes, len(weight), path),
        id2label=_labels(classes, len(weight), path),
        pool=None if source.on == RESIDUES else source.on,
    )
    tensors = {"out_proj.weight": weight, "out_proj.bias": bias}
    return head_of(entry, tensors, str(path), width)


def _read_npz(path: Path) -> dict[str, Any]:
    try:
        with np.load(path) as file:
            found = {NAMES.get(name, name): file[name] for name in file.files}
    except (ValueError, EOFError, zipfile.BadZipFile) as error:
        advice = (
            ": names of classes are pickled objects. Save them as np.array(model.classes_, str)"
            if "pickle" in str(error)
            else f" ({error})"
        )
        raise CheckpointError(f"{path} is not read{advice}") from None
    if "classes" in found:
        found["classes"] = [str(name) for name in found["classes"].tolist()]
    if "problem_type" in found:
        found["problem_type"] = str(found["problem_type"])
    return found


def _read_safetensors(path: Path) -> dict[str, Any]:
    try:
        with safe_open(path, "pt") as file:
            found: dict[str, Any] = {
                NAMES.get(name, name): file.get_tensor(name)
                for name in file.keys()  # noqa: SIM118
            }
            metadata: Mapping[str, str] = file.metadata() or {}
    except SafetensorError as error:
        raise CheckpointError(f"{path} is no .safetensors and no .npz file ({error})") from None
    if "classes" in found:
        found["classes"] = [str(name) for name in found["classes"].tolist()]
    if "classes" in metadata:
        try:
            found["classes"] = [str(name) for name in json.loads(metadata["classes"])]
        except (ValueError, TypeError) as error:
            raise CheckpointError(f"{path}: classes are not a list in JSON ({error})") from None
    if "problem_type" in metadata:
        found["problem_type"] = metadata["problem_type"]
    return found


def _labels(classes: list[str] | None, count: int, path: Path) -> dict[str, str]:
    names = classes or [f"LABEL_{number}" for number in range(count)]
    if len(names) != count:
        raise CheckpointError(f"{path} names {len(names)} classes, and its weight has {count} rows")
    if len(set(names)) != count:
        raise CheckpointError(f"{path} has several classes of one name: {', '.join(names[:5])}")
    return {str(number): name for number, name in enumerate(names)}


def _problem_type(
    given: str | None, classes: list[str] | None, count: int, path: Path
) -> ProblemType:
    if given is None:
        is_regression = count == 1 and classes is None
        return "regression" if is_regression else "single_label_classification"
    for known in get_args(ProblemType):
        if given == known:
            return known  # type: ignore[no-any-return]
    raise CheckpointError(
        f"{path} has problem_type {given!r}, expected one of {', '.join(get_args(ProblemType))}"
    )
