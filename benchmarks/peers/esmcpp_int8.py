"""esm.cpp in int8 (W8A8): its own calibration, SmoothQuant at 0.5, its own file of weights."""

from pathlib import Path

import esm_cpp
import numpy as np
from esmcpp_float32 import PACKAGES, Packed, model_of
from serve import random_tokens

__all__ = ["PACKAGES", "load_packed"]

CALIBRATION_LENGTHS = (64, 128, 256, 512)


def load_packed(folder: Path, threads: int) -> Packed:
    """Quantises the first time; users keep the file too."""
    converted = folder / "converted" / "esmcpp_int8.gguf"
    if not converted.is_file():
        _convert(model_of(folder / "model.safetensors", threads), converted)
    # One scale for what a linear reads of a whole pack: a row depends on the rows beside it.
    return Packed(model_of(converted, threads), agreement=0.06)


def _convert(model: esm_cpp.Model, target: Path) -> None:
    """As ``esm-cpp-quantize``, which knows only models in Hugging Face's cache."""
    observer = esm_cpp.ActivationObserver()
    random = np.random.default_rng(0)
    for length in CALIBRATION_LENGTHS:
        tokens = random_tokens(length, random).astype(np.int32)
        model.forward_with_observer(tokens, np.ones_like(tokens), observer)
    model.apply_smoothquant(observer.percentile(99.9), 0.5)
    model.quantize_weights()
    model.save_to_gguf(str(target))
