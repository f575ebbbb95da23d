"""``model.pt`` for Triton: an artifact's TorchScript with its weights inside, called by lengths."""

from pathlib import Path

import torch
from torch import Tensor, nn

from exporter.formats.torchscript.export import drop_debug_records
from runtime.engines.torch.engine import read_weights
from runtime.ops import varlen_attention  # noqa: F401  registers the op

FILE_NAME = "model.pt"


class _FromSeqlens(nn.Module):
    """Computes what Triton's batcher cannot make: its batch inputs are lengths, in int32."""

    def __init__(self, packed: torch.jit.ScriptModule):
        super().__init__()
        self.packed = packed

    # Triton finds inputs by these names. Scripting infers the type of the result, a tuple.
    def forward(self, input_ids: Tensor, seqlens: Tensor):  # type: ignore[no-untyped-def]
        ends = seqlens.cumsum(0, dtype=torch.int32)
        cu_seqlens = torch.cat([torch.zeros_like(ends[:1]), ends])
        # To the host once, not in every layer.
        return self.packed(input_ids, cu_seqlens, seqlens.max().long().cpu())


def write(source: Path, folder: Path) -> None:
    """Writes TorchScript of ``input_ids`` [T] int64 and ``seqlens`` [N] int32.

    Args:
        source: ``model.ts`` of an artifact, with ``weights.safetensors`` beside it.
        folder: where it goes. Triton's backend reads one file, so the weights are in it.
    """
    packed = torch.jit.load(source, map_location="cpu")
    packed.load_state_dict(read_weights(source.parent, "cpu"), assign=True)
    path = folder / FILE_NAME
    torch.jit.script(_FromSeqlens(packed.eval())).save(str(path))
    drop_debug_records(path)
