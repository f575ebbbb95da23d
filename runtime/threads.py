"""How many CPU threads, and how much memory, this process may use.

A container sees every core of its machine, but its control group (cgroup) may hold it to the time
of a few. More threads than that stop each other, so the quota counts like the affinity mask.
"""

import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from runtime.errors import InputError

THREADS_VARIABLE = "OMP_NUM_THREADS"

_ROOT = Path("/")


@dataclass(frozen=True)
class Threads:
    """CPU threads of an engine, and how many packs share them.

    Attributes:
        total: all of them, at least 1.
        concurrency: packs at once, from 1 to ``total``.
        is_default: the caller of ``load`` gave no number.
    """

    total: int
    concurrency: int
    is_default: bool = False

    @classmethod
    def resolve(cls, threads: int | None, concurrency: int) -> "Threads":
        """From the arguments of ``runtime.load``; more packs than threads become as many.

        Raises:
            InputError: one of them is not a whole number of at least 1.
        """
        total = default_threads() if threads is None else at_least_1("threads", threads)
        concurrency = at_least_1("concurrency", concurrency)
        return cls(total, min(concurrency, total), threads is None)

    @property
    def of_pool(self) -> int:
        """Threads of a pool that packs share, one of which is the caller of each pack.

        ONNX Runtime's pool belongs to the session: a pool of n has n - 1 threads of its own, and
        every pack that runs brings its caller. With this n, ``total`` threads run in all.
        """
        return self.total - self.concurrency + 1


def default_threads() -> int:
    """``OMP_NUM_THREADS`` where it is set, as for other numerical libraries, else every core."""
    # A list gives a number for each level of nested parallelism; the first is the outermost.
    first = os.environ.get(THREADS_VARIABLE, "").split(",")[0].strip()
    return int(first) if first.isdecimal() and int(first) > 0 else usable_cores()


def usable_cores(root: Path = _ROOT) -> int:
    """Cores that this process may keep busy: those of its affinity mask and of its CPU quota.

    Args:
        root: of the file system, with ``proc/self`` and the cgroups.
    """
    if hasattr(os, "sched_getaffinity"):
        cores = len(os.sched_getaffinity(0))
    else:
        cores = os.cpu_count() or 1
    return max(1, min([cores, *map(math.ceil, _cpu_quotas(root))]))


def usable_memory(root: Path = _ROOT) -> int | None:
    """Bytes that this process may take: free on the machine and allowed by its cgroups.

    None where the system does not say; Linux does.

    Args:
        root: of the file system, with ``proc`` and the cgroups.
    """
    limits = [*_memory_limits(root)]
    for line in _lines(root / "proc/meminfo"):
        name, _, value = line.partition(":")
        if name == "MemAvailable":
            limits.append(1024 * int(value.split()[0]))
    return min(limits, default=None)


def at_least_1(name: str, value: Any) -> int:
    """``value``, or InputError if it is no whole number of at least 1."""
    is_whole = isinstance(value, int | np.integer) and not isinstance(value, bool)
    if not is_whole or value < 1:
        raise InputError(f"{name} must be a whole number of at least 1, got {value!r}")
    return int(value)


def _cpu_quotas(root: Path) -> Iterator[float]:
    """In cores."""
    for folder in _cgroup_folders(root, "cpu"):
        quota = _numbers(folder / "cpu.max")  # version 2: "200000 100000", or "max 100000"
        if not quota:
            files = folder / "cpu.cfs_quota_us", folder / "cpu.cfs_period_us"
            quota = [number for file in files for number in _numbers(file)]
        if len(quota) == 2 and min(quota) > 0:
            yield quota[0] / quota[1]


def _memory_limits(root: Path) -> Iterator[int]:
    for folder in _cgroup_folders(root, "memory"):
        for name in ("memory.max", "memory.limit_in_bytes"):
            yield from _numbers(folder / name)


def _cgroup_folders(root: Path, controller: str) -> Iterator[Path]:
    """Of this process's cgroup and of all its parents, in both versions of cgroups."""
    paths = {}
    for line in _lines(root / "proc/self/cgroup"):
        _, controllers, where = line.split(":", 2)
        if not controllers or controller in controllers.split(","):
            paths["cgroup" if controllers else "cgroup2"] = PurePosixPath(where)
    for mount in _lines(root / "proc/self/mountinfo"):
        fields, _, source = mount.partition(" - ")
        kind, _, options = (source.split() + ["", ""])[:3]
        mounted, at = (PurePosixPath(field) for field in fields.split()[3:5])
        if kind not in paths or (kind == "cgroup" and controller not in options.split(",")):
            continue
        # A container without a cgroup namespace is told its path on the host, which may lie outside
        # of what is mounted: then the mount is its own cgroup, or one above it.
        path = paths[kind]
        is_below = path.is_relative_to(mounted) and ".." not in path.parts
        inside = path.relative_to(mounted) if is_below else PurePosixPath()
        below = root / at.relative_to("/")
        for place in (inside, *inside.parents):
            yield below / place


def _numbers(file: Path) -> list[int]:
    """Of its first line; none where there is no such file, or a word such as ``max``."""
    words = next(iter(_lines(file)), "").split()
    return [int(word) for word in words if word.lstrip("-").isdecimal()]


def _lines(file: Path) -> list[str]:
    try:
        return file.read_text().splitlines()
    except OSError:
        return []
