"""Options of commands that load an engine."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from runtime.attention import ATTENTION_CHOICES, Attention
from runtime.device import MAX_TOKENS_RULE, check_device
from runtime.engines.table import FORMATS
from runtime.errors import EngineError, InputError
from runtime.option_group import option_group
from runtime.readers.record_options import record_options

if TYPE_CHECKING:
    from runtime.embed_options import EmbedOptions

# Which attention to run; read by ``attention_of``.
attention_options = option_group(
    click.option(
        "--attention",
        type=click.Choice(ATTENTION_CHOICES),
        help="Which kernel; all but auto and standard are for CUDA.  [default: auto]",
    ),
    click.option(
        "--v1-attention",
        is_flag=True,
        help="The same as --attention standard (also: ESM2_V1_ATTENTION=true).",
    ),
)


def _checked_device(context: click.Context, parameter: click.Parameter, device: str) -> str:
    try:
        check_device(device)
    except EngineError as error:
        raise click.BadParameter(str(error)) from None
    return device


engine_option = click.option(
    "--engine",
    default="auto",
    show_default=True,
    help=f"{', '.join(FORMATS)}, or auto: the first one that runs here, never int8.",
)

concurrency_option = click.option(
    "--concurrency",
    type=click.IntRange(min=1),
    help="Packs that run at once on a CPU.  [default: by cores, proteins and memory]",
)

device_option = click.option(
    "--device",
    default="auto",
    show_default=True,
    metavar="[auto|cpu|cuda|cuda:N]",
    callback=_checked_device,
    help="auto: a GPU where an engine runs on it.",
)

# Where packs run; see ``check_ray``.
ray_options = option_group(
    click.option(
        "--ray",
        metavar="[local|auto|HOST:PORT]",
        help="Run on all GPUs, or CPUs, of a Ray cluster. local: of this machine. auto: of the "
        "cluster that this machine is a node of.",
    ),
    click.option(
        "--ray-actors",
        type=click.IntRange(min=1),
        help="Engines on the cluster.  [default: one a GPU; on CPUs one a node, or by --threads]",
    ),
)

threads_option = click.option(
    "--threads", type=click.IntRange(min=1), help="CPU threads.  [default: as embed]"
)


# Of commands that run files of proteins and take something of each; read by ``options_of``.
run_options = option_group(
    engine_option,
    device_option,
    click.option(
        "--max-tokens",
        type=click.IntRange(min=1),
        help="Budget of a pack; a longer protein gets a pack of its own.  [default: "
        f"{MAX_TOKENS_RULE}]",
    ),
    record_options,
    attention_options,
    threads_option,
    concurrency_option,
    ray_options,
)


def options_of(artifact: Path, inputs: tuple[str, ...], given: dict[str, Any]) -> "EmbedOptions":
    """What ``run_options`` and, where a command has them, ``length_options`` gave."""
    from runtime.embed_options import EmbedOptions
    from runtime.readers.records import RecordOptions

    check_ray(given["ray"], given["ray_actors"])
    return EmbedOptions(
        artifact=artifact,
        inputs=inputs,
        engine=given["engine"],
        device=given["device"],
        attention=attention_of(given["attention"], given["v1_attention"]),
        tf32=False,
        cuda_graphs=False,
        threads=given["threads"],
        concurrency=given["concurrency"],
        pools=(),
        layers=(),
        max_tokens=given["max_tokens"],
        skip=given["on_error"] == "skip",
        records=RecordOptions(
            given["unknown"], given["upper"], given["strip_stop"], given.get("max_length"),
            given.get("long", "error"),
        ),
        ray=given["ray"],
        ray_actors=given["ray_actors"],
    )  # fmt: skip


def check_ray(ray: str | None, ray_actors: int | None) -> None:
    """Raises InputError for actors without a cluster."""
    if ray_actors and ray is None:
        raise InputError("--ray-actors is for Ray: give --ray too")


def attention_of(attention: Attention | None, v1_attention: bool) -> Attention | None:
    """What both options ask for together; InputError where they differ."""
    if v1_attention and attention not in (None, "standard"):
        raise InputError(f"--v1-attention is --attention standard, got --attention {attention} too")
    return "standard" if v1_attention else attention
