"""The truth of a head: transformers' own model of its class, whole; of a linear probe, its numbers.

The model gets fair-esm's parameters, in fair-esm's dtype, and shares their memory. In float64 it
must agree with fair-esm on the last representation: so two programs of other authors vouch for it.
"""

import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from torch import Tensor, nn

from exporter.errors import ExportError
from exporter.model.heads import sequence_classification, token_classification
from exporter.model.heads.head import Head
from exporter.model.reference import WithoutMemory
from exporter.model.sources.names import rename_to_hugging_face
from exporter.model.witness import CLASS_OF_HEAD
from runtime.tokenizer import TOKENS

# Both are float64 and add in another order: some thousand roundings of 1e-16.
AGREEMENT = 1e-12
_RENAMES = {
    "sequence_classification": sequence_classification.RENAMES,
    "token_classification": token_classification.RENAMES,
}


class HeadTruth:
    """What a head says of a protein.

    Args:
        model: fair-esm's ``ESM2`` with its head, in the dtype and on the device to compute in.
        dtype: of it.
        int8: its linears are quantised, which transformers' would not be; the head's never are.
    """

    def __init__(self, model: Any, dtype: torch.dtype, int8: bool):
        self._head: Head = model.head
        self._dtype = dtype
        self._twin = None
        if self._head.entry.kind in CLASS_OF_HEAD and not int8:
            self._twin = _twin_of(model, self._head)

    def __call__(self, tokens: Tensor, embedded: Tensor, last: Tensor, pooled: Tensor) -> Tensor:
        """``[1, C]`` of a protein, or ``[L, C]``.

        Args:
            tokens: ``[1, L]``.
            embedded: ``[1, L, E]``, fair-esm's scaled embeddings.
            last: ``[1, L, E]``, fair-esm's last representation.
            pooled: ``[1, E]``, of it, as a linear probe reads it.

        Raises:
            ExportError: transformers' model in float64 is not fair-esm's.
        """
        if self._head.entry.kind == "linear_probe":
            rows = last[0] if self._head.entry.pool is None else pooled
            return self._probe(rows)
        if self._twin is None:
            bounds = torch.tensor([0, tokens.shape[1]], device=tokens.device)
            return self._head(last[0], bounds)  # type: ignore[no-any-return]
        exact = self._dtype == torch.float64
        # transformers scales embeddings by a share of masks that it rounds to float32.
        given = {"inputs_embeds": embedded} if exact else {"input_ids": tokens}
        with _in_float64() if exact else nullcontext():
            said = self._twin(**given, output_hidden_states=True)
        if exact and not (said.hidden_states[-1] - last).norm() <= AGREEMENT * last.norm():
            raise ExportError(
                f"transformers {_version()} in float64 gives other representations than fair-esm "
                f"in float64, by more than {AGREEMENT:.0e}: it cannot be the measure of a head. "
                "Take the version that this project was tested with"
            )
        return said.logits.reshape(-1, self._head.num_labels)  # type: ignore[no-any-return]

    def _probe(self, rows: Tensor) -> Tensor:
        linear: Any = self._head.out_proj
        if self._dtype != torch.float64:
            return nn.functional.linear(rows, linear.weight, linear.bias)
        weight, bias, x = (t.detach().cpu().numpy() for t in (linear.weight, linear.bias, rows))
        return torch.from_numpy(np.asarray(x @ weight.T + bias))


def recipe_of(head: Head | None) -> str:
    """What answers of a head depend on beside weights; empty where there is none."""
    if head is None:
        return ""
    by = f"transformers {_version()}" if head.entry.kind in CLASS_OF_HEAD else "numpy"
    return f", head {head.entry.kind} {head.entry.pool} {head.entry.rows} by {by}"


def measure_of(head: Head) -> str:
    """What a head is compared with, for the report."""
    kind = CLASS_OF_HEAD.get(head.entry.kind)
    if kind is None:
        return "the probe's weights on eager fair-esm's vectors, by NumPy in float64"
    return f"{kind} of transformers {_version()} in float64, one protein at a time"


