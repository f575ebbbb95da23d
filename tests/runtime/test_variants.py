"""Variant scores against what fair-esm's variant-prediction script does, done here by eager."""

import csv
import errno
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet
import pytest
import torch
from click.testing import CliRunner, Result

import esm2_engines as esm2
import runtime
from exporter.model.precision import cast_copy
from exporter.model.reference import Reference
from runtime import runner
from runtime.cli import main
from runtime.dataset import folder
from runtime.lm_head import AMINO_ACIDS
from runtime.tokenizer import TOKENS
from runtime.variants import masking
from runtime.writers.blocks import Block
from runtime.writers.columns import Columns
from runtime.writers.delimited import Writer
from tests.conftest import random_sequence

LENGTHS = {"a": 61, "b": 90, "c": 24}
NUM_VARIANTS = 500
# Of the spread of the scores, which is about 15 with random weights and 3 with trained ones.
TOLERANCE = 1e-5


def check(ours: Any, expected: Any) -> None:
    """Same scores: the largest difference is small beside their spread."""
    ours, expected = np.asarray(ours), np.asarray(expected)
    assert ours.shape == expected.shape
    assert np.std(expected) > 0.1
    assert np.abs(ours - expected).max() <= TOLERANCE * np.std(expected)


class Script:
    """examples/variant-prediction/predict.py of fair-esm, by eager in float64."""

    def __init__(self, reference: Reference):
        self.model = cast_copy(reference.model, torch.float64).eval()
        self.alphabet = reference.alphabet
        self.batch_converter = reference.alphabet.get_batch_converter()

    def log_probs(self, tokens: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            return torch.log_softmax(self.model(tokens)["logits"], dim=-1)

    def tokens(self, sequence: str) -> torch.Tensor:
        return self.batch_converter([("protein1", sequence)])[2]

    def masked(self, sequence: str) -> torch.Tensor:
        """One row of log-probabilities for each token, which alone is masked."""
        tokens = self.tokens(sequence)
        copies = tokens.repeat(tokens.size(1), 1)
        places = torch.arange(tokens.size(1))
        copies[places, places] = self.alphabet.mask_idx
        return self.log_probs(copies)[places, places]

    def label_row(self, row: str, sequence: str, token_probs: torch.Tensor, offset: int) -> float:
        """Of the script, with the sum over substitutions of ProteinGym's."""
        score = 0.0
        for mutation in row.split(":"):
            wt, idx, mt = mutation[0], int(mutation[1:-1]) - offset, mutation[-1]
            assert sequence[idx] == wt
            wt_encoded, mt_encoded = self.alphabet.get_idx(wt), self.alphabet.get_idx(mt)
            score += (token_probs[1 + idx, mt_encoded] - token_probs[1 + idx, wt_encoded]).item()
        return score

    def pseudo_log_likelihood(self, sequence: str) -> float:
        """By the definition, which compute_pppl means: each token by its own mask."""
        rows = self.masked(sequence)
        return sum(
            rows[i + 1, self.alphabet.get_idx(letter)].item() for i, letter in enumerate(sequence)
        )

    def scores(self, convention: str, sequence: str, rows: list[str], offset: int) -> list[float]:
        if convention == "pseudo-ppl":
            mutants = [mutant_of(sequence, row, offset) for row in rows]
            return [self.pseudo_log_likelihood(mutant) for mutant in mutants]
        if convention == "wt-marginals":
            table = self.log_probs(self.tokens(sequence))[0]
        else:
            table = self.masked(sequence)
        return [self.label_row(row, sequence, table, offset) for row in rows]


def mutant_of(sequence: str, row: str, offset: int) -> str:
    letters = list(sequence)
    for mutation in row.split(":"):
        letters[int(mutation[1:-1]) - offset] = mutation[-1]
    return "".join(letters)


@pytest.fixture(scope="module")
def script(reference: Reference) -> Script:
    return Script(reference)


@pytest.fixture(scope="module")
def proteins() -> dict[str, str]:
    random = np.random.default_rng(19)
    return {name: random_sequence(random, length) for name, length in LENGTHS.items()}


def drawn(sequence: str, count: int, offset: int, seed: int) -> list[str]:
    """Singles, doubles and triples."""
    random = np.random.default_rng(seed)
    rows = []
    for _ in range(count):
        places = random.choice(len(sequence), random.integers(1, 4), replace=False)
        letters = random.choice(list(AMINO_ACIDS), len(places))
        pairs = zip(places, letters, strict=True)
        rows.append(":".join(f"{sequence[at]}{at + offset}{letter}" for at, letter in pairs))
    return rows


@pytest.fixture
def variants(proteins: dict[str, str]) -> list[tuple[str, str]]:
    """Id and variant, of all proteins in turn."""
    of = {name: drawn(sequence, NUM_VARIANTS, 1, 5) for name, sequence in proteins.items()}
    return [(name, of[name][i]) for i in range(NUM_VARIANTS) for name in proteins]


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, [*map(str, arguments)])


