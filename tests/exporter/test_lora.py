"""LoRA adapters as PEFT writes them: merged exactly, or refused by what is in the way."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from exporter.errors import CheckpointError
from exporter.model.reference import WeightsSource, load_reference
from exporter.model.sources import lora
from exporter.model.sources.names import rename_to_fair_esm
from tests.exporter.fine_tuned import drawn

pytestmark = pytest.mark.slow
peft = pytest.importorskip("peft", reason="writes the real format")
transformers = pytest.importorskip("transformers", reason="writes the real format")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder: Path = tmp_path_factory.mktemp("base") / "esm2"
    drawn("EsmForMaskedLM").save_pretrained(folder)
    return folder


def adapted(base: Path, folder: Path, kind: str = "EsmModel", **settings: Any) -> Any:
    """An adapter with weights, saved into ``folder``."""
    options = {"add_pooling_layer": False} if kind == "EsmModel" else {}
    model = getattr(transformers, kind).from_pretrained(base, **options)
    wanted = {"r": 4, "lora_alpha": 8, "target_modules": ["query", "key", "dense"], **settings}
    model = peft.get_peft_model(model, peft.LoraConfig(**wanted))
    torch.manual_seed(3)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.normal_(std=0.1)
    model.save_pretrained(folder)
    return model


def refused(folder: Path) -> str:
    with pytest.raises(CheckpointError) as error:
        load_reference(WeightsSource("checkpoint", str(folder)))
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"use_rslora": True},
        {"alpha_pattern": {"key": 5}, "rank_pattern": {"encoder.layer.0.attention.self.query": 3}},
        {"layers_to_transform": [1]},
        {"target_modules": "all-linear"},
    ],
)
def test_it_is_what_peft_merges(base: Path, tmp_path: Path, settings: dict[str, Any]) -> None:
    theirs = adapted(base, tmp_path, task_type="FEATURE_EXTRACTION", **settings)
    reference = load_reference(WeightsSource("checkpoint", str(tmp_path)))
    merged = {f"esm.{name}": x for name, x in theirs.merge_and_unload().state_dict().items()}
    expected = rename_to_fair_esm(merged)
    ours = reference.model.state_dict()
    names = [name for name in ours if name in expected and "contact_head" not in name]
    assert len(names) > 30
    for name in names:
        # PEFT's product is float32's.
        torch.testing.assert_close(ours[name], expected[name], atol=2e-6, rtol=0)
    assert not reference.origin.lm_head
    assert reference.origin.left_out == ["lm_head"]
    assert not [note for note in reference.notes if "not compared" in note]  # PEFT was asked


def test_the_product_is_rounded_once() -> None:
    config = {"r": 2, "lora_alpha": 3, "base_model_name_or_path": "base"}
    sides = {"A": torch.randn(2, 8), "B": torch.randn(6, 2)}
    tensors = {f"encoder.a.lora_{side}.weight": tensor for side, tensor in sides.items()}
    adapter = lora.Adapter(Path(), config, tensors)
    weight = torch.randn(6, 8)
    merged, entry = lora.merge(adapter, {"esm.encoder.a.weight": weight}, "base")
    exact = weight.double() + sides["B"].double() @ sides["A"].double() * 1.5
    assert torch.equal(merged["esm.encoder.a.weight"], exact.float())
    assert entry.targets == ["esm.encoder.a"]


@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`:UserWarning")
def test_of_a_masked_language_model_the_head_stays(base: Path, tmp_path: Path) -> None:
    adapted(base, tmp_path, "EsmForMaskedLM", modules_to_save=["lm_head"])
    reference = load_reference(WeightsSource("checkpoint", str(tmp_path)))
    assert reference.origin.lm_head
    assert reference.origin.adapter is not None
    assert reference.origin.adapter.replaced == ["lm_head"]


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"use_dora": True}, "use_dora True"),
        ({"bias": "all"}, "bias 'all'"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights 'pissa', which changes the base"),
        ({"trainable_token_indices": [3]}, "trainable_token_indices [3]"),
    ],
)
def test_what_cannot_be_merged_is_named(
    base: Path, tmp_path: Path, settings: dict[str, Any], said: str
) -> None:
    adapted(base, tmp_path, task_type="FEATURE_EXTRACTION", **settings)
    message = refused(tmp_path)
    assert "cannot be merged here" in message
    assert said in message
    assert "merge_and_unload()" in message


@pytest.fixture
def plain(base: Path, tmp_path: Path) -> Path:
    adapted(base, tmp_path / "adapter", task_type="FEATURE_EXTRACTION")
    return tmp_path / "adapter"


def edit(folder: Path, **changes: Any) -> None:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_another_kind(plain: Path) -> None:
    edit(plain, peft_type="IA3")
    assert "peft_type 'IA3' instead of 'LORA'" in refused(plain)


def test_a_setting_of_a_later_version(plain: Path) -> None:
    edit(plain, use_something_new=True, lora_bias=True)
    assert "use_something_new True" in refused(plain)
    assert "lora_bias True" in refused(plain)


def test_a_base_that_is_not_there(plain: Path) -> None:
    edit(plain, base_model_name_or_path="/nowhere")
    message = refused(plain)
    assert "the base /nowhere of the adapter" in message
    assert "base_model_name_or_path" in message


def test_a_base_of_another_width(plain: Path) -> None:
    path = plain / "adapter_model.safetensors"
    state = load_file(path)
    name = next(name for name in state if name.endswith("lora_A.weight"))
    save_file({**state, name: torch.ones(4, 48)}, path)
    message = refused(plain)
    assert "does not fit its base" in message
    assert "layer.0" in message


def test_a_tensor_that_is_no_lora(plain: Path) -> None:
    path = plain / "adapter_model.safetensors"
    save_file({**load_file(path), "base_model.model.encoder.new.weight": torch.ones(2)}, path)
    assert "encoder.new.weight has no place" in refused(plain)


def test_a_classifier_that_is_nowhere(base: Path, tmp_path: Path) -> None:
    adapted(base, tmp_path, task_type="FEATURE_EXTRACTION")
    edit(tmp_path, task_type="SEQ_CLS")
    assert "the weights hold no classifier" in refused(tmp_path)


def test_without_its_settings(plain: Path, tmp_path: Path) -> None:
    alone = tmp_path / "alone"
    alone.mkdir()
    shutil.copy(plain / "adapter_model.safetensors", alone)
    assert "no adapter_config.json, which says its scale" in refused(alone)
