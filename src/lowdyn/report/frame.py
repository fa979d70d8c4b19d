"""What the pages share: one frame, one stylesheet, one switch of light and dark, one policy that forbids requests."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable, Mapping
from importlib.resources import files
from typing import Any

from lowdyn.report.formats import format_number, format_seconds, format_value, listed, prose, sentence


def asset(name: str) -> str:
    """Return a file of this package as text."""
    return files("lowdyn.report").joinpath(name).read_text(encoding="utf-8")


def render(
    template: str,
    *,
    style: str,
    scripts: tuple[str, ...] = (),
    filters: Mapping[str, Callable[..., Any]] | None = None,
    **values: Any,
) -> str:
    """Return a page that extends ``frame.html``, as text.

    ``style``: the file of rules that the page adds to ``page.css``. ``scripts``: the code that runs at its end, after
    the theme's at its head; the content policy allows these and no other. Everything in ``values`` is escaped.
    """
    from jinja2 import Environment, FunctionLoader, StrictUndefined
    from markupsafe import Markup

    loader = FunctionLoader(asset)
    environment = Environment(
        loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"plain": format_value, "number": format_number, "duration": format_seconds}
    environment.filters |= {"prose": prose, "sentence": sentence, "listed": listed, **(filters or {})}
    first = asset("theme.js")
    return environment.get_template(template).render(
        **values,
        style=Markup(asset("page.css") + asset(style)),
        first=Markup(first),
        scripts=[Markup(script) for script in scripts],
        hashes=Markup(" ".join(map(_hash, (first, *scripts)))),
    )


def _hash(script: str) -> str:
    """Return the source expression that lets a content policy run this script and no other."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"
