"""Texts with holes: the parity page, the study of divergence, Triton's configuration."""

from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape


def environment() -> Environment:
    """Undefined names are errors, HTML is escaped."""
    return Environment(
        loader=PackageLoader("exporter"),
        autoescape=select_autoescape(("html.j2",)),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )


def render(template: str, **values: Any) -> str:
    """The text of ``template`` with ``values`` in its holes."""
    return environment().get_template(template).render(**values)
