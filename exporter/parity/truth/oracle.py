"""The truth: eager fair-esm in float64, one protein at a time, without padding.

Nothing of the runtime takes part: fair-esm tokenizes, PyTorch pools.
"""

import hashlib
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from tqdm import tqdm

from exporter.model import precision
from exporter.model.packed_forward import NoLMHead
from exporter.model.precision import cast_copy
from exporter.model.reference import Reference, fair_esm_version
from exporter.model.witness import CLASS_OF_HEAD
from exporter.parity.answers import Answers
from exporter.parity.truth import contacts as contact_head
from exporter.parity.truth import heads, query_blocks
from exporter.parity.truth.cache import Cache
from exporter.parity.truth.device import arithmetic_of
from exporter.parity.truth.packs import LONGEST, Pack, Protein
from exporter.parity.truth.query_blocks import in_query_blocks
from exporter.weights import int8 as int8_weights
from exporter.weights import int8_eager, smoothing
from exporter.weights.int8 import Recipe
from runtime.manifest_schema import EMBEDDING, HEAD
from runtime.pairs import CONTACTS, pair_bounds
from runtime.pooling import Pool


# Answers on disk are of one recipe: any edit of what computes them asks for new ones.
def _recipe(*sources: str | None) -> str:
    return hashlib.sha256(b"".join(Path(str(path)).read_bytes() for path in sources)).hexdigest()


RECIPE = _recipe(__file__, precision.__file__, query_blocks.__file__)
HEAD_RECIPE = _recipe(heads.__file__)
CONTACTS_RECIPE = _recipe(contact_head.__file__)
INT8_RECIPE = _recipe(int8_eager.__file__, int8_weights.__file__, smoothing.__file__)


Arrays = dict[str, NDArray[np.floating]]


def run_eager(
    reference: Reference,
    packs: Mapping[str, Pack],
    layers: tuple[int, ...],
    pooling: Pool,
    dtype: torch.dtype,
    cache: Cache | None = None,
    int8: Recipe | None = None,
    device: str = "cpu",
) -> dict[str, Answers]:
    """Runs every protein of every pack alone through eager fair-esm, each distinct one once.

    Args:
        reference: fair-esm's ``ESM2`` in float32 on the CPU; it is that again afterwards.
        packs: by name.
        layers: representations to keep.
        pooling: of the last of them.
        dtype: float64 is the oracle; another gives the error that eager itself has in it.
        cache: keeps answers on disk; None computes all of them.
        int8: with linears that are quantised as an int8 engine's are.
        device: ``"cpu"`` or ``"cuda"``; answers come back to the host.

    Raises:
        ExportError: the GPU would round float32 products to TF32, or what a head is compared with
            is not installed.
    """
    head = reference.head
    eager = _Eager(reference, layers, pooling, dtype, device, int8 is not None)
    recipe = (
        f"recipe {RECIPE}, fair-esm {fair_esm_version()}, torch {torch.__version__}, {dtype}, "
        f"{arithmetic_of(device)}, layers {layers}, pool {pooling}, "
        f"{layer_norm_of(reference)}, {reference.architecture}, "
        f"weights {reference.origin.state_sha256}"
    ) + (f", int8 {INT8_RECIPE} {int8.digest()}" if int8 else "")
    recipe += f"{heads.recipe_of(head)} {HEAD_RECIPE}" if head else ""
    if reference.contacts:
        recipe += f", contacts {CONTACTS_RECIPE} of {reference.origin.contact_head_sha256}"
    per_protein = frozenset([EMBEDDING, HEAD] if head and head.rows == "N" else [EMBEDDING])
    seen: dict[Protein, Arrays] = {}
    answers = {}
    progress = tqdm(packs.items(), desc=f"eager fair-esm in {dtype}", leave=False, disable=None)
    quantised = int8_eager.quantised_linears(reference.model, int8) if int8 else nullcontext()
    with eager.in_dtype(), quantised:
        for name, pack in progress:
            tokens = {protein: tokens_of(reference, protein) for protein in dict.fromkeys(pack)}
            key = Cache.key(recipe, tokens.values())
            stored = cache.read(key) if cache else None
            if stored is None:
                for protein in tokens:
                    if protein not in seen:
                        seen[protein] = eager.run(tokens[protein])
                stored = _join([seen[protein] for protein in tokens])
                if cache:
                    cache.write(key, stored)
            answers[name] = _answers(pack, tokens, stored, per_protein)
    return answers


def needs_whole_scores(reference: Reference) -> bool:
    """Whether a long protein's attention cannot be taken in blocks of queries alone.

    Contacts are read off whole maps, and transformers' model, the truth of its heads, makes them.
    """
    head = reference.head
    return reference.contacts or (head is not None and head.entry.kind in CLASS_OF_HEAD)


def layer_norm_of(reference: Reference) -> str:
    """Which LayerNorm fair-esm took: apex's where it is installed, else PyTorch's."""
    kind = type(reference.model.emb_layer_norm_after)
    return f"{kind.__module__}.{kind.__qualname__}"


def tokens_of(reference: Reference, protein: Protein) -> NDArray[np.int64]:
    """Token ids by fair-esm's own alphabet: ``[L + 2]``, or ``[L]`` of a bare protein."""
    alphabet = reference.alphabet
    ids = alphabet.encode(protein.sequence)
    if not protein.bare:
        ids = [alphabet.cls_idx, *ids, alphabet.eos_idx]
    return np.array(ids, dtype=np.int64)


