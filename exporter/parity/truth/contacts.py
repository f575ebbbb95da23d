"""fair-esm's own contact head, layer by layer: the maps of all layers at once would not fit."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn


class ContactHead:
    """What fair-esm's head says of one protein, summed up over layers as they run.

    The head is a logistic regression, so that each layer has its share of the logit. fair-esm's
    class (esm/modules.py:317) computes the share, of that layer's maps and weights alone.
    """

    def __init__(self, head: Any, num_heads: int, tokens: Tensor):
        self._head = head
        self._num_heads = num_heads
        self._tokens = tokens
        self._logits: Tensor | None = None

    def add(self, layer: int, maps: Tensor) -> None:
        """Takes layer number ``layer``, from 0 on, whose attention is ``maps`` ``[H, 1, L, L]``."""
        # In half precision too the head's own arithmetic stays wide: its corrections are small
        # differences of large sums.
        wide = torch.promote_types(maps.dtype, torch.float32)
        own = type(self._head)(
            self._num_heads, self._head.prepend_bos, self._head.append_eos,
            eos_idx=self._head.eos_idx,
        )  # fmt: skip
        weight = self._head.regression.weight.view(-1, self._num_heads)[layer : layer + 1]
        own.regression.weight = nn.Parameter(weight.to(wide), requires_grad=False)
        own.regression.bias = None
        own.activation = nn.Identity()
        share = own(self._tokens, maps.to(wide).transpose(0, 1).unsqueeze(1))[0]
        self._logits = share if self._logits is None else self._logits + share

    def contacts(self) -> Tensor:
        """``[P, 1]``: probabilities of pairs i <= j of residues, row by row."""
        assert self._logits is not None
        logits = self._logits + self._head.regression.bias.to(self._logits.dtype)
        upper = torch.ones_like(logits, dtype=torch.bool).triu()
        return torch.sigmoid(logits[upper]).unsqueeze(1)


@contextmanager
def listened_to(model: Any, tokens: Tensor) -> Iterator[ContactHead]:
    """One forward of fair-esm's ``model`` on ``tokens`` ``[1, L]`` inside the block tells the head.

    Maps are let go of layer by layer.
    """
    head = ContactHead(model.contact_head, model.attention_heads, tokens)
    with ExitStack() as hooks:
        for number, layer in enumerate(model.layers):
            before = layer.register_forward_pre_hook(_ask_for_maps, with_kwargs=True)
            after = layer.register_forward_hook(_taking_maps(head, number))
            hooks.callback(before.remove)
            hooks.callback(after.remove)
        yield head


def _ask_for_maps(layer: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    return args, {**kwargs, "need_head_weights": True}


def _taking_maps(head: ContactHead, number: int) -> Any:
    def take(layer: Any, args: Any, output: tuple[Tensor, Tensor]) -> tuple[Tensor, None]:
        x, maps = output
        head.add(number, maps)
        return x, None

    return take
