"""The command line's options for weights, the same wherever a command takes a model."""

from dataclasses import replace
from typing import TYPE_CHECKING

import click

from exporter.errors import ExportError
from runtime.option_group import option_group
from runtime.pooling import POOL_CHOICES

if TYPE_CHECKING:
    from exporter.model.reference import SourceKind, WeightsSource

# Each protein's vector by a pooling, or "residues".
ON_CHOICES = (*(how for how in POOL_CHOICES if how != "none"), "residues")

# Where the weights come from; read by ``source_of``.
source_options = option_group(
    click.option("--model", help="fair-esm's name of a model, such as esm2_t33_650M_UR50D."),
    click.option(
        "--checkpoint",
        help="A fair-esm .pt file, a folder that transformers saved, or a name on the Hugging Face "
        "Hub, such as facebook/esm2_t33_650M_UR50D.",
    ),
    click.option(
        "--synthetic", help="Random weights of a true architecture, for trying the project."
    ),
    click.option(
        "--outliers",
        is_flag=True,
        help="Synthetic weights with a few large channels in every layer, as trained ones have.",
    ),
    click.option(
        "--seed",
        default=0,
        show_default=True,
        type=click.IntRange(min=0),
        help="Of synthetic weights (and of random proteins).",
    ),
)

# What is exported on top of the model; read by ``with_head``.
head_options = option_group(
    click.option(
        "--no-head", is_flag=True, help="Leave the classifier of a fine-tuned checkpoint out."
    ),
    click.option(
        "--probe",
        metavar="FILE",
        help="A linear model on top: .safetensors with weight and bias, or .npz with coef_ and "
        "intercept_ of scikit-learn.",
    ),
    click.option(
        "--probe-on",
        default="mean",
        show_default=True,
        type=click.Choice(ON_CHOICES),
        help="What the probe reads: each protein's vector by this pooling, or its residues'.",
    ),
)


def with_head(
    source: "WeightsSource", no_head: bool, probe: str | None, probe_on: str
) -> "WeightsSource":
    """``source`` with what those options say of its head."""
    from exporter.model.sources.probe import ProbeSource

    given = None if probe is None else ProbeSource(probe, probe_on)
    return replace(source, with_head=not no_head, probe=given)


def source_of(
    model: str | None,
    checkpoint: str | None,
    synthetic: str | None,
    seed: int,
    contacts: bool = False,
    outliers: bool = False,
) -> "WeightsSource":
    """From those options.

    Raises:
        ExportError: none of them was given, or more than one, or outliers of other weights.
    """
    named: list[tuple[SourceKind, str | None]] = [
        ("model", model), ("checkpoint", checkpoint), ("synthetic", synthetic),
    ]  # fmt: skip
    given = [(kind, value) for kind, value in named if value is not None]
    if len(given) != 1:
        raise ExportError(
            f"give one of --model, --checkpoint, --synthetic; got {len(given)}. To try the "
            "project: --synthetic esm2_t6_8M_UR50D"
        )
    from exporter.model.reference import WeightsSource

    kind, value = given[0]
    if outliers and kind != "synthetic":
        raise ExportError(f"--outliers is for --synthetic; weights of --{kind} stay as they are")
    return WeightsSource(kind, value, seed, contacts, outliers=outliers)
