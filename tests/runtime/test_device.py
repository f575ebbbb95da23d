"""The budget of a pack, by the card's memory, from a driver that a test compiles."""

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from runtime.device import MAX_TOKENS_RULE

# Two cards; the driver's number of a card is not its index.
DRIVER = r"""
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
int cuInit(unsigned flags) { fputs("cuInit\n", stderr); return atoi(getenv("FAILS")); }
int cuDeviceGet(int* card, int index) { *card = index + 7; return index < 2 ? 0 : 101; }
int cuDeviceTotalMem_v2(size_t* bytes, int card) {
  *bytes = atoll(getenv(card == 7 ? "FIRST" : "SECOND")); return card < 9 ? 0 : 101; }
"""
# Of an artifact that was proven with so many tokens, or with nobody knows how many.
BUDGETS = """
from runtime.device import default_max_tokens
from runtime.domain import Domain
from runtime.engine import EngineSpec
for device in sys.argv[1].split(","):
    for tokens in (32_768, 20_000, 16_384, 12_000, None):
        domain = Domain(2_050, tokens, 3_000) if tokens else None
        spec = EngineSpec("onnx-cuda", "a", device, "float16", (1,), None, "", "", "", False, 8,
                          domain=domain)
        print(default_max_tokens(spec), end=" ")
"""
LARGE = ["32768", "20000", "16384", "16384", "16384"]
LEAST = ["16384"] * 5
OF_CPU = ["4096"] * 5

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with ``libcuda.so.1``."""
    return compiled(tmp_path_factory.mktemp("driver"), DRIVER)


def compiled(folder: Path, code: str) -> Path:
    command = ["gcc", "-shared", "-fPIC", "-x", "c", "-", "-o", folder / "libcuda.so.1"]
    subprocess.run(command, input=code, text=True, check=True)
    return folder


def variables(driver: Path, first: int = 0, second: int = 0, fails: int = 0) -> dict[str, str]:
    return {
        "LD_LIBRARY_PATH": str(driver), "FIRST": str(first), "SECOND": str(second),
        "FAILS": str(fails),
    }  # fmt: skip


@pytest.mark.parametrize(
    ("devices", "given", "expected"),
    [
        ("cuda", {"first": 80 << 30}, LARGE),
        # What an A100 of 40 GB says.
        ("cuda", {"first": 42_298_834_944}, LARGE),
        ("cuda", {"first": 24 << 30}, LEAST),
        ("cuda:0,cuda:1", {"first": 80 << 30, "second": 24 << 30}, LARGE + LEAST),
        ("cuda:0,cuda:1", {"first": 24 << 30, "second": 80 << 30}, LEAST + LARGE),
        ("cuda:2", {"first": 80 << 30, "second": 80 << 30}, LEAST),
        ("cuda", {"first": 80 << 30, "fails": 100}, LEAST),
    ],
)
def test_by_memory_and_proof(
    fresh_python: Run, driver: Path, devices: str, given: dict[str, int], expected: list[str]
) -> None:
    ran = fresh_python(BUDGETS, devices, blocked=("torch",), env=variables(driver, **given))
    assert ran.stdout.split() == expected
    assert ran.stderr == "cuInit\n" * len(devices.split(","))


def test_without_a_driver(fresh_python: Run, tmp_path: Path) -> None:
    (tmp_path / "libcuda.so.1").touch()  # found before that of a machine with a card
    assert fresh_python(BUDGETS, "cuda", env=variables(tmp_path)).stdout.split() == LEAST


def test_with_another_maker_s(fresh_python: Run, tmp_path: Path) -> None:
    other = compiled(tmp_path, "int cuInit(unsigned flags) { return 0; }")
    assert fresh_python(BUDGETS, "cuda", env=variables(other)).stdout.split() == LEAST


def test_a_cpu_asks_no_driver(fresh_python: Run, driver: Path) -> None:
    """After ``cuInit`` a fork could use no card."""
    ran = fresh_python(BUDGETS, "cpu", env=variables(driver, first=80 << 30))
    assert (ran.stdout.split(), ran.stderr) == (OF_CPU, "")


@pytest.mark.parametrize("command", ["embed", "score", "extract", "serve"])
def test_help_says_the_rule_and_asks_no_driver(
    fresh_python: Run, driver: Path, command: str
) -> None:
    code = "from runtime.cli import main; main([sys.argv[1], '--help'])"
    ran = fresh_python(code, command, env=variables(driver))
    assert MAX_TOKENS_RULE in " ".join(ran.stdout.split())
    assert ran.stderr == ""
