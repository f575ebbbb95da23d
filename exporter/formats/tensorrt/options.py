"""What the target ``tensorrt`` is asked for, and the profiles that follow from it."""

from dataclasses import dataclass
from pathlib import Path

from runtime.manifest_schema import Profile

# Cells of the padded grid for each token of the largest pack: what padding may cost.
CELLS_PER_TOKEN = 2
# 2 GiB in float32.
MAX_SCORES = 1 << 29
SHORTEST_PROFILE, PROFILE_STEP = 64, 4


@dataclass(frozen=True)
class PlanOptions:
    """Which plans to build.

    Attributes:
        compute_capabilities: of the cards, such as ``("8.0", "8.9")``; empty takes this machine's.
        max_tokens: of a pack; larger ones are split.
        max_seqlen: tokens of the longest protein that can run.
        timing_caches: a folder that keeps what TensorRT measured; None keeps nothing.
    """

    compute_capabilities: tuple[str, ...] = ()
    max_tokens: int = 16_384
    max_seqlen: int = 2_050
    timing_caches: Path | None = None


def profiles_of(
    rung: str, max_tokens: int, max_seqlen: int, num_heads: int, max_scores: int = MAX_SCORES
) -> list[Profile]:
    """The largest packs of a plan, in ascending order of the longest protein.

    Where the graph pads, a profile holds so many proteins that neither the padded grid nor the
    scores ``[N, H, max_seqlen, max_seqlen]`` exceed a bound, whatever the lengths are.

    Args:
        rung: key of ``exporter.formats.tensorrt.attention.RUNGS``.
        max_tokens: of a pack.
        max_seqlen: tokens of the longest protein.
        num_heads: H.
        max_scores: how many scores may be kept, which not every kernel does.
    """
    if rung == "packed":
        return [Profile(max_tokens, max_tokens, max_seqlen)]
    lengths = []
    length = SHORTEST_PROFILE
    while length < max_seqlen:
        lengths.append(length)
        length *= PROFILE_STEP
    lengths.append(max_seqlen)
    cells = CELLS_PER_TOKEN * max_tokens
    return [
        Profile(
            max_tokens,
            max(1, min(cells // length, max_scores // (num_heads * length**2))),
            length,
        )
        for length in lengths
    ]
