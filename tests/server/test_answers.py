import json

import numpy as np
import pytest

from runtime.server import answers


@pytest.mark.parametrize("shape", [(5,), (0, 4), (3, 7), (700, 700), (2, 100_000), (1, 70_000)])
def test_large_arrays_come_in_pieces_of_the_same_json(shape: tuple[int, ...]) -> None:
    values = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    pieces = list(answers.encoded([values, values[:1]], answers.JSON, "x", answers.PLAIN))
    first, last = json.loads(b"".join(pieces))
    np.testing.assert_array_equal(np.float32(first).reshape(shape), values)
    np.testing.assert_array_equal(np.float32(last).reshape(values[:1].shape), values[:1])
    # A float32 takes 13 characters at most, sign and comma included.
    most = 13 * max(answers.PIECE_NUMBERS, *shape) + answers.PIECE_BYTES
    assert max(map(len, pieces)) <= most
    if values.size > 3 * answers.PIECE_NUMBERS:
        assert len(pieces) > 2
