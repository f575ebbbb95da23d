"""Weights under which half precision hides nothing: each step of a layer shows in columns apart.

With trained weights a LayerNorm in bfloat16, or GELU by tanh, drowns in the rounding of all else.
Here nearly all weights are 0 or 1, so that products are exact, and each step of each layer writes
to columns of the residual stream that are 0 before and that nothing writes to afterwards. So the
last representation shows every step with two or three roundings on it, in every format.
"""

import copy
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from exporter.model.reference import Reference, state_sha256
from exporter.parity.truth.packs import COMMON_RESIDUES, Pack, Protein, protein
from runtime.manifest_schema import Architecture
from runtime.tokenizer import TOKENS

STEPS = (
    "LayerNorm before attention", "attention", "LayerNorm before the linears", "GELU",
    "sums of linears",
)  # fmt: skip
# Tokens that are in no protein here: their logits are single columns of the LM head.
WINDOWS = tuple(token for token in TOKENS if token not in (*COMMON_RESIDUES, "<cls>", "<eos>"))
NORM_WINDOW, GELU_WINDOW = 0, 1
SHARP, SOFT, SECOND_NORM, GELU, SUMS = range(len(STEPS))

# 0.88 times 25 k is the whole number 22 k: token dropout rounds nothing, in whatever order.
EMBEDDINGS = 25 * np.array([1, 3, 5, 7, 9]) / 64
# Where the two forms of GELU differ by 0.2 %, and 1 + erf has not cancelled in float32.
TAIL = np.arange(-36, -23) / 16
# Scale of what is shown, where it is not small already: the rounding of a step must not move the
# variances of the layers after it, or numbers that lie between two of half precision turn over.
ASIDE = 2.0**-6
# Of the fastest frequencies: queries that see their own token alone.
SHARP_BIAS, SHARP_FREQUENCIES = 32.0, 3
SAME_IN_EVERY_LAYER = tuple(f"self_attn.{name}_proj.weight" for name in "qkv")


@dataclass(frozen=True)
class Shown:
    """A step, its layer, and the columns of an output where it shows."""

    step: str
    place: str
    output: str
    columns: NDArray[np.int64]


def shown(architecture: Architecture) -> list[Shown]:
    """Every step of every layer; none where the model is too narrow for that."""
    layout = _Layout(architecture)
    if not layout.each:
        return []
    last = f"representations.{architecture.num_layers}"
    found = [
        Shown(step, f"layer {layer + 1}", last, layout.columns(layer, number))
        for layer in range(architecture.num_layers)
        for number, step in enumerate(STEPS)
    ]
    windows = np.array([TOKENS.index(token) for token in WINDOWS])
    return [
        *found,
        Shown("LayerNorm", "the end", last, np.arange(layout.num_own)),
        Shown("LayerNorm", "the LM head", "logits", windows[NORM_WINDOW::2]),
        Shown("GELU", "the LM head", "logits", windows[GELU_WINDOW::2]),
    ]


def probe_pack() -> Pack:
    """Common residues alone: the embeddings of others are the windows of the LM head."""
    random = np.random.default_rng(0)
    bare = [Protein(residue, bare=True) for residue in COMMON_RESIDUES]
    return [*bare, *(protein(random, length) for length in (1, 37, 290, 5))]


def probe_of(reference: Reference) -> Reference:
    """fair-esm's model with these weights; frequencies are the checkpoint's.

    It stands beside the original and takes about a tenth of its memory: without the hidden units
    whose weights are all 0, which add nothing to any sum, and what is the same in all layers once.
    ``filled`` gives a tensor of the original's shape.
    """
    once: dict[str, nn.Parameter] = {}
    instead: dict[int, object] = {}
    originals = dict(reference.model.named_parameters())
    for name, tensor in _Layout(reference.architecture).tensors():
        part = name.split(".", 2)[-1]
        parameter = nn.Parameter(tensor, requires_grad=False)
        if part in SAME_IN_EVERY_LAYER:
            parameter = once.setdefault(part, parameter)
        if name in originals:  # there may be no LM head
            instead[id(originals[name])] = parameter
    model: Any = copy.deepcopy(reference.model, instead)
    if reference.head is not None:  # no step shows in what was trained on top, nor in contacts
        del model.head
    origin = msgspec.structs.replace(reference.origin, state_sha256=state_sha256(model))
    return replace(reference, model=model, origin=origin, contacts=False)


def filled(tensor: Tensor, shape: tuple[int, ...]) -> Tensor:
    """``tensor`` of a probe's model with the zeros that it leaves out."""
    whole = tensor.new_zeros(shape)
    whole[tuple(slice(size) for size in tensor.shape)] = tensor
    return whole


