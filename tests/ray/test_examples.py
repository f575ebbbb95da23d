"""``examples/ray``: they are what they say, as far as can be seen without Kubernetes and Slurm."""

import json
import os
import re
import shlex
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner

from runtime import cli
from tests.dataset.torture import write_input

EXAMPLES = Path(__file__).parents[2] / "examples/ray"
SCHEMA = Path(__file__).with_name("rayjob-schema.json")


def checked(file: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "check_jsonschema", "--schemafile", str(SCHEMA), str(file)]
    return subprocess.run(command, capture_output=True, text=True)


@pytest.fixture
def job() -> Any:
    return yaml.safe_load((EXAMPLES / "kuberay.yaml").read_text())


def test_the_job_follows_the_schema(job: Any, tmp_path: Path) -> None:
    ended = checked(EXAMPLES / "kuberay.yaml")
    assert ended.returncode == 0, ended.stdout
    job["spec"]["rayClusterSpec"]["workerGroupSpec"] = []
    (tmp_path / "job.json").write_text(json.dumps(job))
    assert checked(tmp_path / "job.json").returncode == 1


def test_pods_have_the_volumes_that_they_mount(job: Any) -> None:
    cluster = job["spec"]["rayClusterSpec"]
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        spec = group["template"]["spec"]
        volumes = {volume["name"] for volume in spec["volumes"]}
        for container in spec["containers"]:
            assert {mount["name"] for mount in container["volumeMounts"]} <= volumes


def test_the_command_has_these_options(job: Any) -> None:
    words = shlex.split(job["spec"]["entrypoint"].partition("||")[0])
    assert words[:2] == ["esm2-run", "embed"]
    said = CliRunner().invoke(cli.main, words[1:]).stderr
    assert "/data/proteins.fasta.gz" in said  # which is not there; the options are


def test_versions_are_those_of_the_tests() -> None:
    pytest.importorskip("ray")
    named = set(re.findall(r"2\.\d+\.\d+", (EXAMPLES / "kuberay.yaml").read_text()))
    assert named == {version("ray")}


@pytest.mark.slow
def test_slurm(ready_artifact: Path, tmp_path: Path) -> None:
    """The script itself, with real Ray; Slurm's two commands are played."""
    pytest.importorskip("ray")
    proteins = write_input(tmp_path / "in.fasta", 60)
    programs = tmp_path / "bin"
    programs.mkdir()
    for name, text in {
        "scontrol": "echo first; echo second",
        "srun": 'while [[ $1 == --* ]]; do shift; done; exec "$@"',
        "ray": f'exec {sys.executable} -m ray.scripts.scripts "$@"',
        "python": f'exec {sys.executable} "$@"',
        "esm2-run": f'exec {sys.executable} -m runtime.cli "$@"',
    }.items():
        (programs / name).write_text(f"#!/bin/bash\n{text}\n")
        (programs / name).chmod(0o755)
    script = (EXAMPLES / "slurm.sh").read_text()
    (tmp_path / "slurm.sh").write_text(script.replace("${nodes[0]}:$((", "127.0.0.1:$(("))
    environment = os.environ | {
        "PATH": f"{programs}:{os.environ['PATH']}", "SLURM_JOB_ID": str(os.getpid()),
        "SLURM_JOB_NODELIST": "first,second", "SLURM_CPUS_PER_TASK": "1",
    }  # fmt: skip
    command = ["bash", tmp_path / "slurm.sh", ready_artifact, proteins, f"{tmp_path}/out/"]
    with (tmp_path / "said").open("w+") as said:  # what outlives the script keeps no pipe of ours
        ended = subprocess.run(command, env=environment, stdout=said, stderr=said, timeout=180)
        said.seek(0)
        text = said.read()
    assert ended.returncode == 0, text
    assert "Ray: 2 actors on 2 nodes, 1 CPU thread each" in text
    status = CliRunner().invoke(cli.main, ["status", f"{tmp_path}/out"])
    assert status.exit_code == 0
