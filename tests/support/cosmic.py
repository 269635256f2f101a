"""Which pairs a search for cosmic rays rejects, by slow, literal loops in floating point, without gpucal's code.

Every pair of what is left is compared with a quadratic fitted to the other ten of its window of eleven; the farthest
pair beyond the threshold is taken out, and all are compared again. Where that takes more than three of eleven pairs in
a row, those taken out up to ten from the last one are put back, and none up to twenty from it is taken out any more.
"""

from __future__ import annotations

import numpy as np


def window_of(pair: int, n: int) -> range:
    """The eleven pairs around a pair, or the first or last eleven."""
    first = min(max(pair - 5, 0), n - 11)
    return range(first, first + 11)


def distance(series: list[int], pair: int) -> tuple[float, float]:
    """How far a pair is from what the other ten say, and how far that scatters, in the scatter of a single pair."""
    others = [one for one in window_of(pair, len(series)) if one != pair]
    times = np.array([[1.0, one - pair, (one - pair) ** 2] for one in others])
    fit, *_ = np.linalg.lstsq(times, np.array([float(series[one]) for one in others]), rcond=None)
    expected = fit[0]  # the quadratic at the pair's own time
    of_fit = np.linalg.inv(times.T @ times)[0, 0]  # variance of that, in variances of a pair
    return abs(series[pair] - expected), np.sqrt(1.0 + of_fit)


def scatter(series: list[int]) -> float:
    """1.4826 times the upper median of distances of evenly spaced pairs, of unit scatter; at least one count."""
    middle = range(5, len(series) - 5)
    step = max(1, len(middle) // 511)
    far = [distance(series, pair) for pair in middle[::step]]
    typical = sorted(one / spread for one, spread in far)
    return max(1.482602218505602 * typical[len(typical) // 2], 1.0)


def rejected(counts: list[int], sigma: float) -> set[int]:
    """The rejected pairs of a pixel, from its used raw counts."""
    series = [int(counts[k + 1]) - int(counts[k]) for k in range(0, len(counts) - 1, 2)]
    if len(series) <= 11:
        return set()
    limit = sigma * scatter(series)
    out: set[int] = set()
    kept: set[int] = set()
    while len(series) - len(out) > 11:
        pairs = [pair for pair in range(len(series)) if pair not in out]
        left = [series[pair] for pair in pairs]
        far = [-1.0 if pair in kept else distance(left, place)[0] for place, pair in enumerate(pairs)]
        worst = int(np.argmax(far))
        if far[worst] <= limit:
            break
        pair = pairs[worst]
        out.add(pair)
        if any(len(out & {*range(first, first + 11)}) > 3 for first in range(pair - 10, pair + 1)):
            out -= {*range(pair - 10, pair + 11)}
            kept |= {*range(pair - 20, pair + 21)}
    return out
