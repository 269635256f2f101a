"""How the site is built: `pip install ".[docs]" && sphinx-build -W docs site`, without a network."""

import os
import sys
from functools import partial
from pathlib import Path

from myst_nb.core.execute import direct

from gpucal._version import __version__

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE / "_ext"))
# Tutorials call gpucal by its name, also where the environment that builds the site is not activated.
os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
os.environ.setdefault("MPLBACKEND", "module://matplotlib_inline.backend_inline")

project = "gpucal"
author = "the gpucal developers"
version = release = __version__

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.intersphinx",
    "numpydoc",
    "reference_pages",
]
exclude_patterns = ["_ext", "_inventories", "_templates"]
templates_path = ["_templates"]
nitpicky = True
# The default role, `autolink`, has imported a name before it asks for its page; not all modules have one.
nitpick_ignore_regex = [("py:obj", ".*")]

default_role = "autolink"
autodoc_typehints = "none"
autosummary_generate = True
numpydoc_show_class_members = False
numpydoc_class_members_toctree = False

myst_enable_extensions = ["colon_fence", "deflist", "fieldlist"]
myst_heading_anchors = 3
nb_execution_mode = "force"
nb_execution_timeout = 300
nb_execution_in_temp = True
nb_execution_raise_on_error = True
# What a command prints comes in pieces of 100 characters, each of which would be an output of its own.
direct.single_nb_execution = partial(direct.single_nb_execution, coalesce_streams=True)

# Committed, as the build needs no network; _inventories/write.py says what is in them.
intersphinx_mapping = {
    "python": ("https://docs.python.org/3", "_inventories/python.inv"),
    "numpy": ("https://numpy.org/doc/stable", "_inventories/numpy.inv"),
    "pandas": ("https://pandas.pydata.org/docs", "_inventories/pandas.inv"),
    "astropy": ("https://docs.astropy.org/en/stable", "_inventories/astropy.inv"),
    "xarray": ("https://docs.xarray.dev/en/stable", "_inventories/xarray.inv"),
    "matplotlib": ("https://matplotlib.org/stable", "_inventories/matplotlib.inv"),
    "distributed": ("https://distributed.dask.org/en/stable", "_inventories/distributed.inv"),
}

html_theme = "pydata_sphinx_theme"
html_title = f"gpucal {version}"
html_show_sourcelink = False
html_theme_options = {
    "show_toc_level": 2,
    "navigation_with_keys": False,
    "secondary_sidebar_items": ["page-toc"],
}
