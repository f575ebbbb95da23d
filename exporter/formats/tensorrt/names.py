"""Names in ``model.trt.onnx``, by which others find their way in it."""

FILE_NAME = "model.trt.onnx"
SOURCES, CELLS, LENGTHS = "sources", "cells", "lengths"


def tensor_name(layer: int, role: str) -> str:
    """Of a tensor around the attention of a layer, counted from 0.

    Roles: ``q``, ``k``, ``v``, ``out`` ``[T, H, D]``; ``q_grid``, ``k_grid``, ``v_grid``,
    ``out_grid`` ``[N, H, max_seqlen, D]``. q is scaled already.
    """
    return f"attention.{layer}.{role}"
