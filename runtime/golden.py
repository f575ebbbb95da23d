"""The proteins that an artifact carries with eager fair-esm's answers, and packs made of them."""

import dataclasses
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from runtime import tokenizer
from runtime.errors import ArtifactError, InputError
from runtime.manifest_schema import EMBEDDING, POOLED, Manifest, Rows
from runtime.pairs import CONTACTS, pair_bounds

# Tokens of a pack: the default budget, a multiple of every block that kernels have. With the
# shortest protein over and over it holds more than a thousand.
BLOCK = 4096
# Of all arrays; those of 15B have some millions.
MAX_BYTES = 1 << 30
_NO_COPIES = np.empty((0, 0), np.int64)
# Of names in the file: answers to single tokens.
BARE = "bare."


def _none() -> NDArray[np.int64]:
    return np.empty(0, np.int64)


@dataclasses.dataclass(frozen=True)
class Golden:
    """A few proteins and eager fair-esm's float64 answers.

    Attributes:
        sequences: of N proteins, with inline tokens such as ``<mask>``.
        input_ids: ``[T]`` int64, by fair-esm's tokenizer.
        cu_seqlens: ``[N + 1]`` int32.
        rows: ``[R]``, the rows of the pack whose answers are stored.
        answers: ``logits`` ``[R, 33]``, ``representations.<k>`` ``[R, E]``, ``pooled`` ``[N, E]``,
            by the name ``EMBEDDING`` too, ``head`` ``[N, C]`` or ``[R, C]``, and ``contacts``
            ``[Q, 1]``.
        pair_rows: ``[Q]``, the pairs of residues of the pack whose contacts are stored.
        bare: single tokens without BOS and EOS; none in artifacts of before.
        bare_answers: the same outputs, one row for each.
        per_protein: the outputs of N rows.
    """

    sequences: tuple[str, ...]
    input_ids: NDArray[np.int64]
    cu_seqlens: NDArray[np.int32]
    rows: NDArray[np.int64]
    answers: dict[str, NDArray[np.float64]]
    pair_rows: NDArray[np.int64] = dataclasses.field(default_factory=_none)
    bare: tuple[str, ...] = ()
    bare_answers: dict[str, NDArray[np.float64]] = dataclasses.field(default_factory=dict)
    per_protein: frozenset[str] = frozenset([EMBEDDING, POOLED])

    @property
    def lengths(self) -> NDArray[np.int32]:
        """Tokens of each protein."""
        return np.diff(self.cu_seqlens)


@dataclasses.dataclass(frozen=True)
class GoldenPack:
    """Proteins whose answers are known, in one pack.

    Attributes:
        name: for people.
        tokens: of each, by the runtime's tokenizer.
        input_ids: ``[T]``, by fair-esm's.
        lengths: ``[N]``, tokens of each.
        rows: ``[R]`` of the pack, those with answers.
        proteins: ``[M]`` of the pack, those with answers.
        pairs: ``[Q]`` of its pairs of residues, those with answers.
        copies: ``[C, L]`` rows of C equal proteins, which are compared with one another: a pack of
            a thousand of the shortest has an error of its own, which no limit is for.
        answers: as ``Golden.answers``, for the proteins and rows of the pack.
    """

    name: str
    tokens: list[NDArray[np.int64]]
    input_ids: NDArray[np.int64]
    lengths: NDArray[np.integer]
    rows: NDArray[np.int64]
    proteins: NDArray[np.int64]
    answers: dict[str, NDArray[np.float64]]
    copies: NDArray[np.int64]
    pairs: NDArray[np.int64] = dataclasses.field(default_factory=_none)

    def rows_of(self, kind: Rows) -> tuple[int, NDArray[np.int64]]:
        """How many rows an output has that has one for each of ``kind``, and those with answers."""
        if kind == "proteins":
            return len(self.lengths), self.proteins
        if kind == "pairs":
            return int(pair_bounds(np.cumsum([0, *self.lengths]))[-1]), self.pairs
        return len(self.input_ids), self.rows


