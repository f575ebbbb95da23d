"""What must be importable before anything runs; the standard library alone is imported here."""

import importlib.util

# Import name -> distribution. What only one engine or one contender needs is not here: that engine
# or contender is listed as not run.
NEEDED = {
    "click": "click",
    "cyclonedx": "cyclonedx-python-lib",
    "esm": "fair-esm",
    "jinja2": "jinja2",
    "matplotlib": "matplotlib",
    "msgspec": "msgspec",
    "numpy": "numpy",
    "onnx": "onnx",
    "onnx_ir": "onnx-ir",
    "onnxruntime": "onnxruntime-gpu (or onnxruntime)",
    "packaging": "packaging",
    "safetensors": "safetensors",
    "torch": "torch",
    "tqdm": "tqdm",
}


def missing() -> list[str]:
    """Distributions that are not installed."""
    return [name for module, name in NEEDED.items() if not is_installed(module)]


def is_installed(module: str) -> bool:
    """Whether ``module`` could be imported; it is not."""
    return importlib.util.find_spec(module) is not None
