"""The competition's submission: a row for each planet, its spectrum and the errors, checked against the sample."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from gpucal.errors import ConfigError, InputError
from gpucal.hints import did_you_mean, near_planets
from gpucal.results.atomic import write_atomically
from gpucal.settings.arguments import path_of
from gpucal.settings.ids import as_id, ids_in, why_no_id

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["submission"]

_ID = "planet_id"
_VALUE = re.compile(r"(wl|sigma)_([1-9]\d{0,3})", re.ASCII)

# Planets that a message names, at most.
_NAMED = 3

_SAMPLE = "give the competition's sample_submission.csv"


def submission(
    ids: Iterable[object],
    mean: ArrayLike,
    sigma: ArrayLike,
    sample: str | Path | pd.DataFrame,
    to: str | Path | None = "submission.csv",
) -> pd.DataFrame:
    """Check a submission against the competition's sample, and write it.

    Parameters
    ----------
    ids : iterable of int
        Planet ids, in the order of the rows of ``mean``: a row for each planet of the sample, in any order.
    mean : array_like of float, shape (planet, wavelength)
        The spectra, (Rp/Rs)². Column k is ``wl_{k+1}``; FGS1 is the first, as in gpucal's light curves.
    sigma : array_like of float, shape (planet, wavelength) or ()
        The standard deviations, or one for all.
    sample : str, Path or DataFrame
        ``sample_submission.csv``, which says what rows and columns there must be.
    to : str or Path, optional
        The file to write; None writes none.

    Returns
    -------
    DataFrame
        Rows and columns in the sample's order: ``planet_id``, ``wl_1`` to ``wl_283``, ``sigma_1`` to ``sigma_283``.

    Raises
    ------
    ConfigError
        If planets are missing, unknown or given twice, shapes do not fit, a value is not finite, a mean is negative
        (the competition refuses it), or a sigma is not above 0.
    InputError
        If the sample cannot be read, or is none.
    OutputError
        If the file cannot be written.

    Examples
    --------
    >>> import pandas as pd
    >>> sample = pd.DataFrame({"planet_id": [7, 8], "wl_1": 0.4, "wl_2": 0.4, "sigma_1": 1.0, "sigma_2": 1.0})
    >>> mean = [[0.012, 0.013], [0.021, 0.022]]
    >>> gpucal.submission([8, 7], mean, 1e-4, sample, to=None)
       planet_id   wl_1   wl_2  sigma_1  sigma_2
    0          7  0.021  0.022   0.0001   0.0001
    1          8  0.012  0.013   0.0001   0.0001
    """
    import pandas as pd

    names, planets, where = _read(sample)
    columns = _columns(names, where)
    wanted = _sample_ids(planets, where)
    given = [_planet(one) for one in ids_in(ids)]
    _check_planets(given, wanted)
    n_wavelengths = sum(kind == "wl" for kind, _ in columns)
    shape = (len(given), n_wavelengths)
    means, sigmas = _array("mean", mean, shape), _array("sigma", sigma, shape)
    _check_values("mean", means, means >= 0.0, given, "0 or above")
    _check_values("sigma", sigmas, sigmas > 0.0, given, "above 0")
    row_of = {planet: row for row, planet in enumerate(given)}
    rows = [row_of[planet] for planet in wanted]
    values = {"wl": means[rows], "sigma": sigmas[rows]}
    made = pd.DataFrame(
        {_ID: np.array(wanted, np.int64)}
        | {f"{kind}_{number}": values[kind][:, number - 1] for kind, number in columns}
    )
    if to is not None:
        write_atomically(path_of("to", to), lambda temporary: made.to_csv(temporary, index=False))
    return made


def _read(sample: str | Path | pd.DataFrame) -> tuple[list[str], list[Any], Path | None]:
    """Return the sample's columns, its ids, and its path."""
    import pandas as pd

    if not isinstance(sample, (str, Path, pd.DataFrame)):
        raise ConfigError(f"sample: is a {type(sample).__name__}, must be a path or a DataFrame; {_SAMPLE}")
    if isinstance(sample, pd.DataFrame):
        table, path = sample, None
    else:
        path = Path(sample)
        try:
            table = pd.read_csv(path, dtype={_ID: str})
        except OSError as error:
            raise InputError(f"sample cannot be read ({error.strerror or error})", _SAMPLE, path) from error
        except ValueError as error:  # pandas' own errors and Unicode errors are ValueErrors
            raise InputError("sample is not a CSV table", _SAMPLE, path) from error
    names = [str(name) for name in table.columns]
    if table.index.name == _ID:
        return [_ID, *names], table.index.tolist(), path
    if names[:1] != [_ID]:
        raise InputError(f"sample begins with the column {names[0] if names else None}, not {_ID}", _SAMPLE, path)
    return names, table.iloc[:, 0].tolist(), path


