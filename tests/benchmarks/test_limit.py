from benchmarks.limit import flops
from runtime.manifest_schema import Architecture

TINY = Architecture(
    name="tiny", num_layers=2, embed_dim=4, num_heads=2, head_dim=2, vocab_size=33,
    token_dropout=True,
)  # fmt: skip


def test_by_hand() -> None:
    # A layer: q, k, v, out are 4 x 4 x 4 weights, fc1 and fc2 2 x 4 x 16: 192, 2 FLOPs each.
    linears = 2 * 192 * 2
    # The head: dense 4 x 4 and the embedding 4 x 33.
    head = 2 * (16 + 132)
    # Scores and sums over values: 4 L^2 D for each of 2 heads; 20 for each of L^2 exponentials.
    attention = {length: 2 * 2 * length**2 * (4 * 2 + 20) for length in (3, 5)}
    assert flops(TINY, [3]) == 3 * (linears + head) + attention[3]
    assert flops(TINY, [3, 5]) == 8 * (linears + head) + attention[3] + attention[5]


def test_attention_grows_with_the_square() -> None:
    alone, twice = flops(TINY, [1000]), flops(TINY, [2000])
    assert 2 * alone < twice < 4 * alone
    assert flops(TINY, [1000, 1000]) == 2 * alone
