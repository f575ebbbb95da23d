"""fair-esm's attention in blocks of queries, so that a long protein's scores are never whole.

fair-esm makes the scores of all heads and pairs of tokens at once, and their softmax: in float64
196 GB each for 35,000 tokens and 20 heads. A block of queries takes the same steps on its rows.
"""

import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

from exporter.parity.truth.packs import QUERIES


@contextmanager
def in_query_blocks(model: Any) -> Iterator[None]:
    """Lets fair-esm's ``model`` attend a block of queries at a time; its weights stay as they are.

    For one protein without padding, whose attention weights nobody asks for.
    """
    with ExitStack() as stack:
        for layer in model.layers:
            forward = partial(_forward, layer.self_attn)
            stack.enter_context(patch.object(layer.self_attn, "forward", forward))
        yield


def _forward(attention: Any, query: Tensor, **options: Any) -> tuple[Tensor, None]:
    """esm/multihead_attention.py:242 to 395, for self-attention with rotary positions.

    Args:
        attention: fair-esm's ``MultiheadAttention``.
        query: ``[T, 1, E]``.
        options: of fair-esm's forward: keys and values, which are ``query``, and no masks.
    """
    tokens, proteins, width = query.shape
    softmax = sys.modules[type(attention).__module__].utils_softmax
    projections = attention.q_proj, attention.k_proj, attention.v_proj
    q, k, v = (projection(query) for projection in projections)
    q *= attention.scaling
    heads = tokens, proteins * attention.num_heads, attention.head_dim
    q, k, v = (x.contiguous().view(heads).transpose(0, 1) for x in (q, k, v))
    q, k = attention.rot_emb(q, k)
    attended = torch.empty_like(v)
    for rows, out in zip(q.split(QUERIES, 1), attended.split(QUERIES, 1), strict=True):
        scores = torch.bmm(rows, k.transpose(1, 2))
        out.copy_(torch.bmm(softmax(scores, dim=-1).type_as(scores), v))
    return attention.out_proj(attended.transpose(0, 1).reshape(tokens, proteins, width)), None
