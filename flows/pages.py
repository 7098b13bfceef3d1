"""Pages that load nothing from anywhere, filled in from `templates/`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jinja2

TEMPLATES = Path(__file__).parent / "templates"


def filled_in(template: str, context: Mapping[str, Any], **filters: Callable[..., Any]) -> str:
    """Return a template with its values, text escaped. Raises UndefinedError where a value is missing."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(filters)
    return environment.get_template(template).render(context)
