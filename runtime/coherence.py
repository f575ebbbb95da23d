"""Whether what a manifest says fits together; its types alone do not tell."""

from collections.abc import Iterator, Mapping, Sequence

from runtime.pooling import POOL_CHOICES

DTYPES = ("float32", "float16", "bfloat16")


def contradictions(
    *, dtype: str, layers: Sequence[int], pool: str | None, outputs: Sequence[str],
    pooled_by_runtime: str, limits: Mapping[str, Mapping[str, float]],
) -> Iterator[str]:  # fmt: skip
    """What cannot be, in sentences.

    Args:
        dtype: of weights and outputs.
        layers: that are exported.
        pool: how the graph pools, or None.
        outputs: names of what every engine gives.
        pooled_by_runtime: the name of what is compared, and no engine gives.
        limits: of the selftest, by output; by whose they are.
    """
    if dtype not in DTYPES:
        yield f"dtype is {dtype!r}, expected {', '.join(DTYPES)}"
    if not layers:
        yield "no layer is exported"
    if pool is not None and pool not in POOL_CHOICES:
        yield f"pool is {pool!r}, expected {', '.join(POOL_CHOICES)}"
    if missing := [name for k in layers if (name := f"representations.{k}") not in outputs]:
        yield f"no output {', '.join(missing)}"
    if len(set(outputs)) != len(outputs):
        yield "two outputs have one name"
    for whose, by_output in limits.items():
        for name, limit in by_output.items():
            if name not in outputs and name != pooled_by_runtime:
                yield f"{whose} has a limit for {name!r}, which is no output"
            if not limit > 0:
                yield f"{whose} has a limit of {limit} for {name}, expected more than 0"
