"""Settings of Sphinx: ``make docs`` builds the pages as they lie in the repository into ``site/``."""

from __future__ import annotations

import contextlib
import io
import os
import re
from pathlib import Path
from typing import Any

from docutils import nodes
from docutils.utils.math import MathError
from docutils.utils.math.latex2mathml import tex2mathml
from sphinx.application import Sphinx
from sphinx.util import logging

import labelspace
from labelspace.cli.app import COMMANDS, GROUPS, MEMORY_COMMANDS, main

project, author, copyright = "labelspace", "The labelspace developers", "The labelspace developers"
version = release = labelspace.__version__
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
root_doc = "README"
include_patterns = ["*.md", "docs/*.md", "docs/methods/*.md", "docs/reference/*.rst", "benchmarks/README.md"]
exclude_patterns = [".venv", ".*", "runs", "site", "dist", "build"]
default_role = "py:obj"  # a name between single backticks is a link where it is documented, else code
highlight_language = "none"
suppress_warnings = ["myst.header"]

html_theme = "furo"
html_title = f"labelspace {version}"
html_copy_source = html_show_sphinx = False
html_theme_options = {"light_css_variables": {"color-brand-primary": "#1d5d8f", "color-brand-content": "#1d5d8f"}}
html_math_renderer = "mathml"

myst_enable_extensions = ["dollarmath"]
myst_fence_as_directive = ["math"]
myst_heading_anchors = 3
myst_dmath_double_inline = True

autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
autodoc_preserve_defaults = True
napoleon_numpy_docstring = False
napoleon_use_rtype = False
napoleon_use_ivar = True

CONTENTS = """
```{toctree}
:hidden:
:caption: Use
docs/start
docs/data
docs/recipes
docs/memory
docs/calibration
docs/serving
docs/report
docs/export
docs/scale
docs/troubleshooting
```

```{toctree}
:hidden:
:caption: Methods
docs/training
docs/presets
docs/processes
docs/methods/dexml
docs/methods/unidec
docs/methods/raexmc
docs/methods/joining
docs/methods/linear
```

```{toctree}
:hidden:
:caption: Reference
docs/reference/api
docs/commands
docs/results
benchmarks/README
docs/performance
```

```{toctree}
:hidden:
:caption: Project
docs/architecture
CONTRIBUTING
CHANGELOG
```
"""
FORWARD = (
    '<!doctype html><meta charset="utf-8"><title>labelspace</title>'
    '<meta http-equiv="refresh" content="0; url=README.html">'
)


def _help(*command: str) -> str:
    """What a command prints for --help, in 100 columns."""
    out = io.StringIO()
    os.environ["COLUMNS"] = "100"
    with contextlib.redirect_stdout(out):
        main([*command, "--help"])
    return re.sub(r"[ \t]+$", "", out.getvalue(), flags=re.MULTILINE).strip()


def _reference() -> str:
    """A section for every command, with its help."""
    names = [(name,) for name in [*COMMANDS, *MEMORY_COMMANDS, "serve"]]
    names += [(group, verb) for group, verbs in GROUPS.items() for verb in verbs if verb != "help"]
    parts = []
    for name in sorted(names):
        parts.append(f"## {' '.join(name)}\n\n```\n{_help(*name)}\n```\n")
        if name == ("train",):
            for recipe in ("unidec", "raexmc"):
                parts.append(f"### train --recipe {recipe}\n\n```\n{_help('train', '--recipe', recipe)}\n```\n")
    return "\n".join(parts)


def _filled(app: Sphinx, docname: str, source: list[str]) -> None:
    """Add what the pages of the repository leave to the site: the contents, and the commands' help."""
    if docname == root_doc:
        source[0] += CONTENTS
    elif docname == "docs/commands":
        source[0] = source[0].replace("<!-- help of the commands -->", _reference())


def _mathml(node: nodes.Element, **how: bool) -> str:
    try:
        return str(tex2mathml(node.astext(), **how))
    except MathError as error:
        logging.getLogger(__name__).warning("%s: %s", node.astext(), error, location=node)
        return ""


def _inline(self: Any, node: nodes.math) -> None:
    self.body.append(_mathml(node))
    raise nodes.SkipNode


def _display(self: Any, node: nodes.math_block) -> None:
    self.body.append(
        f'<div class="formula" style="margin: 1em 0; overflow: auto hidden">{_mathml(node, as_block=True)}</div>\n'
    )
    raise nodes.SkipNode


def _finished(app: Sphinx, error: Exception | None) -> None:
    if error is None and app.builder.name == "html":
        Path(app.outdir, "index.html").write_text(FORWARD, encoding="utf-8")


def setup(app: Sphinx) -> None:
    """Registers what is above with Sphinx."""
    app.add_html_math_renderer("mathml", inline_renderers=(_inline, None), block_renderers=(_display, None))
    app.connect("source-read", _filled)
    app.connect("build-finished", _finished)
