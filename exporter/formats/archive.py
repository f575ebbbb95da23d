"""What PyTorch packs into a zip file and an artifact does not need."""

import zipfile
from collections.abc import Callable
from pathlib import Path

# A digest of what PyTorch wrote, with the paths and stack traces that are taken out here.
_ID_RECORD = "/.data/serialization_id"
_ID = b"0" * 40


def rewrite(path: Path, change: Callable[[str, bytes], bytes | None]) -> None:
    """Writes the archive again, each record as ``change(name, data)`` gives it, or without it."""
    with zipfile.ZipFile(path) as archive:
        records = [(name, change(name, archive.read(name))) for name in archive.namelist()]
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in records:
            if data is not None:
                # A bare ZipInfo carries the same date everywhere.
                archive.writestr(zipfile.ZipInfo(name), _ID if name.endswith(_ID_RECORD) else data)
