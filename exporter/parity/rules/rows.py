"""One row for each output of each pack: an engine's error, and eager fair-esm's own."""

from typing import Any

import msgspec
import numpy as np

from exporter.parity.answers import ENOUGH_PAIRS, Answers
from exporter.parity.rules.budgets import RELATIVE_RULE, Budget
from exporter.parity.rules.metrics import UNBOUNDED, Floats, TensorError, compare, ratio
from runtime.manifest_schema import HEAD, Manifest, Rows
from runtime.pairs import CONTACTS

# Of probabilities that are too few for a measure: eager may happen to be exact.
FEW_CONTACTS = 1e-5


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """One output tensor of one pack.

    Attributes:
        pack: its name.
        tensor: an output of the artifact's signature, or ``EMBEDDING``.
        rows: what it has one row for each of.
        longest: tokens of the longest protein of the pack.
        engine: the engine's error, or None where it gave nothing comparable.
        eager: the error of eager fair-esm in the engine's dtype, or None where that overflows.
        problem: why nothing was compared, a failure; empty if it was.
        not_compared: what in the oracle's answer leaves nothing to compare, no failure.
    """

    pack: str
    tensor: str
    rows: Rows
    longest: int
    engine: TensorError | None = None
    eager: TensorError | None = None
    problem: str = ""
    not_compared: str = ""

    @property
    def ratio(self) -> float:
        """The engine's relative L2 over eager's own, whole tensor or worst protein."""
        if self.engine is None or self.eager is None:
            return UNBOUNDED
        errors = [
            [error.relative_l2, error.worst_protein_relative_l2]
            for error in (self.engine, self.eager)
        ]
        return float(ratio(*np.array(errors)).max())

    def measured(self, budget: Budget) -> float | None:
        """The quantity that ``budget`` limits, or None where it is not about this tensor."""
        if self.engine is None or self.eager is None or self.tensor == HEAD:
            return None  # a head has rules of its own
        per_token, per_protein = self.rows == "tokens", self.rows == "proteins"
        match budget.quantity:
            case "ratio":
                return self.ratio
            case "relative_l2":
                return self.engine.relative_l2
            case "residue_cosine_p01":
                return self.engine.cosine_p01 if per_token else None
            case "pooled_cosine_min":
                return self.engine.cosine_min if per_protein else None
        return None


def rows_of(
    name: str, got: dict[str, Floats], truth: Answers, eager: Answers, manifest: Manifest
) -> list[Row]:
    """Compares every output of a pack.

    Args:
        name: of the pack.
        got: the engine's outputs by name.
        truth: the oracle's.
        eager: eager fair-esm's in the engine's dtype.
        manifest: of the artifact.
    """
    eager_got = {tensor: values for tensor, values, _ in eager.of_engine(manifest)}
    rows = []
    for tensor, values, bounds in truth.of_engine(manifest):
        row = Row(
            pack=name,
            tensor=tensor,
            rows=manifest.rows_of(tensor),
            longest=truth.max_seqlen,
        )
        dtype = _dtype_of(tensor, manifest)
        if is_no_measure(tensor, values):
            rows.append(_of_a_constant(row, got.get(tensor), eager_got[tensor], values, dtype))
            continue
        try:
            eager_error = compare(eager_got[tensor], values, bounds, tensor == HEAD)
        except ValueError as error:
            problem = f"eager fair-esm in this dtype gives {error}, so there is no measure"
            rows.append(msgspec.structs.replace(row, problem=problem))
            continue
        try:
            given = _given(got.get(tensor), tensor, dtype)
            engine_error = compare(given, values, bounds, tensor == HEAD)
        except ValueError as error:
            rows.append(msgspec.structs.replace(row, eager=eager_error, problem=str(error)))
            continue
        rows.append(msgspec.structs.replace(row, engine=engine_error, eager=eager_error))
    for tensor in got.keys() - eager_got.keys():
        problem = "eager fair-esm has no such output, so there is no measure"
        rows.append(
            Row(pack=name, tensor=tensor, rows="tokens", longest=truth.max_seqlen, problem=problem)
        )
    return rows


def is_no_measure(tensor: str, values: Floats) -> bool:
    """Whether there are too few numbers to measure an error by, or one number everywhere.

    An untrained LM head gives such logits; residues alone have such contacts, and tokens none.
    """
    if tensor == CONTACTS:
        return len(values) < ENOUGH_PAIRS
    return tensor == "logits" and np.ptp(values) == 0


def _dtype_of(tensor: str, manifest: Manifest) -> np.dtype[Any]:
    """Of the array that an engine gives: NumPy has no bfloat16, so they give that as float32."""
    # A pair's probability is a sum over all layers, which stays wide.
    is_wide = tensor == CONTACTS or manifest.dtype == "bfloat16"
    return np.dtype("float32" if is_wide else manifest.dtype)


def _given(actual: Floats | None, tensor: str, dtype: np.dtype[Any]) -> Floats:
    if actual is None:
        raise ValueError(f"the engine has no output {tensor!r}")
    if actual.dtype != dtype:
        raise ValueError(f"dtype {actual.dtype}, expected {dtype}")
    return actual


def _of_a_constant(
    row: Row, actual: Floats | None, eager: Floats, values: Floats, dtype: np.dtype[Any]
) -> Row:
    """See ``is_no_measure``: a fault would still show."""
    try:
        given = _given(actual, row.tensor, dtype)
        if given.shape != values.shape:
            raise ValueError(f"shape {list(given.shape)}, expected {list(values.shape)}")
        ours, theirs = (
            np.abs(x.astype(np.float64) - values).max(initial=0.0) for x in (given, eager)
        )
        # NaN is not at most anything.
        least = FEW_CONTACTS if row.tensor == CONTACTS else 0.0
        if not ours <= max(RELATIVE_RULE[1].limit * theirs, least):
            raise ValueError(f"{ours:.1e} from the oracle's, eager fair-esm {theirs:.1e}")
    except ValueError as error:
        return msgspec.structs.replace(row, problem=str(error))
    few = f"{len(values)} contacts are too few" if row.tensor == CONTACTS else ""
    reason = few or "the oracle's logits are one number everywhere"
    return msgspec.structs.replace(row, not_compared=reason)
