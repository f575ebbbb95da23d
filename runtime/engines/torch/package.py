"""Archives that hold an engine: ``model.ts`` and ``model.pt2``, whose members are not deflated."""

import zipfile
from pathlib import Path

from runtime.errors import EngineError

# What members may become, unpacked, in terms of the file; PyTorch stores them as they are.
MOST_TIMES = 16


def check_package(path: Path) -> None:
    """Looks at an archive's directory, before a library unpacks it.

    Raises:
        EngineError: it is no archive, or declares more than there can be in it.
    """
    try:
        size = path.stat().st_size
        with zipfile.ZipFile(path) as archive:
            declared = sum(member.file_size for member in archive.infolist())
    except (OSError, ValueError, NotImplementedError, zipfile.BadZipFile) as error:
        raise EngineError(
            f"cannot load {path}: it is no archive ({error}). Export again or copy it anew"
        ) from None
    if declared > MOST_TIMES * size:
        raise EngineError(
            f"cannot load {path}: its members have {declared:,} bytes, of a file of {size:,}"
        )
