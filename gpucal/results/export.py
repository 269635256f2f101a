"""Exports a results folder's cubes or light curves in another format.

Each observation is written under temporary names, which are renamed when all of them are complete.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from pkgutil import resolve_name

from gpucal.errors import ConfigError, OutputError
from gpucal.inputs.dataset import SPLITS
from gpucal.pipeline.fits import to_hdus
from gpucal.results.atomic import placing
from gpucal.results.formats import FORMATS
from gpucal.results.origin import is_inside
from gpucal.results.reader import Results, complete
from gpucal.results.stacks import Show, counted
from gpucal.settings.arguments import path_of, require_kind
from gpucal.settings.detectors import DETECTORS

__all__ = ["FORMATS", "export", "write_fits"]


def export(
    results: Results,
    to: str | Path,
    format: str,
    product: str = "cubes",
    show: Show = lambda ended, total: None,
) -> list[Path]:
    """Write every complete observation in another format.

    Stacks (npy, zarr) have one set of axes, those of the first observation, so all observations must share them.

    Cubes:

    ``npy``: for each detector ``signal.npy``, ``variance.npy`` where it is stored (observation, time, wavelength,
    spatial), ``read_variance.npy``, the part of it that is read noise, ``dq.npy`` (observation, wavelength, spatial),
    ``time.npy``, ``time_bounds.npy`` and ``wavelength.npy``. The detector's name and a dot stand before each name. A
    JSON file has ids, units and provenance.

    ``zarr``: a Zarr v3 store with a group per detector and the arrays above, with named dimensions and a chunk per
    observation; ``planet`` and ``visit`` (observation), ``column`` and ``row`` of the detector, names, units, flag
    meanings and provenance, as CF has them. The store also has consolidated metadata.

    ``fits``: a file per item, named by planet, visit and detector; see `gpucal.pipeline.fits.to_hdus`.

    Light curves, as a run stored them, or from the cubes of 0.1; see `gpucal.results.curve_files`:

    ``fits``, ``ecsv``: a file per observation. ``csv``: a table of all, and one that describes its columns.
    ``npy``: stacks of all. ``parquet``: a table of all, for pandas or for
    `gpucal.results.light_curve_table.read_light_curves`.

    Parameters
    ----------
    results : Results
        The results folder.
    to : str or Path
        The folder to write into; files of the same names are replaced. For zarr the store, which must not exist.
    format : {'npy', 'zarr', 'fits', 'parquet', 'ecsv', 'csv'}
        The format.
    product : {'cubes', 'light-curves'}
        What to write.
    show : callable
        Called with the number of items that were read, and of all.

    Returns
    -------
    list of Path
        The files, or the store.

    Raises
    ------
    ConfigError
        If the product is unknown, or has no such format.
    OutputError
        If nothing is complete, the folder holds light curves and no cubes, stacked observations differ in shape or
        axes, the store exists, the target is in the data set, or something cannot be read or written.
    MissingExtra
        If zarr is not installed.
    """
    require_kind("results", results, Results, "gpucal.open_results('calibrated')")
    to = path_of("to", to)
    if not isinstance(product, str) or product not in FORMATS:
        raise ConfigError(f"product = {product!r}: must be one of {', '.join(FORMATS)}")
    if not isinstance(format, str) or format not in FORMATS[product]:
        known = [*FORMATS.items()] if isinstance(format, str) else []
        others = " and ".join(other for other, formats in known if format in formats)
        hint = f"; {others} can be {format} (--product {others})" if others else ""
        raise ConfigError(f"format = {format!r}: must be one of {', '.join(FORMATS[product])}{hint}")
    for item in [(key, detector) for key in complete(results) for detector in DETECTORS]:
        if product == "cubes" and "signal" not in results._record(*item)["files"]:
            mend = "calibrate with --product cubes, or export with --product light-curves"
            raise OutputError(f"{results.path}: holds light curves and no cubes; {mend}")
    for home in {record.get("dataset") for record in results._records.values()}:
        if home and is_inside(to, [Path(home, part) for part in ("", *SPLITS)]):
            raise OutputError(f"{to}: is in the data set {home}; choose another folder")
    write: Callable[[Results, Path, Show], list[Path]] = resolve_name(FORMATS[product][format])
    return write(results, to, show)


def write_fits(results: Results, to: Path, show: Show) -> list[Path]:
    """Write a FITS file for each item; see `export`."""
    written = []
    with placing(to) as stage:
        to.mkdir(parents=True, exist_ok=True)
        for key in counted(results, show):
            for detector in DETECTORS:
                cal = results.calibrated(key, detector)
                written.append(to / f"{cal.planet}-{cal.visit}-{detector}.fits")
                to_hdus(cal).writeto(stage(written[-1]), checksum=True)
    return written
