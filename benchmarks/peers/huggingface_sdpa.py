"""Hugging Face's ``EsmModel`` with PyTorch's scaled dot product attention."""

from pathlib import Path

import numpy as np
import torch
from transformers import EsmModel

PACKAGES = ("transformers", "torch")


def load(folder: Path, threads: int):
    """``from_pretrained`` without the pooling layer, which ESM-2's weights do not have."""
    torch.set_num_threads(threads)
    model = EsmModel.from_pretrained(folder, attn_implementation="sdpa", add_pooling_layer=False)
    model.eval()

    def run(input_ids: np.ndarray, attention_mask: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            outputs = model(torch.from_numpy(input_ids), torch.from_numpy(attention_mask))
        return outputs.last_hidden_state.numpy()

    return run
