"""A parity report as JUnit XML, which CI systems show as tests."""

from xml.etree import ElementTree

from exporter.parity.report.schema import Report
from exporter.parity.rules.verdict import describe


def as_junit(report: Report, grown: list[str]) -> str:
    """One test case for each check of each engine, each planted fault, and growth if any.

    Args:
        report: what was measured.
        grown: errors that grew since an older report, in sentences.
    """
    suites = ElementTree.Element("testsuites", name=f"esm2-export verify {report.artifact}")
    for verdict in report.engines:
        suite = _Suite(suites, f"{verdict.engine} {report.dtype}")
        for check in verdict.checks:
            failure = describe(check) if check.failed else ""
            skipped = f"not compared: {check.not_compared}" if check.not_compared else ""
            suite.add(check.name, failure, skipped)
        if verdict.status == "not measured":
            suite.add("measured", skipped=verdict.reason)
        elif verdict.status == "failed" and not verdict.checks:
            suite.add("loads", failure=verdict.reason)
    if all(verdict.status == "not measured" for verdict in report.engines):
        _Suite(suites, "engines").add("measured", failure="no engine could be measured here")
    for engine in dict.fromkeys(fault.engine for fault in report.faults):
        suite = _Suite(suites, f"planted faults, {engine}")
        for fault in (fault for fault in report.faults if fault.engine == engine):
            suite.add(
                f"{fault.group}: {fault.fault}",
                failure="the gate accepted this fault" if fault.outcome == "accepted" else "",
                skipped="" if fault.outcome in ("rejected", "accepted") else fault.note,
            )
    if grown:
        suite = _Suite(suites, "growth since the older report")
        for sentence in grown:
            suite.add(sentence.partition(": relative")[0], failure=sentence)
    ElementTree.indent(suites)
    return ElementTree.tostring(suites, encoding="unicode", xml_declaration=True) + "\n"


class _Suite:
    def __init__(self, parent: ElementTree.Element, name: str):
        self._name = name
        self._element = ElementTree.SubElement(
            parent, "testsuite", name=name, tests="0", failures="0", skipped="0", errors="0"
        )

    def add(self, name: str, failure: str = "", skipped: str = "") -> None:
        case = ElementTree.SubElement(self._element, "testcase", name=name, classname=self._name)
        self._count("tests")
        if failure:
            ElementTree.SubElement(case, "failure", message=failure).text = failure
            self._count("failures")
        elif skipped:
            ElementTree.SubElement(case, "skipped", message=skipped)
            self._count("skipped")

    def _count(self, what: str) -> None:
        self._element.set(what, str(int(self._element.get(what, "0")) + 1))
