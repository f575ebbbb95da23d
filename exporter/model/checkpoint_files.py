"""Checkpoints as their formats have them: fair-esm's file, and a folder of ``transformers``."""

import argparse
import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from exporter.model.sources.names import rename_to_hugging_face
from exporter.model.sources.settings import CONFIG
from runtime.manifest_schema import Architecture
from runtime.tokenizer import TOKENS


def write_hugging_face(folder: Path, architecture: Architecture, state: dict[str, Tensor]) -> None:
    """As ``EsmForMaskedLM.save_pretrained`` would; ``state`` under fair-esm's names."""
    config = {
        **CONFIG,
        "architectures": ["EsmForMaskedLM" if "lm_head.bias" in state else "EsmModel"],
        "attention_probs_dropout_prob": 0.0,
        "classifier_dropout": None,
        "hidden_act": "gelu",
        "hidden_dropout_prob": 0.0,
        "hidden_size": architecture.embed_dim,
        "initializer_range": 0.02,
        "intermediate_size": 4 * architecture.embed_dim,
        "is_folding_model": False,
        "mask_token_id": TOKENS.index("<mask>"),
        "max_position_embeddings": 1026,
        "num_attention_heads": architecture.num_heads,
        "num_hidden_layers": architecture.num_layers,
        "pad_token_id": TOKENS.index("<pad>"),
        "token_dropout": architecture.token_dropout,
        "vocab_size": architecture.vocab_size,
    }
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    save_file(rename_to_hugging_face(state), folder / "model.safetensors", {"format": "pt"})
    (folder / "vocab.txt").write_text("\n".join(TOKENS))
    tokenizer = {"tokenizer_class": "EsmTokenizer", "model_max_length": 100_000}
    (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer) + "\n")


def write_fair_esm(path: Path, architecture: Architecture, state: dict[str, Tensor]) -> None:
    """As fair-esm's own files; the contact head goes with the rest."""
    settings = argparse.Namespace(
        encoder_layers=architecture.num_layers,
        encoder_embed_dim=architecture.embed_dim,
        encoder_attention_heads=architecture.num_heads,
        token_dropout=architecture.token_dropout,
    )
    named = {f"encoder.sentence_encoder.{name}": tensor for name, tensor in state.items()}
    torch.save({"cfg": {"model": settings}, "model": named}, path)
