"""A small part of ``make native-check``, which is for whoever changes a kernel."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from runtime.threads import usable_cores
from tests.native.check import Build, build_of, compile_programs, kernels, run

pytestmark = pytest.mark.slow

# Little optimized: the compiler takes longer than the program.
BUILDS = [
    *(build_of(kernel, "", "-O1", packs=10) for kernel in kernels()),
    build_of(kernels()[0], "address", "-O1", packs=10),
]


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    here = [build for build in BUILDS if not build.problem]
    with ThreadPoolExecutor(usable_cores()) as pool:
        compiled = compile_programs(here, tmp_path_factory.mktemp("native"), pool)
        return {build.name: path.result() for build, path in zip(here, compiled, strict=True)}


@pytest.mark.parametrize("build", BUILDS, ids=lambda build: build.name)
def test_the_kernel_has_its_properties(build: Build, programs: dict[str, Path]) -> None:
    if build.problem:
        pytest.skip(build.problem)
    said = run(build, programs[build.name], seed=1)
    assert said.endswith("passed\n"), said
