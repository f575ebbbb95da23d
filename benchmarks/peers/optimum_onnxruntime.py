"""Optimum's export to ONNX, run by its own ONNX Runtime class."""

from pathlib import Path

import numpy as np
import onnxruntime
from optimum.onnxruntime import ORTModelForFeatureExtraction

PACKAGES = ("optimum-onnx", "optimum", "onnxruntime", "transformers", "torch")


def load(folder: Path, threads: int):
    """Exports the first time; users keep the exported folder too."""
    exported = folder / "converted" / "optimum_onnxruntime"
    if not (exported / "model.onnx").is_file():
        ORTModelForFeatureExtraction.from_pretrained(folder, export=True).save_pretrained(exported)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    model = ORTModelForFeatureExtraction.from_pretrained(exported, session_options=options)

    def run(input_ids: np.ndarray, attention_mask: np.ndarray) -> np.ndarray:
        return model(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state

    return run
