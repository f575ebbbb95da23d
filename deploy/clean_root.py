"""A clean root folder to run a Dockerfile's steps in, where there is no container engine.

In place of a base image ``python:<version>-slim`` stand the packages of this Debian that such an
image is made of, and this machine's Python of that version at ``/usr/local``. Each command runs
in a mount and PID namespace of its own: its mounts end with it.
"""

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

# Beside the packages that Debian marks essential (docker-library/repo-info lists the image's).
BASE_PACKAGES = ("apt", "ca-certificates", "netbase", "passwd", "tzdata")
# Left out of Debian's slim images, and of Docker's builds of Python.
NOT_IN_SLIM = re.compile(r"/usr/share/(doc|info|locale|man)/")
NOT_IN_PYTHON = ("__pycache__", "idle_test", "libpython*.a", "site-packages", "test", "tests")
# What an engine or the network gives to every container.
FROM_HOST = ("/etc/hosts", "/etc/resolv.conf", "/etc/ssl/certs/ca-certificates.crt")
DEVICES = ("full", "null", "random", "urandom", "zero")
TOOLS = ("chroot", "dpkg-query", "ldconfig", "ldd", "unshare")


class UnavailableError(Exception):
    """Steps cannot run on this machine; the message says why."""


@dataclass(frozen=True)
class Mount:
    """A file or folder of this machine in the root."""

    source: Path
    target: str
    read_only: bool = True


@dataclass(frozen=True)
class Base:
    """What stands in place of a base image."""

    folder: Path
    description: str


@dataclass(frozen=True)
class Root:
    """A base and layers of files over it, lowest first; commands write into the last layer."""

    base: Base
    layers: tuple[Path, ...] = ()

    def read_text(self, name: str) -> str:
        """Of a text file, from the last layer that has it."""
        folders = (layer / "files" for layer in reversed(self.layers))
        paths = (folder / name for folder in (*folders, self.base.folder))
        return next(path for path in paths if path.exists()).read_text()

    def with_layer(self, folder: Path) -> "Root":
        """The same with a new, empty layer in the empty ``folder``."""
        for name in ("files", "work", "merged"):
            (folder / name).mkdir()
        return Root(self.base, (*self.layers, folder))

    def run(
        self,
        arguments: Sequence[str],
        environment: Mapping[str, str],
        *,
        user: str = "0:0",
        folder: str = "/",
        mounts: Sequence[Mount] = (),
        read_only: bool = False,
        network: bool = True,
        stdin: str = "",
    ) -> "subprocess.CompletedProcess[str]":
        """Runs a command with this root; ``user`` is ``uid:gid``."""
        variables = [f"{name}={value}" for name, value in environment.items()]
        inside = ["chroot", f"--userspec={user}", "--groups=", self._merged]
        inside += ["/usr/bin/env", "-i", f"--chdir={folder}", *variables, *arguments]
        script = [self._mount(), *self._mount_inside(mounts, read_only), ["exec", *inside]]
        return _in_namespace(script, network, stdin)

    def copy(
        self, pairs: Sequence[tuple[str, str]], source: "Root | None" = None
    ) -> "subprocess.CompletedProcess[str]":
        """Copies files and folders of ``source``, or of this machine, into this root."""
        script = [self._mount()]
        if source is not None:
            script.append(source._mount(read_only=True))
        for path, target in pairs:
            there = f"{self._merged}{target}"
            path = path if source is None else f"{source._merged}{path}"
            script.append(["mkdir", "-p", str(Path(there).parent)])
            script.append(["cp", "-dR", "--preserve=mode,timestamps,links", "-T", path, there])
        return _in_namespace(script)

    @property
    def _merged(self) -> str:
        return str(self.layers[-1] / "merged")

    def _mount(self, read_only: bool = False) -> list[str]:
        *lower, upper = self.layers
        folders = [str(layer / "files") for layer in reversed(self.layers if read_only else lower)]
        options = f"lowerdir={':'.join([*folders, str(self.base.folder)])}"
        if not read_only:
            options += f",upperdir={upper / 'files'},workdir={upper / 'work'}"
        return ["mount", "-t", "overlay", "overlay", "-o", options, self._merged]

    def _mount_inside(self, mounts: Sequence[Mount], read_only: bool) -> Iterator[list[str]]:
        root = self._merged
        yield ["mount", "-t", "proc", "proc", f"{root}/proc"]
        for name in DEVICES:
            yield ["mount", "--bind", f"/dev/{name}", f"{root}/dev/{name}"]
        for mount in mounts:
            there = f"{root}{mount.target}"
            yield ["mkdir", "-p", there]
            yield ["mount", "--bind", str(mount.source), there]
            if mount.read_only:
                yield ["mount", "-o", "remount,bind,ro", there]
        if read_only:
            yield ["mount", "-o", "remount,ro", root]


def check_available() -> None:
    """Raises UnavailableError, with a reason, where ``Root`` cannot work."""
    if sys.platform != "linux":
        raise UnavailableError(f"Linux is needed for its namespaces, this is {sys.platform}")
    if missing := [tool for tool in TOOLS if shutil.which(tool) is None]:
        raise UnavailableError(f"{', '.join(missing)} not found: a Debian or Ubuntu is needed")
    result = _in_namespace([["mount", "-t", "tmpfs", "tmpfs", "/tmp"]])
    if result.returncode:
        raise UnavailableError(f"no mount namespace, root is needed: {result.stderr.strip()}")


