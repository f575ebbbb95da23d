"""Scores by their names: what is run of a variant, and what comes of it.

With p the softmax over all 33 tokens, x the wild type, i over the variant's positions:

- ``wt-marginals``: sum of ``log p(mutant_i | x) - log p(wild_i | x)``, nothing masked: one forward
  a protein.
- ``masked-marginals``: the same with ``x`` masked at ``i``: one forward a position. Of several
  substitutions each is masked alone, with the wild type elsewhere, and the sum is taken, as
  ProteinGym does (its issue 82) and fair-esm's table of single masks says.
- ``pseudo-ppl``: of the variant's own sequence y of L residues the sum over all j of
  ``log p(y_j | y masked at j)``: L forwards a variant. It is a log-likelihood, and no difference.

Higher is more likely. Sources: Meier et al. 2021, "Language models enable zero-shot prediction of
the effects of mutations on protein function", appendix A; fair-esm's
examples/variant-prediction/predict.py, ``label_row`` and ``compute_pppl``. The latter looks up the
residue behind the one that it masks and stops two residues early; here the definition is computed.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, get_args

import numpy as np

from runtime.errors import InputError
from runtime.variants.masking import Tokens, masked_copies
from runtime.variants.notation import Variant, WildType, mutated
from runtime.windows import Values

ConventionName = Literal["masked-marginals", "wt-marginals", "pseudo-ppl"]
CONVENTION_CHOICES: tuple[str, ...] = get_args(ConventionName)
DEFAULT: ConventionName = "masked-marginals"


class Convention(Protocol):
    """One of the above."""

    def runs(self, wild_type: WildType, variant: Variant) -> tuple[Tokens, ...]:
        """What is run: ``[L + 2]`` tokens each."""
        ...

    def num_runs(self, wild_type: WildType, variants: int, places: int) -> int:
        """How many of them are distinct for so many variants at so many places."""
        ...

    def score(self, wild_type: WildType, variant: Variant, values: Sequence[Values]) -> float:
        """The score, from ``masking.of_pack``'s log-probabilities of each of ``runs``."""
        ...


@dataclass(frozen=True)
class _WildTypeMarginals:
    def runs(self, wild_type: WildType, variant: Variant) -> tuple[Tokens, ...]:
        return (wild_type.tokens,)

    def num_runs(self, wild_type: WildType, variants: int, places: int) -> int:
        return min(1, variants)

    def score(self, wild_type: WildType, variant: Variant, values: Sequence[Values]) -> float:
        (rows,) = values
        return float(sum(rows[at, mutant] - rows[at, wild] for at, wild, mutant in variant))


@dataclass(frozen=True)
class _MaskedMarginals:
    def runs(self, wild_type: WildType, variant: Variant) -> tuple[Tokens, ...]:
        return masked_copies(wild_type.tokens, [each.place for each in variant])

    def num_runs(self, wild_type: WildType, variants: int, places: int) -> int:
        return places

    def score(self, wild_type: WildType, variant: Variant, values: Sequence[Values]) -> float:
        pairs = zip(variant, values, strict=True)
        return float(sum(row[0, each.mutant] - row[0, each.wild] for each, row in pairs))


@dataclass(frozen=True)
class _PseudoPerplexity:
    def runs(self, wild_type: WildType, variant: Variant) -> tuple[Tokens, ...]:
        return masked_copies(mutated(wild_type, variant), range(len(wild_type.residues)))

    def num_runs(self, wild_type: WildType, variants: int, places: int) -> int:
        return variants * len(wild_type.residues)

    def score(self, wild_type: WildType, variant: Variant, values: Sequence[Values]) -> float:
        return pseudo_log_likelihood(mutated(wild_type, variant), values)


_CONVENTIONS: dict[str, Convention] = {
    "masked-marginals": _MaskedMarginals(),
    "wt-marginals": _WildTypeMarginals(),
    "pseudo-ppl": _PseudoPerplexity(),
}


def convention_of(name: str) -> Convention:
    """Raises InputError for a name that is none."""
    if name not in _CONVENTIONS:
        raise InputError(f"convention must be one of {', '.join(_CONVENTIONS)}, got {name!r}")
    return _CONVENTIONS[name]


def pseudo_log_likelihood(tokens: Tokens, values: Sequence[Values]) -> float:
    """Sum of the residues' log-probabilities, each where it alone is masked.

    Args:
        tokens: ``[L + 2]``, BOS and EOS included.
        values: for each residue ``[1, 33]``.
    """
    rows = np.concatenate(values)
    return float(rows[np.arange(len(rows)), tokens[1:-1]].sum())


def pseudo_perplexity(tokens: Tokens, values: Sequence[Values]) -> float:
    """``exp(-1/L sum_j log p(x_j | x masked at j))``: Salazar et al. 2020, "Masked language model
    scoring", of one protein.

    Args:
        tokens: ``[L + 2]``, BOS and EOS included; at least one residue.
        values: for each residue ``[1, 33]``.
    """
    return float(np.exp(-pseudo_log_likelihood(tokens, values) / len(values)))
