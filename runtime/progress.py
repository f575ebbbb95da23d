"""How far a stream of embeddings is: a bar in a terminal, in a log file a line now and then."""

import sys
import time
from collections.abc import Callable, Iterable, Iterator

from runtime.runner import Embedding, Totals

# Between lines in a log file.
LINE_SECONDS = 30.0


def with_progress(
    embeddings: Iterable[Embedding],
    totals: Totals,
    num_tokens: int | None,
    say: Callable[[str], None],
    tokens_before: int = 0,
    what: str = "proteins",
) -> Iterator[Embedding]:
    """Yields ``embeddings``.

    Args:
        embeddings: of a runner.
        totals: of that runner.
        num_tokens: of all proteins, or None where that is not known.
        say: receives each line.
        tokens_before: that an earlier run has run of them.
        what: comes out, in the plural.
    """
    if sys.stderr.isatty():
        return _in_a_bar(embeddings, totals, num_tokens, tokens_before, what)
    return _in_lines(embeddings, totals, num_tokens, say, tokens_before, what)


def _in_a_bar(
    embeddings: Iterable[Embedding], totals: Totals, num_tokens: int | None, tokens_before: int,
    what: str,
) -> Iterator[Embedding]:  # fmt: skip
    # Importing it and making its lock takes 30 ms of the 400 of a command that embeds one protein.
    from tqdm import tqdm

    with tqdm(total=num_tokens, initial=tokens_before, unit=" tokens", unit_scale=True) as bar:
        for embedding in embeddings:
            bar.update(embedding.num_tokens)
            bar.set_postfix_str(f"{totals.proteins} {what}", refresh=False)
            yield embedding


def _in_lines(
    embeddings: Iterable[Embedding], totals: Totals, num_tokens: int | None,
    say: Callable[[str], None], tokens: int, what: str,
) -> Iterator[Embedding]:  # fmt: skip
    started = said = time.perf_counter()
    for embedding in embeddings:
        tokens += embedding.num_tokens
        now = time.perf_counter()
        if now - said >= LINE_SECONDS:
            of_all = f" ({tokens / num_tokens:.0%})" if num_tokens else ""
            say(
                f"{totals.proteins:,} {what}, {totals.tokens:,} tokens{of_all} "
                f"after {now - started:.0f} s"
            )
            said = now
        yield embedding