def make_base(folder: Path, python: str) -> Base:
    """Makes the stand-in for ``python:<python>...-slim``.

    Args:
        folder: empty.
        python: such as ``3.12``.

    Raises:
        UnavailableError: this machine has no such Python that can be moved.
    """
    prefix = _find_python(python)
    for name in ("bin", "lib", "lib32", "lib64", "libx32", "sbin"):
        if (link := Path("/", name)).is_symlink():
            (folder / link.readlink()).mkdir(parents=True)
            _copy(link, folder)
    files = [line for package in _base_packages() for line in _query("--listfiles", package)]
    libraries = _libraries_of(prefix)
    for name in [*files, *libraries, *FROM_HOST]:
        if name.startswith("/") and not NOT_IN_SLIM.match(f"{name}/"):
            _copy(Path(name), folder)
    for name in ("passwd", "group"):
        shutil.copy(f"/usr/share/base-passwd/{name}.master", folder / "etc" / name)
    _copy_python(prefix, python, folder / "usr/local")
    for name in ("dev", "proc", "sys", "root", "tmp"):
        (folder / name).mkdir(exist_ok=True)
    (folder / "tmp").chmod(0o1777)
    for name in DEVICES:
        (folder / "dev" / name).touch()
    subprocess.run(["ldconfig", "-r", folder], check=True)
    version = subprocess.run(
        [prefix / f"bin/python{python}", "--version"], capture_output=True, text=True, check=True
    ).stdout.strip()
    release = re.search(r'PRETTY_NAME="(.*)"', Path("/etc/os-release").read_text())
    system = release[1] if release else "this system"
    return Base(folder, f"this machine's {version} on the base packages of {system}")


def _find_python(python: str) -> Path:
    """The folder of a Python that is not the system's own."""
    found = [sys.base_prefix] if python == f"{sys.version_info[0]}.{sys.version_info[1]}" else []
    for command in (
        [f"python{python}", "-c", "import sys; print(sys.base_prefix)"],
        ["pyenv", "prefix", *_lines(["pyenv", "latest", python])],
    ):
        found += _lines(command)
    for prefix in map(Path, found):
        if prefix != Path("/usr") and (prefix / f"bin/python{python}").exists():
            return prefix
    raise UnavailableError(
        f"no Python {python} beside the system's own: install one ('pyenv install {python}')"
    )


def _lines(command: list[str]) -> list[str]:
    if shutil.which(command[0]) is None:
        return []
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    return [] if result.returncode else result.stdout.split()


def _copy_python(prefix: Path, python: str, there: Path) -> None:
    lib = f"lib/python{python}"
    ignored = shutil.ignore_patterns(*NOT_IN_PYTHON)
    shutil.copytree(prefix / lib, there / lib, symlinks=True, ignore=ignored)
    for path in (prefix / lib / "site-packages").glob("pip*"):
        shutil.copytree(path, there / lib / "site-packages" / path.name, ignore=ignored)
    for path in prefix.glob("lib/libpython*.so*"):
        shutil.copy(path, there / "lib", follow_symlinks=False)
    (there / "bin").mkdir()
    shutil.copy(prefix / f"bin/python{python}", there / "bin")
    for name in ("python3", "python"):
        (there / "bin" / name).symlink_to(f"python{python}")


def _libraries_of(prefix: Path) -> list[str]:
    """The system's libraries that a Python is linked to, with what the links point at."""
    objects = [*prefix.glob("bin/python3.*[0-9]"), *prefix.glob("lib/python3*/lib-dynload/*.so")]
    output = subprocess.run(["ldd", *objects], capture_output=True, text=True, check=True).stdout
    found = {path for path in re.findall(r"=> (/\S+)", output) if not path.startswith(f"{prefix}/")}
    return sorted(found | {str(Path(path).resolve()) for path in found})


def _base_packages() -> list[str]:
    """Essential packages, ``BASE_PACKAGES``, and what they depend on, of those installed here."""
    form = "--showformat=${Package}\t${Essential}\t${Pre-Depends}, ${Depends}\n"
    rows = [line.split("\t") for line in _query(form, "--show")]
    depends = {package: needed for package, _, needed in rows}
    wanted = [package for package, essential, _ in rows if essential == "yes"]
    wanted += BASE_PACKAGES
    found: dict[str, None] = {}
    while wanted:
        if (package := wanted.pop()) in found or package not in depends:
            continue
        found[package] = None
        for group in depends[package].split(","):
            names = (re.split(r"[\s:(]", name.strip())[0] for name in group.split("|"))
            wanted += [name for name in names if name in depends][:1]
    return list(found)


def _query(*arguments: str) -> list[str]:
    result = subprocess.run(["dpkg-query", *arguments], capture_output=True, text=True, check=True)
    return result.stdout.splitlines()


def _copy(path: Path, folder: Path) -> None:
    there = folder / path.relative_to("/")
    if path.is_dir() and not path.is_symlink():
        there.mkdir(parents=True, exist_ok=True)
    elif os.path.lexists(path) and not os.path.lexists(there):
        there.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(path, there, follow_symlinks=False)


def _in_namespace(
    script: Sequence[Sequence[str]], network: bool = True, stdin: str = ""
) -> "subprocess.CompletedProcess[str]":
    command = ["unshare", "--mount", "--pid", "--fork", "--kill-child"]
    command += [] if network else ["--net"]
    lines = "\n".join(shlex.join(line) for line in script)
    return subprocess.run(
        [*command, "sh", "-ec", lines], input=stdin, capture_output=True, text=True, check=False
    )
