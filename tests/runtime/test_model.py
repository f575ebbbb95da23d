"""What a newcomer writes: load, embed, stream, logits."""

import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import numpy as np
import pytest

import esm2_engines as esm2
import runtime
from runtime import manifest as manifests

SEQUENCES = ["MKTAYIAKQR", "GGAVL", "W"]


@pytest.fixture(scope="module")
def model(tiny_artifact: Path) -> Iterator[esm2.Model]:
    with esm2.load(tiny_artifact) as model:
        yield model


@pytest.fixture
def expected(tiny_artifact: Path) -> runtime.Outputs:
    with runtime.load(tiny_artifact, "onnx") as engine:
        return engine.run(runtime.PackedBatch.from_sequences(SEQUENCES))


BOUNDS = np.cumsum([0, *(len(sequence) + 2 for sequence in SEQUENCES)]).astype(np.int32)


def test_one_vector_for_each_protein(model: esm2.Model, expected: runtime.Outputs) -> None:
    found = model.embed(SEQUENCES)
    assert (found.shape, found.dtype) == ((3, 48), np.float32)
    pooled = runtime.pool(expected.representations[2], BOUNDS, "mean")
    np.testing.assert_allclose(found, pooled, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("pool", ["mean", "mean-with-eos", "cls"])
@pytest.mark.parametrize("layer", [0, 1, None])
def test_pools_and_layers(
    model: esm2.Model, expected: runtime.Outputs, pool: str, layer: int | None
) -> None:
    rows = expected.representations[2 if layer is None else layer]
    found = model.embed(SEQUENCES, pool=pool, layer=layer)
    np.testing.assert_allclose(found, runtime.pool(rows, BOUNDS, pool), rtol=1e-4, atol=1e-5)


def test_one_vector_for_each_residue(model: esm2.Model, expected: runtime.Outputs) -> None:
    found = model.embed(SEQUENCES, pool=None)
    assert [rows.shape for rows in found] == [(10, 48), (5, 48), (1, 48)]
    residues = expected.representations[2][BOUNDS[1] + 1 : BOUNDS[2] - 1]
    np.testing.assert_allclose(found[1], residues, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "given",
    [
        tuple(SEQUENCES),
        [("a", SEQUENCES[0]), ("b", SEQUENCES[1]), ("c", SEQUENCES[2])],
        [esm2.Record("a", SEQUENCES[0]), SEQUENCES[1], ("c", SEQUENCES[2])],
        np.array(SEQUENCES),
        dict(zip("abc", SEQUENCES, strict=True)),
    ],
)
def test_whatever_holds_sequences(model: esm2.Model, given: object) -> None:
    np.testing.assert_allclose(model.embed(given), model.embed(SEQUENCES), rtol=1e-4, atol=1e-5)


def test_a_generator_is_read_once(model: esm2.Model) -> None:
    found = model.embed(sequence for sequence in SEQUENCES)
    np.testing.assert_allclose(found, model.embed(SEQUENCES), rtol=1e-4, atol=1e-5)


def test_one_sequence_gives_its_own(model: esm2.Model) -> None:
    assert model.embed("GGAVL").shape == (48,)
    assert model.embed("GGAVL", pool=None).shape == (5, 48)
    assert model.embed(esm2.Record("a", "GGAVL")).shape == (48,)
    assert model.logits("MK<mask>A").shape == (6, 33)
    np.testing.assert_array_equal(
        model.embed("ggavl*", upper=True, strip_stop=True), model.embed("GGAVL")
    )


def test_none_gives_none(model: esm2.Model) -> None:
    assert model.embed([]).shape == (0, 48)
    assert model.embed([], pool=None) == []
    assert model.logits([]) == []


def test_logits_of_many_in_their_order(model: esm2.Model, expected: runtime.Outputs) -> None:
    found = model.logits(SEQUENCES)
    assert [rows.shape for rows in found] == [(12, 33), (7, 33), (3, 33)]
    np.testing.assert_allclose(np.concatenate(found), expected.logits, rtol=1e-3, atol=1e-4)


def test_logits_beyond_one_pack(tiny_artifact: Path) -> None:
    with esm2.load(tiny_artifact, max_tokens=8) as small, esm2.load(tiny_artifact) as large:
        for one, other in zip(small.logits(SEQUENCES), large.logits(SEQUENCES), strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-4)


def test_a_file_in_a_stream(model: esm2.Model, tmp_path: Path) -> None:
    fasta = tmp_path / "x.fasta"
    fasta.write_text(">a first\nMKTAYIAKQR\n>b\nGGAVL\n>c\nW\n")
    for path in (fasta, str(fasta), [fasta]):
        found = list(model.stream(esm2.read_fasta(path)))
        assert [embedding.id for embedding in found] == ["a", "b", "c"]
        values = np.stack([embedding.values for embedding in found])
        np.testing.assert_allclose(values, model.embed(SEQUENCES), rtol=1e-4, atol=1e-5)


def test_what_is_rejected_is_handed_over(model: esm2.Model) -> None:
    rejected: list[esm2.Rejection] = []
    found = list(model.stream([("a", "MKT"), ("b", "M1T")], on_rejected=rejected.append))
    assert [embedding.id for embedding in found] == ["a"]
    assert [rejection.record for rejection in rejected] == ["b"]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda model: model.embed(["M1T"]), "1"),
        (lambda model: model.embed([3]), "protein 0 must be a string, a pair .* got int"),
        (lambda model: model.embed([["a", "MKT"]]), "protein 0 must be .* got list"),
        (lambda model: model.embed(("a", "MKT")), "are a pair .* or two sequences"),
        (lambda model: model.embed(b"MKT"), "sequences must be a string, .* got bytes"),
        (lambda model: model.embed(Path("x.fasta")), "Files are read by read_fasta"),
        (lambda model: model.embed(None), "got NoneType"),
        (lambda model: model.embed("mkt"), "upper=True in Python"),
        (lambda model: model.embed(["M"], layer=7), r"layer 7 is not in this artifact"),
        (lambda model: model.embed(["M"], pool="max"), "pool must be one of"),
        (lambda model: model.logits("M1T"), "1"),
    ],
)
def test_what_cannot_be_embedded(
    model: esm2.Model, call: Callable[[esm2.Model], object], message: str
) -> None:
    with pytest.raises(esm2.InputError, match=message):
        call(model)


