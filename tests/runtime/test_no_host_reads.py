"""Nothing between kernels waits for the card.

Meta tensors have shapes and no values: whatever the host would read of one raises. So these tests
need no card to show that a forward reads none.
"""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from exporter.model.packed_forward import PackedESM2
from exporter.model.reference import Reference
from runtime.engines.torch.pooling import pool_tensor
from runtime.manifest import read
from runtime.manifest_schema import Manifest
from runtime.ops import cuda, varlen_attention  # noqa: F401  registers the op
from runtime.pooling import Pool


@pytest.fixture
def inputs() -> tuple[Tensor, Tensor, Tensor]:
    """As an engine on a card gets them: ``max_seqlen`` is the host's."""
    ids = torch.empty(40, dtype=torch.int64, device="meta")
    cu_seqlens = torch.empty(4, dtype=torch.int32, device="meta")
    return ids, cu_seqlens, torch.tensor(20)


def test_the_packed_forward(reference: Reference, inputs: tuple[Tensor, Tensor, Tensor]) -> None:
    packed = PackedESM2(reference.model, (0, 2), "mean").eval()
    state = {name: tensor.to("meta") for name, tensor in packed.state_dict(keep_vars=True).items()}
    with torch.no_grad():
        outputs = torch.func.functional_call(packed, state, inputs)
    assert [tuple(x.shape) for x in outputs] == [(40, 33), (40, 48), (40, 48), (3, 48)]
    assert all(x.is_meta for x in outputs)


def test_the_torchscript_engine(tiny_artifact: Path, inputs: tuple[Tensor, Tensor, Tensor]) -> None:
    manifest: Manifest = read(tiny_artifact)
    module = torch.jit.load(tiny_artifact / manifest.engines["torchscript"].file)
    graph = str(module.inlined_graph)
    assert "Device" not in graph  # none is baked in
    module.load_state_dict(
        {name: torch.empty_like(x, device="meta") for name, x in module.state_dict().items()},
        assign=True,
    )
    width = manifest.architecture.embed_dim
    # The stripped file's parameters have strides of 0, which the graph refuses; these have none.
    assert all(0 not in parameter.stride() for parameter in module.parameters())
    outputs = module(*inputs)
    assert {tuple(x.shape) for x in outputs} == {(40, 33), (40, width), (3, width)}


@pytest.mark.parametrize("how", ["mean", "mean-with-eos", "cls"])
def test_pooling(how: Pool, inputs: tuple[Tensor, Tensor, Tensor]) -> None:
    rows = torch.empty(40, 8, device="meta")
    assert pool_tensor(rows, inputs[1], how).shape == (3, 8)


@pytest.mark.parametrize("head_dim", [16, 24, 32, 64, 128])
@pytest.mark.parametrize(
    ("kernel", "dtype"),
    [
        (cuda._torch_flash, torch.bfloat16),
        (cuda._torch_flash, torch.float16),
        (cuda._memory_efficient, torch.float32),
    ],
)
def test_pytorchs_kernels_take_what_they_are_given(
    kernel: cuda.Kernel, dtype: torch.dtype, head_dim: int, inputs: tuple[Tensor, Tensor, Tensor]
) -> None:
    """Against the schemas of the PyTorch that is installed."""
    q = torch.empty(40, 4, head_dim, dtype=dtype, device="meta")
    assert kernel(q, q, q, inputs[1], 20, 0.25).shape == q.shape


def test_the_standard_kernel_does_read(inputs: tuple[Tensor, Tensor, Tensor]) -> None:
    """Else the tests above would show nothing."""
    q = torch.empty(40, 4, 16, device="meta")
    with pytest.raises(RuntimeError, match="meta"):
        cuda.standard(q, q, q, inputs[1], 20, 0.25)
