"""``esm2-run verify-signature``."""

from pathlib import Path

import click

from runtime.errors import Esm2Error
from runtime.one_line_errors import one_line_errors
from runtime.terminal import say


@click.command(
    "verify-signature",
    epilog="Example: esm2-run verify-signature artifacts/NAME --public-key me.pub",
)
@click.argument("artifact", type=click.Path(path_type=Path))
@click.option(
    "--public-key",
    required=True,
    metavar="FILE",
    help="Who must have signed: a public key in PEM, or certificates of who vouches for signers.",
)
@one_line_errors(Esm2Error, OSError)
def verify_signature(artifact: Path, public_key: str) -> None:
    """Compare every file of ARTIFACT with its signature; nothing of it is loaded.

    Exits with 0 if all of them are what was signed, else with 2.
    """
    from runtime import manifest as manifests

    manifest = manifests.read(artifact, trust=public_key)
    count = len(manifest.files) + 1
    say(f"{artifact}: {count} files are what {public_key} signed", fg="green")
