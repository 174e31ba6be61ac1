"""Settings of the documentation's build: ``sphinx-build -W --keep-going -n docs docs/_build/html``."""

import sys
from pathlib import Path

import sedq

sys.path.insert(0, str(Path(__file__).parent / "_ext"))

project = "sedq"
author = "The sedq developers"
project_copyright = author
version = release = sedq.__version__

extensions = [
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "numpydoc",
    "myst_parser",
    "sedq_site",
]
exclude_patterns = ["_build", "_ext", "_templates", "_static"]
templates_path = ["_templates"]
nitpicky = True
# what stands between single backticks may also be a parameter, or of another library
default_role = "autolink"
nitpick_ignore_regex = [("py:obj", r"(?!sedq).*")]
highlight_language = "none"  # fences without a language are formulas and drawings
toc_object_entries = False
add_module_names = False

myst_enable_extensions = ["dollarmath", "colon_fence", "deflist"]
myst_heading_anchors = 3

autosummary_generate = True
# types stand in the docstrings, with shapes and units
autodoc_typehints = "none"
autodoc_default_options = {"member-order": "bysource"}
numpydoc_show_class_members = False
numpydoc_attributes_as_param_list = True

html_theme = "pydata_sphinx_theme"
html_title = f"sedq {version}"
html_static_path = ["_static"]
html_css_files = ["sedq.css"]
html_show_sphinx = False
html_show_copyright = False
html_copy_source = False
html_theme_options = {
    "show_prev_next": True,
    "navbar_align": "left",
    "navbar_persistent": ["search-button"],
    "header_links_before_dropdown": 6,
    "secondary_sidebar_items": ["page-toc"],
    "footer_start": ["copyright"],
    "footer_end": [],
    "pygments_light_style": "a11y-high-contrast-light",
    "pygments_dark_style": "a11y-high-contrast-dark",
}
