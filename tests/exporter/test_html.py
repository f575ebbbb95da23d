import re
from collections import Counter
from html.parser import HTMLParser

import pytest
from msgspec.structs import replace

from exporter.parity.report.html import render
from exporter.parity.report.schema import EVERY_ENGINE, SCHEMA_VERSION, FaultVerdict, Report
from exporter.parity.rules.budgets import budgets_for
from exporter.parity.rules.metrics import UNBOUNDED, TensorError
from exporter.parity.rules.task import TaskMetrics
from exporter.parity.rules.verdict import TOKENS, Check, EngineVerdict, Row
from runtime.manifest_schema import EMBEDDING, Rows

HOSTILE = """<script>alert("1")</script> & $x_$ '"""
BUDGETS = budgets_for("float32", 6)
TENSORS = "logits", "representations.0", "representations.6", "pooled", EMBEDDING


def rows_of(tensor: str) -> Rows:
    return "proteins" if tensor in ("pooled", EMBEDDING) else "tokens"


def error(relative_l2: float) -> TensorError:
    return TensorError(relative_l2, 0, relative_l2, 1e-5, 3, 7, 1 - 5e-13, 1 - 9e-13)


def engine(name: str) -> EngineVerdict:
    tasks = TaskMetrics(202, 180, 1.0, 1.0, 1e-12, 1e-10, 1151, 1.0, None)
    return EngineVerdict(
        engine=name,
        status="passed",
        reason="",
        library=f"library of {name}",
        device="cpu",
        attention="standard",
        checks=[
            Check(name=TOKENS, passed=True, where=""),
            *(
                Check(
                    name=b.name,
                    passed=True,
                    measured=0.99999,
                    limit=b.limit,
                    sense=b.sense,
                    margin=0.25,
                    where="here",
                )
                for b in BUDGETS
            ),
        ],
        tasks=tasks,
        eager_tasks=tasks,
        rows=[
            Row(
                pack=pack,
                tensor=tensor,
                rows=rows_of(tensor),
                longest=longest,
                engine=error(7e-7),
                eager=error(5e-7),
            )
            for pack, longest in (("one residue", 3), ("mixed", 400))
            for tensor in TENSORS
        ],
    )


def fault(name: str, engine: str) -> FaultVerdict:
    budget = BUDGETS[0]
    return FaultVerdict(name, "graph", engine, "rejected", budget.name, 4e6, 2.0, 2e6)


@pytest.fixture
def report() -> Report:
    return Report(
        schema_version=SCHEMA_VERSION,
        artifact="tiny",
        passed=True,
        synthetic=False,
        architecture="esm2_t6_8M_UR50D",
        num_layers=6,
        dtype="float32",
        layers=[0, 6],
        pool="mean",
        seed=3,
        packs={"one residue": (1, 3), "mixed": (8, 878)},
        reference={"model": "eager fair-esm 2.0.0 in float64"},
        environment={"torch": "2.13.0"},
        budgets=list(BUDGETS),
        engines=[engine("onnx"), engine("torchscript")],
        faults=[
            fault(name, engine)
            for engine in ("onnx", "torchscript")
            for name in ("rotary missing on k", "GELU by tanh")
        ],
    )


class Page(HTMLParser):
    """Tags with their attributes, and texts with the classes that they stand in."""

    VOID = "meta", "link", "br", "img"

    def __init__(self, text: str):
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[tuple[str, str]] = []
        self.open: list[tuple[str, str]] = []
        self.feed(text)
        self.close()
        assert not self.open, "tags that are not closed"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append((tag, dict(attrs).get("class") or ""))

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        opened, _ = self.open.pop()
        assert opened == tag

    def handle_data(self, data: str) -> None:
        if data.strip() and not any(tag == "style" for tag, _ in self.open):
            classes = " ".join(name for _, name in self.open)
            self.texts.append((classes, " ".join(data.split())))

    @property
    def text(self) -> str:
        return " ".join(text for _, text in self.texts)

    def inside(self, name: str) -> str:
        """The text in elements of class ``name``."""
        return " ".join(text for classes, text in self.texts if name in classes.split())


