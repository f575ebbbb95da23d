"""``esm2-export rebuild-check``."""

import os
import sys
from pathlib import Path

import click

from exporter.errors import ExportError
from runtime.errors import Esm2Error
from runtime.one_line_errors import one_line_errors
from runtime.terminal import say
from runtime.trust.whom import VARIABLE as TRUST_VARIABLE

DIFFERS = 1


@click.command(epilog="Example: esm2-export rebuild-check artifacts/NAME")
@click.argument("artifact", type=click.Path(path_type=Path))
@click.option("--checkpoint", help="What the artifact was built from, as build takes it.")
@click.option("--probe", metavar="FILE", help="Its linear probe, if it has one.")
@click.option("--calibration", type=click.Path(), help="Its FASTA, if it was built with one.")
@click.option(
    "--use-cache", is_flag=True, help="Do not compile the native ops anew: saves half a minute."
)
@one_line_errors(ExportError, Esm2Error, OSError)
def rebuild_check(
    artifact: Path, checkpoint: str | None, probe: str | None, calibration: str | None,
    use_cache: bool,
) -> None:  # fmt: skip
    """Build ARTIFACT again, as its provenance says, and compare every file.

    Exits with 0 if all files are the same but those that cannot be, 1 if another differs, 2 if it
    cannot be built again. Synthetic weights and fair-esm's models by name need no option.
    """
    from exporter.own_proteins import calibration_of
    from exporter.rebuild.run import rebuild
    from runtime import manifest as manifests

    manifests.read(artifact)  # by whom is trusted, if somebody is
    os.environ.pop(TRUST_VARIABLE, None)  # what is built here is not signed
    outcomes, differences = rebuild(
        artifact,
        lambda line: say(line, err=True),
        checkpoint=checkpoint,
        probe=probe,
        calibration=None if calibration is None else calibration_of(calibration),
        afresh=not use_cache,
    )
    width = max(len(outcome.name) for outcome in outcomes)
    for outcome in outcomes:
        verdict = "same" if outcome.same else "differs"
        reason = f", as declared: {outcome.reason}" if outcome.reason else ""
        say(f"{outcome.name:{width}}  {verdict}{reason}", fg=None if outcome.is_accepted else "red")
    for line in differences:
        say(f"not alike: {line}", err=True)
    refused = [outcome.name for outcome in outcomes if not outcome.is_accepted]
    if refused:
        say(f"DIFFERS: {', '.join(refused)}", fg="red", bold=True)
        sys.exit(DIFFERS)
    say("SAME", fg="green", bold=True)
