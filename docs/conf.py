"""Settings of the site: `python -m sphinx -c docs . build/site` in the repository.

The source is the repository, so that links between docs/, benchmarks/ and the README are the same
here and on a forge.
"""

import os
import re

from pygments.lexers.special import TextLexer

import vdm_jax

project = "vdm_jax"
author = "The authors of vdm_jax"
version = release = vdm_jax.__version__

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx_copybutton",
]
root_doc = "docs/index"
include_patterns = ["*.md", "docs/*.md", "docs/notebooks/*.md", "docs/api/*", "benchmarks/*.md"]
html_theme = "sphinx_book_theme"
html_title = "vdm_jax"
html_extra_path = ["site"]  # a page at the top that leads to docs/index.html
html_copy_source = False

myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 4  # links to headings, as forges have them
# Notebooks are shown with their results where VDM_JAX_NOTEBOOKS=cache. A test executes them.
nb_execution_mode = os.environ.get("VDM_JAX_NOTEBOOKS", "off")
nb_execution_raise_on_error = True
nb_execution_timeout = 900

default_role = "code"  # docstrings write names between single backquotes
templates_path = ["docs/templates"]
autodoc_member_order = "bysource"
autodoc_default_options = {"members": True, "show-inheritance": True}
autodoc_typehints_format = "short"
napoleon_use_ivar = True  # an attribute that a docstring describes is not listed twice
suppress_warnings = ["ref.python"]  # attributes of one name are no cross-references
napoleon_attr_annotations = False  # shapes are no markup


def setup(app) -> None:
    # Before napoleon, whose priority is 500.
    app.connect("autodoc-process-docstring", _as_restructured_text, priority=400)
    app.add_lexer("mermaid", TextLexer)


def _as_restructured_text(app, what, name, obj, options, lines) -> None:
    """Docstrings are plain text: what stands for markup in them is escaped, outside of code, and a
    block that is set in after an empty line is code."""
    found, last, in_block = [], "", False
    for line in lines:
        indent = len(line) - len(line.lstrip())
        if line.strip():
            deeper = indent >= len(last) - len(last.lstrip()) + 4
            if deeper and found and not found[-1].strip():
                found += [" " * (len(last) - len(last.lstrip())) + "::", ""]
                in_block = True
            elif not deeper:
                in_block = False
            if not in_block:
                last = line
                parts = re.split(r"(`[^`]*`)", line)
                for at in range(0, len(parts), 2):
                    parts[at] = re.sub(r"([*|]|(?<=\w)_(?!\w))", r"\\\1", parts[at])
                line = "".join(parts)
        found.append(line)
    lines[:] = found
