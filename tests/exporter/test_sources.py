"""Checkpoints as users hold them: what loads is what it was saved from, what does not says why."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from exporter.errors import CheckpointError
from exporter.model.reference import Reference, WeightsSource, load_reference
from exporter.model.sources.naming import origin_of, safe_name
from runtime.tokenizer import TOKENS
from tests.conftest import TINY, save_checkpoint
from tests.exporter.fine_tuned import tiny_config

pytestmark = pytest.mark.slow

transformers = pytest.importorskip("transformers", reason="writes the real formats")

TOKEN_IDS = torch.tensor([[0, 20, 15, 11, 32, 5, 19, 2]])
COMMIT = "0a1b2c3d" * 5
Change = Callable[[dict[str, Any]], dict[str, Any]]


config = partial(tiny_config, TINY)


def saved(folder: Path, kind: str = "EsmForMaskedLM", **options: Any) -> tuple[Any, Path]:
    """A model of a class of transformers with every parameter drawn, and where it was saved."""
    torch.manual_seed(0)
    model = getattr(transformers, kind)(config(), **options).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    return model, folder


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    return saved(tmp_path_factory.mktemp("hf") / "masked")


@pytest.fixture(scope="module")
def fair_esm(tiny_checkpoint: Path) -> Reference:
    return load(tiny_checkpoint)


@pytest.fixture
def folder(whole: tuple[Any, Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole[1], tmp_path / "copy"))


def load(path: Path | str) -> Reference:
    return load_reference(WeightsSource("checkpoint", str(path)))


def refused(path: Path | str, kind: Any = "checkpoint") -> str:
    with pytest.raises(CheckpointError) as error:
        load_reference(WeightsSource(kind, str(path)))
    assert "\n" not in str(error.value)
    return str(error.value)


def edit_config(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def edit_state(folder: Path, change: Change) -> None:
    path = folder / "model.safetensors"
    save_file(change(load_file(path)), path, {"format": "pt"})


def assert_same_embeddings(theirs: Any, ours: Reference) -> None:
    base = getattr(theirs, "esm", theirs)
    with torch.no_grad():
        expected = base(TOKEN_IDS).last_hidden_state
        actual = ours.model(TOKEN_IDS, repr_layers=[TINY[0]])["representations"][TINY[0]]
    torch.testing.assert_close(actual, expected, atol=2e-5, rtol=2e-5)


class TestClassesOfTransformers:
    @pytest.mark.parametrize(
        ("kind", "options", "left_out"),
        [
            ("EsmModel", {}, ["pooler"]),
            ("EsmModel", {"add_pooling_layer": False}, []),
            ("EsmForSequenceClassification", {}, []),
            ("EsmForTokenClassification", {}, []),
        ],
    )
    def test_without_an_lm_head_they_give_embeddings_alone(
        self, tmp_path: Path, kind: str, options: dict[str, Any], left_out: list[str]
    ) -> None:
        theirs, folder = saved(tmp_path / "model", kind, **options)
        ours = load(folder)
        assert_same_embeddings(theirs, ours)
        assert not ours.origin.lm_head
        assert ours.origin.left_out == left_out
        assert "no LM head in this checkpoint: embeddings only, no logits" in ours.notes

    def test_with_one_they_give_logits(self, whole: tuple[Any, Path]) -> None:
        ours = load(whole[1])
        assert_same_embeddings(whole[0], ours)
        assert ours.origin.lm_head
        assert ours.notes == ()

    def test_a_class_that_the_weights_contradict(self, folder: Path) -> None:
        edit_state(folder, lambda s: {k: t for k, t in s.items() if not k.startswith("lm_head")})
        assert "says EsmForMaskedLM, the weights hold no LM head" in refused(folder)

    def test_half_of_an_lm_head_is_no_lm_head(self, folder: Path) -> None:
        edit_state(folder, lambda s: {k: t for k, t in s.items() if k != "lm_head.dense.bias"})
        assert "1 tensors missing (lm_head.dense.bias)" in refused(folder)


class TestFiles:
    def pickled(self, whole: tuple[Any, Path], folder: Path, shards: int = 0) -> Path:
        """As transformers 4 wrote it before safetensors."""
        (folder / "model.safetensors").unlink()
        state = whole[0].state_dict()
        if not shards:
            torch.save(state, folder / "pytorch_model.bin")
            return folder
        weight_map = {name: f"pytorch_model-{i % shards}.bin" for i, name in enumerate(state)}
        for shard in set(weight_map.values()):
            own = {name: t for name, t in state.items() if weight_map[name] == shard}
            torch.save(own, folder / shard)
        index = {"metadata": {}, "weight_map": weight_map}
        (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))
        return folder

    @pytest.mark.parametrize("shards", [0, 2])
    def test_pickled_weights(self, whole: tuple[Any, Path], folder: Path, shards: int) -> None:
        ours = load(self.pickled(whole, folder, shards))
        assert ours.origin.state_sha256 == load(whole[1]).origin.state_sha256

    def test_safetensors_win_and_that_is_said(self, folder: Path) -> None:
        torch.save({"x": torch.zeros(1)}, folder / "pytorch_model.bin")
        (note,) = load(folder).notes
        assert note.endswith("model.safetensors and pytorch_model.bin: model.safetensors is read")

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
    def test_other_floats(self, folder: Path, dtype: torch.dtype) -> None:
        edit_state(folder, lambda state: {name: t.to(dtype) for name, t in state.items()})
        assert load(folder).model.layers[0].fc1.weight.dtype == torch.float32

    @pytest.mark.parametrize("file", ["model.safetensors", "config.json"])
    def test_a_file_of_the_folder(self, whole: tuple[Any, Path], file: str) -> None:
        if file == "config.json":
            assert f"give its folder, {whole[1]}" in refused(whole[1] / file)
        else:
            assert load(whole[1] / file).origin == load(whole[1]).origin

    @pytest.mark.parametrize("name", ["../x.safetensors", "/etc/x.safetensors", "a\\x", 3, ""])
    def test_an_index_out_of_its_folder(self, folder: Path, name: object) -> None:
        (folder / "model.safetensors").unlink()
        index = {"weight_map": {"a": name}}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
        assert "expected files of its own folder" in refused(folder)

    @pytest.mark.parametrize("index", ["{}", '{"weight_map": {}}', "[]", '{"weight_map": 3}', "{"])
    def test_an_index_of_nothing(self, folder: Path, index: str) -> None:
        (folder / "model.safetensors").unlink()
        (folder / "model.safetensors.index.json").write_text(index)
        assert "index.json" in refused(folder)

    def test_no_weights(self, folder: Path) -> None:
        (folder / "model.safetensors").rename(folder / "tf_model.h5")
        assert "tf_model.h5 is not read" in refused(folder)

    def test_a_folder_of_checkpoints(self, folder: Path) -> None:
        folder.rename(folder.parent / "checkpoint-500")
        assert "one of the folders in it: checkpoint-500" in refused(folder.parent)

    def test_a_pointer_of_git_lfs(self, folder: Path) -> None:
        (folder / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\n")
        assert "'git lfs pull'" in refused(folder)

    @pytest.mark.parametrize("name", ["config.json", "model.safetensors", "vocab.txt"])
    def test_a_folder_in_the_place_of_a_file(self, folder: Path, name: str) -> None:
        (folder / name).unlink(missing_ok=True)
        (folder / name).mkdir()
        if name == "vocab.txt":
            load(folder)
        else:
            refused(folder)

    @pytest.mark.parametrize("cut", [0, 4, 8, 100, -1])
    def test_truncated(self, folder: Path, cut: int) -> None:
        path = folder / "model.safetensors"
        path.write_bytes(path.read_bytes()[:cut])
        assert "model.safetensors is" in refused(folder)

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (lambda t: t.int(), "more than float tensors: embed_tokens.weight"),
            (lambda t: t.to(torch.float8_e4m3fn), "more than float tensors: embed_tokens.weight"),
            (lambda t: t * torch.nan, "NaN or Inf: embed_tokens.weight"),
            (lambda t: t.double() * 1e200, "NaN or Inf: embed_tokens.weight"),
            (lambda t: t.sum(), "embed_tokens.weight"),
            (lambda t: t[:, :0], "embed dim"),
            (lambda t: t[:0], "vocab_size 33 in config.json, 0"),
        ],
    )
    def test_odd_tensors(
        self, folder: Path, change: Callable[[Tensor], Tensor], message: str
    ) -> None:
        name = "esm.embeddings.word_embeddings.weight"
        edit_state(folder, lambda state: {**state, name: change(state[name]).contiguous()})
        assert message in refused(folder)


class TestSettings:
    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"num_hidden_layers": 3}, "layers 3 in config.json, 2 in the weights"),
            ({"hidden_size": 96, "intermediate_size": 384}, "embed dim 96 in config.json, 48 in"),
            ({"num_attention_heads": 5}, "heads are (2, 48, 5)"),
            ({"num_attention_heads": 8}, "heads 8 in config.json, 4 in the weights"),
            ({"intermediate_size": 100}, "intermediate_size 100 instead of 192"),
            ({"hidden_act": "relu"}, "hidden_act 'relu' instead of 'gelu'"),
            ({"position_embedding_type": "absolute"}, "position_embedding_type 'absolute'"),
            ({"layer_norm_eps": 1e-12}, "layer_norm_eps 1e-12 instead of 1e-05"),
            ({"emb_layer_norm_before": True}, "emb_layer_norm_before True instead of False"),
            ({"is_folding_model": True}, "is_folding_model True"),
            ({"is_decoder": True}, "is_decoder True"),
            ({"add_cross_attention": True}, "add_cross_attention True"),
            ({"rope_theta": 5000.0}, "rope_theta 5000.0 instead of 10000.0"),
            ({"model_type": "esmc"}, "model_type 'esmc' instead of 'esm'"),
            ({"quantization_config": {"load_in_8bit": True}}, "quantization_config"),
            ({"token_dropout": None}, "token_dropout None instead of true"),
            ({"vocab_list": ["A"]}, "vocab_list ['A']"),
            ({"vocab_size": 40}, "vocab_size 40 in config.json, 33 in the weights"),
            ({"rope_parameters": {"rope_theta": 5e3}}, "rope_theta 5000.0"),
        ],
    )
    def test_that_contradict_esm2_or_the_weights(
        self, folder: Path, changes: dict[str, Any], message: str
    ) -> None:
        edit_config(folder, **changes)
        assert message in refused(folder)

    def test_token_dropout_off_is_what_transformers_computes(
        self, whole: tuple[Any, Path], folder: Path
    ) -> None:
        edit_config(folder, token_dropout=False)
        ours = load(folder)
        assert not ours.architecture.token_dropout
        assert "token_dropout false" in ours.notes[0]
        theirs = transformers.EsmForMaskedLM.from_pretrained(folder).eval()
        assert_same_embeddings(theirs, ours)

    def test_untied_embeddings(self, folder: Path) -> None:
        edit_state(folder, lambda s: {**s, "lm_head.decoder.weight": torch.ones(33, TINY[1])})
        assert "lm_head.weight differs from embed_tokens.weight" in refused(folder)

    def test_added_tokens(self, tmp_path: Path) -> None:
        model = transformers.EsmModel(config())
        model.resize_token_embeddings(35, mean_resizing=False)
        model.save_pretrained(tmp_path / "more")
        assert "35 rows, ESM-2 has 33 tokens: tokens were added" in refused(tmp_path / "more")

    def test_vocabulary(self, folder: Path) -> None:
        path = folder / "vocab.txt"
        path.write_text("\n".join(TOKENS) + "\n")
        load(folder)
        path.write_text("\n".join([*TOKENS[:4], "A", "L", *TOKENS[6:]]))
        assert "id 4 is 'A', ESM-2's is 'L'" in refused(folder)
        path.write_text("\n".join([*TOKENS, "J"]))
        assert "34 tokens" in refused(folder)


class TestAdapters:
    def adapter(self, folder: Path) -> Path:
        """The files that PEFT writes."""
        folder.mkdir(exist_ok=True)
        text = {"peft_type": "LORA", "base_model_name_or_path": "facebook/esm2_t6_8M_UR50D"}
        (folder / "adapter_config.json").write_text(json.dumps(text))
        prefix = "base_model.model.esm.encoder.layer.0.attention.self.query"
        tensors = {f"{prefix}.lora_{side}.weight": torch.ones(2, 2) for side in "AB"}
        save_file(tensors, folder / "adapter_model.safetensors")
        return folder

    def test_its_file(self, tmp_path: Path) -> None:
        message = refused(self.adapter(tmp_path / "lora") / "adapter_model.safetensors")
        assert "tensors of an adapter" in message

    def test_beside_a_model(self, folder: Path) -> None:
        message = refused(self.adapter(folder))
        assert "it is not certain which is meant" in message
        assert "move the adapter's files away" in message

    def test_not_merged(self, whole: tuple[Any, Path], folder: Path) -> None:
        def wrap(state: dict[str, Tensor]) -> dict[str, Tensor]:
            query = "esm.encoder.layer.0.attention.self.query."
            wrapped = {
                f"base_model.model.{name.replace(query, query + 'base_layer.')}": t
                for name, t in state.items()
            }
            return {**wrapped, f"base_model.model.{query}lora_A.default.weight": torch.ones(2, 48)}

        edit_state(folder, wrap)
        assert "tensors of an adapter (PEFT) that was not merged" in refused(folder)


class TestWrappers:
    @pytest.mark.parametrize(
        "prefix", ["module.", "_orig_mod.", "base_model.model.", "model.", "module._orig_mod.net."]
    )
    @pytest.mark.parametrize("kind", ["EsmForMaskedLM", "EsmModel"])
    def test_before_every_name(self, tmp_path: Path, prefix: str, kind: str) -> None:
        _, folder = saved(tmp_path / "model", kind)
        expected = load(folder).origin
        edit_state(folder, lambda state: {prefix + name: t for name, t in state.items()})
        assert load(folder).origin == expected

    def test_inside_names(self, folder: Path) -> None:
        expected = load(folder).origin
        edit_state(
            folder,
            lambda state: {
                name.replace("esm.encoder.", "esm._orig_mod.encoder."): t
                for name, t in state.items()
            },
        )
        assert load(folder).origin == expected

    def test_beside_other_modules(self, folder: Path) -> None:
        edit_state(
            folder,
            lambda state: {
                **{f"model.{name}": t for name, t in state.items()}, "loss.weight": torch.ones(3)
            },
        )  # fmt: skip
        message = refused(folder)
        assert "an ESM-2 under 'model.' and 1 tensors elsewhere (loss.weight)" in message

    def test_two_models(self, folder: Path) -> None:
        edit_state(
            folder,
            lambda state: {
                f"{prefix}.{name}": t.clone()
                for prefix in ("model", "ema")
                for name, t in state.items()
            },
        )
        assert "2 copies of ESM-2, under 'ema.', 'model.'" in refused(folder)

    def test_a_head_of_ones_own(self, folder: Path) -> None:
        edit_state(folder, lambda state: {**state, "my_head.weight": torch.ones(3)})
        assert "1 tensors unknown (my_head.weight)" in refused(folder)


class TestFilesWithoutSettings:
    """A state dict of PyTorch, Lightning's checkpoint, one safetensors file."""

    @pytest.mark.parametrize("container", [None, "state_dict", "model_state_dict", "model"])
    @pytest.mark.parametrize("prefix", ["", "model."])
    def test_of_fair_esm(
        self, fair_esm: Reference, tmp_path: Path, container: str | None, prefix: str
    ) -> None:
        state = {prefix + name: t for name, t in fair_esm.model.state_dict().items()}
        contents = {container: state, "epoch": 3} if container else state
        torch.save(contents, tmp_path / "mine.ckpt")
        ours = load(tmp_path / "mine.ckpt")
        assert ours.origin.state_sha256 == fair_esm.origin.state_sha256
        assert ours.origin.source == "mine"
        assert "4 heads and token dropout are taken" in ours.notes[0]

    def test_of_transformers_with_its_settings_beside_it(
        self, whole: tuple[Any, Path], tmp_path: Path
    ) -> None:
        state = {f"model.{name}": t for name, t in whole[0].state_dict().items()}
        torch.save({"state_dict": state}, tmp_path / "last.ckpt")
        assert "Put its config.json beside it" in refused(tmp_path / "last.ckpt")
        shutil.copy(whole[1] / "config.json", tmp_path)
        ours = load(tmp_path / "last.ckpt")
        assert ours.origin.state_sha256 == load(whole[1]).origin.state_sha256
        assert ours.origin.source == f"{tmp_path.name}-last"

    def test_one_safetensors_file(self, fair_esm: Reference, tmp_path: Path) -> None:
        state = {n: t.clone() for n, t in fair_esm.model.state_dict().items() if "lm_head" not in n}
        save_file(state, tmp_path / "body.safetensors")
        ours = load(tmp_path / "body.safetensors")
        assert not ours.origin.lm_head
        assert torch.equal(ours.model.layers[1].fc2.weight, state["layers.1.fc2.weight"])

    def test_heads_that_left_no_trace(self, fair_esm: Reference, tmp_path: Path) -> None:
        state = {n: t for n, t in fair_esm.model.state_dict().items() if "inv_freq" not in n}
        torch.save(state, tmp_path / "mine.pt")
        assert "does not say how many attention heads" in refused(tmp_path / "mine.pt")

    @pytest.mark.parametrize(
        "contents", [{}, {"state_dict": {}}, {"a": torch.ones(2)}, {"state_dict": {"a": 3}}, 7]
    )
    def test_of_something_else(self, tmp_path: Path, contents: object) -> None:
        torch.save(contents, tmp_path / "odd.pt")
        refused(tmp_path / "odd.pt")


