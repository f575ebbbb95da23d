"""What docs/server.md and examples/server say, by a server that runs."""

import json
import re
import shutil
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
import yaml

from runtime.cli import main
from runtime.server.settings import Limits
from tests.server.process import Server, serving
from tests.test_docs import FENCE, ROOT

pytest.importorskip("fastapi")

PAGE = (ROOT / "docs/server.md").read_text()
EXAMPLES = ROOT / "examples/server"
ADDRESS = "http://127.0.0.1:8080"
BLOCKS = FENCE.findall(PAGE)
TYPES = ("counter", "gauge", "histogram")


def blocks(language: str) -> list[str]:
    return [text for found, text in BLOCKS if found == language]


@pytest.fixture(scope="module")
def server(tiny_artifact: Path) -> Iterator[Server]:
    with serving(tiny_artifact) as server:
        yield server


class TestLines:
    @pytest.mark.parametrize("text", blocks("bash"), ids=lambda text: text[:60])
    def test_curl(self, server: Server, text: str, tmp_path: Path) -> None:
        """As they stand; those that are shown to be refused are."""
        if shutil.which("curl") is None:
            pytest.skip("not run: curl is not installed")
        assert text.startswith(f"curl {ADDRESS}")
        command = text.replace(ADDRESS, server.url).replace("curl ", "curl -sS ", 1)
        done = subprocess.run(
            ["bash", "-euc", command], cwd=tmp_path, capture_output=True, text=True, timeout=60
        )
        assert done.returncode == 0, done.stderr
        if "-o residues.npz" in text:
            with np.load(tmp_path / "residues.npz") as file:
                assert file["embeddings"].shape == (27, 48)
                assert file["offsets"].tolist() == [0, 22, 27]
        elif "MK1" in text:
            assert json.loads(done.stdout) == answer_shown() | {
                "request_id": json.loads(done.stdout)["request_id"]
            }
        else:
            assert np.array(json.loads(done.stdout)).shape == (2, 48)

    @pytest.mark.parametrize("code", blocks("python"), ids=lambda code: code[:40])
    def test_python(self, server: Server, code: str) -> None:
        if "openai" in code:
            pytest.importorskip("openai")
        else:
            pytest.importorskip("httpx")
        names: dict[str, Any] = {}
        exec(compile(code.replace(ADDRESS, server.url), "server.md", "exec"), names)
        if "openai" in code:
            names["client"].close()
            assert len(names["vector"]) == 48
        else:
            assert names["vectors"].shape == (2, 48)
            assert names["scores"].shape == (2,)


def answer_shown() -> dict[str, Any]:
    """The error of the page, with what it leaves out."""
    reason = "character '1' at position 3 is not in ESM-2's alphabet (LAGVSERTIDPKQNFYMHWCXBUZO.-)"
    (text,) = (text for text in blocks("") if '"error"' in text)
    shown: dict[str, Any] = json.loads(text)
    shown["error"] = shown["error"].replace("character '1' at position 3 ...", reason) + (
        '. Mend them; "unknown", "upper" and "strip_stop" say what else is taken'
    )
    shown["details"][0]["reason"] = reason
    return shown


def test_the_limits_are_the_commands() -> None:
    options = {option.opts[0]: option for option in main.commands["serve"].params}  # type: ignore[attr-defined]
    rows = re.findall(r"^\| `(--max-[a-z-]+|--timeout)` \| ([\d,]+)", PAGE, re.MULTILINE)
    assert len(rows) == 6
    for name, value in rows:
        assert options[name].default == int(value.replace(",", ""))
    assert f"`--drain-timeout` seconds ({Limits().drain_timeout:.0f})" in PAGE


def test_the_endpoints_are_the_servers(server: Server) -> None:
    with urllib.request.urlopen(f"{server.url}/openapi.json", timeout=30) as answer:
        paths = json.load(answer)["paths"]
    there = {f"{method.upper()} {path}" for path, of in paths.items() for method in of}
    table = PAGE.partition("## Endpoints")[2].partition("## Limits")[0]
    assert set(re.findall(r"`((?:POST|GET) /[^`]*)`", table)) == there


@pytest.fixture(scope="module")
def exported(server: Server) -> dict[str, str]:
    """Types by name."""
    with urllib.request.urlopen(f"{server.url}/metrics", timeout=30) as answer:
        text = answer.read().decode()
    return dict(re.findall(r"^# TYPE (\S+) (\S+)$", text, re.MULTILINE))


class TestMetrics:
    def test_the_page_lists_them_all(self, exported: dict[str, str]) -> None:
        rows = re.findall(r"^\| `((?:te|esm2)_\w+)` \| (\w+) \|", PAGE, re.MULTILINE)
        assert len(dict(rows)) == len(rows)
        assert dict(rows) == exported

    def test_the_dashboard_asks_for_nothing_else(self, exported: dict[str, str]) -> None:
        series = {
            name + suffix
            for name, kind in exported.items()
            for suffix in (("_bucket", "_sum", "_count") if kind == "histogram" else ("",))
        }
        dashboard = json.loads((EXAMPLES / "grafana.json").read_text())
        asked = {
            name
            for panel in dashboard["panels"]
            for target in panel["targets"]
            for name in re.findall(r"\b(?:te|esm2)_\w+", target["expr"])
        }
        (instance,) = (v for v in dashboard["templating"]["list"] if v["name"] == "instance")
        asked |= set(re.findall(r"\b(?:te|esm2)_\w+", instance["query"]["query"]))
        assert asked - series == set()
        # Each metric is somewhere on it.
        unseen = {name for name in exported if not any(each.startswith(name) for each in asked)}
        assert unseen == set()

    def test_panels_do_not_overlap(self) -> None:
        panels = json.loads((EXAMPLES / "grafana.json").read_text())["panels"]
        cells = [
            (x, y)
            for at in (panel["gridPos"] for panel in panels)
            for x in range(at["x"], at["x"] + at["w"])
            for y in range(at["y"], at["y"] + at["h"])
        ]
        assert len(set(cells)) == len(cells)
        assert max(x for x, _ in cells) < 24
        assert len({panel["id"] for panel in panels}) == len(panels)


