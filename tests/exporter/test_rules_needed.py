"""Which rules the planted faults need: read from what each fault was rejected by."""

from msgspec.structs import replace

from exporter.parity.prove.rules_needed import accepted_without
from exporter.parity.report.schema import FaultVerdict, Report
from exporter.parity.rules.verdict import Check, EngineVerdict

CHECKS = [Check(name=name, passed=True, where="") for name in ("one", "two", "three")]
FAULT = FaultVerdict("a", "graph", "onnx", "rejected", rules=["one"])
REPORT = Report(
    schema_version=4, artifact="a", passed=True, synthetic=True, architecture="a", num_layers=2,
    dtype="float32", layers=[2], pool=None, seed=0, packs={}, reference={}, environment={},
    budgets=[], engines=[EngineVerdict("onnx", "passed", "", checks=CHECKS)],
    faults=[
        FAULT,
        replace(FAULT, fault="b", rules=["one", "two"]),
        replace(FAULT, fault="c", outcome="hidden", rules=["two"]),
        replace(FAULT, fault="d", rules=[]),
    ],
)  # fmt: skip


def test_a_rule_is_needed_where_it_alone_rejects() -> None:
    found = accepted_without([REPORT, replace(REPORT, dtype="bfloat16")])
    assert found == {
        "one": ["a (onnx, float32)", "a (onnx, bfloat16)"],
        "two": [],
        "three": [],
    }
