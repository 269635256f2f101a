"""Lays out a product as a FITS file that an archive would take: comments, coordinates, settings, meanings of flags."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from gpucal._version import __version__
from gpucal.pipeline.product import Product, deviation, has_variance, on_host
from gpucal.pipeline.provenance import card_of
from gpucal.science.plan import DQ, DQ_DESCRIPTIONS

if TYPE_CHECKING:
    from astropy.io import fits

__all__ = ["Card", "explained", "history_lines", "made_cards", "observed_cards", "setting_cards", "table", "to_hdus"]

Card: TypeAlias = "tuple[str, object, str]"
"""Keyword, value and comment. Keywords have eight characters, or begin with ``HIERARCH``."""

# What each step does. A step that is not listed is described by its name.
_STEPS: Mapping[str, str] = MappingProxyType(
    {
        "adc": "raw counts to electrons",
        "mask": "dead and hot pixels flagged",
        "linearity": "linearity polynomial applied",
        "dark": "dark current subtracted",
        "cds": "start read subtracted from end read",
        "reject": "pairs hit by cosmic rays left out",
        "bin": "pairs of reads put into time bins",
        "flat": "divided by the flat field",
        "interpolate": "bad pixels made of their neighbours",
    }
)

# Each constant of the provenance: its card.
_CONSTANTS: Mapping[str, tuple[str, str]] = MappingProxyType(
    {
        "adc_gain": ("ADC_GAIN", "[ct/electron] gain of the ADC"),
        "adc_offset": ("ADC_OFFS", "[electron] offset of the ADC"),
        "pairs_per_bin": ("PAIRBIN", "pairs of reads in a time bin"),
        "integration_s": ("DARKTIME", "[s] dark current is subtracted for, a bin"),
    }
)

# Each input of the provenance: its card.
_INPUTS: Mapping[str, tuple[str, str]] = MappingProxyType(
    {
        "signal": ("SIGFILE", "raw reads"),
        "calibration": ("CALFILE", "calibration frames"),
        "adc": ("ADCFILE", "gains and offsets"),
        "axes": ("AXISFILE", "times and wavelengths"),
    }
)

# Cards that astropy writes without a comment.
_STRUCTURE: Mapping[str, str] = MappingProxyType(
    {
        "NAXIS": "length of axis {}",
        "TTYPE": "name of column {}",
        "TFORM": "format of column {}",
        "TUNIT": "unit of column {}",
        "TDIM": "shape of a cell of column {}",
    }
)

_LOOKUP = "WCS-TABLE"


def to_hdus(cal: Product) -> fits.HDUList:
    """Lay out a product as a FITS file.

    Parameters
    ----------
    cal : Calibrated
        The product, on the host.

    Returns
    -------
    HDUList
        The primary header says what was observed, how it was calibrated, and from which files. Cards S_ADC, S_MASK, ...
        say of each step whether it is COMPLETE or SKIPPED. Each setting is a card ``HIERARCH GPUCAL ...``.

        The images are SCI, electrons, and, where there is a variance, ERR, its square root. VAR_POISSON and VAR_RNOISE
        are its two parts, electron2: photon noise, a cube, and read noise, (wavelength, spatial), as it is the same in
        every bin. DQ holds flags; the table DQ_DEF explains them. Axes are in FITS's reversed order.

        The tables are TIME (h: middle, begin and end of each bin), WAVELENGTH (µm, and detector column; not for FGS1),
        WCS-TABLE, which the images' coordinates refer to, and PROVENANCE, one cell of JSON.

        ``WCS(hdus["SCI"].header, hdus)`` has detector row, wavelength and time. Times count from the start of the
        observation, so their scale is LOCAL.
        ``CCDData.read(path, hdu_uncertainty="ERR")`` reads signal and errors.

    Raises
    ------
    ConfigError
        If the signal was left on a device.
    """
    from astropy.io import fits

    signal, history = on_host(cal), cal.provenance
    images: list[tuple[str, NDArray[Any], Sequence[Card]]]
    images = [("SCI", signal, [("BUNIT", "electron", "unit of the signal")])]
    if has_variance(cal):
        # CCDData.read looks for the kind of its uncertainty under UTYPE.
        kind = ("UTYPE", "StdDevUncertainty", "kind of uncertainty")
        images.append(("ERR", deviation(cal), [("BUNIT", "electron", "unit of the errors"), kind]))
        images += [
            (name, values, [("BUNIT", "electron2", "unit of the variance"), ("NOISE", of, "source of this variance")])
            for name, of, values in _variances(cal)
        ]
    bits: list[Card] = [
        (f"DQBIT{bit}", str(flag.name), f"meaning of the bit {flag.value}") for bit, flag in enumerate(DQ)
    ]
    images.append(("DQ", cal.dq, bits))

    primary = fits.PrimaryHDU()
    primary.header["EXTEND"] = True, "extensions may follow"
    primary.header.extend(observed_cards(cal.planet, cal.visit, cal.detector.name))
    primary.header["DETECTOR"] = cal.detector.name, "detector, as the competition names it"
    primary.header.extend(_exposure_cards(cal))
    primary.header.extend(made_cards(history))
    primary.header.extend(setting_cards(history["settings"]))
    for line in history_lines(history):
        primary.header.add_history(line)

    hdus: list[fits.PrimaryHDU | fits.ImageHDU | fits.BinTableHDU] = [primary]
    for name, values, cards in images:
        image = fits.ImageHDU(values, name=name)
        image.header.extend(cards)
        image.header.extend(_coordinates(cal, values.ndim))
        hdus.append(image)
    return fits.HDUList([explained(hdu) for hdu in (*hdus, *_tables(cal))])


def table(name: str, columns: Mapping[str, tuple[str, object, str | None]]) -> fits.BinTableHDU:
    """Make a table from the form, values and unit of each column."""
    from astropy.io import fits

    made = [fits.Column(column, form, unit, array=values) for column, (form, values, unit) in columns.items()]
    return fits.BinTableHDU.from_columns(made, name=name)


def explained(hdu: fits.PrimaryHDU) -> fits.PrimaryHDU:
    """Give a comment to each card that astropy wrote without one; returns the same HDU."""
    for card in hdu.header.cards:
        named = re.fullmatch(r"([A-Z]+)(\d+)", card.keyword)
        if not card.comment and named and named[1] in _STRUCTURE:
            card.comment = _STRUCTURE[named[1]].format(named[2])
    return hdu


def observed_cards(planet: int, visit: int, instrument: str) -> list[Card]:
    """Return the cards that say what was observed, and when the file was written."""
    return [
        ("CREATOR", f"gpucal {__version__}", "program that wrote this file"),
        ("DATE", _date(datetime.now(UTC).isoformat(timespec="seconds")), "[UTC] when this file was written"),
        ("TELESCOP", "Ariel", "telescope, simulated for the Data Challenge"),
        ("INSTRUME", instrument, "instrument"),
        ("OBJECT", f"planet {planet}", "observed planet"),
        ("PLANET", planet, "planet id of the competition"),
        ("VISIT", visit, "number of the planet's observation, from 0"),
    ]


def made_cards(history: Mapping[str, Any]) -> list[Card]:
    """Return the cards that say how an item was calibrated, and from what; ``history`` is its provenance."""
    constants = [
        (card, history["constants"][name], comment)
        for name, (card, comment) in _CONSTANTS.items()
        if name in history.get("constants", {})
    ]
    inputs = [
        (card, history["files"][name], comment)
        for name, (card, comment) in _INPUTS.items()
        if name in history.get("files", {})
    ]
    steps = [(card_of(step), done, f"step: {_STEPS.get(step, step)}") for step, done in history["steps"].items()]
    return [
        ("CAL_VER", f"gpucal {history['version']}", "program that calibrated"),
        ("CAL_DATE", _date(history["created"]), "[UTC] when it was calibrated"),
        ("BACKEND", history["backend"], "backend that computed"),
        # A hash leaves no room for a comment.
        ("COMMENT", "SETHASH is the SHA-256 of the settings, INHASH that of the inputs.", ""),
        ("SETHASH", history["settings_hash"], ""),
        ("INHASH", history["inputs"], ""),
        *inputs,
        *constants,
        *steps,
    ]


def setting_cards(settings: Mapping[str, Any]) -> list[Card]:
    """Return a card for each setting; a card for each detector, or each window of rows, where it has several values."""

    def of(words: Sequence[str], value: object, comment: str) -> Iterator[Card]:
        if isinstance(value, Mapping):
            for detector, own in value.items():
                yield from of([*words, detector.upper()], own, comment)
        elif isinstance(value, (list, tuple)) and len(value) == 2 and all(isinstance(end, int) for end in value):
            yield " ".join(words), f"{value[0]}:{value[1]}", f"{comment}: first, stop"
        elif isinstance(value, (list, tuple)):
            if not value:
                yield " ".join(words), "none", comment
            for number, window in enumerate(value, 1):
                yield from of([*words, str(number)], window, comment)
        else:
            yield " ".join(words), "none" if value is None else value, comment

    return [
        card for name, value in settings.items() for card in of(["HIERARCH", "GPUCAL", name.upper()], value, "setting")
    ]


def history_lines(history: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Return the HISTORY of an item, a line a step, in their order."""
    first = f"{prefix}gpucal {history['version']} on {_date(history['created'])} UTC"
    return [first, *(f"{prefix}{step} {done}: {_STEPS.get(step, step)}" for step, done in history["steps"].items())]


