"""Images built by buildah, and commands in them."""

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
ENVIRONMENT = {
    **os.environ,
    "STORAGE_DRIVER": "vfs",
    "BUILDAH_ISOLATION": "chroot",
    "STAND_IN": "1",
}


def buildah(*arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["buildah", *arguments], capture_output=True, text=True, env=ENVIRONMENT, check=False,
        **options,
    )  # fmt: skip


def output_of(*arguments: str) -> str:
    result = buildah(*arguments)
    assert result.returncode == 0, result.stderr
    return result.stdout.strip()


@dataclass(frozen=True)
class Image:
    """The last stage of a Dockerfile, in a container of its own."""

    tag: str
    container: str

    @cached_property
    def config(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(output_of("inspect", "--type", "image", self.tag))
        return found["Docker"]["config"]  # type: ignore[no-any-return]

    @cached_property
    def root(self) -> Path:
        """Its file system, on this machine."""
        return Path(output_of("mount", self.container))

    @property
    def healthcheck(self) -> list[str]:
        test: list[str] = self.config["Healthcheck"]["Test"]
        assert test[0] == "CMD"
        return test[1:]

    def run(
        self, *command: str, volumes: dict[str, Path] | None = None, user: str | None = None,
        stdin: str = "",
    ) -> subprocess.CompletedProcess[str]:  # fmt: skip
        """As its user, in its environment, without a network; ``volumes`` by place, ``:ro`` too.

        As in a container of ``docker run --network none``, 127.0.0.1 is there.
        """
        options = [f"--volume={path}:{place}" for place, path in (volumes or {}).items()]
        options += ["--user", user] if user else []
        return subprocess.run(
            [
                "unshare", "--net", "sh", "-c", 'ip link set lo up && exec "$@"', "sh",
                "buildah", "run", *options, self.container, "--", *command,
            ],
            input=stdin, capture_output=True, text=True, env=ENVIRONMENT, check=False,
        )  # fmt: skip


@contextmanager
def built(name: str, *options: str, context: Path = ROOT) -> Iterator[Image]:
    """Of ``deploy/Dockerfile.NAME``; removed afterwards. Skips where nothing can build it."""
    missing = [
        tool for tool in ("buildah", "mmdebstrap", "unshare", "ip") if not shutil.which(tool)
    ]
    if missing or os.geteuid():
        pytest.skip(f"not run: images are built as root, with {', '.join(missing) or 'buildah'}")
    tag = f"localhost/esm2-test-{name}-{os.getpid()}"
    script = str(ROOT / "deploy/build_image.sh")
    result = subprocess.run(
        [script, f"deploy/Dockerfile.{name}", tag, *options],
        cwd=context, capture_output=True, text=True, env=ENVIRONMENT, check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stdout[-2000:] + result.stderr[-4000:]
    container = output_of("from", tag)
    try:
        yield Image(tag, container)
    finally:
        buildah("rm", container)
        buildah("rmi", tag)