def _columns(names: Sequence[str], where: Path | None) -> list[tuple[str, int]]:
    """Return kind and number of the sample's columns behind the id, in its order."""
    found = [(name, _VALUE.fullmatch(name)) for name in names[1:]]
    if others := [name for name, match in found if match is None]:
        raise InputError(f"sample has a column {others[0]}, neither wl_1, ... nor sigma_1, ...", _SAMPLE, where)
    columns = [(match[1], int(match[2])) for _, match in found if match]
    numbers = {kind: sorted(number for of, number in columns if of == kind) for kind in ("wl", "sigma")}
    n, n_sigma = map(len, numbers.values())
    if not n or any(of != [*range(1, n + 1)] for of in numbers.values()):
        problem = f"sample has {n} wl columns and {n_sigma} sigma columns, not numbered alike from 1"
        raise InputError(problem, _SAMPLE, where)
    return columns


def _sample_ids(values: Sequence[object], where: Path | None) -> list[int]:
    found = [(value, as_id(value)) for value in values]
    if wrong := [value for value, planet in found if planet is None]:
        raise InputError(f"sample has a {_ID} {wrong[0]!r}, not an integer", _SAMPLE, where)
    planets = [planet for _, planet in found if planet is not None]
    if not planets:
        raise InputError("sample has no rows", _SAMPLE, where)
    if twice := _twice(planets):
        raise InputError(f"sample has planet {twice[0]} twice", _SAMPLE, where)
    return planets


def _planet(value: object) -> int:
    planet = as_id(value)
    if planet is None:
        hint = "give planets alone: a submission has one row for all visits" if isinstance(value, tuple) else ""
        raise ConfigError(f"ids: {value!r} is not a planet id{why_no_id(value)}{hint and f'; {hint}'}")
    return planet


def _check_planets(given: Sequence[int], wanted: Sequence[int]) -> None:
    if twice := _twice(given):
        raise ConfigError(f"ids: planet {twice[0]} is there twice; give one row for a planet, all its visits together")
    if unknown := sorted(set(given) - set(wanted)):
        hint = did_you_mean(
            near_planets(unknown[0], set(wanted) - set(given)), f"leave {'it' if len(unknown) == 1 else 'them'} out"
        )
        raise ConfigError(f"ids: {_named(unknown)} not in the sample{hint}")
    if lacking := sorted(set(wanted) - set(given)):
        raise ConfigError(f"ids: {_named(lacking)} in the sample, but missing here; give a row for each")


def _named(planets: Sequence[int]) -> str:
    names = ", ".join(map(str, planets[:_NAMED]))
    if len(planets) == 1:
        return f"planet {names} is"
    return f"{len(planets)} planets ({names}{', ...' if len(planets) > _NAMED else ''}) are"


def _twice(planets: Sequence[int]) -> list[int]:
    return [planet for planet, count in Counter(planets).items() if count > 1]


def _array(name: str, values: ArrayLike, shape: tuple[int, int]) -> NDArray[np.float64]:
    """Return values as an array of this shape; only a sigma may be a single number."""
    try:
        array = np.asarray(values, np.float64)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{name}: is not an array of numbers; give one of shape {shape}") from error
    if array.shape == () and name == "sigma":
        return np.full(shape, array)
    if array.shape != shape:
        what = f"{shape[0]} planets and {shape[1]} wavelengths"
        raise ConfigError(f"{name}: has shape {array.shape}, expected {shape}, for {what} of the sample")
    return array


def _check_values(
    name: str, values: NDArray[np.float64], fits: NDArray[np.bool_], planets: Sequence[int], must_be: str
) -> None:
    wrong = np.argwhere(~(fits & np.isfinite(values)))
    if len(wrong):
        row, column = wrong[0]
        first = f"{values[row, column]:g} for planet {planets[row]}, wavelength {column + 1}"
        raise ConfigError(
            f"{name}: {len(wrong)} of {values.size} values, such as {first}, must be finite and {must_be}"
        )
