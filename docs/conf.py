"""The site: `sphinx-build docs site`. Everything else is in the pages."""

import lstm_ext

project = "lstm_ext"
author = "The lstm_ext developers"
copyright = author
release = version = lstm_ext.__version__

extensions = ["myst_parser", "numpydoc", "sphinx.ext.autodoc"]
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3  # links to headings, as on hosting sites

default_role = "py:obj"  # `name` in a docstring is a link where there is such a name
autodoc_member_order = "bysource"
autodoc_typehints = "none"  # the docstrings state the types
numpydoc_show_class_members = False
python_maximum_signature_line_length = 100

html_theme = "furo"
html_title = f"lstm_ext {release}"
html_show_copyright = False
