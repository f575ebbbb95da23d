"""An artifact's own weights."""

from pathlib import Path

from safetensors.torch import load_file

from exporter.model.heads.table import head_of, take_head
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
    head = take_head(state)
    shape = (architecture.num_layers, architecture.embed_dim, architecture.num_heads)
    name = folder.resolve().name
    return Weights(
        shape,
        architecture.token_dropout,
        state,
        "artifact",
        name,
        head=head_of(manifest.head, head, name, shape[1]) if manifest.head else None,
        adapter=manifest.weights.adapter,
    )
