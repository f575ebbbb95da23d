"""What a checkpoint is called: the model's name, not a commit's, nor a step's."""

import re
from pathlib import Path

from exporter.errors import CheckpointError

# Hugging Face's cache: models--ORG--NAME/snapshots/COMMIT.
_CACHED = re.compile(r"models--(?P<repository>.+)")
# Names that trainers give to every model alike.
_OF_TRAINERS = re.compile(r"(checkpoint([-_]?\w+)?|best|last|final|model|best_model|final_model)")
_MAX_LENGTH = 100


def origin_of(path: Path) -> tuple[str, str]:
    """The name of a checkpoint, and its commit where it lies in Hugging Face's cache.

    >>> origin_of(Path("/cache/models--facebook--esm2_t6_8M_UR50D/snapshots/0a1b"))
    ('facebook/esm2_t6_8M_UR50D', '0a1b')
    >>> origin_of(Path("/runs/stability/checkpoint-500"))
    ('stability-checkpoint-500', '')
    """
    path = path.absolute() if _is_cached(path.absolute()) else path.resolve()
    if _is_cached(path):
        return _CACHED.fullmatch(path.parts[-3])["repository"].replace("--", "/", 1), path.name  # type: ignore[index]
    name = path.name if path.is_dir() else path.stem
    if _OF_TRAINERS.fullmatch(name) and path.parent.name:
        name = f"{path.parent.name}-{name}"
    return safe_name(name), ""


def cached_snapshot(folder: Path) -> Path:
    """``models--ORG--NAME`` of Hugging Face's cache as the snapshot of its main branch.

    Raises:
        CheckpointError: it has none, or several without a main branch.
    """
    if not (_CACHED.fullmatch(folder.name) and (folder / "snapshots").is_dir()):
        return folder
    snapshots = sorted((folder / "snapshots").iterdir())
    main = folder / "refs" / "main"
    if main.is_file():
        return folder / "snapshots" / main.read_text(encoding="utf-8").strip()
    if len(snapshots) != 1:
        raise CheckpointError(
            f"{folder} holds {len(snapshots)} snapshots and no main branch: give one of the "
            "folders under snapshots/"
        )
    return snapshots[0]


def safe_name(name: str) -> str:
    """As the name of a folder: letters, digits, ``.``, ``_`` and ``-``, not hidden, not endless."""
    return re.sub(r"[^\w.-]+", "_", name, flags=re.ASCII).lstrip(".-")[:_MAX_LENGTH] or "esm2"


def _is_cached(path: Path) -> bool:
    return (
        len(path.parts) >= 3
        and path.parts[-2] == "snapshots"
        and _CACHED.fullmatch(path.parts[-3]) is not None
    )
