"""The backends: which of them can run here, and why the others cannot.

A backend is a module ``NAME_`` with ``connect() -> Backend``, which raises `BackendUnavailable` with the reason and the
mend. It has the formula over one pixel block, from raw counts and, where it can, from the pages of a file.
"""

from __future__ import annotations

import importlib
import logging
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from gpucal.errors import BackendUnavailable, BrokenBackend, ConfigError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from gpucal.inputs.signal_file import Loaded
    from gpucal.science.cosmic_rays import Search
    from gpucal.science.plan import Plan
    from gpucal.science.steps import Array

__all__ = ["PREFERENCE", "Backend", "BinCounts", "BinPages", "Destination", "Pages", "choose", "load"]

log = logging.getLogger(__name__)

# Every backend, fastest first: the order in which "auto" looks. The command line reads this: it imports no NumPy.
PREFERENCE = (
    "cupy",
    "numba",
    "numpy",
)


@dataclass(frozen=True)
class Pages:
    """How many pages were decoded in which way.

    Parameters
    ----------
    own : int
        Wholly by gpucal.
    codec : int
        Decompressed by pyarrow's codec, and decoded by gpucal.
    arrow : int
        Wholly by pyarrow.
    seconds : float
        Time that decompressing took.
    """

    own: int = 0
    codec: int = 0
    arrow: int = 0
    seconds: float = 0.0

    def __add__(self, more: Pages) -> Pages:
        seconds = self.seconds + more.seconds
        return Pages(self.own + more.own, self.codec + more.codec, self.arrow + more.arrow, seconds)

    @property
    def ways(self) -> dict[str, int]:
        """Pages by the way they went."""
        return {"own": self.own, "codec": self.codec, "arrow": self.arrow}

    def __str__(self) -> str:
        total = max(1, self.own + self.codec + self.arrow)
        own, codec, arrow = (f"{part / total:.1%}" for part in (self.own, self.codec, self.arrow))
        return f"{own} decoded by gpucal, {codec} decompressed by pyarrow's codec, {arrow} decoded by pyarrow"


class BinCounts(Protocol):
    """The formula over one pixel block; see `gpucal.backends.numpy_.bin_counts`."""

    def __call__(
        self, plan: Plan, pixels: slice, counts: NDArray[np.uint16], out: NDArray[np.float64], /
    ) -> NDArray[np.bool_]:
        """Fill ``out``; return which pixels are saturated."""


class BinPages(Protocol):
    """The same from the pages of a file, whose counts are never in memory; see `gpucal.backends.pagewise.decode`."""

    def __call__(
        self, plan: Plan, pixels: slice, loaded: Loaded, out: NDArray[np.float64], /
    ) -> tuple[NDArray[np.bool_], Pages]:
        """Fill ``out``; return which pixels are saturated, and how the pages were decoded."""


class CountPages(Protocol):
    """The raw counts of one pixel block, from the pages of a file; see `gpucal.backends.pagewise.decode`."""

    def __call__(self, pixels: slice, loaded: Loaded, /) -> tuple[NDArray[np.uint16], Pages]:
        """Return counts (pixel, frame), and how the pages were decoded."""


@dataclass(frozen=True)
class Destination:
    """The place of results, and the way a block gets there.

    Parameters
    ----------
    allocate : callable
        Makes an array (pixel, bin), of a shape and dtype.
    place_counts, place_pages : callable
        A backend's ``bin_counts`` and ``bin_pages``, but for what they fill: pixels of such an array.
    arranged : callable
        Makes a result (time, wavelength, spatial) from such an array that is full, and the rows and columns there are.
    change : callable
        Calls a function on a result, in the memory where that is.
    page_block : int, optional
        See `Backend`.
    memory : callable
        Makes memory for so many bytes of a file.
    """

    allocate: Callable[[tuple[int, ...], np.dtype[Any]], Array]
    place_counts: Callable[[Plan, slice, NDArray[np.uint16], Array], NDArray[np.bool_]]
    place_pages: Callable[[Plan, slice, Loaded, Array], tuple[NDArray[np.bool_], Pages]] | None
    arranged: Callable[[Array, tuple[int, int]], Array]
    change: Callable[[Array, Callable[[Array], None]], None]
    page_block: int | None
    memory: Callable[[int], NDArray[np.uint8]]


