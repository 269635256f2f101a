"""How many pairs of each bin were rejected as hit by cosmic rays: few of all bins, so only those are listed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gpucal.science.steps import Array

__all__ = ["NONE", "Rejected"]


@dataclass(frozen=True, eq=False)
class Rejected:
    """Bins with rejected pairs, arrays of int (n,): the bin, the plan's pixel, and how many of its pairs."""

    bins: NDArray[np.intp]
    pixels: NDArray[np.intp]
    pairs: NDArray[np.intp]

    @classmethod
    def joined(cls, parts: Sequence[Rejected]) -> Rejected:
        """Put several lists together, in the order of bins and pixels."""
        if not parts:
            return NONE
        bins, pixels, pairs = (
            np.concatenate([getattr(part, name) for part in parts]) for name in ("bins", "pixels", "pairs")
        )
        order = np.lexsort((pixels, bins))
        return cls(bins[order], pixels[order], pairs[order])

    @classmethod
    def of_table(cls, table: NDArray[np.int32], width: int) -> Rejected:
        """Make it from its `table`."""
        bins, x, y, pairs = table.T.astype(np.intp)
        return cls(bins, y * width + x, pairs)

    def table(self, width: int) -> NDArray[np.int32]:
        """Return bin, wavelength, spatial place and number of pairs as columns, (n, 4), as results folders have it."""
        return np.stack([*self.where(width), self.pairs], axis=1).astype(np.int32)

    def where(self, width: int) -> tuple[NDArray[np.intp], NDArray[np.intp], NDArray[np.intp]]:
        """Return the places in a cube (time, wavelength, spatial) of so many wavelengths."""
        return self.bins, self.pixels % width, self.pixels // width

    def places(self, width: int) -> Iterator[tuple[int, int, int]]:
        """Yield those places one by one."""
        yield from zip(*(axis.tolist() for axis in self.where(width)), strict=True)

    def counts(self, shape: tuple[int, int, int]) -> NDArray[np.int32]:
        """Return the number of rejected pairs of every bin, for a cube (time, wavelength, spatial) of that shape."""
        found = np.zeros(shape, np.int32)
        found[self.where(shape[1])] = self.pairs
        return found

    def flagged(self, width: int, height: int) -> NDArray[np.bool_]:
        """Return which pixels (wavelength, spatial) had a pair rejected."""
        found = np.zeros((width, height), bool)
        found[self.where(width)[1:]] = True
        return found

    def part(self, bins: slice) -> Rejected:
        """Return those in some bins, counted from the first of them."""
        inside = (bins.start <= self.bins) & (self.bins < bins.stop)
        return Rejected(self.bins[inside] - bins.start, self.pixels[inside], self.pairs[inside])

    def rescale(self, variance: Array, pairs_per_bin: int) -> None:
        """Multiply the variances (time, wavelength, spatial) of these bins by pairs over kept pairs, in place."""
        with np.errstate(divide="ignore"):
            factors = np.where(
                self.pairs < pairs_per_bin, pairs_per_bin / (pairs_per_bin - np.asarray(self.pairs, float)), np.nan
            )
        for place, factor in zip(self.places(variance.shape[1]), factors.tolist(), strict=True):
            variance[place] = variance[place] * factor


NONE = Rejected(*(np.empty(0, np.intp) for _ in range(3)))
"""Nothing rejected."""
