"""What ``esm2-run info`` shows of an artifact."""

from collections.abc import Iterator
from pathlib import Path

from runtime.manifest_schema import Manifest, MixtureEntry
from runtime.pairs import CONTACTS
from runtime.trust.bundle import FILE_NAME as SIGNATURE
from runtime.trust.whom import trusted

MOST_LABELS = 8


def describe(manifest: Manifest) -> Iterator[str]:
    """For a terminal, line by line."""
    shape = manifest.architecture
    weights = manifest.weights
    yield manifest.name
    yield (
        f"  architecture  {shape.name}: {shape.num_layers} layers, {shape.embed_dim} wide, "
        f"{shape.num_heads} heads of {shape.head_dim}"
    )
    revision = f" at {weights.revision}" if weights.revision else ""
    yield f"  weights       {weights.kind}: {weights.source}{revision}, {manifest.dtype}"
    if weights.left_out:
        yield f"                left out of the checkpoint: {', '.join(weights.left_out)}"
    if adapter := weights.adapter:
        yield (
            f"                LoRA of rank {adapter.rank} on {adapter.base}, merged: "
            f"{', '.join(adapter.targets)}"
        )
    if not weights.lm_head:
        yield "                no LM head in this checkpoint: embeddings only, no logits"
    if weights.kind == "synthetic":
        yield "                RANDOM WEIGHTS: for trying the project, the embeddings mean nothing"
    if head := manifest.head:
        what = "residue" if head.rows == "tokens" else "protein"
        named = ", ".join(head.labels[:MOST_LABELS]) + (", ..." * (len(head.labels) > MOST_LABELS))
        yield (
            f"  head          {head.kind}, {head.problem_type}: {len(head.labels)} for each {what} "
            f"({named})"
        )
    yield (
        f"  commands      embed, extract{', score, perplexity, logits' * weights.lm_head}"
        f"{', predict' * bool(manifest.head)}{', contacts' * manifest.gives(CONTACTS)}"
    )
    for direction, tensors in (
        ("inputs", manifest.signature.inputs), ("outputs", manifest.signature.outputs),
    ):  # fmt: skip
        shown = (f"{t.name} {t.dtype}[{', '.join(map(str, t.shape))}]" for t in tensors)
        yield f"  {direction:13} {', '.join(shown)}"
    for name, entry in manifest.engines.items():
        parity = manifest.parity.get(name)
        verdict = (
            "not verified"
            if parity is None
            else (
                f"{'passed' if parity.passed else 'FAILED'} parity: worst relative L2 "
                f"{parity.worst_relative_l2:.1e}, {parity.worst_ratio_to_eager:.2f} x eager's own"
            )
        )
        yield f"  engine        {name}: {entry.file}, {verdict}"
        if entry.quantised and (mixture := entry.quantised.mixture):
            yield f"                {in_words(mixture)}"
        for plan in entry.plans:
            yield (
                f"    plan        {plan.file}: compute capability {plan.compute_capability}, "
                f"attention {plan.attention}, proteins of up to {plan.profiles[-1].max_seqlen} "
                "tokens"
            )
    total = sum(entry.bytes for entry in manifest.files.values())
    yield f"  files         {len(manifest.files)} unchanged, {total / 1e6:.1f} MB"


def in_words(mixture: MixtureEntry) -> str:
    """Which linears of a quantised engine are in float, and what that does to its error."""
    on = "on the calibration proteins"
    if not mixture.in_float:
        return f"all {mixture.num_linears} linears in int8: relative L2 {mixture.error:.3f} {on}"
    return (
        f"{len(mixture.in_float)} of {mixture.num_linears} linears in float "
        f"({', '.join(mixture.in_float)}): relative L2 {mixture.error:.3f} {on}, all in int8 "
        f"{mixture.error_of_int8:.3f}"
    )


def signature_line(artifact: Path) -> str:
    """Whether somebody signed an artifact that was read just now."""
    if who := trusted(None):
        return f"  signature     {SIGNATURE}, by {who.source}, of every file"
    if (artifact / SIGNATURE).exists():
        return f"  signature     {SIGNATURE}, not verified: esm2-run verify-signature"
    return "  signature     unsigned: nothing says who built it"
