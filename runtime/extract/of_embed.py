"""``esm2-run embed --format pt``: the same files, by the options of ``embed``."""

from pathlib import Path

from runtime.embed_options import EmbedOptions
from runtime.errors import InputError
from runtime.extract.run import ExtractOptions

# How embed calls what fair-esm's script includes.
INCLUDED = {"mean": "mean", "none": "per_tok", "cls": "bos"}


def extract_options(
    options: EmbedOptions, output: Path, resume: bool, as_json: bool
) -> ExtractOptions:
    """What ``extract`` is to do.

    Args:
        options: of ``embed``.
        output: the folder.
        resume, as_json: whether ``--resume`` and ``--json`` were given.

    Raises:
        InputError: an option that means nothing for a file a protein, or another number of inputs
            than one.
    """
    given = {
        "--resume": resume, "--json": as_json, "--sequence-column": options.columns,
        "--store": options.store, "--with": options.added, "--cache": options.cache,
        "--ray": options.ray, "--attention": options.attention, "--tf32": options.tf32,
        "--cuda-graphs": options.cuda_graphs, "--long window": options.records.long == "window",
    }  # fmt: skip
    if meaningless := [name for name, value in given.items() if value]:
        raise InputError(f"--format pt goes without {', '.join(meaningless)}. Write Parquet")
    if len(options.inputs) != 1:
        raise InputError(f"--format pt takes one FASTA file, got {len(options.inputs)}")
    if others := [pool for pool in options.pools if pool not in INCLUDED]:
        raise InputError(f"fair-esm's files hold mean, none and cls, got --pool {others[0]}")
    return ExtractOptions(
        artifact=options.artifact,
        fasta=options.inputs[0],
        output=output,
        repr_layers=options.layers or (-1,),
        include=[INCLUDED[pool] for pool in options.pools],
        max_tokens=options.max_tokens,
        engine=options.engine,
        device=options.device,
        threads=options.threads,
        concurrency=options.concurrency,
        skip=options.skip,
        records=options.records,
    )
