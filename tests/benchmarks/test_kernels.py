"""``python -m benchmarks.kernels``: every node's time is in one row."""

import re
from pathlib import Path

import pytest
from click.testing import CliRunner

from benchmarks.kernels import main

pytestmark = pytest.mark.slow


def test_shares_are_of_the_whole(tiny_artifact: Path) -> None:
    result = CliRunner().invoke(main, [str(tiny_artifact), "--tokens", "300", "--rounds", "1"])
    assert result.exit_code == 0, result.output
    shares = {
        kind: float(share)
        for kind, share in re.findall(r"^\| (.+?) \| [\d,]+ \| ([\d.]+)% \|$", result.output, re.M)
    }
    assert {"linears", "VarlenRotaryAttention", "all others"} <= shares.keys()
    shares.pop("linears at the rate of a large product")
    assert sum(shares.values()) == pytest.approx(100, abs=0.1 * len(shares))