class _Eager:
    """fair-esm in one dtype on one device; its model is made when the first protein needs it."""

    def __init__(
        self, reference: Reference, layers: tuple[int, ...], pooling: Pool, dtype: torch.dtype,
        device: str, int8: bool,
    ):  # fmt: skip
        self._model: nn.Module = reference.model
        self._head = reference.head
        self._head_truth: heads.HeadTruth | None = None
        self._int8 = int8
        self._contacts = reference.contacts
        self._layers = layers
        self._pooling = pooling
        self._dtype = dtype
        self._device = device
        self._cast: nn.Module | None = None

    @contextmanager
    def in_dtype(self) -> Iterator[None]:
        try:
            with _softmax_at_least(self._model, self._dtype):
                yield
        finally:
            if self._cast is self._model:
                # Exact: no precision was lost on the way.
                self._model.to("cpu", torch.float32)
                _forget_rotary_tables(self._model)

    @torch.no_grad()
    def run(self, tokens: NDArray[np.int64]) -> Arrays:
        batch = torch.from_numpy(tokens)[None].to(self._device)
        model: Any = self._made()
        last = model.num_layers
        layers = {*self._layers, 0, last} if self._head else self._layers
        asked = contact_head.listened_to(model, batch) if self._contacts else nullcontext()
        # fair-esm as it is for the gate's own packs; what is longer may not fit.
        in_blocks = len(tokens) > LONGEST and not self._contacts
        with in_query_blocks(model) if in_blocks else nullcontext(), asked as heard:
            outputs = model(batch, repr_layers=layers)
        representations = {k: outputs["representations"][k][0] for k in self._layers}
        arrays = {f"representations.{k}": _to_numpy(x) for k, x in representations.items()}
        pooled = _pool(representations[self._layers[-1]], self._pooling)
        arrays[EMBEDDING] = _to_numpy(pooled)
        if self._head_truth is not None:
            embedded, represented = (outputs["representations"][k] for k in (0, last))
            how: Any = self._head.entry.pool if self._head else None
            vector = _pool(represented[0], how or "mean")
            arrays[HEAD] = _to_numpy(self._head_truth(batch, embedded, represented, vector))
        if heard is not None:
            arrays[CONTACTS] = _to_numpy(heard.contacts())
        if isinstance(self._model.lm_head, NoLMHead):
            return arrays
        return {"logits": _to_numpy(outputs["logits"][0]), **arrays}

    def _made(self) -> nn.Module:
        if self._cast is None:
            if self._dtype.itemsize >= torch.float32.itemsize:
                # In place: two copies of 15 billion parameters would not fit.
                self._cast = self._model.to(self._device, self._dtype)
            else:
                self._cast = cast_copy(self._model, self._dtype).to(self._device, self._dtype)
            _forget_rotary_tables(self._cast)
            if self._head is not None:
                self._head_truth = heads.HeadTruth(self._cast, self._dtype, self._int8)
        return self._cast


def _pool(rows: Tensor, how: Pool) -> Tensor:
    """``[1, E]`` of one protein's ``[L, E]``, in its dtype; scripts/extract.py:118."""
    if how == "cls" or len(rows) == 1:
        return rows[:1]
    return rows[1 : None if how == "mean-with-eos" else -1].mean(0, keepdim=True)


def _join(answers: list[Arrays]) -> Arrays:
    return {name: np.concatenate([a[name] for a in answers]) for name in answers[0]}


def _answers(
    pack: Pack, tokens: Mapping[Protein, NDArray[np.int64]], stored: Arrays,
    per_protein: frozenset[str],
) -> Answers:  # fmt: skip
    """From each distinct protein once, in the order of ``tokens``, to the pack's order."""
    bounds = np.cumsum([0, *map(len, tokens.values())])
    place = {protein: i for i, protein in enumerate(tokens)}
    chosen = [place[protein] for protein in pack]
    pairs = pair_bounds(bounds)

    def rows_of(name: str) -> Any:
        if name in per_protein:
            return chosen
        ends = pairs if name == CONTACTS else bounds
        return np.concatenate([np.arange(ends[i], ends[i + 1]) for i in chosen])

    return Answers(
        input_ids=np.concatenate([tokens[protein] for protein in pack]),
        cu_seqlens=np.cumsum([0, *(len(tokens[protein]) for protein in pack)]).astype(np.int32),
        tensors={name: values[rows_of(name)] for name, values in stored.items()},
        per_protein=per_protein,
    )


def _to_numpy(tensor: Tensor) -> NDArray[np.floating]:
    # NumPy has no bfloat16; float32 holds every bfloat16 exactly.
    wide = tensor.float() if tensor.dtype == torch.bfloat16 else tensor
    return wide.cpu().numpy()


def _forget_rotary_tables(model: Any) -> None:
    # esm/rotary_embedding.py:48 renews its tables when the length changes, not when the dtype does.
    for layer in model.layers:
        layer.self_attn.rot_emb._seq_len_cached = None


@contextmanager
def _softmax_at_least(model: Any, dtype: torch.dtype) -> Iterator[None]:
    """Lets fair-esm's attention take its softmax in float64 where the model is float64.

    esm/multihead_attention.py:19 takes it in float32 in every dtype: right for half precision, but
    it would put float32 rounding into the oracle.
    """
    module: Any = sys.modules[type(model.layers[0].self_attn).__module__]
    original = module.utils_softmax
    if dtype == torch.float64:
        module.utils_softmax = lambda x, dim, onnx_trace=False: torch.softmax(x, dim)
    try:
        yield
    finally:
        module.utils_softmax = original
