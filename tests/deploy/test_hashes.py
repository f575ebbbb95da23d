"""What images install is known by the SHA-256 of each file; one that was changed is not taken."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.deploy.images import ROOT
from tests.deploy.test_images import canonical, pinned

LOCKED = ("deploy/hashes.txt", "deploy/build.txt")


def entries(name: str) -> dict[str, tuple[str, list[str]]]:
    """Version and hashes of each package."""
    text = (ROOT / name).read_text().replace("\\\n", " ")
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    matches = [re.fullmatch(r"([\w.-]+)==(\S+)((?:\s+--hash=sha256:[0-9a-f]{64})+)\s*", line)
               for line in lines]  # fmt: skip
    assert all(matches), lines
    return {canonical(m[1]): (m[2], m[3].split()) for m in matches if m}


@pytest.mark.parametrize("name", LOCKED)
def test_every_package_is_pinned_and_has_its_hashes(name: str) -> None:
    """Where it fails: make hashes."""
    found = {package: version for package, (version, _) in entries(name).items()}
    assert found and found.items() <= pinned().items()


@pytest.mark.parametrize("name", ["cpu", "cuda"])
def test_images_install_nothing_else(name: str) -> None:
    text = (ROOT / f"deploy/Dockerfile.{name}").read_text().replace("\\\n", " ")
    installs = re.findall(r"-m pip .*?install ([^&\n]*)", text)
    assert len(installs) == 3
    for arguments in installs:
        assert re.match(
            r"\s*(--no-deps dist/|--require-hashes -r deploy/build.txt|\$\{PINS\})", arguments
        )
    assert 'ARG PINS="--require-hashes -c deploy/hashes.txt"' in text


def test_a_file_that_was_changed_is_refused(tmp_path: Path) -> None:
    """By pip itself, without a network."""
    wheel = tmp_path / "x-1-py3-none-any.whl"
    wheel.write_bytes(b"changed")
    wanted = tmp_path / "wanted.txt"
    wanted.write_text(f"x @ {wheel.as_uri()} --hash=sha256:{'0' * 64}\n")
    ended = subprocess.run(
        [sys.executable, "-m", "pip", "install", "--dry-run", "--no-index", "--require-hashes",
         "-r", str(wanted)],
        capture_output=True, text=True,
    )  # fmt: skip
    assert ended.returncode and "DO NOT MATCH THE HASHES" in ended.stderr


@pytest.mark.parametrize("name", ["cpu", "cuda", "tensorrt"])
def test_what_is_copied_is_in_the_context(name: str) -> None:
    kept = [
        line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line[0] == "!"
    ]
    text = (ROOT / f"deploy/Dockerfile.{name}").read_text()
    copied = [
        words.split()[:-1] for words in re.findall(r"^COPY (?!--from)(.*)$", text, re.MULTILINE)
    ]
    assert copied and {source for sources in copied for source in sources} <= set(kept)
