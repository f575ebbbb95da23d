"""faESM without flash-attn: its SDPA path, which is the one for CPUs."""

from pathlib import Path

import numpy as np
import torch
from faesm.esm import FAEsmForMaskedLM

PACKAGES = ("faesm", "transformers", "torch")


def load(folder: Path, threads: int):
    """``from_pretrained``; embeddings come from the encoder inside."""
    torch.set_num_threads(threads)
    encoder = FAEsmForMaskedLM.from_pretrained(str(folder), use_fa=False).eval().esm

    def run(input_ids: np.ndarray, attention_mask: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            outputs = encoder(torch.from_numpy(input_ids), torch.from_numpy(attention_mask))
        return outputs.last_hidden_state.numpy()

    return run