def _variances(cal: Product) -> Iterator[tuple[str, str, NDArray[Any]]]:
    """Return name, source and values of the two parts of the variance; nothing in folders that do not hold them."""
    if (read := cal.read_variance) is not None:
        with np.errstate(invalid="ignore"):  # pixels without a usable flat
            # Rounding to float32 can put the sum just below one of its parts.
            photons = np.maximum(cal.variance - read, 0.0).astype(cal.variance.dtype)
        yield "VAR_POISSON", "photons", photons
        yield "VAR_RNOISE", "read noise", read


def _exposure_cards(cal: Product) -> list[Card]:
    cards: list[Card] = [("NBINS", len(cal.time), "time bins")]
    if pairs := cal.provenance.get("constants", {}).get("pairs_per_bin"):
        start_s, end_s = cal.detector.true_integration_s
        bin_s = round(pairs * (end_s - start_s), 6)
        cards.append(("XPOSURE", bin_s, "[s] exposure of a bin, between its reads"))
        cards.append(("EXPTIME", round(len(cal.time) * bin_s, 6), "[s] exposure of all bins"))
    return cards


def _time_cards(cal: Product) -> list[Card]:
    cards: list[Card] = [
        ("TIMESYS", "LOCAL", "times count from the start of the observation"),
        ("TIMEUNIT", "s", "unit of times in this header"),
        ("MJDREF", 0.0, "times are relative to no date"),
    ]
    if cal.time_bounds is not None:
        first, last = (round(float(hours) * 3600.0, 6) for hours in (cal.time_bounds[0, 0], cal.time_bounds[-1, 1]))
        cards += [
            ("TSTART", first, "[s] time of the first read"),
            ("TSTOP", last, "[s] time of the last read"),
            ("TELAPSE", round(last - first, 6), "[s] from the first read to the last"),
        ]
    return cards


