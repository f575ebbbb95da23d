import argparse
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from exporter.errors import CheckpointError
from exporter.model.reference import Reference, WeightsSource, load_reference
from exporter.model.sources.names import to_fair_esm
from tests.conftest import ARCHITECTURE

CONFIG = argparse.Namespace(
    encoder_layers=6, encoder_embed_dim=320, encoder_attention_heads=20, token_dropout=True
)


def fair_esm_state(reference: Reference) -> dict[str, torch.Tensor]:
    """As fair-esm's files name it: no contact regression, two prefixes."""
    return {
        f"encoder.{name}" if name.startswith("lm_head") else f"encoder.sentence_encoder.{name}": t
        for name, t in reference.model.state_dict().items()
        if not name.startswith("contact_head")
    }


@pytest.fixture(scope="module")
def checkpoint(reference: Reference, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("fair-esm") / "esm2_t6_8M_UR50D.pt"
    contents = {
        "args": argparse.Namespace(arch="esm2"),
        "cfg": {"model": CONFIG},
        "model": fair_esm_state(reference),
    }
    torch.save(contents, path)
    return path


def load(path: Path) -> Reference:
    return load_reference(WeightsSource("checkpoint", str(path)))


def test_synthetic_weights_are_the_same_every_time(reference: Reference) -> None:
    again = load_reference(WeightsSource("synthetic", ARCHITECTURE))
    other = load_reference(WeightsSource("synthetic", ARCHITECTURE, seed=1))
    assert again.origin.state_sha256 == reference.origin.state_sha256
    assert other.origin.state_sha256 != reference.origin.state_sha256


def test_every_synthetic_parameter_matters(reference: Reference) -> None:
    for name, parameter in reference.model.named_parameters():
        assert parameter.abs().mean() > 0.01, name
        if "layer_norm" in name and name.endswith("weight"):
            assert 0.7 <= parameter.min() <= parameter.max() <= 1.3, name


def test_fair_esm_checkpoint_without_regression_file(
    reference: Reference, checkpoint: Path
) -> None:
    loaded = load(checkpoint)
    assert loaded.origin.state_sha256 == reference.origin.state_sha256
    assert loaded.architecture == reference.architecture
    assert loaded.model.lm_head.weight is loaded.model.embed_tokens.weight


def test_half_precision_checkpoint_is_widened_as_fair_esm_does(
    reference: Reference, tmp_path: Path
) -> None:
    state = {name: tensor.half() for name, tensor in fair_esm_state(reference).items()}
    path = tmp_path / "half.pt"
    torch.save({"cfg": {"model": CONFIG}, "model": state}, path)
    loaded = load(path)
    weight = loaded.model.layers[0].fc1.weight
    assert torch.equal(weight, reference.model.layers[0].fc1.weight.half().float())


def test_legacy_file_format(reference: Reference, tmp_path: Path) -> None:
    path = tmp_path / "legacy.pt"
    contents = {"cfg": {"model": CONFIG}, "model": fair_esm_state(reference)}
    torch.save(contents, path, _use_new_zipfile_serialization=False)
    assert load(path).origin.state_sha256 == reference.origin.state_sha256


@pytest.mark.parametrize("arch", ["esm2_t6_8M_UR50D"])
def test_a_model_by_name_comes_from_fair_esms_cache(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arch: str
) -> None:
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    (tmp_path / "checkpoints").mkdir()
    shutil.copy(checkpoint, tmp_path / "checkpoints" / f"{arch}.pt")
    assert load_reference(WeightsSource("model", arch)).origin.kind == "model"


def test_a_download_that_fails_says_where_to_put_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(url: str, path: str) -> None:
        raise OSError("network is unreachable")

    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", refuse)
    with pytest.raises(CheckpointError, match=r"cannot download .*650M.*put it at .*650M"):
        load_reference(WeightsSource("model", "esm2_t33_650M_UR50D"))


def test_unknown_names_list_the_known_ones() -> None:
    with pytest.raises(CheckpointError, match="esm2_t48_15B_UR50D"):
        load_reference(WeightsSource("model", "esm2_650M"))


class TestForeignFiles:
    def test_missing(self, tmp_path: Path) -> None:
        with pytest.raises(CheckpointError, match="no such file"):
            load(tmp_path / "nothing.pt")

    def test_empty(self, tmp_path: Path) -> None:
        (tmp_path / "empty.pt").touch()
        with pytest.raises(CheckpointError, match="is empty"):
            load(tmp_path / "empty.pt")

    def test_web_page(self, tmp_path: Path) -> None:
        (tmp_path / "page.pt").write_text("\n<!DOCTYPE html><html>404</html>")
        with pytest.raises(CheckpointError, match="is a web page"):
            load(tmp_path / "page.pt")

    def test_plain_text(self, tmp_path: Path) -> None:
        (tmp_path / "notes.pt").write_text("version https://git-lfs.github.com/spec/v1")
        with pytest.raises(CheckpointError, match="not a PyTorch checkpoint"):
            load(tmp_path / "notes.pt")

    @pytest.mark.parametrize("share", [0.01, 0.5, 0.99])
    def test_truncated(self, checkpoint: Path, tmp_path: Path, share: float) -> None:
        data = checkpoint.read_bytes()
        (tmp_path / "cut.pt").write_bytes(data[: int(len(data) * share)])
        with pytest.raises(CheckpointError, match="truncated or damaged"):
            load(tmp_path / "cut.pt")

    def test_code_is_not_run(self, tmp_path: Path) -> None:
        class Hostile:
            def __reduce__(self) -> tuple[object, ...]:
                return (sys.exit, (3,))

        torch.save({"cfg": Hostile(), "model": {}}, tmp_path / "hostile.pt")
        with pytest.raises(CheckpointError, match="asks to load more than tensors"):
            load(tmp_path / "hostile.pt")

    def test_esm1b(self, tmp_path: Path) -> None:
        contents = {"args": argparse.Namespace(arch="roberta_large"), "model": {}}
        torch.save(contents, tmp_path / "esm1b.pt")
        with pytest.raises(CheckpointError, match=r"an ESM-1 model \(roberta_large\)"):
            load(tmp_path / "esm1b.pt")

    @pytest.mark.parametrize(
        "contents",
        [
            {"cfg": None, "model": {}},
            {"cfg": {}, "model": {}},
            {"cfg": {"model": {"encoder_layers": 6}}, "model": {}},
            {"cfg": {"model": argparse.Namespace(encoder_layers=6)}, "model": {}},
            {"cfg": {"model": CONFIG}, "model": [1, 2]},
            {"cfg": {"model": CONFIG}, "model": {3: torch.zeros(1)}},
            {"cfg": {"model": CONFIG}, "model": {"embed_tokens.weight": "text"}},
            {
                "cfg": {"model": CONFIG},
                "model": {"embed_tokens.weight": torch.zeros(2).to_sparse()},
            },
            *(
                {"cfg": {"model": argparse.Namespace(**{**vars(CONFIG), **wrong})}, "model": {}}
                for wrong in (
                    {"encoder_layers": 0},
                    {"encoder_layers": None},
                    {"encoder_embed_dim": -320},
                    {"encoder_attention_heads": 0},
                    {"encoder_attention_heads": 7},
                    {"encoder_attention_heads": 64},
                )
            ),
            [1, 2, 3],
        ],
    )
    def test_anything_else_is_one_line(self, tmp_path: Path, contents: object) -> None:
        torch.save(contents, tmp_path / "odd.pt")
        with pytest.raises(CheckpointError) as error:
            load(tmp_path / "odd.pt")
        assert "\n" not in str(error.value)

    @pytest.mark.parametrize("content", [b"abc,def", b"R0", b".", b"G", b"PK\x03\x04", b"\x80\x02"])
    def test_any_bytes_are_one_line(self, tmp_path: Path, content: bytes) -> None:
        (tmp_path / "odd.pt").write_bytes(content)
        with pytest.raises(CheckpointError, match="checkpoint") as error:
            load(tmp_path / "odd.pt")
        assert "\n" not in str(error.value)

    @pytest.mark.parametrize(
        ("name", "value", "message"),
        [
            ("encoder.lm_head.weight", torch.ones(33, 320), "ESM-2 ties them"),
            ("encoder.lm_head.bias", torch.full((33,), torch.nan), "NaN or Inf: lm_head.bias"),
        ],
    )
    def test_weights_that_would_compute_something_else(
        self, reference: Reference, tmp_path: Path, name: str, value: torch.Tensor, message: str
    ) -> None:
        state = {**fair_esm_state(reference), name: value}
        torch.save({"cfg": {"model": CONFIG}, "model": state}, tmp_path / "wrong.pt")
        with pytest.raises(CheckpointError, match=message):
            load(tmp_path / "wrong.pt")

    def test_bare_state_dict(self, reference: Reference, tmp_path: Path) -> None:
        torch.save(fair_esm_state(reference), tmp_path / "state.pt")
        loaded = load(tmp_path / "state.pt")
        assert loaded.origin.state_sha256 == reference.origin.state_sha256
        assert loaded.architecture == reference.architecture

    def test_a_dictionary_of_something_else(self, tmp_path: Path) -> None:
        torch.save({"weights": [1, 2]}, tmp_path / "state.pt")
        with pytest.raises(CheckpointError, match="expected the keys 'cfg' and 'model'"):
            load(tmp_path / "state.pt")

    def test_every_problem_is_named_at_once(self, reference: Reference, tmp_path: Path) -> None:
        state = fair_esm_state(reference)
        del state["encoder.sentence_encoder.layers.2.fc1.bias"]
        state["encoder.sentence_encoder.layers.3.fc2.bias"] = torch.zeros(7)
        state["encoder.sentence_encoder.extra"] = torch.zeros(7)
        torch.save({"cfg": {"model": CONFIG}, "model": state}, tmp_path / "wrong.pt")
        with pytest.raises(CheckpointError) as error:
            load(tmp_path / "wrong.pt")
        text = str(error.value)
        assert "1 tensors missing (layers.2.fc1.bias)" in text
        assert "1 tensors unknown (extra)" in text
        assert "layers.3.fc2.bias [7] instead of [320]" in text
        assert "\n" not in text


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> tuple[object, Path]:
    transformers = pytest.importorskip("transformers", reason="writes the real format")
    config = transformers.EsmConfig(
        vocab_size=33, mask_token_id=32, pad_token_id=1, hidden_size=320,
        num_hidden_layers=6, num_attention_heads=20, intermediate_size=1280,
        position_embedding_type="rotary", emb_layer_norm_before=False, token_dropout=True,
        layer_norm_eps=1e-5, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    torch.manual_seed(0)
    model = transformers.EsmForMaskedLM(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    folder = tmp_path_factory.mktemp("hf") / "esm2_hf"
    model.save_pretrained(folder, max_shard_size="10MB")
    return model, folder


class TestHuggingFace:
    def test_the_same_logits(self, saved: tuple[object, Path]) -> None:
        theirs, folder = saved
        assert (folder / "model.safetensors.index.json").exists(), "sharding was to be tested"
        loaded = load(folder)
        tokens = torch.tensor([[0, 20, 15, 11, 32, 5, 19, 2]])
        with torch.no_grad():
            expected = theirs(tokens).logits  # type: ignore[operator]
            actual = loaded.model(tokens)["logits"]
        torch.testing.assert_close(actual, expected, atol=1e-4, rtol=1e-4)
        assert loaded.origin.kind == "huggingface"

    def test_a_missing_shard(self, saved: tuple[object, Path], tmp_path: Path) -> None:
        folder = shutil.copytree(saved[1], tmp_path / "copy")
        shard = sorted(folder.glob("model-*.safetensors"))[1]
        shard.unlink()
        with pytest.raises(CheckpointError, match=f"holds no {shard.name}"):
            load(folder)

    def test_a_truncated_shard(self, saved: tuple[object, Path], tmp_path: Path) -> None:
        folder = shutil.copytree(saved[1], tmp_path / "copy")
        shard = sorted(folder.glob("model-*.safetensors"))[1]
        shard.write_bytes(shard.read_bytes()[:-1000])
        with pytest.raises(CheckpointError, match=f"{shard.name} is truncated or damaged"):
            load(folder)

    def test_another_model(self, tmp_path: Path) -> None:
        (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
        with pytest.raises(CheckpointError, match="model_type 'bert' instead of 'esm'"):
            load(tmp_path)

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"layer_norm_eps": 1e-12}, "layer_norm_eps 1e-12 instead of 1e-05"),
            ({"emb_layer_norm_before": True}, "emb_layer_norm_before True"),
            ({"hidden_size": None}, "not a whole Hugging Face model"),
            ({"num_attention_heads": 7}, "not a whole Hugging Face model"),
        ],
    )
    def test_settings_that_fair_esm_does_not_have(
        self, saved: tuple[object, Path], tmp_path: Path, change: dict[str, object], message: str
    ) -> None:
        folder = shutil.copytree(saved[1], tmp_path / "copy")
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**config, **change}))
        with pytest.raises(CheckpointError, match=message):
            load(folder)

    def test_a_folder_without_config(self, tmp_path: Path) -> None:
        with pytest.raises(CheckpointError, match=r"holds no config\.json"):
            load(tmp_path)