class TestNames:
    @pytest.mark.parametrize(
        ("path", "name"),
        [
            ("runs/stability/checkpoint-500", "stability-checkpoint-500"),
            ("runs/stability/best", "stability-best"),
            ("runs/stability", "stability"),
            ("runs/my model (2)", "my_model_2_"),
            ("runs/.hidden", "hidden"),
        ],
    )
    def test_of_folders(self, tmp_path: Path, path: str, name: str) -> None:
        (tmp_path / path).mkdir(parents=True)
        assert origin_of(tmp_path / path) == (name, "")

    def test_of_the_folder_that_one_is_in(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / "mine").mkdir()
        monkeypatch.chdir(tmp_path / "mine")
        assert origin_of(Path())[0] == "mine"

    def test_are_safe(self) -> None:
        assert safe_name("../../x") == "x" or "/" not in safe_name("../../x")
        assert len(safe_name("x" * 300)) == 100
        assert safe_name("...") == "esm2"


class TestWhatPeopleType:
    def test_fair_esms_name_as_a_checkpoint(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(torch.hub, "get_dir", lambda: "/nonexistent/of/torch")
        message = refused("esm2_t6_8M_UR50D")
        assert "torch" in message

    def test_a_file_as_a_model(self, tmp_path: Path) -> None:
        path = save_checkpoint(tmp_path / "tiny.pt", TINY)
        loaded = load_reference(WeightsSource("model", str(path)))
        assert loaded.origin.kind == "checkpoint"

    @pytest.mark.parametrize(
        ("value", "message"),
        [
            ("runs/nothing.pt", "no such file"),
            ("esm2_t6_8M_UR50d", "Did you mean esm2_t6_8M_UR50D?"),
            ("", "no such file"),
            ("a/b/c/d", "no such file"),
        ],
    )
    def test_what_is_nowhere(self, value: str, message: str) -> None:
        assert message in refused(value)

    def test_an_artifact(self, tmp_path: Path) -> None:
        (tmp_path / "manifest.json").write_text("{}")
        assert "is an artifact: give the checkpoint" in refused(tmp_path)


class TestHub:
    """A cache as huggingface_hub lays it out, offline: there is no network in tests."""

    NAME = "facebook/esm2_t6_8M_UR50D"

    @pytest.fixture
    def home(self, folder: Path, tmp_path: Path) -> Path:
        home = tmp_path / "home"
        root = home / "hub" / "models--facebook--esm2_t6_8M_UR50D"
        snapshot = root / "snapshots" / COMMIT
        snapshot.mkdir(parents=True)
        (root / "blobs").mkdir()
        for i, path in enumerate(sorted(folder.iterdir())):
            shutil.copy(path, root / "blobs" / f"{i:040x}")
            (snapshot / path.name).symlink_to(Path("../../blobs") / f"{i:040x}")
        (root / "refs").mkdir()
        (root / "refs" / "main").write_text(COMMIT)
        return home

    def run(self, home: Path, value: str, kind: str = "checkpoint", **more: str) -> str:
        """Of a new process: huggingface_hub reads its variables when it is imported."""
        code = (
            "import sys; from exporter.errors import ExportError\n"
            "from exporter.model.reference import WeightsSource, load_reference\n"
            "try:\n    print(load_reference(WeightsSource(sys.argv[1], sys.argv[2])).origin)\n"
            "except ExportError as error:\n    print('refused:', error)\n"
        )
        environment = {**os.environ, "HF_HOME": str(home), "HF_HUB_OFFLINE": "1", **more}
        done = subprocess.run(
            [sys.executable, "-c", code, kind, value],
            env=environment, capture_output=True, text=True, timeout=120,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert "Traceback" not in done.stderr
        assert len(done.stdout.splitlines()) == 1
        return done.stdout

    @pytest.mark.parametrize("suffix", ["", "@main", f"@{COMMIT}"])
    def test_from_the_cache(self, home: Path, folder: Path, suffix: str) -> None:
        said = self.run(home, self.NAME + suffix)
        assert f"source='{self.NAME}'" in said
        assert f"revision='{COMMIT}'" in said
        assert load(folder).origin.state_sha256 in said

    def test_the_page_of_a_model_under_the_other_option(self, home: Path) -> None:
        said = self.run(home, f"https://huggingface.co/{self.NAME}", "model")
        assert f"source='{self.NAME}'" in said

    def test_folders_of_the_cache(self, home: Path) -> None:
        root = home / "hub" / "models--facebook--esm2_t6_8M_UR50D"
        for path in (root, root / "snapshots" / COMMIT):
            origin = load(path).origin
            assert (origin.source, origin.revision) == (self.NAME, COMMIT)

    @pytest.mark.parametrize("value", ["facebook/esm2_t33_650M_UR50D", f"{NAME}@other"])
    def test_not_in_the_cache(self, home: Path, value: str) -> None:
        said = self.run(home, value)
        assert said.startswith(f"refused: {value} is no file or folder here, not in Hugging Face's")
        assert "hf download" in said

    def test_a_cache_without_weights(self, home: Path) -> None:
        next(home.glob("hub/*/snapshots/*/model.safetensors")).unlink()
        assert "holds no model.safetensors" in self.run(home, self.NAME)
