"""The installed wheel, used from outside the checkout."""

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
PACKAGES = ("esm2_engines", "exporter", "runtime")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    # A copy: building in the checkout would leave a build folder there.
    copy = ["cp", "-r", *PACKAGES, "pyproject.toml", "README.md", "LICENSE"]
    source.mkdir()
    subprocess.run([*copy, source], cwd=ROOT, check=True)
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation"]
    subprocess.run([*pip, "--target", folder / "site", source], check=True, timeout=300)
    return folder / "site"


def test_it_holds_the_packages_and_nothing_else(site: Path) -> None:
    assert {path.name for path in site.iterdir() if not path.name.endswith(".dist-info")} == {
        "bin", *PACKAGES,
    }  # fmt: skip
    assert (site / "runtime" / "py.typed").exists()
    for package in PACKAGES:
        folders = {path.parent.relative_to(ROOT) for path in ROOT.glob(f"{package}/**/*.py")}
        assert all((site / folder / "__init__.py").exists() for folder in folders)


def test_it_embeds(site: Path, artifact: Path, tmp_path: Path, fresh_python) -> None:  # type: ignore[no-untyped-def]
    (tmp_path / "x.fasta").write_text(">a\nMKT\n")
    code = (
        "sys.path.insert(0, sys.argv[1]); sys.argv[:2] = ['esm2-run'];"
        "import esm2_engines; print(esm2_engines.load(sys.argv[2]).embed(['MKT']).shape);"
        "import runtime.cli; print(runtime.__file__); runtime.cli.main()"
    )
    result = fresh_python(
        code, site, "embed", artifact, "x.fasta", "-o", "x.npz",
        blocked=("torch", "esm", "onnx", "exporter", "safetensors"), cwd=tmp_path,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert str(site) in result.stdout
    assert (tmp_path / "x.npz").exists()
