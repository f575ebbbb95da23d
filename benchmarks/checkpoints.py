"""An artifact's weights as the peers load them: a Hugging Face folder, and fair-esm's file."""

from pathlib import Path

from exporter.model.checkpoint_files import write_fair_esm, write_hugging_face
from exporter.model.reference import Reference
from runtime.staging import staging

FOLDER = Path(__file__).parent / ".checkpoints"


def checkpoints_of(reference: Reference, folder: Path = FOLDER) -> Path:
    """The folder with both, written when it is not there; named by the digest of the weights.

    It holds ``config.json``, ``model.safetensors`` and a vocabulary for ``transformers``, and
    ``esm2.pt`` for fair-esm. Peers may keep what they convert from them in ``converted/``.
    """
    target = folder / f"{reference.architecture.name}-{reference.origin.state_sha256[:12]}"
    if not target.is_dir():
        folder.mkdir(parents=True, exist_ok=True)
        state = {
            name: tensor.detach().clone() for name, tensor in reference.model.state_dict().items()
        }
        with staging(target) as part:
            part.mkdir()
            write_hugging_face(part, reference.architecture, state)
            write_fair_esm(part / "esm2.pt", reference.architecture, state)
            (part / "converted").mkdir()
            part.rename(target)
    return target
