"""Runs a Dockerfile's steps without a container engine: the same commands in the same order.

    python -m deploy.run_steps deploy/Dockerfile.cpu --artifact ARTIFACT

Exit status 0: every step and check passed; 1: one failed; 77: steps cannot run on this machine.
"""

import re
import shlex
import string
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass, field
from os import environ
from pathlib import Path, PurePosixPath

import click
import dockerfile
from docker.utils import exclude_paths

from deploy.clean_root import Base, Mount, Root, UnavailableError, check_available, make_base

CANNOT_RUN = 77  # as Automake's and Meson's tests say "skipped"
PYTHON_IMAGE = re.compile(r"python:(\d+\.\d+)[\d.]*-slim")
PYTHON_IMAGE_ENVIRONMENT = {
    "PATH": "/usr/local/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "LANG": "C.UTF-8",
}
# What reaches the package index from this machine; a build gets them as build arguments.
NETWORK = ("HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "PIP_CERT", "PIP_INDEX_URL")
FASTA = ">a\nMKTAYIAKQRQISFVKSHFSRQLEERLG\n>b\nGGAVL\n"

Say = Callable[[str], None]
Change = Callable[[Root], "subprocess.CompletedProcess[str]"]


class StepError(Exception):
    """A step failed, or is none that this program knows; the message says which."""


@dataclass
class Image:
    """What a stage made: its files, and how its commands run."""

    root: Root
    environment: dict[str, str]
    arguments: dict[str, str] = field(default_factory=dict)
    user: str = "0:0"
    folder: str = "/"
    entrypoint: tuple[str, ...] = ()
    command: tuple[str, ...] = ()
    healthcheck: tuple[str, ...] = ()

    @property
    def variables(self) -> dict[str, str]:
        """What ``$NAME`` stands for in the steps that follow."""
        return {**self.arguments, **self.environment}

    @property
    def files(self) -> list[Path]:
        """Those that its steps added to the base image."""
        layers = (layer / "files" for layer in self.root.layers)
        return [path for layer in layers for path in layer.rglob("*") if not path.is_dir()]

    @property
    def added_bytes(self) -> int:
        """Of ``files``."""
        return sum(path.lstat().st_size for path in self.files)

    def run(
        self, *arguments: str, mounts: Sequence[Mount] = (), stdin: str = ""
    ) -> "subprocess.CompletedProcess[str]":
        """As ``docker run --read-only --network none --interactive`` does."""
        users = (line.split(":") for line in self.root.read_text("etc/passwd").splitlines())
        home = {user[2]: user[5] for user in users}.get(self.user.partition(":")[0], "/")
        with tempfile.TemporaryDirectory(dir=self.root.layers[-1].parent) as scratch:
            return self.root.with_layer(Path(scratch)).run(
                arguments, {"HOME": home, **self.environment}, user=self.user, folder=self.folder,
                mounts=mounts, read_only=True, network=False, stdin=stdin,
            )  # fmt: skip


class Layers:
    """Where the layers of several builds are; equal steps on equal layers run once.

    Files to copy must not change meanwhile.
    """

    def __init__(self, folder: Path):
        self._folder = folder
        self._bases: dict[str, Base] = {}
        self._made: dict[Hashable, Root] = {}

    def base(self, image: str, say: Say) -> Base:
        """What stands in place of ``image``.

        Raises:
            StepError: this program has nothing in its place.
            UnavailableError: this machine has nothing in its place.
        """
        if not (match := PYTHON_IMAGE.match(image)):
            raise StepError(f"FROM {image}: run_steps.py stands in for python:*-slim images alone")
        if match[1] not in self._bases:
            self._bases[match[1]] = make_base(Path(tempfile.mkdtemp(dir=self._folder)), match[1])
        base = self._bases[match[1]]
        say(f"{image} is not used, in its place: {base.description}")
        return base

    def changed(
        self, step: dockerfile.Command, image: Image, change: Change, copied: Hashable = None
    ) -> Root:
        """``image.root`` and a layer with what ``change`` does to it; ``copied`` is where from.

        Raises:
            StepError: ``change`` failed.
        """
        variables = tuple(image.variables.items())
        key = (step.original, image.root, image.user, image.folder, variables, copied)
        if key not in self._made:
            root = image.root.with_layer(Path(tempfile.mkdtemp(dir=self._folder)))
            result = change(root)
            if result.returncode:
                output = f"{result.stdout}{result.stderr}".strip()
                raise StepError(f"{step.original}: exit status {result.returncode}\n{output}")
            self._made[key] = root
        return self._made[key]


def build(
    path: Path, context: Path, layers: Layers, build_arguments: dict[str, str], say: Say
) -> Image:
    """Runs every step of a Dockerfile.

    Args:
        path: of the Dockerfile.
        context: the folder that COPY copies from, with a ``.dockerignore``.
        layers: where its files go, and those of earlier builds are.
        build_arguments: as ``docker build --build-arg``.
        say: gets a line for each step.

    Raises:
        StepError: a step failed or is not known here.
        UnavailableError: steps cannot run on this machine.
    """
    check_available()
    builder = _Builder(context, layers, build_arguments, say)
    for step in dockerfile.parse_file(str(path)):
        shown = " ".join(step.original.split())
        started = time.perf_counter()
        try:
            builder.run(step)
        except KeyError as error:
            raise StepError(f"{shown}: {error} is not set") from None
        say(f"{time.perf_counter() - started:6.1f} s  {shown}")
    if builder.image is None:
        raise StepError(f"{path} has no FROM")
    return builder.image


class _Builder:
    """The state between two steps."""

    def __init__(
        self, context: Path, layers: Layers, build_arguments: dict[str, str], say: Say
    ) -> None:
        ignore = (context / ".dockerignore").read_text().splitlines()
        patterns = [line for line in ignore if line and not line.startswith("#")]
        self._included = exclude_paths(str(context), patterns)
        self._context, self._layers, self._say = context, layers, say
        self._build_arguments = build_arguments
        self._global: dict[str, str] = {}
        self._stages: dict[str, Image] = {}
        self.image: Image | None = None

    def run(self, step: dockerfile.Command) -> None:
        """Runs one step.

        Raises:
            StepError: it failed or is not known here.
        """
        name = step.cmd.upper()
        if name == "FROM":
            image, *alias = _expand(step.value, self._global)
            root = Root(self._layers.base(image, self._say))
            self.image = Image(root, dict(PYTHON_IMAGE_ENVIRONMENT))
            self._stages[alias[1] if alias else str(len(self._stages))] = self.image
        elif self.image is not None:
            self._run_in(self.image, name, step)
        elif name == "ARG":
            self._global |= self._argument(step, self._global)
        else:
            raise StepError(f"{name} stands before FROM")

    def _run_in(self, image: Image, name: str, step: dockerfile.Command) -> None:
        values = list(step.value)
        if name != "RUN" and not step.json:
            values = _expand(values, image.variables)
        if name == "ARG":
            image.arguments |= self._argument(step, image.variables)
        elif name == "ENV":
            image.environment |= dict(zip(values[::2], values[1::2], strict=True))
        elif name == "WORKDIR":
            image.folder = str(PurePosixPath(image.folder, values[0]))
            make = ["mkdir", "-p", image.folder]
            image.root = self._layers.changed(
                step, image, lambda root: root.run(make, image.environment)
            )
        elif name == "COPY":
            self._copy(image, step, values)
        elif name == "RUN":
            self._run_command(image, step)
        elif name == "USER":
            image.user = values[0] if ":" in values[0] else f"{values[0]}:{values[0]}"
        elif name == "HEALTHCHECK" and step.json and values[0] == "CMD":
            image.healthcheck = tuple(values[1:])
        elif name == "ENTRYPOINT" and step.json:
            image.entrypoint = tuple(values)
        elif name == "CMD" and step.json:
            image.command = tuple(values)
        elif name != "LABEL":
            raise StepError(f"{step.original}: this form is not known to run_steps.py")

    def _argument(self, step: dockerfile.Command, known: dict[str, str]) -> dict[str, str]:
        name, is_set, default = step.value[0].partition("=")
        value = _expand([default], known)[0] if is_set else self._global[name]
        return {name: self._build_arguments.get(name, value)}

    def _copy(self, image: Image, step: dockerfile.Command, values: list[str]) -> None:
        *sources, target = values
        flags = dict(flag.removeprefix("--").split("=", 1) for flag in step.flags)
        stage = flags.pop("from", None)
        if flags:
            raise StepError(f"{step.original}: --{min(flags)} is not known to run_steps.py")
        there = f"{PurePosixPath(image.folder, target)}"
        if target.endswith("/"):
            pairs = [(source, f"{there}/{PurePosixPath(source).name}") for source in sources]
        elif len(sources) == 1:
            pairs = [(sources[0], there)]
        else:
            raise StepError(f"{step.original}: several sources need a folder/ to go to")
        if stage is not None:
            other = self._stages[stage].root
            image.root = self._layers.changed(
                step, image, lambda root: root.copy(pairs, other), other
            )
            return
        for source, _ in pairs:
            if source not in self._included:
                raise StepError(f"{step.original}: {source} is not in the build context")
        files = [
            (str(self._context / name), target + name.removeprefix(source))
            for source, target in pairs
            for name in sorted(self._included)
            if name == source or name.startswith(f"{source}/")
            if (self._context / name).is_file()
        ]
        image.root = self._layers.changed(step, image, lambda root: root.copy(files), self._context)

    def _run_command(self, image: Image, step: dockerfile.Command) -> None:
        mounts = [_cache_mount(step, flag) for flag in step.flags]
        network = {name: environ[name] for name in NETWORK if name in environ}
        arguments = step.value if step.json else ("/bin/sh", "-c", step.value[0])
        variables = {"HOME": "/root", **network, **image.variables}
        image.root = self._layers.changed(
            step, image,
            lambda root: root.run(
                arguments, variables, user=image.user, folder=image.folder, mounts=mounts
            ),
        )  # fmt: skip


def _expand(values: Sequence[str], variables: dict[str, str]) -> list[str]:
    return [
        string.Template("".join(shlex.split(value)) if value[:1] in "\"'" else value).substitute(
            variables
        )
        for value in values
    ]


def _cache_mount(step: dockerfile.Command, flag: str) -> Mount:
    """A build's cache of /root is this machine's cache of its user."""
    match = re.fullmatch(r"--mount=type=cache,target=/root/\.cache/([^,]+)", flag)
    if not match:
        raise StepError(f"{step.original}: {flag} is not known to run_steps.py")
    cache = Path.home() / ".cache" / match[1]
    cache.mkdir(parents=True, exist_ok=True)
    return Mount(cache, f"/root/.cache/{match[1]}", read_only=False)


def checks(image: Image, artifact: Path, output: Path) -> Iterator[tuple[str, str]]:
    """Uses an image as its users do; yields what ran, and what was wrong, which is mostly nothing.

    Args:
        image: the last stage.
        artifact: mounted at ``/artifact``, read-only.
        output: an empty folder, mounted at ``/output``.
    """
    output.chmod(0o777)  # the image's user is none of this machine's
    mounts = [Mount(artifact, "/artifact"), Mount(output, "/output", read_only=False)]
    embed = ["embed", "/artifact", "-", "-o", "/output/embeddings.npz"]
    for arguments in (
        image.healthcheck,
        (*image.entrypoint, *image.command),
        (*image.entrypoint, *embed),
    ):
        result = image.run(*arguments, mounts=mounts, stdin=FASTA)
        problem = f"exit status {result.returncode}: {result.stdout}{result.stderr}".strip()
        yield shlex.join(arguments), problem if result.returncode else ""
    if not (output / "embeddings.npz").exists():
        yield "/output/embeddings.npz", "was not written"


@click.command()
@click.argument("path", metavar="DOCKERFILE", type=click.Path(path_type=Path, exists=True))
@click.option("--artifact", type=click.Path(path_type=Path, exists=True), help="To run it on.")
@click.option("--build-arg", multiple=True, metavar="NAME=VALUE", help="As of docker build.")
def main(path: Path, artifact: Path | None, build_arg: tuple[str, ...]) -> None:
    """Run the steps of DOCKERFILE in a clean folder, then what its image is for."""
    arguments = dict(argument.split("=", 1) for argument in build_arg)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        try:
            image = build(path, Path.cwd(), Layers(folder), arguments, click.echo)
        except UnavailableError as error:
            click.echo(f"not run: {error}")
            sys.exit(CANNOT_RUN)
        except StepError as error:
            click.secho(f"error: {error}", err=True, fg="red")
            sys.exit(1)
        click.echo(f"{image.added_bytes / 1e6:,.1f} MB added to the base image")
        if artifact is None:
            click.echo("not run: the health check and the image's command, without --artifact")
            return
        (folder / "output").mkdir()
        failed = 0
        for what, problem in checks(image, artifact.resolve(), folder / "output"):
            click.echo(f"{f'FAILED {problem}' if problem else 'passed'}  {what}")
            failed += bool(problem)
        sys.exit(bool(failed))


if __name__ == "__main__":
    main()