def _version() -> str:
    if importlib.util.find_spec("transformers") is None:
        raise ExportError(
            "a classifier is compared with transformers' own model, and transformers is not "
            "installed: pip install transformers; or leave the classifier out with --no-head"
        )
    import transformers

    return str(transformers.__version__)


def _twin_of(model: Any, head: Head) -> Any:
    """The class of transformers that has such a head, with fair-esm's parameters."""
    _version()
    import transformers

    settings = {
        "vocab_size": len(TOKENS),
        "mask_token_id": model.mask_idx,
        "pad_token_id": model.padding_idx,
        "hidden_size": model.embed_dim,
        "intermediate_size": 4 * model.embed_dim,
        "num_hidden_layers": model.num_layers,
        "num_attention_heads": model.attention_heads,
        "position_embedding_type": "rotary",
        "emb_layer_norm_before": False,
        "layer_norm_eps": 1e-5,
        "token_dropout": model.token_dropout,
        "num_labels": head.num_labels,
        "attn_implementation": "eager",
    }
    with WithoutMemory():
        twin = getattr(transformers, CLASS_OF_HEAD[head.entry.kind])(
            transformers.EsmConfig(**settings)
        )
    twin.requires_grad_(False)  # assigned parameters take it over, and they are fair-esm's
    state = {**_trunk(model), **_classifier(head)}
    missing, unknown = twin.load_state_dict(state, strict=False, assign=True)
    lost = [name for name in missing if not name.endswith("inv_freq")]
    if lost or unknown:
        raise ExportError(
            f"transformers {_version()} has other parameters in its {type(twin).__name__}: "
            f"{', '.join([*lost, *unknown][:3])}. Take the version that this project was tested "
            "with"
        )
    frequencies = model.layers[0].self_attn.rot_emb.inv_freq
    # As a checkpoint holds them: half precision does not round them there.
    wide = torch.promote_types(frequencies.dtype, torch.float32)
    for module in twin.modules():
        for name in list(module._buffers):
            own = module._buffers[name]
            if name == "inv_freq":
                module._buffers[name] = frequencies.to(wide)
            elif own is not None:
                module._buffers[name] = own.to(frequencies.device)
    return twin.eval()


def _trunk(model: Any) -> dict[str, Tensor]:
    parts = ("embed_tokens.", "layers.", "emb_layer_norm_after.", "contact_head.")
    return rename_to_hugging_face(
        {name: parameter for name, parameter in model.named_parameters() if name.startswith(parts)}
    )


def _classifier(head: Head) -> dict[str, Tensor]:
    theirs = {ours: name for name, ours in _RENAMES[head.entry.kind].items()}
    found: dict[str, Tensor] = {}
    for name, parameter in head.named_parameters():
        module, _, leaf = name.rpartition(".")
        found[".".join(filter(None, ("classifier", theirs[module], leaf)))] = parameter
    return found


@contextmanager
def _in_float64() -> Iterator[None]:
    """Lets transformers' rotary compute in float64, which it rounds to float32 in every dtype."""
    from transformers.models.esm import modeling_esm

    def tables(self: Any, x: Tensor, position_ids: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
        angles = position_ids[..., None].double() * self.inv_freq.double()
        angles = torch.cat((angles, angles), dim=-1)
        return angles.cos(), angles.sin()

    def rotate(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, unsqueeze_dim: int = 1) -> Any:
        cos, sin = cos.unsqueeze(unsqueeze_dim), sin.unsqueeze(unsqueeze_dim)
        half: Any = modeling_esm.rotate_half
        return tuple(x * cos + half(x) * sin for x in (q, k))

    if not hasattr(modeling_esm.EsmRotaryEmbedding, "compute_default_rope_parameters"):
        yield  # transformers 4 has tables of the model's own dtype
        return
    with (
        patch.object(modeling_esm.EsmRotaryEmbedding, "forward", tables),
        patch.object(modeling_esm, "apply_rotary_pos_emb", rotate),
    ):
        yield
