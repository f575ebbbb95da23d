"""``esm2-run extract``, with the flags of fair-esm's ``scripts/extract.py``."""

import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from runtime.device import MAX_TOKENS_RULE, kind_of
from runtime.engine_options import concurrency_option, device_option, engine_option
from runtime.errors import Esm2Error, InputError
from runtime.one_line_errors import SOME_REJECTED, one_line_errors
from runtime.readers.record_options import record_options
from runtime.terminal import say, tell, warn

if TYPE_CHECKING:
    from runtime.extract.run import Extracted, ExtractOptions

INCLUDE = ("mean", "per_tok", "bos", "contacts")
SEVERAL = ("--repr_layers", "--include")
# -1 is a value, as it is for argparse.
_OPTION = re.compile(r"-(?!\d)")


class _WithSeveral(click.Command):
    """A command whose ``SEVERAL`` options take all words up to the next option, as in argparse."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Puts those words into one, which click takes."""
        return super().parse_args(ctx, list(_joined(args)))


def _joined(words: list[str]) -> Iterator[str]:
    words = list(words)
    while words:
        word = words.pop(0)
        yield word
        values = []
        while word in SEVERAL and words and not _OPTION.match(words[0]):
            values.append(words.pop(0))
        if values:
            yield " ".join(values)


def _each(
    word_type: "click.ParamType[Any]",
) -> Callable[[click.Context, click.Parameter, str], tuple[Any, ...]]:
    """What converts the words of one of the ``SEVERAL``."""

    def convert(context: click.Context, option: click.Parameter, words: str) -> tuple[Any, ...]:
        if not words.split():
            raise click.BadParameter("it has no value", context, option)
        return tuple(word_type.convert(word, option, context) for word in words.split())

    return convert


@click.command(
    cls=_WithSeveral,
    epilog="Example: esm2-run extract artifacts/NAME x.fasta out/ --include mean per_tok",
)
@click.argument("artifact", type=click.Path(path_type=Path))
@click.argument("fasta_file")
@click.argument("output_dir", type=click.Path(path_type=Path))
@click.option(
    "--toks_per_batch",
    type=click.IntRange(min=1),
    help=f"Budget of a pack, in tokens.  [default: {MAX_TOKENS_RULE}]",
)
@click.option(
    "--repr_layers",
    callback=_each(click.INT),
    default="-1",
    show_default=True,
    metavar="N...",
    help="Layers, from 0 on; -1 is the last. The artifact must export them.",
)
@click.option(
    "--include",
    callback=_each(click.Choice(INCLUDE)),
    required=True,
    metavar="[mean|per_tok|bos|contacts]...",
    help="What to write of each layer.",
)
@click.option(
    "--truncation_seq_length",
    type=click.IntRange(min=1),
    default=1022,
    show_default=True,
    help="Residues that are run of longer proteins.",
)
@click.option("--nogpu", is_flag=True, help="The same as --device cpu.")
@engine_option
@device_option
@click.option("--threads", type=click.IntRange(min=1), help="CPU threads.  [default: every core]")
@concurrency_option
@record_options
@one_line_errors(Esm2Error, OSError)
def extract(
    artifact: Path, fasta_file: str, output_dir: Path, toks_per_batch: int | None,
    repr_layers: tuple[int, ...], include: tuple[str, ...], truncation_seq_length: int,
    nogpu: bool, engine: str, device: str, threads: int | None, concurrency: int | None,
    on_error: str, unknown: Any, upper: bool, strip_stop: bool,
) -> None:  # fmt: skip
    """Write what fair-esm's extract.py writes: OUTPUT_DIR/LABEL.pt for each protein.

    Takes that script's flags. Exits with 0 if every record was extracted, 3 if some were rejected
    (--on-error skip: they are listed in OUTPUT_DIR), 2 on errors.
    """
    from runtime.extract.run import ExtractOptions
    from runtime.readers.records import RecordOptions

    if nogpu and kind_of(device) == "cuda":
        raise InputError(f"--nogpu is --device cpu, got --device {device} too")
    options = ExtractOptions(
        artifact=artifact,
        fasta=fasta_file,
        output=output_dir,
        repr_layers=repr_layers,
        include=include,
        max_tokens=toks_per_batch,
        engine=engine,
        device="cpu" if nogpu else device,
        threads=threads,
        concurrency=concurrency,
        skip=on_error == "skip",
        records=RecordOptions(unknown, upper, strip_stop, truncation_seq_length, "truncate"),
    )
    run_and_report(options)


def run_and_report(options: "ExtractOptions") -> None:
    """Extracts, says what was done, and exits with 3 if some records were rejected."""
    from runtime.extract.run import extract as run

    extracted = run(options, tell, warn)
    _summarise(options.output, extracted)
    if extracted.rejected:
        sys.exit(SOME_REJECTED)


def _summarise(output: Path, extracted: "Extracted") -> None:
    tokens = extracted.totals.tokens
    say(
        f"{output}: {extracted.files:,} files, {tokens:,} tokens in {extracted.seconds:.1f} s "
        f"({tokens / extracted.seconds:,.0f} tokens/s, loading included), "
        f"{extracted.bytes / 1e6:.1f} MB"
    )
    if extracted.rejected:
        say(f"  records rejected, listed in {extracted.rejected_path}: {extracted.rejected:,}")
