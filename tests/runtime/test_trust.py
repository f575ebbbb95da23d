"""Signatures: nothing of an artifact is read before all of it is known to be what was signed."""

import base64
import importlib.util
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from cryptography.hazmat.primitives.asymmetric import ec

import esm2_engines
from exporter.cli import main as export_main
from exporter.errors import ExportError
from exporter.signing import Signer
from runtime import files
from runtime import manifest as manifests
from runtime.cli import main as run_main
from runtime.errors import ArtifactError, InputError
from runtime.loading import load
from runtime.trust.whom import VARIABLE
from tests.runtime.signing import (
    DAMAGE_OF_BUNDLES,
    DAMAGE_OF_FILES,
    Pair,
    certificate,
    new_pair,
    reseal,
    rewrite,
)

DAMAGE = DAMAGE_OF_FILES | DAMAGE_OF_BUNDLES


@pytest.fixture
def pair(tmp_path: Path) -> Pair:
    return new_pair(tmp_path, "signer")


@pytest.fixture
def signed(ready_artifact: Path, pair: Pair) -> Path:
    Signer(pair.private).sign(ready_artifact)
    return ready_artifact


@pytest.fixture
def block_bytes(monkeypatch: pytest.MonkeyPatch) -> int:
    """Of files of several parts."""
    monkeypatch.setattr(files, "BLOCK_BYTES", 4096)
    return 4096