def read_golden(folder: Path, manifest: Manifest) -> Golden:
    """Reads the golden file.

    Raises:
        ArtifactError: missing, damaged, or without proteins.
    """
    path = folder / manifest.golden.file
    try:
        with zipfile.ZipFile(path) as archive:
            declared = sum(member.file_size for member in archive.infolist())
        if declared > MAX_BYTES:
            raise ValueError(f"its arrays have {declared:,} bytes, of at most {MAX_BYTES:,}")
        with np.load(path) as file:
            arrays = {name: file[name] for name in file.files}
        if others := [name for name, array in arrays.items() if not isinstance(array, np.ndarray)]:
            raise ValueError(f"{min(others)} is no array")
        bare = {
            name.removeprefix(BARE): arrays.pop(name) for name in [*arrays] if name.startswith(BARE)
        }
        golden = Golden(
            sequences=tuple(str(sequence) for sequence in arrays.pop("sequences")),
            bare=tuple(str(token) for token in bare.pop("sequences", ())),
            bare_answers={**bare, EMBEDDING: bare["pooled"]} if bare else {},
            input_ids=arrays.pop("input_ids"),
            cu_seqlens=arrays.pop("cu_seqlens"),
            rows=arrays.pop("rows"),
            pair_rows=arrays.pop("pair_rows", _none()),
            # Who pools makes no difference to the answer.
            answers={EMBEDDING: arrays["pooled"], **arrays},
            per_protein=frozenset([EMBEDDING, POOLED, *_of_proteins(manifest)]),
        )
    except Exception as error:  # a damaged archive fails in the classes of three libraries
        raise ArtifactError(
            f"cannot read {path}: {error}. Export again or copy the artifact anew"
        ) from None
    if not golden.sequences or not golden.rows.size or not manifest.golden.limits:
        raise ArtifactError(f"{path} holds no proteins to compare with. Export again")
    if problem := next(_problems(golden), None):
        raise ArtifactError(f"{path} is damaged: {problem}. Export again")
    if missing := manifest.golden.limits.keys() - golden.answers.keys():
        raise ArtifactError(f"{path} holds no {', '.join(sorted(missing))}. Export again")
    outputs = {output.name for output in manifest.signature.outputs}
    if unlimited := (outputs & golden.answers.keys()) - manifest.golden.limits.keys():
        raise ArtifactError(
            f"{path} holds {', '.join(sorted(unlimited))}, which have no limit. Export again"
        )
    return golden


def _problems(golden: Golden) -> Iterator[str]:
    """What would be outside of an array, in words; first things first."""
    bounds, tokens = golden.cu_seqlens, golden.input_ids.size
    for name, array in (
        ("input_ids", golden.input_ids), ("cu_seqlens", bounds), ("rows", golden.rows),
        ("pair_rows", golden.pair_rows),
    ):  # fmt: skip
        if array.ndim != 1 or array.dtype.kind != "i":
            yield f"{name} is {array.dtype}{list(array.shape)}, expected whole numbers"
    if len(bounds) != len(golden.sequences) + 1 or bounds[0] != 0 or bounds[-1] != tokens:
        yield "cu_seqlens are not the bounds of its proteins"
    if (golden.lengths < 1).any():
        yield "a protein has no tokens"
    for made, texts in ((tokenizer.tokenize, golden.sequences), (tokenizer.encode, golden.bare)):
        for text in texts:
            try:
                made(text)
            except InputError:
                yield f"{text[:20]!r} is no protein"
    ends = {"rows": (golden.rows, tokens), "pair_rows": (golden.pair_rows, pair_bounds(bounds)[-1])}
    for name, (rows, end) in ends.items():
        if ((rows < 0) | (rows >= end)).any():
            yield f"{name} are not all of 0 to {end - 1}"
    for name, answers in golden.answers.items():
        rows = golden.pair_rows if name == CONTACTS else golden.rows
        count = len(golden.sequences) if name in golden.per_protein else len(rows)
        yield from _problem_with(name, answers, count)
        if golden.bare and name != CONTACTS:
            bare = golden.bare_answers.get(name)
            yield from _problem_with(f"{BARE}{name}", bare, len(golden.bare))


