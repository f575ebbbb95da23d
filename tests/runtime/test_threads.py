"""Cores, quotas, memory limits, and the threads that come of them."""

import os
from pathlib import Path

import pytest

import runtime
from runtime.threads import Threads, default_threads, usable_cores, usable_memory

V2_MOUNT = "30 23 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw,nsdelegate"
V1_MOUNTS = (
    "32 31 0:29 {root} /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n"
    "35 31 0:32 {root} /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory"
)
V1_GROUPS = "4:memory:{path}\n2:cpu,cpuacct:{path}\n1:name=systemd:{path}"


def system(root: Path, cgroup: str, mountinfo: str, files: dict[str, str]) -> Path:
    """A root file system with these files below ``sys/fs/cgroup``."""
    proc = root / "proc/self"
    proc.mkdir(parents=True)
    (proc / "cgroup").write_text(f"{cgroup}\n")
    (proc / "mountinfo").write_text(f"25 1 8:1 / / rw - ext4 /dev/sda1 rw\n{mountinfo}\n")
    for name, content in files.items():
        path = root / "sys/fs/cgroup" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{content}\n")
    return root


@pytest.fixture(autouse=True)
def machine_of_64_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(64)))
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)


class TestVersion2:
    @pytest.mark.parametrize(
        ("files", "cores"),
        [
            ({"cpu.max": "200000 100000"}, 2),
            ({"cpu.max": "150000 100000"}, 2),
            ({"cpu.max": "50000 100000"}, 1),
            ({"cpu.max": "max 100000"}, 64),
            ({"cpu.max": "12800000 100000"}, 64),
            ({}, 64),
        ],
    )
    def test_the_quota_of_a_pod(self, tmp_path: Path, files: dict[str, str], cores: int) -> None:
        assert usable_cores(system(tmp_path, "0::/", V2_MOUNT, files)) == cores

    def test_the_least_of_all_parents(self, tmp_path: Path) -> None:
        """systemd's slices: the quota may stand on the service, or on what holds it."""
        files = {
            "app.slice/my.service/cpu.max": "800000 100000",
            "app.slice/cpu.max": "300000 100000",
            "other.slice/cpu.max": "100000 100000",
        }
        root = system(tmp_path, "0::/app.slice/my.service", V2_MOUNT, files)
        assert usable_cores(root) == 3

    @pytest.mark.parametrize("path", ["/kubepods/pod7/c1", "/../c1"])
    def test_a_path_of_the_host_that_is_not_mounted(self, tmp_path: Path, path: str) -> None:
        files = {"cpu.max": "400000 100000"}
        assert usable_cores(system(tmp_path, f"0::{path}", V2_MOUNT, files)) == 4

    def test_memory(self, tmp_path: Path) -> None:
        files = {"a/memory.max": "max", "memory.max": str(3 << 30)}
        root = system(tmp_path, "0::/a", V2_MOUNT, files)
        assert usable_memory(root) == 3 << 30
        (root / "proc/meminfo").write_text("MemTotal: 9 kB\nMemAvailable:    1048576 kB\n")
        assert usable_memory(root) == 1 << 30


class TestVersion1:
    @pytest.mark.parametrize(
        ("quota", "cores"), [("200000", 2), ("250000", 3), ("-1", 64), ("0", 64)]
    )
    @pytest.mark.parametrize(
        ("mounted", "path", "place"),
        [
            ("/", "/", ""),
            ("/", "/batch/job3", "batch/job3/"),
            ("/docker/c1", "/docker/c1", ""),  # a container without a cgroup namespace
            ("/docker/c1", "/docker/c1/inner", "inner/"),
            ("/", "/docker/not-mounted", ""),
        ],
    )
    def test_the_quota(
        self, tmp_path: Path, quota: str, cores: int, mounted: str, path: str, place: str
    ) -> None:
        files = {
            f"cpu,cpuacct/{place}cpu.cfs_quota_us": quota,
            f"cpu,cpuacct/{place}cpu.cfs_period_us": "100000",
        }
        root = system(tmp_path, V1_GROUPS.format(path=path), V1_MOUNTS.format(root=mounted), files)
        assert usable_cores(root) == cores

    def test_memory(self, tmp_path: Path) -> None:
        unlimited = "9223372036854771712"
        files = {"memory/a/memory.limit_in_bytes": str(2 << 30),
                 "memory/memory.limit_in_bytes": unlimited}  # fmt: skip
        root = system(tmp_path, V1_GROUPS.format(path="/a"), V1_MOUNTS.format(root="/"), files)
        assert usable_memory(root) == 2 << 30


def test_both_versions_at_once(tmp_path: Path) -> None:
    """systemd's hybrid layout: version 2 is mounted too, and holds no controllers."""
    root = system(
        tmp_path,
        V1_GROUPS.format(path="/a") + "\n0::/a",
        V1_MOUNTS.format(root="/")
        + "\n33 31 0:38 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw",
        {
            "cpu,cpuacct/a/cpu.cfs_quota_us": "300000",
            "cpu,cpuacct/a/cpu.cfs_period_us": "100000",
            "unified/a/cgroup.procs": "",
        },
    )
    assert usable_cores(root) == 3


def test_a_system_without_cgroups(tmp_path: Path) -> None:
    assert usable_cores(tmp_path) == 64
    assert usable_memory(tmp_path) is None


def test_the_mask_counts_where_it_is_smaller(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = system(tmp_path, "0::/", V2_MOUNT, {"cpu.max": "800000 100000"})
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {5})
    assert usable_cores(root) == 1


@pytest.mark.parametrize(
    ("value", "threads"),
    [("3", 3), ("4,2", 4), (" 5 ", 5), ("100", 100), ("", None), ("0", None), ("-2", None),
     ("all", None)],
)  # fmt: skip
def test_the_number_that_users_set_for_other_libraries(
    monkeypatch: pytest.MonkeyPatch, value: str, threads: int | None
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", value)
    assert default_threads() == (threads or usable_cores())


class TestWhatTheCallerAsksFor:
    def test_none_is_the_default(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("OMP_NUM_THREADS", "6")
        assert Threads.resolve(None, 1) == Threads(6, 1, is_default=True)

    @pytest.mark.parametrize("concurrency", [1, 2, 5, 16])
    def test_the_pool_and_its_callers_are_as_many_as_asked_for(self, concurrency: int) -> None:
        threads = Threads.resolve(16, concurrency)
        # The pool's own, and the caller of each pack.
        assert threads.of_pool - 1 + threads.concurrency == 16

    def test_no_more_packs_than_threads(self) -> None:
        assert Threads.resolve(2, 9) == Threads(2, 2)

    @pytest.mark.parametrize("wrong", [0, -1, 1.5, 2.0, "2", True])
    def test_what_is_no_number_of_threads(self, tiny_artifact: Path, wrong: object) -> None:
        with pytest.raises(runtime.InputError, match=f"threads must be .* got {wrong!r}"):
            runtime.load(tiny_artifact, "onnx", threads=wrong)
        with pytest.raises(runtime.InputError, match=f"concurrency must be .* got {wrong!r}"):
            runtime.load(tiny_artifact, "onnx", concurrency=wrong)
