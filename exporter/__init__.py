"""Builds frozen, packed ESM-2 engines and proves each against eager fair-esm.

Start reading in ``exporter.build``; the model that is traced is in
``exporter.model.packed_forward``.
"""

import os

# As runtime.engines.onnx.cpu does: from 1.29 on onnxruntime tells Microsoft what it loads.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
# huggingface_hub adds to its requests what is installed here.
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
