"""The page at / and /docs in a real browser: what a person sees; that it asks no other host."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from tests.conftest import LABELS
from tests.server.process import serving

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed")
api = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed")
expect = api.expect

WIDTHS = {"desktop": (1280, 900), "phone": (390, 844)}
UBIQUITIN = "MQIFVKTLTGKTITLEVEPSDTIENVKAKIQDKEGIPPDQQRLIFAGKQLEDGRTLSDYNIQKESTLHLVLRLRGG"
FASTA = f">first\n{UBIQUITIN[:40]}\n{UBIQUITIN[40:].lower()}*\n>second\nGGAVL\n"
REFUSED = "Failed to load resource: the server responded with a status of 422"


@pytest.fixture(scope="module")
def browser() -> Iterator[api.Browser]:
    with api.sync_playwright() as playwright:
        yield playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])


@pytest.fixture(scope="module")
def server(task_artifact: Path) -> Iterator[str]:
    with serving(task_artifact) as server:
        yield server.url


class Watched:
    """A page, and what it asked for and complained of."""

    def __init__(self, browser: api.Browser, width: str = "desktop", scheme: str = "light"):
        size = dict(zip(("width", "height"), WIDTHS[width], strict=True))
        self.page = browser.new_page(viewport=size, color_scheme=scheme)
        self.page.set_default_timeout(10_000)
        self.urls: list[str] = []
        self.complaints: list[str] = []
        self.page.on("request", lambda request: self.urls.append(request.url))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("console", lambda said: self.complaints.append(said.text))

    def run(self, url: str, text: str) -> None:
        self.page.goto(url)
        expect(self.page.locator("#health")).to_have_text("Ready", timeout=20_000)
        self.page.fill("#text", text)
        self.page.click("#run")

    def check(self, url: str, complaints: int = 0) -> None:
        """Nothing of another host, nothing wrong, nothing beside the page."""
        assert all(each.startswith(f"{url}/") for each in self.urls), self.urls
        assert len(self.complaints) == complaints, self.complaints
        assert all(each.startswith(REFUSED) for each in self.complaints), self.complaints
        wide = self.page.evaluate("document.documentElement.scrollWidth - innerWidth")
        assert wide <= 0
        self.page.close()


def colours(page: api.Page, canvas: str) -> int:
    """How many there are on a canvas."""
    return page.locator(canvas).evaluate(
        """canvas => new Set(new Uint32Array(canvas.getContext("2d")
             .getImageData(0, 0, canvas.width, canvas.height).data.buffer)).size"""
    )


@pytest.mark.parametrize("width", WIDTHS)
def test_a_protein_is_drawn(browser: api.Browser, server: str, width: str):
    watched = Watched(browser, width)
    page = watched.page
    watched.run(server, FASTA)
    expect(page.locator("article h2")).to_have_text(["first", "second"])
    first = "article:first-of-type figure"
    expect(page.locator(f"{first} h3")).to_have_text(["Embedding", "Entropy, bits", "Contacts"])
    for number, most in ((0, 20), (1, 3), (2, 20)):
        assert colours(page, f"{first} >> nth={number} >> .plot canvas") > most
    # The likeliest contacts, and the head's labels.
    expect(page.locator("article:first-of-type tbody tr")).to_have_count(10 + len(LABELS))
    # Of five residues none are six apart.
    expect(page.locator("article:last-of-type tbody tr")).to_have_count(len(LABELS))
    watched.check(server)


def test_values_are_read_by_keys_and_by_pointer(browser: api.Browser, server: str):
    """They are what the server answers."""
    watched = Watched(browser)
    page = watched.page
    watched.run(server, UBIQUITIN)
    entropy = page.locator("figure:has(h3:text('Entropy'))")
    contacts = page.locator("figure:has(h3:text('Contacts'))")
    body = {"inputs": [UBIQUITIN]}
    logs = np.array(page.request.post(f"{server}/logits", data=body).json()[0])[1]
    shares = np.exp(logs) / np.exp(logs).sum()
    bits = -(shares * np.log2(shares)).sum()
    entropy.locator(".plot canvas").press("ArrowRight")
    entropy.locator(".plot canvas").press("ArrowRight")
    expect(entropy.locator("output")).to_contain_text(f"Q 2 · {bits:.2f} bits · ")

    share = page.request.post(f"{server}/contacts", data=body).json()[0][0][75]
    box = contacts.locator(".plot canvas").bounding_box()
    assert box is not None
    contacts.locator(".plot canvas").hover(position={"x": box["width"] - 17, "y": 2})
    expect(contacts.locator("output")).to_have_text(f"M 1 – G 76 · {share:.3f}")
    watched.check(server)


def test_a_wrong_letter_is_marked(browser: api.Browser, server: str):
    watched = Watched(browser, "phone", "dark")
    page = watched.page
    watched.run(server, ">good\nMKT\n>bad\nMKTAYIAKQR\nQIS1FVKSHF\n")
    problem = page.locator("#problem")
    expect(problem).to_contain_text("bad: character '1' at position 14 is not in ESM-2's alphabet")
    expect(problem.locator("mark")).to_have_text("1")
    chosen = "(text) => text.value.slice(text.selectionStart, text.selectionEnd)"
    assert page.locator("#text").evaluate(chosen) == "1"
    expect(page.locator("#requests")).to_contain_text("1 refused", timeout=10_000)
    watched.check(server, complaints=1)


def test_docs_are_of_this_server(browser: api.Browser, server: str):
    watched = Watched(browser, "phone")
    page = watched.page
    page.goto(f"{server}/docs")
    page.locator("summary", has_text="POST /embed_all").click()
    expect(page.locator("details[open] table").first).to_contain_text("strip_stop")
    expect(page.locator("details[open] table").last).to_contain_text("The queue is full")
    watched.check(server)


def test_foreign_scripts_do_not_run(browser: api.Browser, server: str):
    """What the policy is for."""
    page = browser.new_page()
    refused: list[str] = []
    page.on("console", lambda said: refused.append(said.text))
    page.goto(server)
    page.evaluate(
        """document.body.append(
             Object.assign(document.createElement("script"), { text: "window.ran = 1" }))"""
    )
    assert page.evaluate("window.ran") is None
    assert any("Content Security Policy" in each for each in refused)
    page.close()


def test_a_token_is_asked_for_and_kept_and_labels_are_shown(
    browser: api.Browser, task_artifact: Path
):
    with serving(task_artifact, token="secret") as server:
        url = server.url
        page = browser.new_page()
        page.goto(url)
        page.fill("#token", "secret", timeout=20_000)
        page.click("#access button")
        expect(page.locator("#artifact")).to_have_text(task_artifact.name, timeout=10_000)
        expect(page.locator("#access")).to_be_hidden()
        page.fill("#text", "MKTAYIAKQR")
        page.click("#run")
        best = page.request.post(
            f"{url}/predict",
            data={"inputs": "MKTAYIAKQR"},
            headers={"Authorization": "Bearer secret"},
        ).json()[0]
        expect(page.locator("tbody tr").first).to_have_text(f"{best['label']}{best['score']:.3f}")
        page.goto(f"{url}/docs")
        expect(page.locator("summary").first).to_contain_text("POST /embed")
        page.close()