def _coordinates(cal: Product, ndim: int) -> list[Card]:
    """Return the world coordinates of an image (time, wavelength, spatial), or of the last two axes alone."""
    axes: list[Iterator[Card]] = [_linear(1, "ROW", "detector row, from 0", 0)]
    if cal.wavelength is None:
        axes.append(_linear(2, "COLUMN", "detector column, from 0", cal.detector.crop[0]))
    else:
        axes.append(_looked_up(2, "WAVE-TAB", "WAVELENGTH", "um", "wavelength"))
    if ndim == 3:
        axes.append(_looked_up(3, "TIME-TAB", "TIME", "s", "middle of a time bin"))
    return [
        ("WCSAXES", len(axes), "number of coordinate axes"),
        *(card for axis in axes for card in axis),
        *(_time_cards(cal) if ndim == 3 else ()),
    ]


def _linear(axis: int, kind: str, what: str, first: int) -> Iterator[Card]:
    yield f"CTYPE{axis}", kind, what
    yield f"CNAME{axis}", kind.lower(), "name of the axis"
    yield f"CUNIT{axis}", "pixel", "unit of the axis"
    yield f"CRPIX{axis}", 1.0, "pixel of the reference value"
    yield f"CRVAL{axis}", float(first), "value at that pixel"
    yield f"CDELT{axis}", 1.0, "step a pixel"


