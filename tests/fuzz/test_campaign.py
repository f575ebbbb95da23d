"""A few copies of each campaign, and all that once went wrong; thousands of them: ``make fuzz``."""

from pathlib import Path

import pytest

from tests.fuzz.campaign import CORPUS, NAMES, corpus, problem, recipes, run
from tests.fuzz.judging import CRASH, HANG, RAW, REFUSED, RIGHT, WRONG, Verdict
from tests.fuzz.mutations import Recipe

COPIES = {"unsealed": 60, "resealed": 12, "trusted": 60}
# PyTorch is dear to import, and only in one of them files that are not whole come to it.
ENGINES = {"unsealed": ("onnx",), "resealed": (), "trusted": ("onnx",)}


@pytest.mark.parametrize("name", NAMES)
def test_copies_are_refused_or_right(
    name: str, ready_artifact: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    (place := tmp_path / "copies").mkdir()
    known = [r for n, r in corpus() if n == name and (ready_artifact / r.file).exists()]
    drawn = [r for r in recipes(ready_artifact, COPIES[name], 0) if r.mutation != "a bomb"]
    results = run(name, ready_artifact, [*known, *drawn], place, 1, ENGINES[name])
    problems = {str(r): (what, v.said) for r, v in results if (what := problem(name, r, v))}
    assert problems == {}
    assert results[len(known)][1].outcome == RIGHT  # nothing was done to it
    outcomes = [verdict.outcome for _, verdict in results]
    assert outcomes.count(REFUSED) > len(outcomes) / 3


@pytest.mark.parametrize(
    ("name", "file", "outcome", "must_not_be"),
    [
        ("unsealed", "model.onnx", WRONG, True),
        ("unsealed", "model.ts", CRASH, True),
        ("resealed", "model.ts", CRASH, False),
        ("resealed", "manifest.json", CRASH, True),
        ("resealed", "golden.npz", HANG, True),
        ("resealed", "model.ts", RAW, True),
        ("trusted", "model.ts", WRONG, True),
    ],
)
def test_what_must_not_be(name: str, file: str, outcome: str, must_not_be: bool) -> None:
    assert bool(problem(name, Recipe("a bit", file, 0), Verdict(outcome))) == must_not_be


def test_the_corpus_is_of_mutations_that_there_are() -> None:
    assert CORPUS.exists() and corpus()
