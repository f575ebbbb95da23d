"""ESM-2's tokenizer in NumPy; equal to fair-esm's ``Alphabet.encode`` on all that it accepts."""

import re
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from runtime.errors import InputError

# esm/data.py:163 with esm/constants.py:9, the order that the embedding table was trained with.
TOKENS = (
    "<cls>", "<pad>", "<eos>", "<unk>",
    *"LAGVSERTIDPKQNFYMHWCXBUZO.-",
    "<null_1>", "<mask>",
)  # fmt: skip
ID_OF_TOKEN = {token: i for i, token in enumerate(TOKENS)}
CLS_ID, PAD_ID, EOS_ID, UNK_ID = 0, 1, 2, 3
X_ID, MASK_ID = ID_OF_TOKEN["X"], ID_OF_TOKEN["<mask>"]

Unknown = Literal["error", "x", "unk"]
UNKNOWN_CHOICES: tuple[str, ...] = get_args(Unknown)

_NOT_A_RESIDUE = -1
_ID_OF_CHARACTER = np.full(256, _NOT_A_RESIDUE, dtype=np.int64)
for _token, _id in ID_OF_TOKEN.items():
    if len(_token) == 1:
        _ID_OF_CHARACTER[ord(_token)] = _id

_PIECE = re.compile("|".join(re.escape(t) for t in TOKENS if len(t) > 1) + r"|\s+|.", re.DOTALL)


def encode(sequence: str, record: str = "", unknown: Unknown = "error") -> NDArray[np.int64]:
    """Token ids of a protein, without BOS and EOS.

    Accepts inline tokens such as ``<mask>`` and skips blanks, as fair-esm does (esm/data.py:252).

    Args:
        sequence: residues in upper case.
        record: the protein's id, for error messages.
        unknown: for characters outside the alphabet (``J``, ``*``, lower case): ``"error"``,
            ``"x"`` takes them as the residue X, ``"unk"`` as the token ``<unk>``.

    Returns:
        ``[L]`` int64.

    Raises:
        InputError: an unknown character under ``"error"``; names record, character and position.
    """
    raw = np.frombuffer(sequence.encode("latin-1", errors="replace"), dtype=np.uint8)
    ids = _ID_OF_CHARACTER[raw]
    # "?" stands for what Latin-1 lacks; it is no residue either, so the slow path sees it.
    if (ids != _NOT_A_RESIDUE).all():
        return ids
    return _encode_piecewise(sequence, record, unknown)


def tokenize(sequence: str, record: str = "", unknown: Unknown = "error") -> NDArray[np.int64]:
    """``encode`` between BOS (``<cls>``) and EOS (``<eos>``): ``[L + 2]`` int64.

    Raises:
        InputError: as ``encode``, and for ``<pad>``: a pack holds no padding.
    """
    ids = encode(sequence, record, unknown)
    if (ids == PAD_ID).any():
        raise InputError(f"{_name(record)}: holds <pad>, and packs have no padding. Remove it")
    return np.concatenate(([CLS_ID], ids, [EOS_ID])).astype(np.int64, copy=False)


def _encode_piecewise(sequence: str, record: str, unknown: Unknown) -> NDArray[np.int64]:
    substitute = {"x": X_ID, "unk": UNK_ID}.get(unknown)
    ids = []
    for piece in _PIECE.finditer(sequence):
        text = piece.group()
        if text.isspace():
            continue
        token_id = ID_OF_TOKEN.get(text, substitute)
        if token_id is None:
            advice = "Write residues in upper case, or use" if text.islower() else "Use"
            raise InputError(
                f"{_name(record)}: character {text!r} at position {piece.start() + 1} is not in "
                f"ESM-2's alphabet ({''.join(TOKENS[4:31])}). {advice} --unknown x (take it as X) "
                "or --unknown unk"
            )
        ids.append(token_id)
    return np.array(ids, dtype=np.int64)


def _name(record: str) -> str:
    return f"record {record!r}" if record else "sequence"
