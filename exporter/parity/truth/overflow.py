"""Where half precision overflows: the first layer whose output is not finite, by name."""

import torch
from torch import Tensor

from exporter.model.packed_forward import PackedESM2
from exporter.model.precision import cast_copy
from exporter.model.reference import Reference
from exporter.parity.truth.oracle import tokens_of
from exporter.parity.truth.packs import Pack


@torch.no_grad()
def find_overflow(reference: Reference, dtype: torch.dtype, pack: Pack) -> str:
    """Says where the packed forward in ``dtype`` overflows on the proteins of ``pack``.

    Returns:
        One sentence; empty if no layer does.
    """
    packed = cast_copy(PackedESM2(reference.model).eval(), dtype)
    layers = range(packed.num_layers + 1)
    largest = f"{dtype} holds {torch.finfo(dtype).max:.3g} at most"
    for number, protein in enumerate(pack):
        tokens = torch.from_numpy(tokens_of(reference, protein))
        bounds = torch.tensor([0, len(tokens)], dtype=torch.int32)
        logits, outputs, _ = packed.encode(tokens, bounds, torch.tensor(len(tokens)), layers)
        for layer in layers:
            if not outputs[layer].isfinite().all():
                before = f", where layer {layer - 1} reached {_peak(outputs[layer - 1])}"
                return (
                    f"overflow in layer {layer} (protein {number}{before if layer else ''}; "
                    f"{largest})"
                )
        if logits is not None and not logits.isfinite().all():
            return f"overflow in the LM head (protein {number}; {largest})"
    return ""


def _peak(x: Tensor) -> str:
    return f"{float(x.abs().max()):.3g}"
