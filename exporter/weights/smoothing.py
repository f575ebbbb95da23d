"""Powers of two by which large channels are made smaller before they are quantised.

A token has one scale, so that a channel 30 times as large as the others leaves them 4 levels of
127. SmoothQuant (Xiao et al., 2022) divides such a channel, and multiplies the column of weights
that reads it. The division costs nothing where weights give the channel: a LayerNorm's, or those of
the values, in which attention is linear. Powers of two change no bit of a float32's fraction.
"""

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

SUFFIX = ".smoothing"
# A channel is large, or small, where SmoothQuant's factor is so many powers of two from the layer's
# median: the others, and so all of random weights, are quantised as they are.
LEAST_STEPS, MOST_STEPS = 2, 12


class Site(NamedTuple):
    """Activations that are quantised once.

    Attributes:
        readers: the linears that read them; the first names the factors.
        giver: the module whose weights take the factors in, or None: the graph multiplies.
    """

    readers: tuple[str, ...]
    giver: str | None


_OF_A_LAYER = (
    Site(("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"), "self_attn_layer_norm"),
    Site(("self_attn.out_proj",), "self_attn.v_proj"),
    Site(("fc1",), "final_layer_norm"),
    # Behind GELU, which is not linear.
    Site(("fc2",), None),
)
# Its LayerNorm gives an output of the engine, too.
_LM_HEAD = Site(("lm_head.dense",), None)


def sites(linears: Iterable[str]) -> Iterator[Site]:
    """Of a model with these linears, each once."""
    for name in linears:
        if name in _LM_HEAD.readers:
            yield _LM_HEAD
        layer = ".".join(name.split(".")[:2])  # layers.<number>
        for readers, giver in _OF_A_LAYER:
            if name == f"{layer}.{readers[0]}":
                named = tuple(f"{layer}.{reader}" for reader in readers)
                yield Site(named, f"{layer}.{giver}" if giver else None)


def factors_of(largest: Tensor, weights: Sequence[Tensor]) -> Tensor | None:
    """What each channel is multiplied by, ``[K]``; None where none is large or small.

    By equation 4 of SmoothQuant with a migration strength of 1/2: a channel is divided by the root
    of what is largest in it over what is largest in its column of weights.

    Args:
        largest: ``[K]`` magnitudes of the channels of the activations.
        weights: ``[N, K]`` of the linears that read them.
    """
    columns = torch.stack([weight.abs().amax(dim=0) for weight in weights]).amax(dim=0)
    used = (largest > 0) & (columns > 0)
    if not used.any():
        return None
    steps = torch.where(used, largest / columns, 1.0).sqrt().log2()
    steps = (steps - steps[used].median()).round().clamp(-MOST_STEPS, MOST_STEPS)
    steps[(steps.abs() < LEAST_STEPS) | ~used] = 0
    return torch.exp2(-steps) if steps.any() else None


@dataclass(frozen=True)
class Smoothing:
    """The factors of a model.

    Attributes:
        factors: ``[K]`` float32 powers of two by the first linear of each ``Site`` that has any.
    """

    factors: Mapping[str, Tensor]

    @cached_property
    def sites(self) -> tuple[Site, ...]:
        """Those with factors."""
        return tuple(sites(self.factors))

    @cached_property
    def of_inputs(self) -> dict[str, Tensor]:
        """By each linear that reads smoothed activations."""
        return {
            reader: self.factors[site.readers[0]] for site in self.sites for reader in site.readers
        }

    @cached_property
    def of_outputs(self) -> dict[str, Tensor]:
        """By each module that gives them."""
        return {site.giver: self.factors[site.readers[0]] for site in self.sites if site.giver}

    @cached_property
    def multiplied(self) -> tuple[str, ...]:
        """The linears whose input the graph multiplies."""
        return tuple(site.readers[0] for site in self.sites if site.giver is None)

    def columns_undone(self, linear: str, weight: Tensor) -> Tensor:
        """``[N, K]`` for smoothed activations."""
        factors = self.of_inputs.get(linear)
        return weight if factors is None else weight / factors

    def taken_in(self, name: str, parameter: Tensor) -> Tensor:
        """The parameter of the engine in place of the checkpoint's; exact in float32.

        Args:
            name: fair-esm's.
            parameter: ``[N, K]``, or ``[N]`` of a bias or a LayerNorm.
        """
        module = name.rpartition(".")[0]
        if parameter.ndim == 2:
            parameter = self.columns_undone(module, parameter)
        factors = self.of_outputs.get(module)
        if factors is None:
            return parameter
        return parameter * (factors[:, None] if parameter.ndim == 2 else factors)

    def digest(self) -> str:
        """Of all factors."""
        digest = hashlib.sha256()
        for name, factors in sorted(self.factors.items()):
            digest.update(f"{name} ".encode() + factors.numpy().tobytes())
        return digest.hexdigest()

    def problems(self, linears: Mapping[str, Tensor]) -> list[str]:
        """Factors that are no powers of two, or of no such input; in sentences.

        Args:
            linears: the weights ``[N, K]`` of the model's linears.
        """
        known = {site.readers[0] for site in sites(linears)}
        found = []
        for name, factors in self.factors.items():
            if name not in known or factors.shape != linears[name].shape[1:]:
                found.append(f"{name}{SUFFIX} is of no input of this model")
            elif not (torch.frexp(factors).mantissa == 0.5).all():
                found.append(f"{name}{SUFFIX} holds more than powers of two")
        return found


NOTHING = Smoothing({})
