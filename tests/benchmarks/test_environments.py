import re

import pytest

from benchmarks import environments
from benchmarks.contenders import PACKED_PEERS, PEER_LABELS
from benchmarks.environments import PEERS, PeerUnavailableError, digest_of, python_of

pytestmark = pytest.mark.slow

PIN = re.compile(r"[A-Za-z0-9_.-]+==[0-9][0-9A-Za-z.]*")


@pytest.mark.parametrize("peer", PEER_LABELS)
def test_everything_is_pinned(peer: str) -> None:
    lines = [line for line in (PEERS / f"{peer}.txt").read_text().splitlines() if line[:1] != "#"]
    assert len(lines) > (1 if peer in PACKED_PEERS else 5)
    assert [line for line in lines if not PIN.fullmatch(line)] == []
    # All of PyTorch's have the same one; esm.cpp is C++ alone.
    assert ("torch==2.13.0" in lines) is (peer not in PACKED_PEERS)


def test_every_peer_has_a_loader_and_a_label() -> None:
    loaders = {path.stem for path in PEERS.glob("*.py")} - {"__init__", "serve"}
    assert loaders == set(PEER_LABELS) == {path.stem for path in PEERS.glob("*.txt")}


def test_the_digest_follows_the_requirements(tmp_path) -> None:  # type: ignore[no-untyped-def]
    file = tmp_path / "x.txt"
    file.write_text("a==1\n")
    first = digest_of(file)
    assert first == digest_of(file)
    file.write_text("a==2\n")
    assert digest_of(file) != first


def test_a_peer_that_cannot_be_installed_says_why(
    tmp_path, monkeypatch: pytest.MonkeyPatch
) -> None:  # type: ignore[no-untyped-def]
    (tmp_path / "absent.txt").write_text("esm2-engines-no-such-package==1.0\n")
    monkeypatch.setattr(environments, "PEERS", tmp_path)
    with pytest.raises(PeerUnavailableError, match="pip install failed: .*no-such-package"):
        python_of("absent", "--no-index", tmp_path / "environments")
    ready = list(tmp_path.rglob(".ready"))
    assert ready == [], "a failed environment must not be taken for a whole one"
