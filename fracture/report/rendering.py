"""How reports are filled in: their templates, as a page or as Markdown that shows every value as it is."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup


def html(template: str, contents: Mapping[str, Any]) -> str:
    """A template of a page filled in; values are escaped, but for those that are `Markup`."""
    return _environment(autoescape=True).get_template(template).render(contents)


def markdown(template: str, contents: Mapping[str, Any]) -> str:
    """A template of Markdown filled in; values show as they are, with no markup of their own."""
    text = _environment(autoescape=False, finalize=_plain).get_template(template).render(contents)
    return re.sub(r"\n{3,}", "\n\n", text).strip() + "\n"


def source(template: str) -> str:
    """A template as it is written."""
    environment = _environment(autoescape=False)
    return environment.loader.get_source(environment, template)[0]  # type: ignore[union-attr]


def _environment(**options: Any) -> Environment:
    return Environment(
        loader=PackageLoader("fracture.report"),
        undefined=StrictUndefined,
        trim_blocks=True,
        keep_trailing_newline=True,
        **options,
    )


def _plain(value: Any) -> Any:
    """A value as Markdown that shows it as it is: no markup, no cell border, on one line."""
    if isinstance(value, Markup):
        return value
    text = re.sub(r"\s+", " ", str(value)).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\`*_|~#$!]|\](?=[(:\[]))", r"\\\1", text)