@dataclass(frozen=True)
class Backend:
    """A backend that can run here.

    Parameters
    ----------
    name : str
        One of `PREFERENCE`.
    runs_on : str
        Library or device, and version.
    bin_counts : callable
        The formula over one pixel block, from raw counts.
    bin_pages : callable, optional
        The formula over one pixel block, from pages; None for a backend that needs counts.
    on_device : callable, optional
        Makes the `Destination` that keeps results on its device; None for a backend without a device.
    page_block : int, optional
        Bytes of the pages, decompressed, that a block should have; None for as many as stay in a core's cache.
    memory : callable, optional
        Makes memory for so many bytes of a file, of a kind that the backend likes; None for the usual one.
    count_pages : callable, optional
        Decodes pages to counts, for what needs them; None for a backend that leaves that to pyarrow.
    search : Search, optional
        A faster search for cosmic rays than that on NumPy, with the same result.
    """

    name: str
    runs_on: str
    bin_counts: BinCounts
    bin_pages: BinPages | None = None
    on_device: Callable[[], Destination] | None = None
    page_block: int | None = None
    memory: Callable[[int], NDArray[np.uint8]] | None = None
    count_pages: CountPages | None = None
    search: Search | None = None

    def destination(self, device: bool) -> Destination:
        """Return the place for results: the backend's device, or the host's memory.

        `BackendUnavailable` is raised if a device is asked for and the backend has none.
        """
        import numpy as np

        if not device:
            pages = None if self.bin_pages is None else _rounded(self.bin_pages)
            memory = self.memory or _memory
            return Destination(np.empty, _rounded(self.bin_counts), pages, _arranged, _change, self.page_block, memory)
        if self.on_device is None:
            raise BackendUnavailable(
                f"device=True: backend {self.name!r} leaves no result on a device; use device=False"
            )
        return self.on_device()


def _memory(size: int) -> NDArray[np.uint8]:
    import numpy as np

    return np.empty(size, np.uint8)


def _change(signal: NDArray[Any], how: Callable[[NDArray[Any]], None]) -> None:
    how(signal)


Source = TypeVar("Source")
Result = TypeVar("Result")


def _rounded(
    bin_block: Callable[[Plan, slice, Source, NDArray[np.float64]], Result],
) -> Callable[[Plan, slice, Source, NDArray[Any]], Result]:
    """Have a backend's function fill an array of any type, instead of float64."""
    import numpy as np

    def bin_into(plan: Plan, pixels: slice, source: Source, out: NDArray[Any]) -> Result:
        if out.dtype == np.float64:
            return bin_block(plan, pixels, source, out)
        binned = np.empty(out.shape)
        result = bin_block(plan, pixels, source, binned)
        with np.errstate(over="ignore", invalid="ignore"):  # float64 outliers beyond float32's range
            out[...] = binned
        return result

    return bin_into


def _arranged(binned: NDArray[Any], shape: tuple[int, int]) -> NDArray[Any]:
    import numpy as np

    # At once: block by block, each value is a cache line of its own, and a planet takes 0.05 core-seconds more.
    return np.ascontiguousarray(binned.reshape(*shape, -1).transpose(2, 1, 0))


def load(name: str) -> Backend:
    """Load a backend of `PREFERENCE` by name; if it cannot run here, `BackendUnavailable` gives reason and mend."""
    if not isinstance(name, str) or name not in PREFERENCE:
        raise ConfigError(f"backend = {name!r}: must be one of {', '.join(PREFERENCE)}")
    backend: Backend = importlib.import_module(f"gpucal.backends.{name}_").connect()
    return backend


def named(name: object = None) -> str:
    """Return the backend that is asked for by name or by GPUCAL_BACKEND; ConfigError is raised if there is none."""
    wanted = name
    if name is None or isinstance(name, str):
        wanted = name or os.environ.get("GPUCAL_BACKEND") or "auto"
    if not isinstance(wanted, str) or wanted not in ("auto", *PREFERENCE):
        raise ConfigError(f"backend = {wanted!r}: must be one of auto, {', '.join(PREFERENCE)}")
    return wanted


def choose(name: str | None = None) -> Backend:
    """Choose a backend: by name, by the environment variable GPUCAL_BACKEND, or the fastest that can run here.

    Parameters
    ----------
    name : {'auto', 'cupy', 'numba', 'numpy'}, optional
        By default GPUCAL_BACKEND, and without that ``'auto'``.

    Returns
    -------
    Backend
        The backend. ``'auto'`` logs, once, why faster backends cannot run. A backend asked for by name is never
        replaced by another.

    Raises
    ------
    ConfigError
        If there is no backend of that name.
    BackendUnavailable
        If the backend asked for by name cannot run here.
    """
    wanted = named(name)
    if wanted != "auto":
        return load(wanted)
    reasons, level = [], logging.INFO
    for candidate in PREFERENCE:
        try:
            backend = load(candidate)
        except BackendUnavailable as error:
            reasons.append(str(error))
            if isinstance(error, BrokenBackend):
                level = logging.ERROR
        else:
            if reasons:
                log.log(level, "backend %s: %s", backend.name, "; ".join(reasons))
            return backend
    raise BackendUnavailable("; ".join(reasons))