def fasta_of(path: Path, records: dict[str, str]) -> Path:
    path.write_text("".join(f">{name} more\n{residues}\n" for name, residues in records.items()))
    return path


def table_of(path: Path, rows: list[tuple[str, ...]], names: tuple[str, ...]) -> Path:
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([names, *rows])
    return path


@pytest.fixture
def wild_types(tmp_path: Path, proteins: dict[str, str]) -> Path:
    return fasta_of(tmp_path / "wt.fasta", proteins)


@pytest.fixture
def table(tmp_path: Path, variants: list[tuple[str, str]]) -> Path:
    rows = [(str(i), variant, name) for i, (name, variant) in enumerate(variants)]
    return table_of(tmp_path / "variants.csv", rows, ("dms", "mutant", "protein"))


def read(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def score_file(
    artifact: Path, wild_types: Path, table: Path, output: Path, *options: object
) -> list[dict[str, str]]:
    result = run(
        "score", artifact, "--wild-type", wild_types, "--variants", table, "-o", output, *options
    )
    assert result.exit_code == 0, result.output
    return read(output)


class TestScores:
    @pytest.mark.parametrize("convention", ["wt-marginals", "masked-marginals", "pseudo-ppl"])
    def test_are_the_scripts(
        self, artifact: Path, script: Script, proteins: dict[str, str], wild_types: Path,
        table: Path, variants: list[tuple[str, str]], tmp_path: Path, convention: str,
    ) -> None:  # fmt: skip
        if convention == "pseudo-ppl":  # L forwards a variant: a short one of each protein
            proteins = {name: sequence[:10] for name, sequence in proteins.items()}
            of = {name: drawn(each, NUM_VARIANTS, 1, 6) for name, each in proteins.items()}
            variants = [(name, row) for name, rows in of.items() for row in rows]
            wild_types = fasta_of(tmp_path / "short.fasta", proteins)
            names = ("protein", "mutant")
            table = table_of(tmp_path / "short.csv", variants, names)
        found = score_file(
            artifact, wild_types, table, tmp_path / "out.csv", "--convention", convention,
            "--id-column", "protein",
        )  # fmt: skip
        assert [(each["id"], each["mutant"]) for each in found] == variants
        for name, sequence in proteins.items():
            rows = [variant for id_, variant in variants if id_ == name]
            expected = script.scores(convention, sequence, rows, 1)
            ours = [float(each["score"]) for each in found if each["id"] == name]
            assert len(ours) == NUM_VARIANTS
            check(ours, expected)

    def test_each_masked_position_is_run_once(
        self, artifact: Path, proteins: dict[str, str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        seen: list[bytes] = []
        of_pack = masking.of_pack

        def counting(engine: Any, batch: Any) -> Any:
            seen.extend(
                each.tobytes() for each in np.split(batch.input_ids, batch.cu_seqlens[1:-1])
            )
            return of_pack(engine, batch)

        monkeypatch.setattr(masking, "of_pack", counting)
        with esm2.load(artifact) as model:
            model.score(proteins["a"])
        assert len(seen) == len(set(seen)) == LENGTHS["a"]

    @pytest.mark.parametrize("offset", [0, 24, -3])
    def test_offset_is_the_number_of_the_first_residue(
        self, artifact: Path, script: Script, proteins: dict[str, str], tmp_path: Path, offset: int
    ) -> None:
        rows = drawn(proteins["c"], 20, offset, 7)
        wild_types = fasta_of(tmp_path / "c.fasta", {"c": proteins["c"]})
        table = table_of(tmp_path / "t.csv", [(row,) for row in rows], ("mutation",))
        found = score_file(
            artifact, wild_types, table, tmp_path / "out.csv", "--offset-idx", offset,
            "--mutation-col", "mutation", "--convention", "wt-marginals",
        )  # fmt: skip
        expected = script.scores("wt-marginals", proteins["c"], rows, offset)
        check([float(each["score"]) for each in found], expected)
        assert {each["id"] for each in found} == {"c"}

    def test_windows_of_few_records_give_the_same(
        self, artifact: Path, wild_types: Path, table: Path, tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:  # fmt: skip
        options = ("--id-column", "protein")
        whole = score_file(artifact, wild_types, table, tmp_path / "a.csv", *options)
        monkeypatch.setattr(runner, "WINDOW_RECORDS", 70)
        cut = score_file(artifact, wild_types, table, tmp_path / "b.csv", *options)
        assert [x["mutant"] for x in cut] == [x["mutant"] for x in whole]
        ours, theirs = ([float(x["score"]) for x in each] for each in (cut, whole))
        check(ours, theirs)


class TestDeepScan:
    def test_is_of_all_single_substitutions(
        self, artifact: Path, script: Script, proteins: dict[str, str], tmp_path: Path
    ) -> None:
        some = {name: proteins[name] for name in "ac"}
        wild_types = fasta_of(tmp_path / "wt.fasta", some)
        output, plots = tmp_path / "deep.csv", tmp_path / "plots"
        result = run(
            "score", artifact, "--wild-type", wild_types, "--deep", "-o", output, "--plot", plots
        )
        assert result.exit_code == 0, result.output
        found = read(output)
        expected = {
            (name, f"{letter}{at}{mutant}")
            for name, sequence in some.items()
            for at, letter in enumerate(sequence, start=1)
            for mutant in AMINO_ACIDS
            if mutant != letter
        }
        assert {(each["id"], each["mutant"]) for each in found} == expected
        assert len(found) == len(expected)
        rows = [each["mutant"] for each in found if each["id"] == "c"]
        check(
            [float(each["score"]) for each in found if each["id"] == "c"],
            script.scores("masked-marginals", some["c"], rows, 1),
        )
        for name in some:
            assert (plots / f"{name}.png").read_bytes().startswith(b"\x89PNG")

    @pytest.mark.parametrize("convention", ["masked-marginals", "wt-marginals", "pseudo-ppl"])
    def test_in_python_is_a_table(
        self, artifact: Path, script: Script, proteins: dict[str, str], convention: str
    ) -> None:
        sequence = proteins["c"][:9]
        with esm2.load(artifact) as model:
            table = model.score(sequence, convention=convention)
        rows = [
            f"{letter}{i}{mutant}" for i, letter in enumerate(sequence) for mutant in AMINO_ACIDS
        ]
        expected = np.reshape(script.scores(convention, sequence, rows, 0), (9, 20))
        check(table, expected)


class TestBadRows:
    """All are listed before anything is loaded."""

    ROWS = (
        ("a", "{wt}1A", None),
        ("a", "{other}1A", "expects {other} at position 1, and wild type 'a' has {wt} there"),
        ("a", "{wt}62A", "position 62 is out of range: wild type 'a' runs from 1 to 61"),
        ("a", "{wt}0A", "position 0 is out of range"),
        ("a", "{wt}1del", "insertions, deletions and stops are not scored"),
        ("a", "{wt}1_A2insG", "insertions, deletions and stops are not scored"),
        ("a", "{wt}1*", "insertions, deletions and stops are not scored"),
        ("a", "{wt}1A:{wt}1G", "a position occurs twice"),
        ("a", "{wt}1J", "'J' in '{wt}1J' is no residue"),
        ("a", "p.Ala1Gly", "is no substitution such as A12G"),
        ("a", "{wt}1A,{wt}2G", "is no substitution such as A12G"),
        ("a", "", "there is no substitution in it"),
        ("z", "A1G", "its id is none of the wild types'"),
    )

    @pytest.fixture
    def rows(self, proteins: dict[str, str]) -> list[tuple[str, str, str | None]]:
        wt = proteins["a"][0]
        letters = {"wt": wt, "other": "A" if wt != "A" else "G"}
        return [
            (name, text.format(**letters), reason and reason.format(**letters))
            for name, text, reason in self.ROWS
        ]

    @pytest.fixture
    def bad_table(self, rows: list[tuple[str, str, str | None]], tmp_path: Path) -> Path:
        names = ("protein", "mutant")
        return table_of(tmp_path / "bad.csv", [row[:2] for row in rows], names)

    def test_each_has_its_line(
        self, artifact: Path, wild_types: Path, tmp_path: Path, bad_table: Path,
        rows: list[tuple[str, str, str | None]], monkeypatch: pytest.MonkeyPatch,
    ) -> None:  # fmt: skip
        def load(*_: object, **__: object) -> None:
            raise AssertionError("an engine was loaded")

        monkeypatch.setattr(runtime.embed_engine, "load", load)
        output = tmp_path / "out.csv"
        result = run(
            "score", artifact, "--wild-type", wild_types, "--variants", bad_table, "-o", output,
            "--id-column", "protein",
        )  # fmt: skip
        assert result.exit_code == 2
        lines = result.stderr.splitlines()
        bad = [(i, row) for i, row in enumerate(rows, start=2) if row[2]]
        assert len(lines) == len(bad) + 1
        for line, (number, (_, text, reason)) in zip(lines, bad, strict=False):
            assert f"line {number}: " in line
            assert text in line
            assert str(reason) in line
        assert lines[-1].startswith("error: 12 of 13 variants of ")
        assert not output.exists()

    def test_are_left_out_where_that_is_asked_for(
        self, artifact: Path, wild_types: Path, tmp_path: Path, bad_table: Path
    ) -> None:
        output = tmp_path / "out.csv"
        result = run(
            "score", artifact, "--wild-type", wild_types, "--variants", bad_table, "-o", output,
            "--id-column", "protein", "--on-error", "skip",
        )  # fmt: skip
        assert result.exit_code == 3, result.output
        assert len(read(output)) == 1
        listed = (tmp_path / "out.csv.rejected.tsv").read_text().splitlines()
        assert len(listed) == 13

    def test_in_python(self, artifact: Path, proteins: dict[str, str]) -> None:
        sequence = proteins["a"]
        with esm2.load(artifact) as model:
            with pytest.raises(
                esm2.InputError, match=r"2 of 3 .*out of range.*; .*no substitution"
            ):
                model.score(sequence, [f"{sequence[0]}99A", f"{sequence[0]}1A", "x"])
            with pytest.raises(esm2.InputError, match="got one string"):
                model.score(sequence, f"{sequence[0]}1A")
            with pytest.raises(esm2.InputError, match="convention must be one of"):
                model.score(sequence, [f"{sequence[0]}1A"], "masked")
            with pytest.raises(esm2.InputError, match="holds inline tokens"):
                model.score("MK<mask>A", ["M1A"])

    @pytest.mark.parametrize(
        ("records", "options", "message"),
        [
            ("ab", ["--variants", "t.csv"], "holds 2 wild types: --id-column says"),
            ("a", ["--variants", "t.csv", "--deep"], "give --variants TABLE, or --deep"),
            ("a", [], "give --variants TABLE, or --deep"),
            ("a", ["--variants", "t.csv", "--plot", "x"], "--plot goes with --deep"),
            ("a", ["--variants", "t.csv", "--mutation-col", "x"], "it has no column 'x'"),
            ("a", ["--variants", "-"], "can be read only once"),
            ("a", ["--deep", "--resume"], "--resume is for folders"),
        ],
    )
    def test_options_that_do_not_fit(
        self, artifact: Path, proteins: dict[str, str], tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch, records: str, options: list[str], message: str,
    ) -> None:  # fmt: skip
        monkeypatch.chdir(tmp_path)
        wild_types = fasta_of(tmp_path / "wt.fasta", {each: proteins[each] for each in records})
        table_of(tmp_path / "t.csv", [(f"{proteins['a'][0]}1A",)], ("mutant",))
        result = run("score", artifact, "--wild-type", wild_types, "-o", "out.csv", *options)
        assert result.exit_code == 2
        assert message in result.stderr
        assert result.stderr.count("\n") == 1


class TestFolders:
    def test_goes_on_with_the_same_bits(
        self, artifact: Path, wild_types: Path, table: Path, tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:  # fmt: skip
        monkeypatch.setattr(runner, "WINDOW_RECORDS", 150)
        monkeypatch.setattr(folder, "PART_SECONDS", 0)
        given = (
            "score", artifact, "--wild-type", wild_types, "--variants", table, "--id-column",
            "protein", "--part-mb", 1e-4,
        )  # fmt: skip
        result = run(*given, "-o", tmp_path / "whole/")
        assert result.exit_code == 0, result.output
        whole = pyarrow.parquet.read_table(tmp_path / "whole").to_pydict()
        assert whole["row"] == list(range(len(LENGTHS) * NUM_VARIANTS))
        assert isinstance(whole["score"][0], float)

        write_part, written = folder.Dataset._write_part, []

        def full_at_the_third(self: Any, *arguments: Any) -> None:
            if len(written) == 2:
                raise OSError(errno.ENOSPC, "full")
            written.append(write_part(self, *arguments))

        with monkeypatch.context() as patch:
            patch.setattr(folder.Dataset, "_write_part", full_at_the_third)
            result = run(*given, "-o", tmp_path / "cut/")
            assert result.exit_code != 0
        assert len(list((tmp_path / "cut").glob("*.parquet"))) == 2
        told = run("status", tmp_path / "cut").stdout
        assert "  variants   300 of" in told and "proteins" not in told
        result = run(*given, "-o", tmp_path / "cut/")
        assert "variants: --resume goes on with it" in result.stderr
        result = run(*given, "-o", tmp_path / "cut/", "--resume")
        assert result.exit_code == 0, result.output
        assert "goes on behind" in result.stderr
        assert pyarrow.parquet.read_table(tmp_path / "cut").to_pydict() == whole
        result = run(*given, "-o", tmp_path / "cut/", "--resume", "--convention", "wt-marginals")
        assert result.exit_code == 2
        assert "--convention is wt-marginals, it was masked-marginals" in result.stderr


class TestPerplexity:
    def test_is_by_each_mask(
        self, artifact: Path, script: Script, wild_types: Path, proteins: dict[str, str],
        tmp_path: Path,
    ) -> None:  # fmt: skip
        result = run("perplexity", artifact, wild_types, "-o", tmp_path / "p.csv")
        assert result.exit_code == 0, result.output
        found = read(tmp_path / "p.csv")
        assert [each["id"] for each in found] == list(proteins)
        assert [int(each["length"]) for each in found] == list(LENGTHS.values())
        expected = [
            np.exp(-script.pseudo_log_likelihood(each) / len(each)) for each in proteins.values()
        ]
        ours = [float(each["pseudo_perplexity"]) for each in found]
        np.testing.assert_allclose(ours, expected, rtol=TOLERANCE)
        with esm2.load(artifact) as model:
            np.testing.assert_allclose(model.perplexity(proteins), expected, rtol=TOLERANCE)

    @pytest.mark.parametrize(
        ("sequence", "message"), [("MK<mask>A", "holds inline tokens"), ("MJ", "character 'J'")]
    )
    def test_what_cannot_be_masked(
        self, artifact: Path, tmp_path: Path, sequence: str, message: str
    ) -> None:
        fasta = fasta_of(tmp_path / "x.fasta", {"good": "MKV", "bad": sequence})
        result = run("perplexity", artifact, fasta, "-o", tmp_path / "p.csv")
        assert result.exit_code == 2
        assert message in result.stderr
        assert not (tmp_path / "p.csv").exists()


class TestLogits:
    @pytest.mark.parametrize("columns", [20, 33])
    @pytest.mark.parametrize("ending", [".npz", ".h5"])
    def test_are_log_probabilities(
        self, artifact: Path, script: Script, wild_types: Path, proteins: dict[str, str],
        tmp_path: Path, columns: int, ending: str,
    ) -> None:  # fmt: skip
        output = tmp_path / f"l{ending}"
        result = run("logits", artifact, wild_types, "-o", output, "--columns", columns)
        assert result.exit_code == 0, result.output
        if ending == ".npz":
            with np.load(output) as file:
                rows, offsets, names = (
                    file[each] for each in ("log_probabilities", "offsets", "columns")
                )
        else:
            import h5py

            with h5py.File(output) as file:
                rows, offsets = file["log_probabilities"][:], file["offsets"][:]
                names = file.attrs["columns"]
        letters = str(names).split(",")
        assert letters == (list(AMINO_ACIDS) if columns == 20 else list(TOKENS))
        chosen = [script.alphabet.get_idx(letter) for letter in letters]
        for i, sequence in enumerate(proteins.values()):
            expected = script.log_probs(script.tokens(sequence))[0, 1:-1][:, chosen]
            own = rows[offsets[i] : offsets[i + 1]]
            assert own.dtype == np.float32
            check(own, expected)


@pytest.mark.parametrize(
    "command",
    [
        ["score", "{}", "--wild-type", "wt.fasta", "--deep", "-o", "x.csv"],
        ["perplexity", "{}", "wt.fasta", "-o", "x.csv"],
        ["logits", "{}", "wt.fasta", "-o", "x.npz"],
    ],
)
def test_without_an_lm_head(
    ready_artifact: Path, without_lm_head: Callable[[Path], None], tmp_path: Path,
    command: list[str],
) -> None:  # fmt: skip
    without_lm_head(ready_artifact)
    result = run(*[word.format(ready_artifact) for word in command])
    assert result.exit_code == 2
    assert "gives no logits: its checkpoint had no LM head. Build it from" in result.stderr
    shown = run("info", ready_artifact).stdout
    assert re.search(r"commands +embed, extract$", shown, re.MULTILINE)


@pytest.fixture
def without_lm_head() -> Callable[[Path], None]:
    """Says of an artifact that it has none, as one of an embedding model does."""
    import msgspec

    from runtime import manifest as manifests

    def change(artifact: Path) -> None:
        manifest = manifests.read(artifact)
        weights = msgspec.structs.replace(manifest.weights, lm_head=False)
        manifests.write(msgspec.structs.replace(manifest, weights=weights), artifact)

    return change


def test_a_line_that_was_cut_is_not_in_the_file(tmp_path: Path) -> None:
    def names() -> Iterator[str]:
        yield "A1G"
        raise MemoryError

    def block(mutants: Iterable[str]) -> Block:
        numbers = np.arange(2)
        return Block(["a", "a"], numbers, numbers / 4, None, numbers, {"mutant": mutants})

    path = tmp_path / "x.csv"
    writer = Writer(path, {}, Columns(("mutant",), ("score",)))
    writer.write(block(["A1C", "A1D"]))
    with pytest.raises(MemoryError):
        writer.write(block(names()))
    writer.finish()
    assert path.read_text() == "id,mutant,score\na,A1C,0.0\na,A1D,0.25\n"
    assert writer.proteins == 2