class _Layout:
    """Which columns are whose: first the embeddings' own, then ``each`` of a layer's steps."""

    def __init__(self, architecture: Architecture):
        self._shape = architecture
        steps = len(STEPS) * architecture.num_layers
        self.each = max(1, architecture.embed_dim // 2 // steps)
        # An even number: what is added to one column is taken from the next, so means stay small.
        self.num_own = (architecture.embed_dim - steps * self.each) // 2 * 2
        if self.num_own < max(8, 2 * self.each):  # too few for the steps to read
            self.each = 0

    def columns(self, layer: int, step: int) -> NDArray[np.int64]:
        """``[each]``."""
        return self.num_own + self.each * (layer * len(STEPS) + step) + np.arange(self.each)

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """By fair-esm's names, a layer at a time; every number is bfloat16's and float16's too."""
        random = np.random.default_rng(0)
        width = self._shape.embed_dim
        arrays = {
            "embed_tokens.weight": self._embeddings(random),
            "emb_layer_norm_after.weight": _mantissas(random, width),
            "emb_layer_norm_after.bias": np.zeros(width),
            **self._lm_head(random),
            "lm_head.layer_norm.weight": _mantissas(random, width),
            "lm_head.layer_norm.bias": np.zeros(width),
            "lm_head.bias": np.zeros(len(TOKENS)),
        }
        layers = (
            {f"layers.{layer}.{name}": x for name, x in self._layer(random, layer).items()}
            for layer in range(self._shape.num_layers)
        )
        for part in chain([arrays], layers):
            for name, values in part.items():
                yield name, torch.from_numpy(values).bfloat16().float()

    def _embeddings(self, random: np.random.Generator) -> NDArray[np.float64]:
        table = np.zeros((len(TOKENS), self._shape.embed_dim))
        for row, token in zip(table, TOKENS, strict=True):
            if token in COMMON_RESIDUES or token in ("<cls>", "<eos>"):
                own = random.choice(EMBEDDINGS, self.num_own // 2)
                own *= random.choice([-1, 1], len(own)) * 2.0 ** -random.integers(0, 3, len(own))
                row[: self.num_own] = np.stack([own, -own], axis=1).ravel()
            else:
                column = 2 * random.integers(self.num_own // 2)
                row[column + WINDOWS.index(token) % 2] = 1.0
        return table

    def _lm_head(self, random: np.random.Generator) -> dict[str, NDArray[np.float64]]:
        width = self._shape.embed_dim
        is_of_tail = np.arange(width) % 2 == GELU_WINDOW
        return {
            # Small, so that what GELU makes of the tail is as large.
            "lm_head.dense.weight": np.eye(width) / 64,
            "lm_head.dense.bias": np.where(is_of_tail, random.choice(TAIL, width), 0.0),
        }

    def _layer(self, random: np.random.Generator, layer: int) -> dict[str, NDArray[np.float64]]:
        # All others of the 4 E hidden units would be 0.
        width, hidden = self._shape.embed_dim, 3 * self.each
        of_tail, *read = np.split(random.permutation(self.num_own), [self.each])
        of_tail, normed = np.sort(of_tail), np.sort(read[0])
        # GELU of positive numbers passes rounding on; of negative ones it enlarges it.
        second_norm = {"weight": _mantissas(random, width), "bias": random.uniform(1, 2, width)}
        second_norm["weight"][of_tail] = 1 / 16
        second_norm["bias"][of_tail] = random.choice(TAIL, self.each)
        rows = np.arange(3 * self.each).reshape(3, -1)
        fc1, fc2, out = np.zeros((hidden, width)), np.zeros((width, hidden)), np.zeros((width,) * 2)
        fc1[rows[0], random.choice(normed, self.each, replace=False)] = 1.0
        fc1[rows[1], of_tail] = 1.0
        # LayerNorm makes the embeddings' own columns as large as all columns together would be.
        squares = len(normed) * width / self.num_own
        for row in rows[2]:
            signs = random.choice([-1.0, 1.0], len(normed))
            fc1[row, normed] = signs * 2.0 ** -np.round(np.log2(squares) / 2)
        for step, row in zip((SECOND_NORM, GELU, SUMS), rows, strict=True):
            fc2[self.columns(layer, step), row] = 1.0 if step == GELU else ASIDE
        for step in (SHARP, SOFT):
            out[
                self.columns(layer, step),
                random.choice(self._of_heads(step), self.each, replace=False),
            ] = ASIDE
        state = {
            "self_attn_layer_norm.weight": _mantissas(random, width),
            "self_attn_layer_norm.bias": random.normal(size=width) / 4,
            "self_attn.q_proj.weight": np.zeros((width, width)),
            "self_attn.k_proj.weight": np.zeros((width, width)),
            "self_attn.v_proj.weight": np.eye(width),
            "self_attn.v_proj.bias": np.zeros(width),
            "self_attn.out_proj.weight": out,
            "self_attn.out_proj.bias": np.zeros(width),
            "final_layer_norm.weight": second_norm["weight"],
            "final_layer_norm.bias": second_norm["bias"],
            "fc1.weight": fc1,
            "fc1.bias": np.where(np.isin(np.arange(hidden), rows[2]), 2.0, 0.0),
            "fc2.weight": fc2,
            "fc2.bias": np.zeros(width),
        }
        for name in ("q_proj", "k_proj"):
            state[f"self_attn.{name}.bias"] = self._biases(random)
        return state

    def _biases(self, random: np.random.Generator) -> NDArray[np.float64]:
        shape = (self._shape.num_heads, self._shape.head_dim)
        biases = random.normal(size=shape)
        # Even heads: the fastest frequencies, which no other position has all of.
        half = biases.reshape(self._shape.num_heads, 2, -1)
        half[::2, :, :SHARP_FREQUENCIES] = SHARP_BIAS
        return biases.ravel()

    def _of_heads(self, step: int) -> NDArray[np.int64]:
        """The embeddings' own columns that heads of a kind attend to; all if those are too few."""
        own = np.arange(self.num_own)
        is_sharp = own // self._shape.head_dim % 2 == 0
        chosen = own[is_sharp if step == SHARP else ~is_sharp]
        return chosen if len(chosen) >= self.each else own


def _mantissas(random: np.random.Generator, size: int) -> NDArray[np.float64]:
    return random.uniform(0.5, 2.0, size)
