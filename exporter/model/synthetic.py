"""Random weights of a true architecture, for trying the project and for testing it."""

import zlib
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor


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