def test_it_prints_what_runs_and_how_well(model: esm2.Model) -> None:
    lines = repr(model).splitlines()
    assert lines[0] == "Model artifact"
    said = {line.split()[0]: line for line in lines[1:]}
    assert "onnx (onnxruntime " in said["engine"]
    assert "on cpu, float32" in said["engine"]
    assert "native (" in said["attention"]
    assert "48 wide, of layers 0, 1, 2" in said["embeddings"]
    assert "from eager fair-esm in float64" in said["parity"]
    assert "warning" not in said


def test_it_prints_why_nothing_faster_runs(tiny_artifact: Path) -> None:
    with esm2.load(tiny_artifact, device="cpu", attention="standard") as model:
        assert model.engine.spec.passed_over == ()
    blocked = {"onnxruntime": None}
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(__import__("sys").modules, "onnxruntime", blocked["onnxruntime"])
        with esm2.load(tiny_artifact, device="cpu") as model:
            (reason,) = model.engine.spec.passed_over
            assert reason.startswith("onnx on cpu: ")
            assert reason in " ".join(repr(model).split())
            assert max(map(len, repr(model).splitlines())) <= 100


MANY = ["MKTAYIAKQR" * 20] * 40


@pytest.fixture
def loads(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """For how many packs at once engines were loaded."""
    found: list[int] = []

    def counting(*arguments: object, concurrency: int = 1, **options: object) -> runtime.Engine:
        found.append(concurrency)
        return runtime.load(*arguments, concurrency=concurrency, **options)  # type: ignore[arg-type]

    monkeypatch.setattr("runtime.model.load", counting)
    return found


def test_many_proteins_share_the_cores_and_one_has_them_all(
    tiny_artifact: Path, loads: list[int]
) -> None:
    with esm2.load(tiny_artifact, engine="onnx", threads=4) as model:
        one = model.embed(MANY[0])
        model.embed(MANY[:2])
        model.embed(np.array(MANY[:1]))
        model.logits(MANY)
        assert loads == [1]
        many = model.embed(MANY)
        for embedding in model.stream(sequence for sequence in MANY[:3]):
            assert model.embed(MANY[0]).shape == embedding.values.shape, "in the middle of a stream"
        assert loads == [1, 4]
        np.testing.assert_allclose(many[0], one, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("options", [{"concurrency": 2}, {"threads": 1}, {"engine": "torchscript"}])
def test_what_has_no_choice_is_loaded_once(
    tiny_artifact: Path, loads: list[int], options: dict[str, object]
) -> None:
    with esm2.load(tiny_artifact, **{"engine": "onnx", "threads": 4, **options}) as model:
        model.embed(MANY)
        model.embed(MANY[0])
        assert loads == [options.get("concurrency", 1)]


def test_a_closed_model_stays_closed(tiny_artifact: Path) -> None:
    with esm2.load(tiny_artifact, engine="onnx", threads=4) as model:
        model.embed(MANY)
    for given in (MANY, MANY[0]):
        with pytest.raises(esm2.EngineError, match="closed"):
            model.embed(given)


def test_an_artifact_that_was_replaced_is_not_mixed_with_the_old_one(
    ready_artifact: Path, tiny_artifact: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ready_artifact.parent)
    with esm2.load(ready_artifact.name, engine="onnx", threads=4) as model:
        monkeypatch.chdir("/")
        model.embed(MANY)
    with esm2.load(ready_artifact, engine="onnx", threads=4) as model:
        shutil.rmtree(ready_artifact)
        shutil.copytree(tiny_artifact, ready_artifact)
        with pytest.raises(esm2.EngineError, match="was replaced: load the model again"):
            model.embed(MANY)
        assert model.embed(MANY[0]).ndim == 1


@pytest.mark.parametrize("options", [{"concurrency": 0}, {"threads": 0}, {"max_tokens": "4096"}])
def test_numbers_that_are_none(tiny_artifact: Path, options: dict[str, object]) -> None:
    with pytest.raises(esm2.InputError, match="must be a whole number of at least 1"):
        esm2.load(tiny_artifact, **options)


def test_without_lm_head(tiny_artifact: Path) -> None:
    with esm2.load(tiny_artifact) as model:
        weights = msgspec.structs.replace(model.manifest.weights, lm_head=False)
        model.manifest = msgspec.structs.replace(model.manifest, weights=weights)
        with pytest.raises(esm2.UnsupportedError, match="had no LM head"):
            model.logits("MKT")


def test_its_names_are_the_runtimes() -> None:
    added = {"Client", "Model", "__version__"}
    assert set(esm2.__all__) == set(runtime.__all__) | added
    for name in set(runtime.__all__) - {"load"}:
        assert getattr(esm2, name) is getattr(runtime, name)


def test_importing_it_needs_numpy_alone(
    fresh_python: Callable[..., subprocess.CompletedProcess[str]],
) -> None:
    blocked = (
        "torch",
        "onnxruntime",
        "onnx",
        "esm",
        "exporter",
        "click",
        "msgspec",
        "isal",
        "backports",
    )
    result = fresh_python("import esm2_engines as e; print(e.load.__name__)", blocked=blocked)
    assert result.stdout == "load_model\n", result.stderr


def test_the_manifest_is_there(model: esm2.Model, tiny_artifact: Path) -> None:
    assert model.manifest == manifests.read(tiny_artifact)