@pytest.fixture(scope="module")
def schema() -> jsonschema.Draft202012Validator:
    text = Path(__file__).with_name("kubernetes-schema.json").read_text()
    return jsonschema.Draft202012Validator(json.loads(text))


class TestKubernetes:
    @pytest.fixture
    def objects(self) -> dict[str, Any]:
        text = (EXAMPLES / "kubernetes.yaml").read_text()
        return {each["kind"]: each for each in yaml.safe_load_all(text)}

    def test_schema(self, objects: dict[str, Any], schema: jsonschema.Draft202012Validator) -> None:
        assert set(objects) == {"Deployment", "Service", "PodDisruptionBudget"}
        for each in objects.values():
            schema.validate(each)

    def test_the_schema_sees_faults(
        self, objects: dict[str, Any], schema: jsonschema.Draft202012Validator
    ) -> None:
        container = objects["Deployment"]["spec"]["template"]["spec"]["containers"][0]
        for place, name, value in (
            (container, "livenessprobe", {}),
            (container["readinessProbe"], "periodSeconds", "5s"),
            (objects["Deployment"]["spec"], "selector", None),
        ):
            before = place.get(name)
            place[name] = value
            assert not schema.is_valid(objects["Deployment"])
            place[name] = before
            if before is None:
                del place[name]
        schema.validate(objects["Deployment"])

    def test_it_ends_in_order(self, objects: dict[str, Any]) -> None:
        pod = objects["Deployment"]["spec"]["template"]["spec"]
        (container,) = pod["containers"]
        params = main.commands["serve"].make_context("serve", container["args"][1:]).params
        sleep = container["lifecycle"]["preStop"]["sleep"]["seconds"]
        # uvicorn closes connections for 5 s more.
        assert pod["terminationGracePeriodSeconds"] > sleep + params["drain_timeout"] + 5
        # The Service's readers must have heard of it when SIGTERM comes.
        assert sleep >= container["readinessProbe"]["periodSeconds"]

    def test_it_is_restricted(self, objects: dict[str, Any]) -> None:
        """What Kubernetes' pod security standard "restricted" asks of a pod."""
        pod = objects["Deployment"]["spec"]["template"]["spec"]
        (container,) = pod["containers"]
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        own = container["securityContext"]
        assert own["allowPrivilegeEscalation"] is False
        assert own["capabilities"] == {"drop": ["ALL"]}
        assert own["readOnlyRootFilesystem"] is True

    def test_names_agree(self, objects: dict[str, Any], server: Server) -> None:
        spec = objects["Deployment"]["spec"]
        labels = spec["template"]["metadata"]["labels"]
        assert spec["selector"]["matchLabels"] == labels == objects["Service"]["spec"]["selector"]
        assert objects["PodDisruptionBudget"]["spec"]["selector"]["matchLabels"] == labels
        (container,) = spec["template"]["spec"]["containers"]
        ports = {port["name"] for port in container["ports"]}
        assert {port["targetPort"] for port in objects["Service"]["spec"]["ports"]} <= ports
        for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
            get = container[probe]["httpGet"]
            assert get["port"] in ports
            urllib.request.urlopen(server.url + get["path"], timeout=30).close()


class TestContainers:
    def test_compose_schema(self) -> None:
        check = ["check-jsonschema", "--builtin-schema", "vendor.compose-spec"]
        program = shutil.which(check[0], path=str(Path(sys.executable).parent))
        assert program is not None
        done = subprocess.run(
            [program, *check[1:], str(EXAMPLES / "compose.yaml")], capture_output=True, text=True
        )
        assert done.returncode == 0, done.stdout

    def test_compose_ends_in_order(self) -> None:
        service = yaml.safe_load((EXAMPLES / "compose.yaml").read_text())["services"]["server"]
        params = main.commands["serve"].make_context("serve", service["command"][1:]).params
        grace = int(service["stop_grace_period"].removesuffix("s"))
        assert grace > params["drain_timeout"] + 5
        stages = re.findall(
            r"^FROM .* AS (\w+)$", (ROOT / "deploy/Dockerfile.cpu").read_text(), re.M
        )
        assert service["build"]["target"] in stages

    def test_the_images_health_check(self, server: Server) -> None:
        """The very command: 0 of a server that is ready, 1 where none is."""
        text = (ROOT / "deploy/Dockerfile.cpu").read_text()
        (found,) = re.findall(r'CMD (\["python", "-c", "import urllib.*\])$', text, re.MULTILINE)
        program = json.loads(found)[2]
        python = sys.executable
        here = program.replace(ADDRESS, server.url)
        assert here != program
        assert subprocess.run([python, "-c", here]).returncode == 0
        nowhere = program.replace(ADDRESS, "http://127.0.0.1:9")
        assert subprocess.run([python, "-c", nowhere], capture_output=True).returncode == 1