class TestTheFormatsOwnLoader:
    """A tensor in a wrong place would be in the engine and in its reference alike."""

    @pytest.mark.parametrize(
        ("one", "other"),
        [
            ("layers.0.fc1.bias", "layers.1.fc1.bias"),
            ("layers.0.self_attn.k_proj.weight", "layers.0.self_attn.q_proj.weight"),
        ],
    )
    @pytest.mark.parametrize("of", ["fair_esm", "hugging_face"])
    def test_a_tensor_in_another_place_is_refused(
        self, tiny_checkpoint: Path, saved: tuple[object, Path], of: str, one: str, other: str,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:  # fmt: skip
        def exchanged(stored: dict[str, torch.Tensor], label: str):  # type: ignore[no-untyped-def]
            state, left_out = to_fair_esm(stored, label)
            return {**state, one: state[other], other: state[one]}, left_out

        monkeypatch.setattr(f"exporter.model.sources.{of}.to_fair_esm", exchanged)
        place = tiny_checkpoint if of == "fair_esm" else saved[1]
        asked = "fair-esm" if of == "fair_esm" else "transformers"
        with pytest.raises(CheckpointError, match=f"read by {asked} otherwise than here"):
            load(place)

    def test_settings_are_compared_too(
        self, tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("exporter.model.sources.fair_esm.bool", lambda _: False, raising=False)
        with pytest.raises(CheckpointError, match="token_dropout differ"):
            load(tiny_checkpoint)


COMPILER_IMPORTED = """
import sys
from collections.abc import Callable
from pathlib import Path
from exporter.model.reference import WeightsSource, load_reference
load_reference(WeightsSource("checkpoint", sys.argv[1]))
print("torch._dynamo" in sys.modules)
"""


def test_loading_does_not_import_pytorchs_compiler(
    tiny_checkpoint: Path, fresh_python: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    assert fresh_python(COMPILER_IMPORTED, tiny_checkpoint).stdout == "False\n"