def _problem_with(name: str, answers: NDArray[np.float64] | None, rows: int) -> Iterator[str]:
    if answers is None:
        yield f"it holds no {name}"
    elif answers.ndim != 2 or len(answers) != rows or answers.dtype.kind != "f":
        yield f"{name} is {answers.dtype}{list(answers.shape)}, expected {rows} rows of numbers"


def _of_proteins(manifest: Manifest) -> list[str]:
    return [output.name for output in manifest.signature.outputs if output.rows == "proteins"]


def packs_of(golden: Golden) -> Iterator[GoldenPack]:
    """All proteins, the first alone, more than a thousand in a whole block, and single tokens."""
    yield _pack(golden, "all proteins", range(len(golden.sequences)))
    yield _pack(golden, "the first alone", [0])
    shortest = int(golden.lengths.argmin())
    if members := _block(golden.lengths.tolist(), shortest):
        yield _pack(golden, f"{BLOCK} tokens of {len(members)} proteins", members, shortest)
    for count in range(1, len(golden.bare) + 1):
        tokens = [tokenizer.encode(token) for token in golden.bare[:count]]
        yield GoldenPack(
            f"{count} single tokens" if count > 1 else "a single token",
            tokens,
            np.concatenate(tokens),
            np.ones(count, np.int64),
            np.arange(count),
            np.arange(count),
            {name: values[:count] for name, values in golden.bare_answers.items()},
            _NO_COPIES,
        )


def _block(lengths: list[int], shortest: int) -> list[int]:
    """The first protein before and after the shortest over and over, ``BLOCK`` tokens to the last;
    empty where none of these fit.
    """
    for count in (1, 2, 3):
        left = BLOCK - count * lengths[0]
        if left > 0 and left % lengths[shortest] == 0:
            return [*[0] * (count - 1), *[shortest] * (left // lengths[shortest]), 0]
    return []


def _pack(
    golden: Golden, name: str, members: Sequence[int], copied: int | None = None
) -> GoldenPack:
    """``copied`` is the member whose copies are compared with one another."""
    chosen = np.array(members)
    lengths = golden.lengths[chosen]
    starts = np.cumsum([0, *lengths[:-1]])
    is_copy = np.array([member == copied for member in members])
    proteins = np.flatnonzero(~is_copy)
    whole = [chosen[proteins], proteins]
    by_token, rows = _moved(golden.rows, golden.cu_seqlens, np.cumsum([0, *lengths]), *whole)
    by_pair, pairs = _moved(
        golden.pair_rows,
        pair_bounds(golden.cu_seqlens),
        pair_bounds(np.cumsum([0, *lengths])),
        *whole,
    )
    return GoldenPack(
        name,
        [tokenizer.tokenize(golden.sequences[member]) for member in members],
        np.concatenate([golden.input_ids[slice(*golden.cu_seqlens[m : m + 2])] for m in members]),
        lengths,
        rows,
        proteins,
        {
            tensor: values[
                chosen[proteins]
                if tensor in golden.per_protein
                else by_pair
                if tensor == CONTACTS
                else by_token
            ]
            for tensor, values in golden.answers.items()
        },
        _NO_COPIES if copied is None else starts[is_copy, None] + np.arange(golden.lengths[copied]),
        pairs,
    )


def _moved(
    stored: NDArray[np.int64], bounds: NDArray[np.integer], new_bounds: NDArray[np.integer],
    members: NDArray[np.integer], places: NDArray[np.integer],
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:  # fmt: skip
    """Which of the stored rows are those of ``members``, and where they are in a pack with others.

    Args:
        stored: rows of the golden pack.
        bounds: of its proteins.
        new_bounds: of the pack's.
        members: of the golden pack.
        places: of them among the pack's proteins.
    """
    chosen, rows = [], []
    for member, place in zip(members, places, strict=True):
        first, end = bounds[member : member + 2]
        of_member = np.flatnonzero((stored >= first) & (stored < end))
        chosen.append(of_member)
        rows.append(stored[of_member] - first + new_bounds[place])
    return np.concatenate(chosen), np.concatenate(rows)
