"""The site of `make docs`: pages in Markdown, a notebook, docstrings as reference."""

from pathlib import Path
import sys

sys.path.insert(0, str(Path(__file__).parent))  # docstrings.py, notebooks.py

project = "Online and offline alignment"
author = "the authors of online-offline-alignment"
extensions = [
  "myst_parser",
  "sphinx.ext.autodoc",
  "sphinx.ext.autosummary",
  "sphinx.ext.viewcode",
  "sphinx_copybutton",
  "docstrings",
  "notebooks",
]
exclude_patterns = ["_templates", "_static"]
templates_path = ["_templates"]

highlight_language = "none"  # of blocks that name none: trees, diagrams, formulas
html_theme = "sphinx_book_theme"
html_title = "Does alignment need online sampling?"
html_theme_options = {
  "show_toc_level": 2,
  "navigation_with_keys": False,
  "navbar_persistent": [],  # one search field is enough
}
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_copy_source = False

myst_enable_extensions = ["deflist", "colon_fence"]
myst_heading_anchors = 3  # links to headings are checked down to this level

# Every module of the package gets a page, found by walking it: api.md names two roots.
# Its documented members are on it; a dataclass has its fields in its signature.
autosummary_generate = True
autodoc_default_options = {"members": True, "member-order": "bysource"}
autodoc_typehints = "signature"
autodoc_preserve_defaults = True  # as in the source: no addresses, no long reprs
