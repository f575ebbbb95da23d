"""``esm2-export sign``."""

from pathlib import Path

import click

from exporter.errors import ExportError
from runtime.errors import Esm2Error
from runtime.one_line_errors import one_line_errors
from runtime.terminal import say


@click.command(epilog="Example: esm2-export sign artifacts/NAME --private-key me.pem")
@click.argument("artifact", type=click.Path(path_type=Path))
@click.option(
    "--private-key",
    required=True,
    type=click.Path(path_type=Path),
    help="ECDSA of P-256, P-384 or P-521, in PEM.",
)
@click.option(
    "--certificate",
    "certificates",
    multiple=True,
    type=click.Path(path_type=Path),
    help="In PEM: the key's own first, then who issued it; may be given several times.",
)
@one_line_errors(ExportError, Esm2Error, OSError)
def sign(artifact: Path, private_key: Path, certificates: tuple[Path, ...]) -> None:
    """Sign every file of ARTIFACT, in the format of OpenSSF model signing.

    The signature is ARTIFACT/model.sig; whoever trusts the key's public half verifies it with
    esm2-run verify-signature, or with model_signing verify. Files are compared with the manifest
    first.
    """
    from exporter.signing import Signer
    from runtime import manifest as manifests

    signer = Signer(private_key, certificates)
    manifests.read(artifact)
    say(f"{signer.sign(artifact)}: of every other file in {artifact}")
