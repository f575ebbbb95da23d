"""How many packs run at once on a CPU, and of what size: by cores, work at hand, and memory.

One pack on all cores idles between its operators; packs side by side do not, but the last of a
stream runs alone. So an even stream gets a core for each pack, and a protein that outweighs it all
cores.
"""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from runtime.threads import default_threads, usable_memory

if TYPE_CHECKING:
    from runtime.readers.scan import Scan

# On 2 cores two packs of this size took 0.85 of the time of one that both share.
LEAST_PACK_TOKENS = 512
# Of the memory that the process may take, for packs in flight; the rest is for weights and results.
MEMORY_SHARE = 0.5
# Rows of E floats that a pack holds for each of its tokens at its peak. Measured: 17 with ONNX
# Runtime at 8M, for proteins of 64 and of 2,048 tokens; more here, for its arena keeps what other
# shapes took.
ROWS_PER_TOKEN = 24
FLOAT_BYTES = 4
# The same of the engine that takes most, for a protein alone: 14 to 31 were measured, of 2,000 to
# 20,000 tokens; and where scores are kept, of heads x tokens^2 numbers: 0.8 to 2.5.
MOST_ROWS_PER_TOKEN = 32
MOST_SCORES = 2.5


@dataclass(frozen=True)
class Stream:
    """What is known of the proteins before they are run; None where they come through a pipe."""

    num_proteins: int | None = None
    num_tokens: int | None = None
    longest: int | None = None

    @classmethod
    def of(cls, found: "Scan") -> "Stream":
        """What files hold that were scanned; what came through a pipe is not known."""
        if not found.is_whole:
            return cls()
        return cls(found.num_proteins, found.tokens_to_run, found.longest)


@dataclass(frozen=True)
class Packing:
    """Packs at once, and the budget of one in tokens."""

    concurrency: int
    max_tokens: int


def packing_for(
    found: "Scan", embed_dim: int, max_tokens: int, threads: int | None, concurrency: int | None
) -> Packing:
    """For files that were scanned; what the caller asks for is taken as it is.

    Args:
        found: in the files; what came through a pipe is not known.
        embed_dim: E.
        max_tokens: the largest budget of a pack.
        threads: None takes ``default_threads``.
        concurrency: None chooses.
    """
    if concurrency is not None:
        return Packing(concurrency, max_tokens)
    return choose_packing(
        threads or default_threads(), max_tokens, embed_dim, Stream.of(found), usable_memory()
    )


def budget_of(packing: Packing, concurrency: int, device: str, max_tokens: int) -> int:
    """Of a pack, once an engine is loaded: smaller ones are for engines that share their cores.

    Args:
        packing: that was chosen before.
        concurrency: of the engine.
        device: that it runs on.
        max_tokens: that the caller asked for, or the engine's default.
    """
    return packing.max_tokens if concurrency > 1 and device == "cpu" else max_tokens


def memory_of_longest(tokens: int, embed_dim: int, num_heads: int, keeps_scores: bool) -> int:
    """Bytes that a protein's own pack may take beside the weights, in float32; no less.

    Args:
        tokens: of the protein.
        embed_dim: E.
        num_heads: of an attention layer.
        keeps_scores: attention is computed in standard ops.
    """
    scores = MOST_SCORES * num_heads * tokens**2 if keeps_scores else 0
    return int(FLOAT_BYTES * (MOST_ROWS_PER_TOKEN * embed_dim * tokens + scores))


def choose_packing(
    threads: int, max_tokens: int, embed_dim: int, stream: Stream, memory: int | None
) -> Packing:
    """For an engine that takes several packs at once.

    Args:
        threads: CPU threads in all.
        max_tokens: the largest budget of a pack; a longer protein gets a pack of its own.
        embed_dim: E.
        stream: of the input; BOS and EOS count as tokens.
        memory: bytes that the process may take, or None where that is not known.
    """
    budget = max_tokens
    if stream.num_tokens is not None and stream.longest is not None:
        share = math.ceil(stream.num_tokens / threads)
        budget = min(max_tokens, max(share, stream.longest, LEAST_PACK_TOKENS))
    concurrency = min(threads, _by_work(threads, budget, embed_dim, stream))
    if memory is not None:
        of_pack = max(budget, stream.longest or 0) * embed_dim * ROWS_PER_TOKEN * FLOAT_BYTES
        concurrency = min(concurrency, int(MEMORY_SHARE * memory / of_pack))
    return Packing(max(1, concurrency), budget)


def _by_work(threads: int, budget: int, embed_dim: int, stream: Stream) -> int:
    """As many as let the heaviest pack end, should it run last, when the others could have.

    With k packs at once a pack that is alone has ``threads - k + 1`` threads
    (``runtime.threads.Threads.of_pool``). Its work w on them should not take longer than all work W
    on all threads: ``w / (threads - k + 1) <= W / threads``.
    """
    if stream.num_proteins is None or stream.num_tokens is None or stream.longest is None:
        return threads
    if stream.num_proteins == 0:
        return 1
    heaviest_tokens = max(stream.longest, min(budget, stream.num_tokens))
    heaviest = _work(heaviest_tokens, stream.longest, embed_dim)
    others = stream.num_proteins - 1
    work = _work(stream.longest, stream.longest, embed_dim)
    if others:
        tokens = stream.num_tokens - stream.longest
        work += _work(tokens, tokens / others, embed_dim)
    packs = math.ceil(stream.num_tokens / budget)
    return min(packs, math.floor(threads + 1 - threads * min(1.0, heaviest / work)))


def _work(tokens: float, length: float, embed_dim: int) -> float:
    """Of ``tokens`` in proteins of one length, in units of 2 E multiplications a layer.

    A token's linears take 12 E^2 (q, k, v and out 4, feed-forward 8), its attention 2 E a key.
    """
    return tokens * (6 * embed_dim + length)
