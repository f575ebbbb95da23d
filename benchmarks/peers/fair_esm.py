"""Eager fair-esm: what ESM-2 was published with."""

import argparse
from pathlib import Path

import esm
import numpy as np
import torch

PACKAGES = ("fair-esm", "torch")


def load(folder: Path, threads: int):
    """``esm.pretrained.load_model_and_alphabet_local``, which torch 2.6 and later refuses as is."""
    torch.set_num_threads(threads)
    with torch.serialization.safe_globals([argparse.Namespace]):
        contents = torch.load(folder / "esm2.pt", map_location="cpu", weights_only=True)
    model, _ = esm.pretrained.load_model_and_alphabet_core("esm2", contents)
    model.eval()
    last = model.num_layers

    def run(input_ids: np.ndarray, attention_mask: np.ndarray) -> np.ndarray:
        # fair-esm finds the padding by itself.
        with torch.inference_mode():
            outputs = model(torch.from_numpy(input_ids), repr_layers=[last])
        return outputs["representations"][last].numpy()

    return run
