"""What a verdict says of an engine that fails."""

from msgspec.structs import replace

from exporter.parity.rules.metrics import TensorError
from exporter.parity.rules.task import TaskMetrics
from exporter.parity.rules.verdict import Row, verdict_of
from runtime.engine import EngineSpec

SPEC = EngineSpec(
    "torchscript", "a", "cpu", "bfloat16", (33,), None, "standard", "", "torch", True, 1280
)
ERROR = TensorError(1e-2, 0, 1e-2, 1e-3, 3, 7, 0.9999, 0.9999)
ROWS = [
    Row(pack="mixed", tensor="logits", rows="tokens", longest=400, engine=ERROR, eager=ERROR),
    Row(pack="mixed", tensor="pooled", rows="proteins", longest=400, engine=ERROR, eager=ERROR),
]
GOOD = TaskMetrics(300, 205, 1.0, 1.0, 1e-12, 1e-10, 1151, 1.0, None)


def test_predictions_that_change_stand_beside_those_of_eager() -> None:
    """It may be the dtype that changes them."""
    changed = replace(GOOD, top1_agreement_confident=0.976)
    eager = replace(GOOD, top1_agreement_confident=0.981)
    verdict = verdict_of(SPEC, 33, ROWS, changed, eager, [])
    assert verdict.status == "failed"
    assert verdict.reason == (
        "first choice at confident masked positions, agreement: 0.976 in 205 positions, expected "
        "at least 0.995. Eager fair-esm in the engine's dtype: 0.981"
    )
    assert verdict_of(SPEC, 33, ROWS, GOOD, eager, []).reason == ""


def test_other_failures_have_nothing_of_eager_to_add() -> None:
    far = [replace(row, engine=replace(ERROR, relative_l2=5e-2)) for row in ROWS]
    verdict = verdict_of(SPEC, 33, far, GOOD, GOOD, [])
    assert verdict.status == "failed"
    assert "Eager" not in verdict.reason.partition("expected")[2]