class TestFile:
    def test_loads_nothing(self, report: Report) -> None:
        text = render(report)
        page = Page(text)
        assert not {"script", "link", "iframe", "object", "img"} & {tag for tag, _ in page.tags}
        loads = [
            value
            for _, attributes in page.tags
            for name, value in attributes.items()
            if name in ("src", "href", "xlink:href", "srcset", "data", "action")
        ]
        assert loads
        assert all(value and value.startswith("#") for value in loads)
        assert "@import" not in text
        assert set(re.findall(r"url\((.)", text)) == {"#"}

    def test_ids_are_unique_and_those_referred_to_exist(self, report: Report) -> None:
        text = render(report)
        counts = Counter(re.findall(r' id="([^"]+)"', text))
        assert set(counts.values()) == {1}
        assert set(re.findall(r'(?:url\(|href=")#([^)"]+)', text)) <= set(counts)

    def test_the_same_report_gives_the_same_bytes(self, report: Report) -> None:
        assert render(report) == render(report)

    def test_hostile_names_are_text(self, report: Report) -> None:
        named = replace(
            report,
            artifact=HOSTILE,
            packs={HOSTILE: (1, 3)},
            engines=[
                replace(engine(HOSTILE), reason=HOSTILE, rows=[
                    Row(pack=HOSTILE, tensor="logits", rows="tokens", longest=3,
                        engine=error(7e-7), eager=error(5e-7)),
                    Row(pack=HOSTILE, tensor="pooled", rows="proteins", longest=3, problem=HOSTILE),
                ])
            ],
            faults=[replace(fault(HOSTILE, HOSTILE), note=HOSTILE, exactly=[HOSTILE])],
            environment={HOSTILE: HOSTILE},
        )  # fmt: skip
        page = Page(render(named))
        assert "script" not in {tag for tag, _ in page.tags}
        assert page.text.count(" ".join(HOSTILE.split())) > 8


class TestVerdict:
    def test_on_top(self, report: Report) -> None:
        page = Page(render(report))
        assert page.texts[0][1] == "PASSED: parity of tiny"
        assert page.inside("verdict").startswith("Parity with eager fair-esm in float64 PASSED")
        assert "2 packs (9 proteins, 881 tokens)" in page.inside("verdict")
        assert "2 of 2 measured engines passed; 0 not measured" in page.inside("verdict")
        assert "4 of 4 planted faults rejected." in page.inside("verdict")
        assert "FAILED" not in page.text

    def test_failed(self, report: Report) -> None:
        bad = replace(engine("onnx"), status="failed", reason="logits are wrong")
        failed = replace(report, passed=False, engines=[bad, engine("torchscript")])
        page = Page(render(failed))
        assert "PASSED" not in page.text
        assert "FAILED" in page.inside("verdict")
        assert "onnx: logits are wrong" in page.inside("verdict")
        assert any(tag[1].get("class") == "verdict failed" for tag in page.tags)
        assert not any(tag[1].get("class") == "verdict passed" for tag in page.tags)

    def test_an_accepted_fault_is_a_failure(self, report: Report) -> None:
        fooled = FaultVerdict("GELU by tanh", "graph", "onnx", "accepted")
        page = Page(render(replace(report, passed=False, faults=[*report.faults[1:], fooled])))
        assert "onnx: the planted fault 'GELU by tanh' was accepted" in page.inside("verdict")
        assert "3 of 4 planted faults rejected." in page.inside("verdict")
        assert page.inside("accepted") == "ACCEPTED"

    def test_not_measured_is_no_pass(self, report: Report) -> None:
        absent = EngineVerdict("onnx", "not measured", "no kernels here")
        one = replace(report, engines=[absent, engine("torchscript")], faults=[])
        page = Page(render(one))
        assert "1 of 1 measured engine passed; 1 not measured" in page.inside("verdict")
        assert "onnx not measured no kernels here" in page.inside("card")
        cards = [t[1]["class"] for t in page.tags if (t[1].get("class") or "").startswith("card ")]
        assert cards == ["card not-measured", "card passed"]

        page = Page(render(replace(one, engines=[absent], passed=False)))
        assert "no engine was measured" in page.inside("verdict")
        assert "passed" not in page.inside("status")
        assert "svg" not in {tag for tag, _ in page.tags}

    def test_synthetic_weights_are_named(self, report: Report) -> None:
        assert not Page(render(report)).inside("synthetic")
        assert "random" in Page(render(replace(report, synthetic=True))).inside("synthetic")


