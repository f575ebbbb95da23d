"""Who is measured on the card: the engines here, eager fair-esm, Hugging Face's model with SDPA.

Each takes the same proteins, in packs or in padded batches of its own. An engine brings one vector
for each protein to the host, as ``esm2-run embed`` does; ``on card`` it has its inputs there and
leaves its outputs there, which is what the kernels do. Peers leave theirs there too: what their
users copy differs.
"""

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from benchmarks.checkpoints import write_hugging_face
from benchmarks.gpu_check.results import Timing
from benchmarks.workload import packs_of, padded_batches_of
from exporter.model.precision import cast_copy
from exporter.model.reference import Reference
from runtime import load
from runtime.engine import Engine
from runtime.engines.torch.engine import TorchEngine
from runtime.packing import PackedBatch
from runtime.tokenizer import TOKENS

Proteins = Sequence[NDArray[np.int64]]
Run = Callable[[], Any]
PAD = TOKENS.index("<pad>")


class Packed:
    """An engine of an artifact; ``on_card`` for its forward alone."""

    batches_of = staticmethod(packs_of)

    def __init__(self, engine: Engine, max_tokens: int, on_card: bool = False, note: str = ""):
        self._engine = engine
        self._layer = engine.spec.layers[-1]
        self._on_card = on_card
        where = ", outputs left on the card" if on_card else ""
        self.timing = Timing(
            label=f"{engine.spec.format}, {max_tokens:,} a pack{note}{where}",
            role="on card" if on_card else "engine",
            dtype=engine.spec.dtype,
            max_tokens=max_tokens,
        )

    def prepare(self, proteins: Proteins) -> Run:
        """From token ids of a pack to something that runs it."""
        batch = PackedBatch.from_tokens(list(proteins))
        engine = self._engine
        if self._on_card:
            assert isinstance(engine, TorchEngine)
            inputs = engine.inputs(batch)
            return lambda: engine.forward(inputs)
        return lambda: engine.embed(batch, self._layer, "mean")

    def rows(self, result: Any, proteins: Proteins) -> NDArray[np.floating]:
        """``[T, E]`` of these proteins: the last exported layer."""
        if self._on_card:
            assert isinstance(self._engine, TorchEngine)
            names = self._engine.output_names
            return _to_numpy(list(result)[names.index(f"representations.{self._layer}")])
        return self._engine.embed(PackedBatch.from_tokens(list(proteins)), self._layer, "none")


class Padded:
    """A peer: ``run`` from ``[N, L]`` token ids on the device to ``[N, L, E]`` there."""

    batches_of = staticmethod(padded_batches_of)

    def __init__(self, run: Callable[[Tensor], Tensor], device: str, timing: Timing):
        self._run = run
        self._device = device
        self.timing = timing

    def prepare(self, proteins: Proteins) -> Run:
        """From token ids of a batch to something that runs it."""
        width = max(map(len, proteins))
        input_ids = torch.full((len(proteins), width), PAD)
        for row, protein in zip(input_ids, proteins, strict=True):
            row[: len(protein)] = torch.from_numpy(protein)

        @torch.inference_mode()
        def run() -> Tensor:
            return self._run(input_ids.to(self._device))

        return run

    def rows(self, result: Any, proteins: Proteins) -> NDArray[np.floating]:
        """``[T, E]`` without the padding."""
        kept = [rows[: len(protein)] for rows, protein in zip(result, proteins, strict=True)]
        return _to_numpy(torch.cat(kept))


Contender = Packed | Padded


def eager_fair_esm(reference: Reference, device: str) -> Padded:
    """In float16, as ``model.half()`` gives it."""
    dtype = torch.float16
    model: Any = cast_copy(reference.model, dtype).to(device, dtype)
    last = model.num_layers
    timing = Timing(label="eager fair-esm", role="fair-esm", dtype="float16")
    return Padded(
        lambda tokens: model(tokens, repr_layers=[last])["representations"][last], device, timing
    )


def hugging_face(reference: Reference, device: str, work: Path) -> Padded:
    """``EsmModel`` with PyTorch's scaled dot product attention, in float16.

    Not bfloat16, in which its positions above 256 are rounded to one another.

    Raises:
        ImportError: transformers is not installed.
    """
    from transformers import EsmModel

    state = {name: tensor.detach().clone() for name, tensor in reference.model.state_dict().items()}
    # Beside the artifacts: /tmp may be too small for the weights.
    with tempfile.TemporaryDirectory(dir=work) as folder:
        write_hugging_face(Path(folder), reference.architecture, state)
        model = EsmModel.from_pretrained(
            folder, attn_implementation="sdpa", add_pooling_layer=False
        )
    model = model.eval().to(device, torch.float16)
    timing = Timing(label="Hugging Face, SDPA", role="hugging face", dtype="float16")
    return Padded(lambda ids: model(ids, (ids != PAD).long()).last_hidden_state, device, timing)


def engine_of(folder: Path, name: str, device: str, cuda_graphs: bool = False) -> Engine:
    """Loaded once for all its contenders."""
    return load(folder, name, device, cuda_graphs=cuda_graphs, check_files=False)


def _to_numpy(tensor: Tensor) -> NDArray[np.floating]:
    array: NDArray[np.floating] = tensor.float().cpu().numpy()
    return array
