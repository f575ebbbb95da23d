"""An artifact's own weights."""

from pathlib import Path

from safetensors.torch import load_file

from exporter.model.sources.loaded import Weights
from runtime import manifest as manifests


def read_artifact(folder: Path) -> Weights:
    """Parameters of ``weights.safetensors``."""
    manifest = manifests.read(folder, check_files=False)
    architecture = manifest.architecture
    state = load_file(folder / "weights.safetensors")
    frequencies = state.pop("inv_freq")
    for layer in range(architecture.num_layers):
        state[f"layers.{layer}.self_attn.rot_emb.inv_freq"] = frequencies
    shape = (architecture.num_layers, architecture.embed_dim, architecture.num_heads)
    return Weights(shape, architecture.token_dropout, state, "artifact", folder.resolve().name)
