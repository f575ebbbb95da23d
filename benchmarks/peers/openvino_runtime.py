"""OpenVINO: Hugging Face's model by ``openvino.convert_model``, dynamic shapes, float32."""

import os
from pathlib import Path

import numpy as np
import openvino

PACKAGES = ("openvino", "transformers", "torch")


def load(folder: Path, threads: int):
    """Converts the first time; users keep the converted file too."""
    converted = folder / "converted" / "openvino_runtime.xml"
    if not converted.is_file():
        _convert(folder, converted)
    settings = {
        # Not bfloat16 where the CPU has it: the same arithmetic as everybody's.
        "INFERENCE_PRECISION_HINT": "f32",
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": threads,
        # Copies that share the cores would be pinned to the same ones.
        "ENABLE_CPU_PINNING": threads == os.cpu_count(),
    }
    compiled = openvino.Core().compile_model(converted, "CPU", settings)
    request = compiled.create_infer_request()

    def run(input_ids: np.ndarray, attention_mask: np.ndarray) -> np.ndarray:
        feeds = {"input_ids": input_ids, "attention_mask": attention_mask}
        return request.infer(feeds, share_inputs=True)[0]

    return run


def _convert(folder: Path, target: Path) -> None:
    import torch
    from transformers import EsmModel

    class Embedder(torch.nn.Module):
        """The model with a tensor for its answer."""

        def __init__(self):
            super().__init__()
            self.model = EsmModel.from_pretrained(
                folder, attn_implementation="sdpa", add_pooling_layer=False
            ).eval()

        def forward(self, input_ids, attention_mask):
            # The rotary tables of an earlier run would become constants of one length.
            for layer in self.model.encoder.layer:
                layer.attention.self.rotary_embeddings._seq_len_cached = None
            return self.model(input_ids, attention_mask).last_hidden_state

    # Two proteins, one padded: what the trace sees of a mask.
    input_ids = torch.full((2, 12), 5)
    input_ids[1, 8:] = 1
    example = {"input_ids": input_ids, "attention_mask": (input_ids != 1).long()}
    shapes = [openvino.PartialShape([-1, -1])] * 2
    model = openvino.convert_model(Embedder(), example_input=example, input=shapes)
    openvino.save_model(model, target, compress_to_fp16=False)
