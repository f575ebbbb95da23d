"""Models that were fine-tuned for a few steps on made data, saved as their libraries save them."""

from pathlib import Path
from typing import Any

import numpy as np
import torch

from exporter.model.sources.names import rename_to_fair_esm
from exporter.model.synthetic import synthetic_state
from runtime.tokenizer import tokenize
from tests.conftest import random_sequence

# 8M but for its layers: of 48 columns a single token's rounding is a matter of luck.
SHAPE = (2, 320, 20)
LABELS = ("cytosol", "membrane", "nucleus")
# Of a protein of each label, half of the residues is this one.
OF_LABEL = "KLD"
PROTEINS_A_STEP = 6


def tiny_config(shape: tuple[int, int, int] = SHAPE, **changes: Any) -> Any:
    """Of a small ESM-2 of transformers, with the labels' names."""
    import transformers

    layers, width, heads = shape
    settings = {
        "vocab_size": 33, "mask_token_id": 32, "pad_token_id": 1, "hidden_size": width,
        "num_hidden_layers": layers, "num_attention_heads": heads, "intermediate_size": 4 * width,
        "position_embedding_type": "rotary", "emb_layer_norm_before": False, "token_dropout": True,
        "layer_norm_eps": 1e-5, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0,
    }  # fmt: skip
    return transformers.EsmConfig(**{**settings, **changes})


def named_labels() -> dict[str, Any]:
    return {
        "id2label": dict(enumerate(LABELS)),
        "label2id": {name: number for number, name in enumerate(LABELS)},
    }


def drawn(kind: str, **changes: Any) -> Any:
    """A model of a class of transformers in which every parameter matters."""
    import transformers

    torch.manual_seed(0)
    model = getattr(transformers, kind)(tiny_config(**changes))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            (ours,) = rename_to_fair_esm({name: None})
            if name.startswith("classifier."):
                parameter.normal_(std=0.2)
            else:
                parameter.copy_(synthetic_state({ours: parameter.shape}, seed=0)[ours])
    return model


def proteins(count: int, seed: int) -> list[str]:
    """Of the labels in turn."""
    random = np.random.default_rng(seed)
    drawn = [random_sequence(random, int(n)) for n in random.integers(4, 80, count)]
    return [
        "".join(OF_LABEL[i % 3] if random.random() < 0.5 else residue for residue in sequence)
        for i, sequence in enumerate(drawn)
    ]


def train(model: Any, steps: int = 20) -> Any:
    """A few steps of a classifier of proteins towards made labels."""
    torch.manual_seed(1)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=3e-3)
    model.train()
    for step in range(steps):
        optimizer.zero_grad()
        for number, sequence in enumerate(proteins(PROTEINS_A_STEP, seed=step)):
            tokens = torch.from_numpy(tokenize(sequence))[None]
            model(tokens, labels=torch.tensor([number % 3])).loss.backward()
        optimizer.step()
    return model.eval()


def fine_tuned(folder: Path) -> Any:
    """Trains a classifier, saves it into ``folder``, and returns it."""
    model = train(drawn("EsmForSequenceClassification", **named_labels()))
    model.save_pretrained(folder)
    return model


def with_lora(folder: Path, **changes: Any) -> Any:
    """Trains a LoRA adapter on a masked language model; ``folder`` gets both, apart."""
    import peft
    import transformers

    base = folder / "base"
    drawn("EsmForMaskedLM").save_pretrained(base)
    model = transformers.EsmForSequenceClassification.from_pretrained(base, **named_labels())
    settings = {"r": 4, "lora_alpha": 16, "target_modules": ["query", "value", "dense"], **changes}
    adapted = peft.get_peft_model(model, peft.LoraConfig(task_type="SEQ_CLS", **settings))
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:  # zeros, by which a few steps would hardly come
                parameter.normal_(std=0.05)
    train(adapted).save_pretrained(folder / "adapter")
    # PEFT keeps no names of labels: who wants them saves the model's settings too.
    model.config.save_pretrained(folder / "adapter")
    return adapted


@torch.no_grad()
def asked(model: Any, sequences: list[str]) -> list[np.ndarray[Any, Any]]:
    """What transformers' model says of each protein alone, in float32."""
    tokens = (torch.from_numpy(tokenize(sequence))[None] for sequence in sequences)
    return [model(each).logits[0].numpy() for each in tokens]
