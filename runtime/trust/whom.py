"""Whom a user trusts to have signed artifacts. Importing it needs nothing but Python."""

import os
from dataclasses import dataclass
from pathlib import Path

from runtime.errors import InputError

VARIABLE = "ESM2_TRUSTED_KEY"
# A file, or what is in one.
Trust = str | os.PathLike[str]

_PEM = "-----BEGIN "


@dataclass(frozen=True)
class Trusted:
    """A public key, or certificates of who issues keys; in PEM.

    Attributes:
        pem: its text.
        source: where it came from, for messages.
    """

    pem: bytes
    source: str

    @property
    def are_certificates(self) -> bool:
        """Whether it is certificates."""
        return b"BEGIN CERTIFICATE-----" in self.pem


def trusted(trust: Trust | None) -> Trusted | None:
    """What is trusted: ``trust``, else what ``ESM2_TRUSTED_KEY`` names, else None: anybody.

    Raises:
        InputError: the file cannot be read, or the variable is empty.
    """
    if trust is None and VARIABLE not in os.environ:
        return None
    where = VARIABLE if trust is None else "trust"
    given = os.fspath(os.environ[VARIABLE] if trust is None else trust)
    if not given:
        raise InputError(f"{where} is empty. Name a file with a public key in PEM, or unset it")
    if given.lstrip().startswith(_PEM):
        return Trusted(given.encode(), where)
    try:
        return Trusted(Path(given).read_bytes(), given)
    except OSError as error:
        raise InputError(f"cannot read the trusted key {given}: {error.strerror}") from None
