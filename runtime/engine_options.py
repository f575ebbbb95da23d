"""Options of commands that load an engine."""

import click

from runtime.attention import ATTENTION_CHOICES, Attention
from runtime.device import check_device
from runtime.engines.table import FORMATS
from runtime.errors import EngineError, InputError
from runtime.option_group import option_group

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


def attention_of(attention: Attention | None, v1_attention: bool) -> Attention | None:
    """What both options ask for together; InputError where they differ."""
    if v1_attention and attention not in (None, "standard"):
        raise InputError(f"--v1-attention is --attention standard, got --attention {attention} too")
    return "standard" if v1_attention else attention
