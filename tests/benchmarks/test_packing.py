"""The packer's own benchmark."""

import json

from click.testing import CliRunner

from benchmarks.packing import DISTRIBUTIONS, STREAMED, main


def test_it_measures_every_distribution() -> None:
    result = CliRunner().invoke(main, ["--proteins", "25000", "--repeats", "1", "--json"])
    assert result.exit_code == 0, result.output
    figures = json.loads(result.output)
    assert figures["all_at_once"].keys() == DISTRIBUTIONS.keys()
    assert figures["windows"].keys() == set(STREAMED)
    for rows in figures["all_at_once"].values():
        even, first_fit = rows["even_packs"], rows["first_fit_decreasing"]
        assert even["work_cv"] < first_fit["work_cv"] / 5
        assert 0.9 < even["efficiency"] <= first_fit["efficiency"] + 1e-9


def test_it_prints_a_row_for_each() -> None:
    result = CliRunner().invoke(main, ["--proteins", "25000", "--repeats", "1"])
    assert result.exit_code == 0, result.output
    for name in DISTRIBUTIONS:
        assert f"\n{name} " in result.output
