"""``esm2::varlen_attention``: the one attention op of every traced graph.

Importing this module defines the op, with kernels in Python; ``use_native`` loads a library that
registers its fast CPU kernel itself, so that a forward on a CPU does not come back to Python.
"""

import ctypes
import logging
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path

import torch
from torch import Tensor

from runtime import instructions
from runtime.attention import Attention
from runtime.errors import UnsupportedError
from runtime.manifest_schema import EngineEntry
from runtime.ops import contacts, cpu, cuda  # noqa: F401  contacts registers its op
from runtime.ops.choice import Choice, Kernel
from runtime.ops.standard import standard

logger = logging.getLogger(__name__)

NAME = "esm2::varlen_attention"
SCHEMA = (
    "(Tensor q, Tensor k, Tensor v, Tensor cu_seqlens, SymInt max_seqlen, float softmax_scale)"
    " -> Tensor"
)

# Where the native kernel hands over what Python is to compute (runtime/ops/native/torch_op.cpp).
IN_PYTHON_NAME = f"{NAME}_python"
# Read there too, while the library is loaded: this process's Python has defined the op already.
IN_PYTHON_VARIABLE = "ESM2_OPS_IN_PYTHON"
NATIVE_DTYPES = (torch.float32, torch.float16, torch.bfloat16)

# The instruction set of the native kernel, once it is loaded; the first in a process stays.
_native: str | None = None
_loading = threading.Lock()

# The schema carries no choice of kernel, so an engine sets its own around its forward. A ContextVar
# is private to a thread: two engines that run side by side do not change each other.
_chosen: ContextVar[Kernel | None] = ContextVar("esm2_attention", default=None)


def _attend_in_python(wanted: bool) -> bool:
    """Whether this thread's calls of the op come to Python; returns what held before."""
    return True  # until a library takes the op's CPU key


@contextmanager
def using(choice: Choice) -> Iterator[None]:
    """Every call of the op by this thread inside the block runs this kernel."""
    token = _chosen.set(choice.kernel)
    switch = _attend_in_python
    before = switch(not choice.is_native)
    try:
        yield
    finally:
        switch(before)
        _chosen.reset(token)


def choose(
    device: torch.device, dtype: torch.dtype, head_dim: int, requested: Attention = "auto"
) -> Choice:
    """The kernel for tensors like these.

    Args:
        device: of q, k, v.
        dtype: of q, k, v.
        head_dim: D.
        requested: ``"auto"``, the fastest; ``"standard"``, the arithmetic of the reference (matmul,
            float32 softmax, cast, matmul); or one of the kernels for CUDA.

    Raises:
        UnsupportedError: the one that was asked for cannot run; says why.
    """
    if device.type == "cuda":
        capability = torch.cuda.get_device_capability(device)
        return cuda.choose_kernel(capability, dtype, head_dim, requested)
    return _choose_on_cpu(dtype, requested)


def use_native(library: Path) -> None:
    """Takes the op's CPU kernel from an artifact's ``libesm2_ops.so``; the first stays.

    Raises:
        UnsupportedError: the library cannot be loaded here.
        EngineError: it is another one.
    """
    global _native
    with _loading:
        if _native is None:
            _native = _load(library)


def _load(library: Path) -> str:
    """Loads a library, which registers its kernels; returns their instruction set."""
    global _attend_in_python
    # The process's own id, and no longer than this: a child in C++ has no Python to define the op.
    os.environ[IN_PYTHON_VARIABLE] = str(os.getpid())
    try:
        name = instructions.of_library(library)
    except OSError as error:
        raise UnsupportedError(
            f"cannot load {library}: {str(error).removeprefix(f'{library.resolve()}: ')}"
        ) from None
    finally:
        del os.environ[IN_PYTHON_VARIABLE]
    if not hasattr(torch.ops.esm2, "varlen_attention_native"):
        raise instructions.another_library(library, "registers no esm2::varlen_attention_native")
    loaded = ctypes.PyDLL(str(library.resolve()))
    _check_stack(library, loaded)
    # Libraries of older artifacts leave the op's CPU key to Python, whose kernel calls them.
    if hasattr(loaded, "esm2_attend_in_python"):
        switch = loaded.esm2_attend_in_python
        switch.argtypes, switch.restype = [ctypes.c_bool], ctypes.c_bool
        _attend_in_python = switch
    return name


def _check_stack(library: Path, loaded: ctypes.PyDLL) -> None:
    """That PyTorch's flash kernel takes no more values than the library hands over."""
    taken = len(torch.ops.aten._flash_attention_forward.default._schema.arguments)
    # Libraries of older artifacts do not say how many.
    if hasattr(loaded, "esm2_dispatcher_stack") and taken > loaded.esm2_dispatcher_stack():
        raise UnsupportedError(
            f"cannot load {library}: the flash kernel of PyTorch {torch.__version__} takes {taken} "
            f"arguments, expected at most {loaded.esm2_dispatcher_stack()}. Export the artifact "
            "again with a newer version of this project"
        )


def use_native_of(folder: Path, entry: EngineEntry) -> None:
    """``use_native`` of an artifact's engine; where it cannot, warns of what is lost."""
    if entry.op_library is None:
        return
    try:
        use_native(folder / entry.op_library)
    except UnsupportedError as error:
        logger.warning("%s. Attention runs in PyTorch's own ops, which takes longer", error)


def _choose_on_cpu(dtype: torch.dtype, requested: Attention) -> Choice:
    if requested == "standard":
        return Choice("standard", standard, ("attention 'standard' was asked for",))
    if requested != "auto":
        raise UnsupportedError(
            f"attention {requested!r} cannot run here: it is for CUDA. "
            "On a CPU take 'auto' or 'standard'"
        )
    if _native is not None and dtype in NATIVE_DTYPES:
        op = torch.ops.esm2.varlen_attention_native
        return Choice(f"native ({_native})", op, is_native=True)
    missing = "not loaded" if _native is None else f"knows no {dtype}"
    return Choice("torch sdpa per protein", cpu.sdpa, (f"native: {missing}",))


def _attend(
    q: Tensor, k: Tensor, v: Tensor, cu_seqlens: Tensor, max_seqlen: int, softmax_scale: float
) -> Tensor:
    kernel = _chosen.get() or choose(q.device, q.dtype, q.shape[-1]).kernel
    return kernel(q, k, v, cu_seqlens, max_seqlen, softmax_scale)


def _fake(
    q: Tensor, k: Tensor, v: Tensor, cu_seqlens: Tensor, max_seqlen: int, softmax_scale: float
) -> Tensor:
    return torch.empty_like(q, memory_format=torch.contiguous_format)


# For every device: a kernel that a library registers for its own comes first, without a warning.
for _name in (NAME, IN_PYTHON_NAME):
    torch.library.define(_name, SCHEMA, tags=torch.Tag.pt2_compliant_tag)
    torch.library.impl(_name, "default", _attend)
    torch.library.register_fake(_name, _fake)