def _looked_up(axis: int, kind: str, column: str, unit: str, what: str) -> Iterator[Card]:
    """Refer to a column of the look-up table: its n-th value is that of the n-th pixel."""
    yield f"CTYPE{axis}", kind, f"{what}, from a table"
    yield f"CNAME{axis}", column.lower(), "name of the axis"
    yield f"CUNIT{axis}", unit, "unit of the axis"
    yield f"CRPIX{axis}", 1.0, "pixel of the reference value"
    yield f"CRVAL{axis}", 1.0, "index in the table at that pixel"
    yield f"CDELT{axis}", 1.0, "step in the table a pixel"
    yield f"PS{axis}_0", _LOOKUP, "table with the coordinates"
    yield f"PS{axis}_1", column, "its column"
    yield f"PV{axis}_1", 1, "version of the table"
    yield f"PV{axis}_2", 1, "level of the table"
    yield f"PV{axis}_3", 1, "axis in the table"


def _tables(cal: Product) -> Iterator[fits.BinTableHDU]:
    from astropy.io import fits

    flags = list(DQ)
    names = [str(flag.name) for flag in flags]
    meanings = [DQ_DESCRIPTIONS[flag] for flag in flags]
    yield table(
        "DQ_DEF",
        {
            "BIT": ("I", np.arange(len(flags)), None),
            "VALUE": ("J", np.array(flags, int), None),
            "NAME": (f"{max(map(len, names))}A", names, None),
            "DESCRIPTION": (f"{max(map(len, meanings))}A", meanings, None),
        },
    )
    times = {"TIME": ("D", cal.time, "h")}
    if cal.time_bounds is not None:
        times |= {"BEGIN": ("D", cal.time_bounds[:, 0], "h"), "END": ("D", cal.time_bounds[:, 1], "h")}
    yield table("TIME", times)
    # In seconds, as astropy takes every time in a look-up table for seconds.
    looked_up = [("TIME", cal.time * 3600.0, "s")]
    if cal.wavelength is not None:
        columns = np.arange(*cal.detector.crop)
        yield table("WAVELENGTH", {"COLUMN": ("J", columns, None), "WAVELENGTH": ("D", cal.wavelength, "um")})
        looked_up.append(("WAVELENGTH", cal.wavelength, "um"))
    yield fits.BinTableHDU.from_columns(
        [
            fits.Column(name, f"{len(values)}D", unit, dim=f"(1,{len(values)})", array=values.reshape(1, -1, 1))
            for name, values, unit in looked_up
        ],
        name=_LOOKUP,
    )
    text = json.dumps(dict(cal.provenance))
    yield table("PROVENANCE", {"PROVENANCE": (f"{len(text)}A", [text], None)})


def _date(moment: str) -> str:
    """Write a UTC time without its zone, as FITS does."""
    return moment.removesuffix("+00:00")
