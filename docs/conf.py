"""How the documentation is built: `make docs`, in which a warning is an error."""

from __future__ import annotations

import re
import sys
from typing import Any

from firstlight import __version__

project = "firstlight"
author = "The firstlight authors"
copyright = author  # noqa: A001  Sphinx's word
version = release = __version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_build"]
html_theme = "furo"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_title = f"firstlight {__version__}"
myst_heading_anchors = 3
add_module_names = False
autodoc_inherit_docstrings = False  # hooks keep Lightning's documentation on Lightning's pages
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_member_order = "bysource"
autodoc_default_options = {"members": True, "show-inheritance": True}
python_maximum_signature_line_length = 88
napoleon_numpy_docstring = False

# The fixed lines of docstrings (CONTRIBUTING.md), each a paragraph that begins with its word.
_FIXED = re.compile(r"^(Shapes|Unit|Law|Source|Role|Reads|Writes|Logs)(?=:|, )")


def drop_first_line_of_rooms(_app: Any, what: str, *event: Any) -> None:
    """Leave out what a module says of itself in a line: the page that shows it begins with that."""
    if what == "module":
        del event[-1][:1]


def split_fixed_lines(*event: Any) -> None:
    """Set the fixed lines of a docstring apart; in the source they stand one below the other."""
    lines: list[str] = event[-1]
    split: list[str] = []
    for line in lines:
        split += ["", _FIXED.sub(r"*\1*", line)] if _FIXED.match(line) else [line]
    lines[:] = split


def skip_overridden(_app: Any, _what: str, name: str, thing: Any, _skip: bool, _options: Any) -> bool | None:
    """Leave out hooks and the like: what a class of Lightning or torch has too is documented there."""
    function = getattr(thing, "fget", thing)
    owner: Any = sys.modules.get(getattr(function, "__module__", ""))
    for part in getattr(function, "__qualname__", "").split(".")[:-1]:
        owner = getattr(owner, part, None)
    bases = owner.__mro__[1:] if isinstance(owner, type) else ()
    foreign = any(hasattr(base, name) for base in bases if not base.__module__.startswith("firstlight"))
    return True if foreign else None


def setup(app: Any) -> None:
    """Connect to Sphinx."""
    app.connect("autodoc-process-docstring", drop_first_line_of_rooms)
    app.connect("autodoc-process-docstring", split_fixed_lines)
    app.connect("autodoc-skip-member", skip_overridden)
