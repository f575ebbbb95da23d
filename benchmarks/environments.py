"""An environment for each peer, made once from its pinned requirements."""

import hashlib
import platform
import shlex
import shutil
import subprocess
import venv
from pathlib import Path

PEERS = Path(__file__).parent / "peers"
FOLDER = Path(__file__).parent / ".environments"
_READY = ".ready"


class PeerUnavailableError(Exception):
    """A peer cannot be installed; the message is the installer's own reason."""


def python_of(
    peer: str, pip_arguments: str = "", folder: Path = FOLDER, peers: Path | None = None
) -> Path:
    """The peer's own Python; its environment is made when it is not there.

    Args:
        peer: ``<peer>.txt`` says what to install.
        pip_arguments: for ``pip install``, an index of CPU builds for example.
        folder: of all environments.
        peers: where that file is; None takes ``benchmarks/peers``.

    Raises:
        PeerUnavailableError: the installation failed.
    """
    file = (peers or PEERS) / f"{peer}.txt"
    target = folder / f"{peer}-{digest_of(file)}"
    python = target / "bin" / "python"
    if not (target / _READY).is_file():
        shutil.rmtree(target, ignore_errors=True)
        venv.create(target, with_pip=True)
        install = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        requirements = ["-r", file, *shlex.split(pip_arguments)]
        result = subprocess.run(
            [str(argument) for argument in (*install, *requirements)],
            capture_output=True,
            text=True,
            check=False,
        )
        if result.returncode:
            raise PeerUnavailableError(f"pip install failed: {_reason(result.stderr)}")
        (target / _READY).touch()
    return python


def digest_of(requirements: Path) -> str:
    """Of what the environment depends on: the file, and the version of Python."""
    version = ".".join(platform.python_version_tuple()[:2])
    return hashlib.sha256(requirements.read_bytes() + version.encode()).hexdigest()[:12]


def _reason(stderr: str) -> str:
    errors = [line for line in stderr.splitlines() if line.startswith("ERROR")]
    return (errors or stderr.strip().splitlines() or ["no message"])[0].removeprefix("ERROR: ")
