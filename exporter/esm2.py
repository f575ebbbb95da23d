"""ESM-2 in eager PyTorch: padded as fair-esm runs it, and packed on this machine's attention."""

import logging
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from exporter.attention import configure_flash_attention, get_attention_implementation
from exporter.model.packed_forward import PackedESM2, check_repr_layers
from exporter.model.spans import check_cu_seqlens
from runtime.attention import default_attention


class ESM2WithFlashAttention(nn.Module):
    """ESM-2 in eager PyTorch: padded as fair-esm runs it, and packed.

    Args:
        base_model: fair-esm's ``ESM2``; its parameters are shared, and moved.
        device: where to run.
        dtype: None keeps the model's.
        logger: receives the one line that says which attention runs.
    """

    def __init__(
        self,
        base_model: Any,
        device: torch.device | str,
        dtype: torch.dtype | None = None,
        logger: logging.Logger | None = None,
    ):
        super().__init__()
        # Before the cast: the packed forward keeps the unrounded rotary frequencies.
        self.packed = PackedESM2(base_model).eval()
        self.base_model = base_model.eval()
        self.to(device=device, dtype=dtype)
        self.head_dim: int = base_model.embed_dim // base_model.attention_heads
        self.attention = get_attention_implementation(device)
        configure_flash_attention(self, logger)

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return self.packed.embed_tokens.weight.device

    @property
    def dtype(self) -> torch.dtype:
        """Of the parameters."""
        return self.packed.embed_tokens.weight.dtype

    @torch.no_grad()
    def forward(self, tokens: Tensor, repr_layers: Iterable[int] = ()) -> dict[str, Any]:
        """Eager fair-esm on a padded batch.

        Args:
            tokens: ``[N, L]`` int64, padded with 1.
            repr_layers: layers 0..num_layers.

        Returns:
            ``{"logits": [N, L, 33], "representations": {layer: [N, L, E]}}``; no logits where the
            checkpoint has no LM head.

        Raises:
            ValueError: a layer that does not exist.
        """
        layers = check_repr_layers(repr_layers, self.packed.num_layers)
        outputs: dict[str, Any] = self.base_model(tokens.to(self.device), repr_layers=layers)
        if self.packed.lm_head is None:
            del outputs["logits"]
        return outputs

    @torch.no_grad()
    def forward_packed(
        self,
        input_ids: Tensor,
        cu_seqlens: Tensor,
        max_seqlen: int,
        repr_layers: Iterable[int] | None = None,
        v1_compatible: bool = False,
    ) -> dict[str, Any]:
        """The packed forward.

        Args:
            input_ids: ``[T]`` int64, BOS and EOS of every protein included, no padding.
            cu_seqlens: ``[N + 1]`` int32.
            max_seqlen: tokens of the longest protein.
            repr_layers: layers 0..num_layers; None takes the last.
            v1_compatible: unpack to a padded batch, run eager fair-esm, pack again. Also where
                ``ESM2_V1_ATTENTION`` is true, and where no packed kernel can run.

        Returns:
            ``{"representations": {layer: [T, E]}, "logits": [T, 33]}``; no logits where the
            checkpoint has no LM head.

        Raises:
            ValueError: a layer that does not exist, or a malformed ``cu_seqlens``.
        """
        wanted = (self.packed.num_layers,) if repr_layers is None else repr_layers
        layers = check_repr_layers(wanted, self.packed.num_layers)
        check_cu_seqlens(cu_seqlens)
        input_ids, cu_seqlens = input_ids.to(self.device), cu_seqlens.to(self.device)
        as_v1 = v1_compatible or default_attention() == "standard"
        if as_v1 or not self.attention.runs_packed:
            return self._forward_unpacked(input_ids, cu_seqlens, max_seqlen, layers)
        logits, representations, _ = self.packed.encode(
            input_ids, cu_seqlens.int(), torch.tensor(max_seqlen), layers
        )
        found: dict[str, Any] = {"representations": representations}
        return found if logits is None else {**found, "logits": logits}

    def _forward_unpacked(
        self, input_ids: Tensor, cu_seqlens: Tensor, max_seqlen: int, layers: Sequence[int]
    ) -> dict[str, Any]:
        columns = torch.arange(max_seqlen, device=self.device)
        is_token = columns < cu_seqlens.diff().unsqueeze(1)
        tokens = torch.full(is_token.shape, self.base_model.padding_idx, device=self.device)
        tokens[is_token] = input_ids
        padded = self.base_model(tokens, repr_layers=layers)
        rows = {k: padded["representations"][k][is_token] for k in layers}
        found: dict[str, Any] = {"representations": rows}
        if self.packed.lm_head is not None:
            found["logits"] = padded["logits"][is_token]
        return found


def load_esm2_model(
    model_name: str,
    device: torch.device | str,
    dtype: torch.dtype | None = None,
    synthetic: bool = False,
    logger: logging.Logger | None = None,
) -> tuple[ESM2WithFlashAttention, Callable[..., Any]]:
    """Loads ESM-2 for eager use.

    Args:
        model_name: fair-esm's name of a model, a checkpoint file, a Hugging Face folder, or a name
            on the Hugging Face Hub.
        device: where to run.
        dtype: None takes float32.
        synthetic: random weights of the architecture ``model_name``, for trying the project.
        logger: see ``ESM2WithFlashAttention``.

    Returns:
        The model, and fair-esm's batch converter.

    Raises:
        CheckpointError: one line that says what is wrong with the weights.
    """
    from exporter.model.architectures import ARCHITECTURES
    from exporter.model.reference import SourceKind, WeightsSource, load_reference

    kind: SourceKind = "model" if model_name in ARCHITECTURES else "checkpoint"
    source = WeightsSource("synthetic" if synthetic else kind, model_name, with_head=False)
    reference = load_reference(source)
    model = ESM2WithFlashAttention(reference.model, device, dtype, logger)
    return model, reference.alphabet.get_batch_converter()
