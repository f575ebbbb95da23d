"""``make fuzz``: thousands of changed copies of an artifact, each loaded in a process of its own.

``unsealed``: the manifest's digests are as they were. ``resealed``: they are written anew, as who
changes an artifact on purpose does. ``trusted``: the same, of a signed artifact, with its key.
"""

import json
import multiprocessing
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import click

from exporter.signing import Signer
from tests.fuzz.judging import (
    CRASH,
    HANG,
    NOTICED,
    OUTCOMES,
    REFUSED,
    RIGHT,
    WRONG,
    Answers,
    Campaign,
    Verdict,
    answers_apart,
    judged_apart,
)
from tests.fuzz.mutations import MANIFEST, NOTHING, Recipe, mutations_of
from tests.runtime.signing import new_pair

CORPUS = Path(__file__).parent / "corpus.tsv"
NAMES = ("unsealed", "resealed", "trusted")
# Files that are code or are read by code that is not ours: who seals them anew can do anything.
CODE = (".ts", ".pt2", ".so", ".onnx")

Result = tuple[Recipe, Verdict]


def problem(name: str, recipe: Recipe, verdict: Verdict) -> str | None:
    """What must not be, in words; None where all is well."""
    if verdict.outcome == REFUSED and name != "resealed" and verdict.error != "ArtifactError":
        return f"refused as {verdict.error}"
    allowed = {RIGHT} if recipe.mutation == NOTHING else {RIGHT, REFUSED}
    if name == "resealed":
        allowed |= {WRONG, NOTICED}
        if recipe.file.endswith(CODE):
            allowed |= {CRASH, HANG}
    return None if verdict.outcome in allowed else verdict.outcome


def recipes(artifact: Path, copies: int, seed: int) -> list[Recipe]:
    """A whole copy; then each file as often, and each mutation of it as often."""
    rng = random.Random(seed)
    names = sorted(str(p.relative_to(artifact)) for p in artifact.rglob("*") if p.is_file())
    drawn = [
        Recipe(rng.choice(mutations_of(name)), name, rng.randrange(2**32))
        for name in (names[i % len(names)] for i in range(copies))
    ]
    return [Recipe(NOTHING, MANIFEST, 0), *drawn]


_campaign: Campaign
_expected: dict[str, Answers]


def _warm(campaign: Campaign) -> None:
    """Imports what copies need, but where nothing of it may be imported."""
    global _campaign, _expected
    if campaign.trust is None:
        import onnxruntime  # noqa: F401

        if set(campaign.engines) - {"onnx"}:
            import safetensors.torch  # noqa: F401
            import torch  # noqa: F401

            import runtime.engines.torch.torchscript
            import runtime.ops.varlen_attention  # noqa: F401
    import esm2_engines  # noqa: F401
    import runtime.selftest
    import runtime.trust.signature  # noqa: F401

    _campaign, _expected = campaign, answers_apart(campaign)


def _judged(recipe: Recipe) -> Result:
    return recipe, judged_apart(recipe, _campaign, _expected)


def run(
    name: str, artifact: Path, wanted: Iterable[Recipe], place: Path, jobs: int,
    engines: tuple[str, ...] = (),
) -> list[Result]:  # fmt: skip
    """A campaign of ``NAMES``.

    Args:
        name: of it.
        artifact: whole; it is signed where it needs to be.
        wanted: what is done to copies.
        place: for copies, on the same disk.
        jobs: processes.
        engines: those that are asked; all that there are.
    """
    fields = json.loads((artifact / MANIFEST).read_bytes())
    asked = engines or tuple(fields["engines"])
    readers = {
        file: [engine for engine in asked if file in fields["engines"][engine].values()]
        for file in fields["files"]
        if file not in ("golden.npz", "weights.safetensors")
    }
    readers = {file: found or asked[:1] for file, found in readers.items()}
    trust = _signed(artifact, place) if name == "trusted" else None
    campaign = Campaign(artifact, place, asked, readers, name != "unsealed", trust)
    # A fork of this process would have what it has imported.
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, spawn, _warm, (campaign,)) as pool:
        return list(pool.map(_judged, wanted, chunksize=4))


def _signed(artifact: Path, place: Path) -> Path:
    pair = new_pair(place, "signer")
    Signer(pair.private).sign(artifact)
    return pair.public


def table(results: list[Result], key: Callable[[Recipe], str]) -> list[str]:
    """Lines of outcomes by what ``key`` says of a recipe."""
    counts = Counter((key(recipe), verdict.outcome) for recipe, verdict in results)
    rows = sorted({row for row, _ in counts})
    outcomes = [o for o in OUTCOMES if any(counts[row, o] for row in rows)]
    width = max(map(len, [*rows, "all"]))
    lines = [f"{'':{width}}  {'copies':>8}" + "".join(f"  {o:>8}" for o in outcomes)]
    for row in [*rows, "all"]:
        of = [sum(counts[r, o] for r in rows if row in (r, "all")) for o in outcomes]
        cells = "".join(
            f"  {count:>{max(8, len(o))},}" for o, count in zip(outcomes, of, strict=True)
        )
        lines.append(f"{row:{width}}  {sum(of):>8,}{cells}")
    return lines


def corpus() -> list[tuple[str, Recipe]]:
    """Cases that once went wrong, and the campaign of each."""
    lines = CORPUS.read_text().splitlines()
    found = [line.split("\t") for line in lines if line and not line.startswith("#")]
    return [(name, Recipe(mutation, file, int(seed))) for name, mutation, file, seed in found]


@click.command(help=__doc__)
@click.argument("artifact", type=click.Path(path_type=Path, exists=True))
@click.option("--copies", default=2100, show_default=True, help="Of each campaign.")
@click.option("--campaign", "names", multiple=True, type=click.Choice(NAMES), default=NAMES)
@click.option("--seed", default=0, show_default=True)
@click.option("--jobs", default=2, show_default=True)
@click.option("--by-mutation", is_flag=True, help="A second table of each campaign.")
def main(
    artifact: Path, copies: int, names: tuple[str, ...], seed: int, jobs: int, by_mutation: bool
) -> None:
    failed = 0
    for name in names:
        began = time.monotonic()
        with tempfile.TemporaryDirectory() as folder:
            place = Path(folder)
            own = place / "whole" / artifact.name
            shutil.copytree(artifact, own)
            known = [r for n, r in corpus() if n == name and (own / r.file).exists()]
            results = run(name, own, [*known, *recipes(artifact, copies, seed)], place, jobs)
        seconds = time.monotonic() - began
        click.echo(f"\n{name}: {len(results):,} copies, seed {seed}, {seconds:.0f} s")
        lines = table(results, lambda recipe: recipe.file)
        if by_mutation:
            lines += ["", *table(results, lambda recipe: recipe.mutation)]
        click.echo("\n".join(lines))
        slowest = max(results, key=lambda result: result[1].seconds)
        click.echo(f"slowest: {slowest[1].seconds:.1f} s, {slowest[0]}: {slowest[1].outcome}")
        for recipe, verdict in results:
            if what := problem(name, recipe, verdict):
                failed += 1
                click.echo(f"{name}\t{recipe}\t{what}: {verdict.said[:300]}")
    if failed:
        click.echo(f"{failed} copies did what must not be: keep them in {CORPUS.name}")
    sys.exit(bool(failed))


if __name__ == "__main__":
    main()
