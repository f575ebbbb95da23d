"""Whether what a manifest says fits together; its types alone do not tell."""

from collections.abc import Iterator
from pathlib import Path

from runtime.files import path_problem
from runtime.manifest_schema import EMBEDDING, HEAD, Manifest
from runtime.pooling import POOL_CHOICES

DTYPES = ("float32", "float16", "bfloat16")


def contradictions(manifest: Manifest) -> Iterator[str]:
    """What cannot be, in sentences."""
    if manifest.dtype not in DTYPES:
        yield f"dtype is {manifest.dtype!r}, expected {', '.join(DTYPES)}"
    if not manifest.layers:
        yield "no layer is exported"
    if manifest.pool is not None and manifest.pool not in POOL_CHOICES:
        yield f"pool is {manifest.pool!r}, expected {', '.join(POOL_CHOICES)}"
    outputs = [output.name for output in manifest.signature.outputs]
    wanted = [f"representations.{layer}" for layer in manifest.layers]
    if missing := [name for name in wanted if name not in outputs]:
        yield f"no output {', '.join(missing)}"
    if len(set(outputs)) != len(outputs):
        yield "two outputs have one name"
    for output in manifest.signature.outputs:
        if len(output.shape) != 2:
            yield f"output {output.name} has {len(output.shape)} dimensions, expected 2"
        elif output.name in wanted and output.shape != ["T", manifest.architecture.embed_dim]:
            yield f"output {output.name} is {output.shape}, not rows of embed_dim"
    yield from _problems_with_head(manifest)
    golden = manifest.golden
    # Logits that are one number everywhere have none, nor golden answers.
    limited = [*(name for name in outputs if name != "logits"), EMBEDDING]
    if unlimited := [name for name in limited if name not in golden.limits]:
        yield f"golden.limits has none for {', '.join(unlimited)}"
    own = {f"golden.own_limits.{engine}": limits for engine, limits in golden.own_limits.items()}
    for whose, limits in {"golden.limits": golden.limits, **own}.items():
        for name, limit in limits.items():
            if name not in outputs and name != EMBEDDING:
                yield f"{whose} has a limit for {name!r}, which is no output"
            if not limit > 0:
                yield f"{whose} has a limit of {limit} for {name}, expected more than 0"


def _problems_with_head(manifest: Manifest) -> Iterator[str]:
    if (head := manifest.head) is None:
        return
    count = len(head.id2label)
    if head.id2label.keys() != {str(number) for number in range(count)}:
        yield "head.id2label does not name columns 0, 1, 2 and so on"
    for output in manifest.signature.outputs:
        if output.name == HEAD and (output.rows, output.shape[1:]) != (head.rows, [count]):
            yield f"output {HEAD} is {output.shape}, and the head has {count} labels of {head.rows}"


def problems_with_names(manifest: Manifest, folder: Path) -> Iterator[str]:
    """Names that lead out of the folder, and files that are used and not listed; in sentences."""
    for name in manifest.files:
        if problem := path_problem(folder, name):
            yield f"file {name!r} {problem}"
    used = {"golden": [manifest.golden.file]}
    used |= {
        f"engine {engine!r}": [entry.file, *entry.files]
        for engine, entry in manifest.engines.items()
    }
    for user, names in used.items():
        for name in dict.fromkeys(names):
            if name not in manifest.files:
                yield f"{user} names {name!r}, which is not among its files"
