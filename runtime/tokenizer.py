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
RESIDUES = "".join(TOKENS[4:31])

_NOT_A_RESIDUE = -1
_ID_OF_CHARACTER = np.full(256, _NOT_A_RESIDUE, dtype=np.int64)
for _token, _id in ID_OF_TOKEN.items():
    if len(_token) == 1:
        _ID_OF_CHARACTER[ord(_token)] = _id

_PIECE = re.compile("|".join(re.escape(t) for t in TOKENS if len(t) > 1) + r"|\s+|.", re.DOTALL)


class SequenceError(InputError):
    """A sequence that is no protein of ESM-2's alphabet.

    Attributes:
        position: of the first character that is wrong, from 1.
        reason: what is wrong, in a phrase.
        advice: what to do, in a sentence without its stop.
    """

    def __init__(self, record: str, position: int, reason: str, advice: str):
        super().__init__(f"{f'record {record!r}' if record else 'sequence'}: {reason}. {advice}")
        self.position, self.reason, self.advice = position, reason, advice


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
        SequenceError: an unknown character under ``"error"``; an InputError that names record,
            character and position.
        InputError: ``unknown`` is none of the above.
    """
    if unknown not in UNKNOWN_CHOICES:
        raise InputError(f"unknown must be one of {', '.join(UNKNOWN_CHOICES)}, got {unknown!r}")
    raw = np.frombuffer(sequence.encode("latin-1", errors="replace"), dtype=np.uint8)
    ids = _ID_OF_CHARACTER[raw]
    # "?" stands for what Latin-1 lacks; it is no residue either, so the slow path sees it.
    wrong = ids == _NOT_A_RESIDUE
    if not wrong.any():
        return ids
    substitute = {"x": X_ID, "unk": UNK_ID}.get(unknown)
    if "<" in sequence or sequence.split() != [sequence]:
        return _encode_piecewise(sequence, record, substitute)
    if substitute is None:
        place = int(wrong.argmax())
        raise _unknown_character(record, sequence, place, place + 1)
    return np.where(wrong, substitute, ids)


def tokenize(sequence: str, record: str = "", unknown: Unknown = "error") -> NDArray[np.int64]:
    """``encode`` between BOS (``<cls>``) and EOS (``<eos>``): ``[L + 2]`` int64.

    Raises:
        InputError: as ``encode``, and for ``<pad>``: a pack holds no padding.
    """
    ids = encode(sequence, record, unknown)
    if (ids == PAD_ID).any():
        position = sequence.index(TOKENS[PAD_ID]) + 1
        reason = f"holds <pad> at position {position}, and packs have no padding"
        raise SequenceError(record, position, reason, "Remove it")
    return np.concatenate(([CLS_ID], ids, [EOS_ID])).astype(np.int64, copy=False)


def decode(tokens: NDArray[np.int64]) -> str:
    """The text of a protein's ``[L + 2]`` tokens, BOS and EOS left out."""
    return "".join(TOKENS[i] for i in tokens[1:-1].tolist())


def _encode_piecewise(sequence: str, record: str, substitute: int | None) -> NDArray[np.int64]:
    ids = []
    for piece in _PIECE.finditer(sequence):
        text = piece.group()
        if text.isspace():
            continue
        token_id = ID_OF_TOKEN.get(text, substitute)
        if token_id is None:
            raise _unknown_character(record, sequence, *piece.span())
        ids.append(token_id)
    return np.array(ids, dtype=np.int64)


def _unknown_character(record: str, sequence: str, start: int, end: int) -> SequenceError:
    character = sequence[start:end]
    reason = (
        f"character {character!r} at position {start + 1} is not in ESM-2's alphabet ({RESIDUES})"
    )
    is_last = not sequence[end:].strip()
    return SequenceError(record, start + 1, reason, _advice(character, is_last))


def _advice(character: str, is_last: bool) -> str:
    if character == ">":
        return "Is a line break missing before a header? Or use --unknown x (take it as X)"
    anyway = "--unknown x (unknown='x' in Python: take it as X) or --unknown unk"
    if character.upper() in RESIDUES:
        return f"Write residues in upper case, or use --upper (upper=True in Python), {anyway}"
    if character == "*" and is_last:
        return f"Use --strip-stop (strip_stop=True in Python), {anyway}"
    return f"Use {anyway}"
