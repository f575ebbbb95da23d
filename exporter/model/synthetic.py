"""Random weights of a true architecture, for trying the project and for testing it."""

import zlib
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

# A few channels of trained language models, the same in all layers, are far larger than the others:
# up to 20 times in the hidden states (Dettmers et al., LLM.int8(), 2022), about 100 times in the
# activations (Xiao et al., SmoothQuant, 2022). LayerNorms' weights are what amplifies them (Wei et
# al., Outlier Suppression, 2022).
OUTLIER_CHANNELS, OUTLIER_SCALE = 4, 30.0
_READ_LAYER_NORMS = frozenset([
    *(f"self_attn.{part}_proj.weight" for part in "qkv"), "fc1.weight",
])  # fmt: skip


def synthetic_state(shapes: Mapping[str, torch.Size], seed: int) -> dict[str, Tensor]:
    """Seeded weights in which every parameter matters: no zero bias, no LayerNorm weight of 1.

    Each tensor has a generator of its own, so one tensor does not depend on the others' order.

    Args:
        shapes: of each parameter, under fair-esm's names.
        seed: at least 0.
    """
    state = {}
    for name, shape in shapes.items():
        random = np.random.default_rng([seed, zlib.crc32(name.encode())])
        unit = torch.from_numpy(random.random(tuple(shape), dtype=np.float32))
        if name.endswith("bias"):
            low, high = -0.2, 0.2
        elif "layer_norm" in name:
            low, high = 0.7, 1.3
        elif name == "embed_tokens.weight":
            low, high = -1.7, 1.7
        elif name == "contact_head.regression.weight":
            # Attention of random weights is nearly even: so large, contacts differ all the same.
            low, high = -10.0, 10.0
        else:
            # The variance of fair-esm's own initialisation (xavier, gain 1 or 1 / sqrt(2)).
            fan_out, fan_in = shape
            gain = 0.5**0.5 if name.split(".")[-2] in ("q_proj", "k_proj", "v_proj") else 1.0
            high = gain * (6 / (fan_in + fan_out)) ** 0.5
            low = -high
        state[name] = unit.mul_(high - low).add_(low)
    return state


def with_outliers(state: Mapping[str, Tensor], seed: int) -> dict[str, Tensor]:
    """Trained-like weights: every layer's LayerNorms give ``OUTLIER_CHANNELS`` large channels.

    They are ``OUTLIER_SCALE`` times as large, and the columns of the linears that read them as much
    smaller: in exact arithmetic the model gives what it gave.

    Args:
        state: under fair-esm's names; it is left as it is.
        seed: of the channels, which are the same in every layer.
    """
    width = state["embed_tokens.weight"].shape[1]
    random = np.random.default_rng([seed, zlib.crc32(b"outliers")])
    channels = torch.from_numpy(random.choice(width, OUTLIER_CHANNELS, replace=False))
    changed = dict(state)
    for name, tensor in state.items():
        if not name.startswith("layers."):
            continue
        module = name.split(".", 2)[2]
        if module.partition(".")[0] in ("self_attn_layer_norm", "final_layer_norm"):
            factor = OUTLIER_SCALE
        elif module in _READ_LAYER_NORMS:
            factor = 1 / OUTLIER_SCALE
        else:
            continue
        changed[name] = tensor.clone()
        changed[name][..., channels] *= factor
    return changed
