"""Malformed bodies by Hypothesis, and huge ones."""

import json
from collections import Counter
from collections.abc import Iterable
from typing import Any

import httpx
import orjson
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from benchmarks.serving.process import Server
from benchmarks.serving.traffic import BrokenError

PROTEINS = st.text("LAGVSERTIDPKQNFYMHWC", min_size=1, max_size=40)
SEQUENCES = PROTEINS | st.text("LAGVXBZUO.-* alga<mask>0\u00e9\n", max_size=40)
LEAVES = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=20), SEQUENCES
)
VALUES = st.recursive(LEAVES, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner))
VARIANTS = st.from_regex(r"[A-Za-z*]?-?[0-9]{0,4}[A-Z]?(:[A-Z][0-9]+[A-Z])?", fullmatch=True)
# What comes near to what a field takes.
LIKELY = {
    "inputs": SEQUENCES | st.lists(SEQUENCES, max_size=5),
    "input": SEQUENCES | st.lists(SEQUENCES, max_size=5),
    "wild_type": SEQUENCES,
    "variants": st.lists(VARIANTS, max_size=5) | st.none(),
    "convention": st.sampled_from(["masked-marginals", "wt-marginals", "pseudo-ppl", "?"]),
    "unknown": st.sampled_from(["error", "x", "unk", "?"]),
    "pool": st.sampled_from(["mean", "cls", "mean-with-eos", "none"]),
    "columns": st.sampled_from([20, 33, 0]),
    "layer": st.integers(-1, 3) | st.none(),
    "encoding_format": st.sampled_from(["float", "base64", "?"]),
}  # fmt: skip


@st.composite
def bodies(draw: st.DrawFn, fields: list[str]) -> bytes:
    """Of these fields, few of them wrong; then bytes are changed, cut off, or said twice."""
    if draw(st.integers(0, 9)) == 0:
        return draw(st.binary(max_size=100) | VALUES.map(lambda each: json.dumps(each).encode()))
    chosen = [name for name in fields if name in LIKELY and draw(st.integers(0, 3))]
    values = {name: draw(LIKELY[name]) for name in chosen}
    while draw(st.integers(0, 2)) == 0:
        values[draw(st.sampled_from([*fields, "other"]))] = draw(VALUES)
    body = bytearray(json.dumps(values).encode())
    while draw(st.integers(0, 3)) == 0:
        place = draw(st.integers(0, len(body)))
        body[place : place + draw(st.integers(0, 3))] = draw(st.binary(max_size=3))
    return bytes(body)


HEADERS = st.fixed_dictionaries(
    {
        "Content-Type": st.sampled_from(
            ["application/json"] * 12 + ["text/plain", "", "application/"]
        )
    },
    optional={
        "Accept": st.sampled_from(
            ["*/*"] * 5 + ["application/json", "application/x-npz", "image/png", "a;q=x", ","]
        ),
        "X-Request-ID": st.text("abc-._\t 123", max_size=80).map(str.strip),
        "X-Client-ID": st.text("abc 123", max_size=300).map(str.strip),
    },
)


def own(server: Server, cases: int, number: int = 0) -> Counter[int]:
    """POSTs of any path with bodies of Hypothesis; the server must refuse, or answer.

    Returns:
        How many answers were of each status.

    Raises:
        BrokenError: a 5xx, or an error that is not shaped as documented.
    """
    documented, fields = _documented(server)
    found: Counter[int] = Counter()
    with httpx.Client(base_url=server.url, timeout=60, trust_env=False) as client:

        @seed(number)
        @bounded(cases)
        @given(st.data(), st.sampled_from(sorted(documented)), HEADERS)
        def check(data: st.DataObject, path: str, headers: dict[str, str]) -> None:
            body = data.draw(bodies(fields[path]))
            answer = client.post(path, content=body, headers=headers)
            found[answer.status_code] += 1
            _check(answer, path, body, documented[path])

        check()
    return found


def huge(server: Server, most_bytes: int) -> dict[str, Any]:
    """Bodies beyond every bound: each is refused by a status of its own, and costs little memory.

    Args:
        server: with ``--max-body-mb`` of ``most_bytes``.
        most_bytes: of a body.

    Raises:
        BrokenError: one is not.
    """
    room = most_bytes - 100
    bodies: dict[str, tuple[int, Iterable[bytes] | bytes]] = {
        "too many bytes": (413, b'{"inputs": "' + b"A" * most_bytes + b'"}'),
        "too many bytes in pieces": (413, (b"A" * (1 << 16) for _ in range(most_bytes >> 15))),
        "too long a protein": (413, b'{"inputs": "' + b"A" * room + b'"}'),
        "too many proteins": (413, b'{"inputs": [' + b'"A",' * (room // 4) + b'"A"]}'),
        "numbers": (422, b'{"inputs": [' + b"1," * (room // 2) + b"1]}"),
        "unknown fields": (
            422, b"{" + b"".join(b'"%x":1,' % i for i in range(room // 12)) + b'"inputs":"A"}',
        ),
        "nested lists": (422, b'{"inputs": ' + b"[" * room),
        "nested objects": (422, b'{"inputs":' * (room // 10)),
    }  # fmt: skip
    before = server.rss_mb
    most = 0.0
    for what, (status, body) in bodies.items():
        answer = httpx.post(
            f"{server.url}/embed",
            content=body,
            headers={"Content-Type": "application/json"},
            timeout=60,
            trust_env=False,
        )
        if answer.status_code != status:
            raise BrokenError(f"{what}: {answer.status_code}, not {status}: {answer.text[:300]}")
        _check(answer, "/embed", what.encode(), {status})
        if len(answer.content) > 10_000:
            raise BrokenError(f"{what}: an error of {len(answer.content):,} bytes")
        most = max(most, server.rss_mb - before)
    return {"bodies": len(bodies), "of bytes": most_bytes, "more memory, MB": round(most)}


def bounded(cases: int) -> settings:
    """So many cases, the same each time; a failing one is shown as it is."""
    return settings(
        max_examples=cases,
        deadline=None,
        database=None,
        phases=(Phase.generate,),
        suppress_health_check=list(HealthCheck),
    )


def _documented(server: Server) -> tuple[dict[str, set[int]], dict[str, list[str]]]:
    """Statuses of each path that takes a body, and that one's fields."""
    paths = httpx.get(f"{server.url}/openapi.json", trust_env=False).json()["paths"]
    posts = {
        path: each["post"] for path, each in paths.items() if "requestBody" in each.get("post", {})
    }
    statuses = {path: set(map(int, each["responses"])) for path, each in posts.items()}
    bodies_of = {
        path: each["requestBody"]["content"]["application/json"]["schema"]
        for path, each in posts.items()
    }
    return statuses, {path: sorted(schema["properties"]) for path, schema in bodies_of.items()}


def _check(answer: httpx.Response, path: str, body: bytes, documented: set[int]) -> None:
    status = answer.status_code
    if status >= 500 or status not in documented:
        raise BrokenError(f"{status} of {path} for {body[:300]!r}: {answer.text[:300]}")
    if status == 200:
        return
    found = orjson.loads(answer.content)
    error = found["error"]["message"] if path.startswith("/v1/") else found["error"]
    if (
        not isinstance(error, str)
        or not error
        or found["request_id"] != answer.headers["x-request-id"]
    ):
        raise BrokenError(f"not an error as documented: {found}")
