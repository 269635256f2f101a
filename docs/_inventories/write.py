"""Write the inventories of other projects' documentation that this site links to.

An inventory lists the names that a site documents, and their addresses; Sphinx would fetch it. The site is built
without a network, so these are committed. They are written by hand, and hold only the names that gpucal's documentation
uses. After adding one to NAMES, run `python docs/_inventories/write.py`.
"""

import zlib
from pathlib import Path

# Project: the address of a name's page, with {} for the name, and names by role of the Python domain.
NAMES = {
    "python": {
        "library/functions.html#{}": {"class": ["bool", "float", "int", "object", "type"]},
        "library/stdtypes.html#{}": {"class": ["bytes", "dict", "list", "str", "tuple"]},
        "library/pathlib.html#{}": {"class": ["pathlib.Path"]},
        "library/enum.html#{}": {"class": ["enum.IntFlag"]},
        "library/exceptions.html#{}": {
            "exception": [
                *["Exception", "ImportError", "KeyError", "KeyboardInterrupt", "LookupError", "MemoryError", "OSError"],
                *["RuntimeError", "UserWarning", "ValueError"],
            ]
        },
    },
    "numpy": {"reference/generated/{}.html#{}": {"class": ["numpy.ndarray"], "function": ["numpy.load"]}},
    "pandas": {"reference/api/{}.html#{}": {"class": ["pandas.DataFrame"]}},
    "astropy": {"api/{}.html#{}": {"class": ["astropy.nddata.NDData", "astropy.nddata.CCDData", "astropy.wcs.WCS"]}},
    "xarray": {"generated/{}.html#{}": {"class": ["xarray.Dataset"], "function": ["xarray.open_zarr"]}},
    "matplotlib": {
        "api/figure_api.html#{}": {"class": ["matplotlib.figure.Figure"]},
        "api/_as_gen/{}.html#{}": {"class": ["matplotlib.axes.Axes"]},
    },
    "distributed": {"api.html#{}": {"class": ["distributed.Client"]}},
}

HEAD = (
    "# Sphinx inventory version 2\n# Project: {}\n# Version: \n# The remainder of this file is compressed using zlib.\n"
)


def main() -> None:
    """Write an inventory for each project, in the format of Sphinx."""
    for project, pages in NAMES.items():
        rows = [
            f"{name} py:{role} 1 {address.format(*[name] * address.count('{}'))} -\n"
            for address, roles in pages.items()
            for role, names in roles.items()
            for name in names
        ]
        packed = zlib.compress("".join(sorted(rows)).encode(), 9)
        Path(__file__).with_name(f"{project}.inv").write_bytes(HEAD.format(project).encode() + packed)


if __name__ == "__main__":
    main()
