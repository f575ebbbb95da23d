from pathlib import Path

import pytest
from click.testing import CliRunner

from exporter.cli import main
from exporter.model.reference import WeightsSource, load_reference
from exporter.parity.divergence import EAGER, FLASH, STANDARD, TRUTH, Distance, study
from exporter.parity.truth.cache import Cache


def test_study(tiny_checkpoint: Path, cache: Cache) -> None:
    reference = load_reference(WeightsSource("checkpoint", str(tiny_checkpoint)))
    result = study(reference, ["MKTAYIAKQR", "GGAVLIW", "MK<mask>T", "WWWW"], cache)
    pairs = {(d.dtype, d.one, d.other): d for d in result.distances}
    assert len(pairs) == 3 * 6
    rounding = {
        dtype: pairs[dtype, TRUTH, EAGER].pooled_max for dtype in ("float32", "float16", "bfloat16")
    }
    assert 0 < rounding["float32"] < 1e-6 < rounding["float16"] < rounding["bfloat16"] < 0.05
    # Ways of attention differ from each other by rounding, not by more.
    for dtype, error in rounding.items():
        for other in (FLASH, STANDARD):
            assert pairs[dtype, EAGER, other].pooled_max < 4 * error
    assert pairs["float32", EAGER, FLASH].label_agreement == 1


@pytest.mark.parametrize(
    ("agreement", "advice"),
    [
        (1.0, "accept"),
        (0.991, "accept"),
        (0.99, "validate on your data"),
        (0.95, "validate on your data"),
        (0.949, "use standard"),
    ],
)
def test_decision_tree(agreement: float, advice: str) -> None:
    assert Distance("float16", EAGER, FLASH, agreement, 1.0, 0.0, 0.0).advice == advice


def test_command(tiny_checkpoint: Path, tmp_path: Path) -> None:
    fasta = tmp_path / "mine.fasta"
    fasta.write_text(">a\nMKTAYIAKQR\n>b\nGGAVLIW\n>c\nWWKL\n")
    out = tmp_path / "divergence.md"
    options = ["--checkpoint", tiny_checkpoint, "--fasta", fasta, "--out", out]
    result = CliRunner().invoke(main, ["divergence", *map(str, options)])
    assert result.exit_code == 0, result.output
    text = out.read_text()
    assert text.count("| eager fair-esm | flash-type |") == 3
    assert "- float32: 100.0 %: **accept**" in text