class TestGood:
    def test_is_loaded_and_answers(self, signed: Path, pair: Pair) -> None:
        with esm2_engines.load(signed) as before, esm2_engines.load(signed, trust=pair.public) as m:
            np.testing.assert_array_equal(m.embed(["MKTAYIAKQR"]), before.embed(["MKTAYIAKQR"]))

    @pytest.mark.parametrize("curve", [ec.SECP256R1(), ec.SECP384R1(), ec.SECP521R1()])
    def test_every_curve(
        self, ready_artifact: Path, tmp_path: Path, curve: ec.EllipticCurve
    ) -> None:
        pair = new_pair(tmp_path, "signer", curve)
        Signer(pair.private).sign(ready_artifact)
        manifests.read(ready_artifact, trust=pair.public)

    def test_a_key_may_be_given_as_text(
        self, signed: Path, pair: Pair, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv(VARIABLE, pair.public.read_text())
        manifests.read(signed)

    @pytest.mark.usefixtures("block_bytes")
    def test_files_of_several_parts(self, ready_artifact: Path, pair: Pair) -> None:
        reseal(ready_artifact)
        assert len(manifests.read(ready_artifact).files["weights.safetensors"].blocks) > 2
        Signer(pair.private).sign(ready_artifact)
        manifests.read(ready_artifact, trust=pair.public)

    def test_signing_again_replaces_the_signature(self, signed: Path, tmp_path: Path) -> None:
        other = new_pair(tmp_path, "other")
        Signer(other.private).sign(signed)
        manifests.read(signed, trust=other.public)

    @pytest.mark.usefixtures("block_bytes")
    def test_each_byte_is_read_once(
        self, signed: Path, pair: Pair, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        reseal(signed)
        Signer(pair.private).sign(signed)
        read: list[int] = []
        sha256 = files.sha256

        def counted(path: Path, begin: int, end: int) -> str:
            read.append(end - begin)
            return sha256(path, begin, end)

        monkeypatch.setattr(files, "sha256", counted)
        size = sum(entry.bytes for entry in manifests.read(signed).files.values())
        read.clear()
        with load(signed, "onnx", trust=pair.public, validate=True):
            assert sum(read) == size
        with load(signed, "onnx", trust=pair.public):
            assert sum(read) == size

    def test_what_is_touched_is_read_again(self, signed: Path, pair: Pair) -> None:
        manifests.read(signed, trust=pair.public)
        path = signed / "weights.safetensors"
        times = path.stat().st_atime_ns, path.stat().st_mtime_ns
        with path.open("r+b") as file:
            file.seek(-1, os.SEEK_END)
            file.write(b"\x7f")
        os.utime(path, ns=times)
        with pytest.raises(ArtifactError, match="weights.safetensors was changed"):
            manifests.read(signed, trust=pair.public)

    def test_an_unsigned_one_loads_as_ever_where_nobody_is_named(
        self, ready_artifact: Path
    ) -> None:
        with load(ready_artifact, "onnx", validate=True):
            pass


@pytest.mark.parametrize("what", DAMAGE)
def test_damage_is_refused_in_one_line(what: str, signed: Path, pair: Pair) -> None:
    damage, said = DAMAGE[what]
    damage(signed)
    with pytest.raises(ArtifactError, match=said) as error:
        load(signed, trust=pair.public)
    assert "\n" not in str(error.value)


def test_the_signature_of_another_key(signed: Path, tmp_path: Path) -> None:
    other = new_pair(tmp_path, "other")
    with pytest.raises(ArtifactError, match=r"by another key than .*other\.pub"):
        load(signed, trust=other.public)
    bundle = json.loads((signed / "model.sig").read_bytes())
    bundle["verificationMaterial"]["publicKey"] = {}  # as bundles of before OMS 1.0 have it
    rewrite(signed / "model.sig", json.dumps(bundle).encode())
    with pytest.raises(ArtifactError, match="is not a signature by"):
        load(signed, trust=other.public)


def test_another_list_under_the_same_signature(signed: Path, pair: Pair) -> None:
    bundle = json.loads((signed / "model.sig").read_bytes())
    payload = base64.b64decode(bundle["dsseEnvelope"]["payload"])
    changed = payload.replace(b'"model.ts"', b'"model.tz"')
    assert changed != payload
    bundle["dsseEnvelope"]["payload"] = base64.b64encode(changed).decode()
    rewrite(signed / "model.sig", json.dumps(bundle).encode())
    with pytest.raises(ArtifactError, match="is not a signature by"):
        load(signed, trust=pair.public)


def test_a_signer_cannot_leave_out_what_the_manifest_names(
    signed: Path, pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "exporter.signing.files_to_sign",
        lambda folder: sorted(p.name for p in folder.iterdir() if p.suffix not in (".ts", ".sig")),
    )
    monkeypatch.setattr("exporter.signing.FILE_NAME", "model.ts")  # in ignore_paths
    path = Signer(pair.private).sign(signed)
    (signed / "model.sig").unlink()
    assert path.name == "model.ts"  # and the bundle takes its place
    path.rename(signed / "model.sig")
    (signed / "model.ts").write_bytes(b"anything")
    with pytest.raises(ArtifactError, match="model.ts is not signed"):
        load(signed, trust=pair.public)


_WATCHED = """
import json, os, sys
opened = []
sys.addaudithook(lambda event, args: opened.append(str(args[0])) if event == "open" else None)
from pathlib import Path
import runtime
root, key = Path(sys.argv[1]), sys.argv[2]
result = {}
for folder in sorted(root.iterdir()):
    opened.clear()
    try:
        runtime.load(folder / "schema", trust=key)
        said = "loaded"
    except runtime.ArtifactError as error:
        said = str(error)
    result[folder.name] = said, [Path(o).name for o in opened if o.startswith(str(folder))]
loaded = [name for name in ("onnxruntime", "torch", "safetensors") if name in sys.modules]
print(json.dumps([result, loaded]))
"""


def test_no_library_sees_a_byte_of_what_is_refused(
    signed: Path, pair: Pair, tmp_path: Path,
    fresh_python: Callable[..., subprocess.CompletedProcess[str]],
) -> None:  # fmt: skip
    """Libraries that open files are not even imported; a bad bundle's artifact is not opened."""
    for what, (damage, _) in DAMAGE.items():
        shutil.copytree(signed, tmp_path / "all" / what / "schema")
        damage(tmp_path / "all" / what / "schema")
    done = fresh_python(_WATCHED, tmp_path / "all", pair.public)
    assert not done.returncode, done.stderr
    result, loaded = json.loads(done.stdout)
    assert result.keys() == DAMAGE.keys() and loaded == []
    for what, (said, opened) in result.items():
        assert said != "loaded", what
        assert set(opened) <= {"model.sig"} or what in DAMAGE_OF_FILES, (what, opened)
    # What is known by names is not read either.
    assert result["removed"][1] == result["added"][1] == ["model.sig"]


@pytest.mark.parametrize(
    "words",
    [
        ("info",),
        ("selftest",),
        ("embed", "in.fasta", "-o", "out.npz"),
        ("extract", "in.fasta", "out", "--include", "mean"),
        ("perplexity", "in.fasta", "-o", "out.csv"),
        ("logits", "in.fasta", "-o", "out.npz"),
        ("serve", "--port", "0"),
    ],
    ids=lambda words: words[0],
)
def test_the_variable_holds_for_every_command(
    words: tuple[str, ...], signed: Path, pair: Pair, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    Path("in.fasta").write_text(">a\nMKTAYIAKQR\n")
    command, *rest = words
    monkeypatch.setenv(VARIABLE, str(new_pair(tmp_path, "other").public))
    result = CliRunner().invoke(run_main, [command, str(signed), *rest])
    assert result.exit_code == 2 and "by another key" in result.output, result.output
    assert len(result.output.strip().splitlines()) == 1
    if command != "serve":
        monkeypatch.setenv(VARIABLE, str(pair.public))
        result = CliRunner().invoke(run_main, [command, str(signed), *rest])
        assert result.exit_code == 0, result.output


class TestWhom:
    @pytest.mark.parametrize(
        ("text", "said"),
        [("", "no public key"), ("-----BEGIN PUBLIC KEY-----\nAAAA\n", "no public key")],
    )
    def test_no_key(self, signed: Path, tmp_path: Path, text: str, said: str) -> None:
        (tmp_path / "key").write_text(text)
        with pytest.raises(InputError, match=said):
            load(signed, trust=tmp_path / "key")

    def test_none_there(self, signed: Path, tmp_path: Path) -> None:
        with pytest.raises(InputError, match="cannot read the trusted key .*nowhere"):
            load(signed, trust=tmp_path / "nowhere")

    def test_an_empty_variable_is_not_everybody(
        self, signed: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv(VARIABLE, "")
        with pytest.raises(InputError, match="ESM2_TRUSTED_KEY is empty"):
            load(signed)

    def test_without_the_library(
        self, signed: Path, pair: Pair,
        fresh_python: Callable[..., subprocess.CompletedProcess[str]],
    ) -> None:  # fmt: skip
        code = "import runtime, sys; runtime.load(sys.argv[1], trust=sys.argv[2])"
        done = fresh_python(code, signed, pair.public, blocked=("cryptography",))
        assert "UnsupportedError: signatures need cryptography. pip install" in done.stderr


class TestCertificates:
    @pytest.fixture
    def root(self, tmp_path: Path) -> Pair:
        return new_pair(tmp_path, "root")

    @pytest.fixture
    def root_certificate(self, tmp_path: Path, root: Pair) -> Path:
        return certificate(tmp_path, "root", root, root, is_ca=True, days=3650)

    def test_who_vouches_is_trusted(
        self, ready_artifact: Path, pair: Pair, root: Pair, root_certificate: Path, tmp_path: Path
    ) -> None:
        between = new_pair(tmp_path, "between")
        chain = [
            certificate(tmp_path, "signer", pair, between),
            certificate(tmp_path, "between", between, root, is_ca=True),
        ]
        Signer(pair.private, chain).sign(ready_artifact)
        manifests.read(ready_artifact, trust=root_certificate)
        manifests.read(ready_artifact, trust=pair.public)  # the signer alone

        stranger = new_pair(tmp_path, "stranger")
        unknown = certificate(tmp_path, "stranger", stranger, stranger, is_ca=True)
        with pytest.raises(ArtifactError, match="does not vouch for its signer") as error:
            manifests.read(ready_artifact, trust=unknown)
        assert "\n" not in str(error.value)

    def test_not_every_certificate_may_sign(
        self, ready_artifact: Path, pair: Pair, root: Pair, root_certificate: Path, tmp_path: Path
    ) -> None:
        own = certificate(tmp_path, "signer", pair, root, signs=False)
        Signer(pair.private, [own]).sign(ready_artifact)
        with pytest.raises(ArtifactError, match="is not for signing"):
            manifests.read(ready_artifact, trust=root_certificate)

    def test_who_has_a_certificate_cannot_issue_others(
        self, ready_artifact: Path, pair: Pair, root: Pair, root_certificate: Path, tmp_path: Path
    ) -> None:
        thief = new_pair(tmp_path, "thief")
        chain = [
            certificate(tmp_path, "thief", thief, pair),
            certificate(tmp_path, "signer", pair, root),
        ]
        Signer(thief.private, chain).sign(ready_artifact)
        with pytest.raises(ArtifactError, match="does not vouch for its signer"):
            manifests.read(ready_artifact, trust=root_certificate)

    def test_a_bundle_without_any(self, signed: Path, root_certificate: Path) -> None:
        with pytest.raises(ArtifactError, match="holds no certificates"):
            manifests.read(signed, trust=root_certificate)

    def test_of_another_key(self, pair: Pair, root_certificate: Path) -> None:
        with pytest.raises(ExportError, match="is not of the key"):
            Signer(pair.private, [root_certificate])


class TestSigning:
    def test_only_what_can_be_verified(self, ready_artifact: Path, pair: Pair) -> None:
        (ready_artifact / "link").symlink_to("model.ts")
        with pytest.raises(ArtifactError, match="link is a link"):
            Signer(pair.private).sign(ready_artifact)

    def test_a_public_key_signs_nothing(self, pair: Pair) -> None:
        with pytest.raises(ExportError, match="cannot sign with"):
            Signer(pair.public)

    def test_from_the_command_line(self, ready_artifact: Path, pair: Pair) -> None:
        def run(main: object, *words: object) -> str:
            result = CliRunner().invoke(main, [*map(str, words)])  # type: ignore[arg-type]
            assert result.exit_code == 0, result.output
            return result.output

        assert "unsigned: nothing says who built it" in run(run_main, "info", ready_artifact)
        run(export_main, "sign", ready_artifact, "--private-key", pair.private)
        assert "model.sig, not verified" in run(run_main, "info", ready_artifact)
        verify = "verify-signature", ready_artifact, "--public-key", pair.public
        assert "files are what" in run(run_main, *verify)

    def test_what_is_damaged_is_not_signed(self, ready_artifact: Path, pair: Pair) -> None:
        rewrite(ready_artifact / "model.ts", b"short")
        result = CliRunner().invoke(
            export_main, ["sign", str(ready_artifact), "--private-key", str(pair.private)]
        )
        assert result.exit_code == 2 and "model.ts has 5 bytes" in result.output


@pytest.mark.skipif(not importlib.util.find_spec("model_signing"), reason="no model_signing here")
class TestModelSigning:
    """OpenSSF's own command: it accepts ours, and ours its."""

    def _run(self, *words: object) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "model_signing", *map(str, words)]
        return subprocess.run(command, capture_output=True, text=True)

    def _succeeds(self, *words: object) -> None:
        done = self._run(*words)
        assert not done.returncode, done.stdout + done.stderr

    def test_verifies_ours(self, signed: Path, pair: Pair) -> None:
        bundle = signed / "model.sig"
        words = "verify", "key", signed, "--signature", bundle, "--public_key", pair.public
        self._succeeds(*words)
        rewrite(signed / "model.ts", b"short")
        assert self._run(*words).returncode

    def test_ours_verifies_its(self, ready_artifact: Path, pair: Pair) -> None:
        bundle = ready_artifact / "model.sig"
        self._succeeds(
            "sign", "key", ready_artifact, "--signature", bundle, "--private_key", pair.private
        )
        with load(ready_artifact, "onnx", trust=pair.public, validate=True):
            pass
        (ready_artifact / "added").touch()
        with pytest.raises(ArtifactError, match="added was added"):
            load(ready_artifact, trust=pair.public)

    def test_certificates_both_ways(self, ready_artifact: Path, pair: Pair, tmp_path: Path) -> None:
        root = new_pair(tmp_path, "root")
        trusted = certificate(tmp_path, "root", root, root, is_ca=True, days=3650)
        own = certificate(tmp_path, "signer", pair, root)
        bundle = ready_artifact / "model.sig"
        Signer(pair.private, [own]).sign(ready_artifact)
        self._succeeds(
            "verify", "certificate", ready_artifact, "--signature", bundle,
            "--certificate_chain", trusted,
        )  # fmt: skip
        bundle.unlink()
        self._succeeds(
            "sign", "certificate", ready_artifact, "--signature", bundle, "--private_key",
            pair.private, "--signing_certificate", own, "--certificate_chain", trusted,
        )  # fmt: skip
        manifests.read(ready_artifact, trust=trusted)