class TestContents:
    def test_every_engine_fault_and_budget_is_named(self, report: Report) -> None:
        page = Page(render(report))
        for verdict in report.engines:
            assert verdict.library in page.inside("card")
        for planted in report.faults:
            assert planted.fault in page.text
        assert page.text.count("2,000,000 \N{MULTIPLICATION SIGN} over:") == len(report.faults)
        for budget in report.budgets:
            assert budget.reason in page.text

    def test_without_faults_it_says_how_to_plant_them(self, report: Report) -> None:
        page = Page(render(replace(report, faults=[])))
        assert "No faults were planted." in page.inside("verdict")
        assert "esm2-export verify ARTIFACT --prove" in page.text
        assert "esm2-export verify ARTIFACT --seed 3 --prove" in page.text

    def test_hidden_and_inapplicable_faults_are_counted_apart(self, report: Report) -> None:
        hidden = FaultVerdict("eps", "graph", "onnx", "hidden", note="1.03 x in float32")
        other = FaultVerdict("pool", "graph", "onnx", "does not apply", note="no pooled output")
        page = Page(render(replace(report, faults=[*report.faults, hidden, other])))
        expected = "4 of 4 planted faults rejected; 1 more hidden by float32 rounding"
        assert expected in page.inside("verdict")
        assert "1 not applicable" in page.inside("verdict")
        assert "1.03 x in float32" in page.text
        assert "no pooled output" in page.text

    def test_faults_of_every_engine_have_a_column_of_their_own(self, report: Report) -> None:
        read = FaultVerdict("q and k exchanged", "loader", EVERY_ENGINE, "rejected", by="refused")
        absent = replace(read, fault="transposed", outcome="not run", by="", note="not installed")
        page = Page(render(replace(report, faults=[*report.faults, read, absent])))
        assert "5 of 5 planted faults rejected; 1 not run." in page.inside("verdict")
        loader = page.text.partition("loader")[2].partition("All outputs")[0]
        expected = (
            "fault every engine q and k exchanged rejected refused transposed not run not installed"
        )
        assert " ".join(loader.split()) == expected

    def test_a_broken_budget(self, report: Report) -> None:
        budget = BUDGETS[0]
        over = Check(
            name=budget.name,
            passed=False,
            measured=3.0,
            limit=2.0,
            sense="at most",
            margin=1.5,
            where="logits of pack 'mixed'",
        )
        row = Row(
            pack="mixed",
            tensor="logits",
            rows="tokens",
            longest=400,
            engine=error(15e-7),
            eager=error(5e-7),
        )
        bad = replace(engine("onnx"), status="failed", checks=[over], rows=[row])
        page = Page(render(replace(report, passed=False, engines=[bad])))
        assert "1.5 \N{MULTIPLICATION SIGN} over the limit" in page.text
        assert any("over" in (tag[1].get("class") or "") for tag in page.tags)
        assert budget.name in page.inside("problem")

    def test_what_cannot_be_drawn_is_counted(self, report: Report) -> None:
        rows = [
            Row(
                pack="mixed",
                tensor="logits",
                rows="tokens",
                longest=400,
                problem="NaN or Inf, first in row 17",
            ),
            Row(
                pack="mixed",
                tensor="pooled",
                rows="proteins",
                longest=400,
                engine=error(UNBOUNDED),
                eager=error(5e-7),
            ),
            Row(
                pack="mixed",
                tensor="representations.6",
                rows="tokens",
                longest=400,
                engine=error(0.0),
                eager=error(5e-7),
            ),
        ]
        bad = replace(engine("onnx"), status="failed", rows=rows)
        page = Page(render(replace(report, passed=False, engines=[bad, engine("torchscript")])))
        assert "3 of the engines' outputs are not drawn" in page.text
        assert "NaN or Inf, first in row 17" in page.inside("problem")
        assert "unbounded" in page.text
