"""How the documentation is built: ``python -m sphinx -W docs site``."""

import neurodl

project = "neurodl"
author = copyright = "The neurodl developers"
version = release = neurodl.__version__
extensions = ["myst_parser", "sphinx_gallery.gen_gallery"]
myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 3
html_theme = "furo"
html_title = f"neurodl {version}"
exclude_patterns = ["examples/README.rst", "gallery/*.ipynb", "gallery/*.py", "gallery/*.md5"]
sphinx_gallery_conf = {
    "examples_dirs": "examples",
    "gallery_dirs": "gallery",
    "filename_pattern": "/plot_",
    "abort_on_example_error": True,
    "show_memory": False,
    "download_all_examples": False,
    "min_reported_time": 30,
    "write_computation_times": False,
}
suppress_warnings = ["config.cache"]
