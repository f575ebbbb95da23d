from collections.abc import Callable

import esm
import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.errors import InputError
from runtime.tokenizer import TOKENS, encode, tokenize

ALPHABET = esm.data.Alphabet.from_architecture("ESM-1b")

PIECES = st.lists(
    st.one_of(
        st.sampled_from(TOKENS),
        st.sampled_from([" ", "\t", "\n", "  ", "\xa0", "\x1c"]),
        st.sampled_from(["J", "*", "m", "<", ">", "mask", "<mas", "é", "λ"]),
    ),
    max_size=30,
)


def test_the_same_tokens() -> None:
    assert list(TOKENS) == ALPHABET.all_toks


def check_equal_to_fair_esm(text: str) -> None:
    try:
        expected = ALPHABET.encode(text)
    except KeyError:
        with pytest.raises(InputError):
            encode(text)
    else:
        assert encode(text).tolist() == expected


@given(PIECES)
def test_equals_fair_esm_on_all_that_it_accepts(pieces: list[str]) -> None:
    check_equal_to_fair_esm("".join(pieces))


@given(st.text(max_size=20))
def test_equals_fair_esm_on_any_text(text: str) -> None:
    check_equal_to_fair_esm(text)


def test_bos_and_eos_as_the_batch_converter_sets_them() -> None:
    _, _, tokens = ALPHABET.get_batch_converter()([("a", "MK<mask>T")])
    assert tokenize("MK<mask>T").tolist() == tokens[0].tolist()
    assert tokenize("").tolist() == [0, 2]


@pytest.mark.parametrize(
    ("text", "character", "position"),
    [("MKJT", "J", 3), ("MK<mask>*", "*", 9), ("M k", "k", 3), ("MλK", "λ", 2), ("M?K", "?", 2)],
)
def test_errors_name_record_character_and_position(
    text: str, character: str, position: int
) -> None:
    with pytest.raises(InputError) as error:
        encode(text, "protein 7")
    expected = f"record 'protein 7': character {character!r} at position {position} is not in"
    assert str(error.value).startswith(expected)


def test_padding_is_no_part_of_a_protein() -> None:
    with pytest.raises(InputError, match="record 'a': holds <pad>"):
        tokenize("MK<pad>T", "a")


def test_lower_case_gets_a_hint() -> None:
    with pytest.raises(InputError, match="Write residues in upper case"):
        encode("mkt")


@pytest.mark.parametrize("function", [encode, tokenize])
def test_a_wrong_substitute_is_no_guess(function: Callable[..., object]) -> None:
    """Even where nothing is to be substituted."""
    for wrong in ("X", "", None, "UNK"):
        with pytest.raises(InputError, match="unknown must be one of error, x, unk, got "):
            function("MKT", unknown=wrong)


@given(PIECES, st.sampled_from(["x", "unk"]))
def test_substitutes_stand_where_the_unknown_stood(pieces: list[str], unknown: str) -> None:
    """In the fast path as in the slow one, which a token anywhere asks for."""
    text = "".join(pieces)
    ids = encode(f"{text}<mask>", unknown=unknown)[:-1]
    assert encode(text, unknown=unknown).tolist() == ids.tolist()


def test_substitutes() -> None:
    assert encode("MJ*", unknown="x").tolist() == ALPHABET.encode("MXX")
    assert encode("MJ*", unknown="unk").tolist() == ALPHABET.encode("M<unk><unk>")
