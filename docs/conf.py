"""How the site is built: `python -m sphinx -W --keep-going -b html docs build/docs`, without any request.

Pages are MyST Markdown that GitHub shows as well; what they document comes from the package's own docstrings. Equations
become MathML while the site is built (math-core): every browser sets it by itself, so that no script and no font of a
network's is needed, and a screen reader reads it.
"""

from __future__ import annotations

import re
from typing import Any

from docutils import nodes
from math_core import LatexError, LatexToMathML
from sphinx.util import logging
from sphinx.util.nodes import make_refnode

from lowdyn import __version__

project, author, copyright = "lowdyn", "The lowdyn developers", "The lowdyn developers"
version = release = __version__
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx_copybutton"]
exclude_patterns = ["results"]
nitpicky = True  # a reference that leads nowhere is an error

myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3
myst_links_external_new_tab = False

autodoc_typehints = "none"  # the docstrings say what is taken, in words and shapes
autodoc_member_order = "bysource"
autodoc_class_signature = "mixed"
python_use_unqualified_type_names = True
maximum_signature_line_length = 90
toc_object_entries = False

html_theme = "furo"
html_title = "lowdyn"
html_static_path = ["site.css"]
html_css_files = ["site.css"]
html_show_sphinx = False
html_copy_source = False
html_theme_options = {
    "light_css_variables": {"color-brand-primary": "#0064a0", "color-brand-content": "#0064a0"},
    "dark_css_variables": {"color-brand-primary": "#63b3ed", "color-brand-content": "#63b3ed"},
}
pygments_style = "friendly"
pygments_dark_style = "github-dark"

_LATEX = LatexToMathML(fancy_error=False)


def _mathml(self: Any, node: nodes.math | nodes.math_block, *, block: bool) -> None:
    try:
        text = _LATEX.convert_with_local_state(node.astext(), displaystyle=block)
    except LatexError as error:
        logging.getLogger(__name__).warning("%s in %r", error, node.astext(), location=node)
        text = ""
    self.body.append(f'<div class="math">{text}</div>\n' if block else text)
    raise nodes.SkipNode


def _sections(app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Make lists of the sections that scikit-learn's estimators have, ``rank : at least 1; …`` in each line.

    In all docstrings |x| is a size and (*runs, rows) a shape: no substitution is meant, and no emphasis.
    """
    # What stands in ``double quotes`` is passed over.
    plain = r"(``.*?``|>>>.*)|(\||(?<=\()\*(?=\w))"
    lines[:] = [re.sub(plain, lambda found: found[1] or f"\\{found[2]}", line) for line in lines]
    text, titled = "\n".join(lines), r"^(Parameters|Attributes|Examples)\n-+\n"
    if not re.search(titled, text, re.MULTILINE):
        return
    text = re.sub(titled, r".. rubric:: \1\n\n", text, flags=re.MULTILINE)
    text = re.sub(r"^(\w+(?:, \w+)*) : ", r"- ``\1``: ", text, flags=re.MULTILINE)
    lines[:] = re.sub(r"^ {4}", "  ", text, flags=re.MULTILINE).splitlines()


def _found_by_name(app: Any, env: Any, node: nodes.Element, shown: nodes.Element) -> nodes.Element | None:
    """Resolve what docstrings call by a short name, or by the module that holds it, where a page documents it."""
    if node.get("refdomain") != "py":
        return None
    if node["reftype"] == "mod":
        return shown  # not every module has a page
    domain = env.get_domain("py")
    last = node["reftarget"].removeprefix("lowdyn.").split(".")
    tails = (".".join(last), last[-1])
    for tail in tails:
        found = [one for one in domain.objects if one.endswith(f".{tail}") and not domain.objects[one].aliased]
        if len(found) == 1:
            entry = domain.objects[found[0]]
            builder = app.builder
            return make_refnode(builder, node["refdoc"], entry.docname, entry.node_id, [shown], found[0])
    return None


def setup(app: Any) -> None:
    """Have equations set as MathML, sections of estimators as lists, and short names found."""
    app.connect("autodoc-process-docstring", _sections)
    app.connect("missing-reference", _found_by_name)
    app.add_html_math_renderer(
        "mathml",
        inline_renderers=(lambda self, node: _mathml(self, node, block=False), None),
        block_renderers=(lambda self, node: _mathml(self, node, block=True), None),
    )


html_math_renderer = "mathml"
