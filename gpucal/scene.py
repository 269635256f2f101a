"""The model behind `gpucal synth`: a star with a transit, the detectors' calibration frames, and their inverse linearity.

Arrays are (spatial, wavelength), charges are in electrons and times in seconds unless said otherwise. The statistics
are those measured on the published calibration files and raw frames of the 2024 and 2025 Ariel Data Challenges.
Pointing jitter, the largest noise of the real bright pixels, is left out: the truth stays a formula.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from gpucal.detectors import DETECTORS, Detector

__all__ = ["Frames", "Target", "draw_frames", "draw_target", "hot_pixels", "invert_linearity", "star_rate", "wavelengths"]

Float = NDArray[np.float64]
Bool = NDArray[np.bool_]

FGS1_WAVELENGTH_UM = 0.705
"""Centre of the FGS1 band, µm: the first label of either competition."""

_BANDS_UM = ((0.9, 0.25), (2.0, 0.08), (2.7, 0.15), (3.35, 0.12), (3.75, 0.1))
_LIMB = (0.25, 0.12)
_OUTLIERS = 12
_NODES, _DEGREE, _NEWTON_STEPS = 64, 7, 12


@dataclass(frozen=True)
class Frames:
    """The five calibration frames of one detector.

    Parameters
    ----------
    dark : ndarray of float64, shape (spatial, wavelength)
        Dark current, e⁻/s.
    dead : ndarray of bool, shape (spatial, wavelength)
        Pixels that collect nothing.
    flat : ndarray of float64, shape (spatial, wavelength)
        Relative response.
    read : ndarray of float64, shape (spatial, wavelength)
        Read noise, e⁻.
    linear : ndarray of float64, shape (6, spatial, wavelength)
        Linearity polynomial c_k, ascending powers: true charge = Σ c_k · (measured charge)^k, e⁻.
    """

    dark: Float
    dead: Bool
    flat: Float
    read: Float
    linear: Float


@dataclass(frozen=True)
class Target:
    """A star and its planet.

    Parameters
    ----------
    temperature : float
        Of the star, K.
    brightness : float
        Of the star, relative to the brightest that is drawn.
    base, bands : float, tuple of float
        Transit depth outside the bands, and each band's height relative to it.
    impact, half_duration, centre : float
        Impact parameter in stellar radii; half the transit's duration and its middle as fractions of the observation.
    """

    temperature: float
    brightness: float
    base: float
    bands: tuple[float, ...]
    impact: float
    half_duration: float
    centre: float

    def depth(self, um: Float) -> Float:
        """Mid-transit depth: base · (1 + Σ band · exp(−(λ − λ_band)² / 2σ_band²)).

        Parameters
        ----------
        um : ndarray of float64, any shape
            Wavelengths, µm.

        Returns
        -------
        ndarray of float64, same shape
            Fraction of the star's light that is missing at mid-transit.
        """
        total = np.ones_like(um)
        for (centre, width), height in zip(_BANDS_UM, self.bands, strict=True):
            total += height * np.exp(-0.5 * ((um - centre) / width) ** 2)
        return np.asarray(self.base * total, dtype=np.float64)

    def shape(self, phase: Float) -> Float:
        """Transit shape in the small-planet model, quadratic limb darkening.

        overlap(z) · I(z') / (overlap(b) · I(b)) with I(μ) = 1 − u₁(1−μ) − u₂(1−μ)², z' the middle of what is covered.

        Parameters
        ----------
        phase : ndarray of float64, shape (pair,)
            Time as a fraction of the observation.

        Returns
        -------
        ndarray of float64, shape (pair,)
            0 outside transit, 1 in the middle.
        """
        p = float(np.sqrt(self.base))
        speed = np.sqrt((1 + p) ** 2 - self.impact**2) / self.half_duration
        z = np.sqrt(self.impact**2 + (speed * (phase - self.centre)) ** 2)
        middle = _blocked(np.array([self.impact]), p)
        return np.asarray(np.minimum(_blocked(z, p) / middle, 1.0), dtype=np.float64)


def _blocked(z: Float, p: float) -> Float:
    """Light a disc of radius p covers at distance z from the centre of a limb-darkened star of radius 1."""
    edge = np.clip(z, 1 - p, 1 + p)
    a = p * p * np.arccos(np.clip((edge**2 + p * p - 1) / (2 * edge * p), -1, 1))
    b = np.arccos(np.clip((edge**2 + 1 - p * p) / (2 * edge), -1, 1))
    c = 0.5 * np.sqrt(np.maximum((1 + p - edge) * (edge + p - 1) * (edge - p + 1) * (edge + p + 1), 0))
    reach = np.minimum(z, (edge - p + 1) / 2)
    dim = 1 - np.sqrt(np.maximum(1 - reach**2, 0))
    return np.asarray((a + b - c) * (1 - _LIMB[0] * dim - _LIMB[1] * dim**2), dtype=np.float64)


def draw_target(rng: np.random.Generator) -> Target:
    """Draw a star and its planet: depths of 0.5–1.5 %, the transit 30–44 % of the observation long.

    Parameters
    ----------
    rng : Generator
        Random numbers.

    Returns
    -------
    Target
        The star and its planet.
    """
    return Target(
        temperature=float(rng.uniform(4200, 6200)),
        brightness=float(rng.uniform(0.94, 1.0)),
        base=float(rng.uniform(0.006, 0.012)),
        bands=tuple(float(height) for height in rng.uniform(-0.1, 0.2, len(_BANDS_UM))),
        impact=float(rng.uniform(0.0, 0.5)),
        half_duration=float(rng.uniform(0.15, 0.22)),
        centre=float(rng.uniform(0.48, 0.52)),
    )


def wavelengths() -> Float:
    """AIRS-CH0 wavelength of each stored column, the quadratic through the published axis.

    Returns
    -------
    ndarray of float64, shape (356,)
        µm, descending from 4.078 to 1.633 in steps that grow from 4.4 to 9.3 nm.
    """
    step = np.linspace(0.004441, 0.009321, DETECTORS["AIRS-CH0"].shape[1] - 1)
    fall = np.concatenate([[0.0], np.cumsum(step)])
    return np.asarray(4.07846314 - fall * ((4.07846314 - 1.63325272) / fall[-1]), dtype=np.float64)


def star_rate(detector: Detector, target: Target, flat: Float, full_well: float) -> Float:
    """Light of the star on each pixel of a perfect detector.

    Photometer: a Gaussian spot, σ 1.14 pixels. Spectrometer: black-body photons × throughput along a slightly tilted
    trace near row 16, σ 1.1 pixels, with faint wide wings as the raw frames have them.

    Parameters
    ----------
    detector : Detector
        The detector.
    target : Target
        The star.
    flat : ndarray of float64, shape (spatial, wavelength)
        Relative response, to find the pixel that fills first.
    full_well : float
        Charge in that pixel at the end of an exposure outside transit, e⁻, for a star of brightness 1.

    Returns
    -------
    ndarray of float64, shape (spatial, wavelength)
        e⁻/s at flat 1.
    """
    height, width = detector.shape
    y = np.arange(height, dtype=np.float64)[:, None]
    x = np.arange(width, dtype=np.float64)[None, :]
    if detector.photometer:
        light = np.exp(-0.5 * ((x - width / 2 - 0.2) ** 2 + (y - height / 2 + 0.1) ** 2) / 1.14**2)
    else:
        um = wavelengths()
        planck = um**-4 / np.expm1(14387.77 / (um * target.temperature)) * np.abs(np.gradient(um))
        edges = 1 / ((1 + np.exp((1.93 - um) / 0.03)) * (1 + np.exp((um - 3.93) / 0.03)))
        ripple = 1 + 0.05 * np.sin(14 * um) + 0.03 * np.sin(37 * um)
        trace = height / 2 + 0.1 + 0.3 * (x / width - 0.5)
        core = np.exp(-0.5 * ((y - trace) / 1.1) ** 2)
        wings = 0.011 * np.exp(-0.5 * ((y - trace) / 6.5) ** 2)
        light = planck * edges * ripple * (core + wings)
    brightest = float((light * np.maximum(flat, 0)).max()) * detector.true_integration_s[1]
    return np.asarray(light * (full_well * target.brightness / brightest), dtype=np.float64)


@dataclass(frozen=True)
class _Statistics:
    """What was measured of a detector's calibration frames; linearity as (median, scatter) of each coefficient."""

    dead: int
    hot: int
    dark: tuple[float, float, float]
    flat: tuple[float, float, float]
    nonpositive: int
    read: tuple[float, float]
    linear: tuple[tuple[float, float], ...]


_AIRS_LINEAR = ((0.1, 0.15), (1.0, 5e-3), (2.7e-8, 6e-8), (1.18e-11, 1.2e-12), (-6e-17, 8.5e-18), (1.3e-22, 1.8e-23))
_FGS1_LINEAR = ((0.29, 0.11), (1.0, 5e-3), (3.7e-8, 5e-8), (8.7e-12, 9e-13), (-3.5e-17, 5.5e-18), (6e-23, 7e-24))

_STATISTICS: Mapping[tuple[str, str], _Statistics] = MappingProxyType(
    {
        ("AIRS-CH0", "2024-train"): _Statistics(
            15, 48, (0.0068, -0.322, 8.93), (1.0066, -0.025, 1.093), 4, (13.1, 250.2), _AIRS_LINEAR
        ),
        ("AIRS-CH0", "2024-test"): _Statistics(
            32, 95, (0.0067, -0.9, 12.4), (1.0066, -0.006, 1.08), 13, (13.5, 170.0), _AIRS_LINEAR
        ),
        ("AIRS-CH0", "2025"): _Statistics(
            12, 82, (0.0063, -0.024, 11.9), (1.0066, -0.048, 1.11), 6, (13.0, 153.0), _AIRS_LINEAR
        ),
        ("FGS1", "2024-train"): _Statistics(
            1, 1, (0.0072, 0.0012, 0.0171), (0.981, -0.002, 1.019), 1, (13.3, 80.4), _FGS1_LINEAR
        ),
        ("FGS1", "2024-test"): _Statistics(
            2, 1, (0.0072, 0.0012, 0.0171), (0.981, -0.002, 1.019), 1, (13.3, 80.4), _FGS1_LINEAR
        ),
        ("FGS1", "2025"): _Statistics(
            3, 11, (0.0072, 0.0012, 9.0), (0.981, -0.002, 1.019), 1, (13.3, 80.4), _FGS1_LINEAR
        ),
    }
)


def draw_frames(rng: np.random.Generator, detector: Detector, series: str) -> Frames:
    """Draw the calibration frames of one detector with the statistics measured on the published ones.

    Parameters
    ----------
    rng : Generator
        Random numbers.
    detector : Detector
        The detector.
    series : str
        ``2024-train``, ``2024-test`` or ``2025``.

    Returns
    -------
    Frames
        The five frames.
    """
    known, n = _STATISTICS[detector.name, series], detector.n_columns
    odd = rng.permutation(detector.columns())[: known.dead + known.hot + known.nonpositive]
    dead_at, hot_at, dark_flat = np.split(odd, [known.dead, known.dead + known.hot])

    median, least, most = known.dark
    dark = median + 0.0014 * np.clip(rng.standard_normal(n), -3.5, 3.5)
    # Hot pixels are rare and span decades; the extremes are part of what the files were seen to hold.
    dark[hot_at] = np.exp(rng.uniform(np.log(min(0.03, most)), np.log(most), known.hot))
    dark[hot_at[0]] = most
    if least < 0:
        dark[hot_at[-1]] = least
    level, flat_least, flat_most = known.flat
    flat = level + 0.012 * rng.standard_normal(n)
    weak = rng.random(n) < 0.01
    flat[weak] = rng.uniform(0.85 * level, level, int(weak.sum()))
    flat = np.minimum(flat, flat_most)
    flat[dark_flat] = flat_least * rng.random(known.nonpositive)
    flat[dark_flat[0]] = flat_least
    read = known.read[0] * np.exp(0.04 * rng.standard_normal(n))
    noisy = rng.random(n) < 0.05
    read[noisy] = np.minimum(1.34 * known.read[0] * (1 - rng.random(int(noisy.sum()))) ** -0.387, known.read[1])
    read[rng.integers(n)] = known.read[1]
    linear = np.stack([rng.normal(centre, scatter, n) for centre, scatter in known.linear])
    wild = rng.choice(n, _OUTLIERS, replace=False)
    shift = np.exp(rng.uniform(np.log(10), np.log(1100), _OUTLIERS)) * rng.choice([-1.0, 1.0], _OUTLIERS)
    linear[:3, wild] = np.stack([shift, 1 - 3e-4 * shift * rng.random(_OUTLIERS), 2e-9 * shift])
    dead = np.zeros(n, dtype=np.bool_)
    dead[dead_at] = True
    shape = detector.shape
    return Frames(*(a.reshape(shape) for a in (dark, dead, flat, read)), linear.reshape(6, *shape))


def hot_pixels(dark: Float, detector: Detector) -> Bool:
    """Hot pixels by the notebook's rule: five rounds of median ± 5σ over the cropped dark.

    Parameters
    ----------
    dark : ndarray of float64, shape (spatial, wavelength)
        Dark current, e⁻/s.
    detector : Detector
        The detector, for its crop.

    Returns
    -------
    ndarray of bool, shape (spatial, wavelength)
        True where hot; False outside the crop.
    """
    cut = dark[:, slice(*detector.crop)]
    kept = np.ones(cut.shape, dtype=np.bool_)
    for _ in range(5):
        kept &= np.abs(cut - np.median(cut[kept])) <= 5 * cut[kept].std()
    hot = np.zeros(dark.shape, dtype=np.bool_)
    hot[:, slice(*detector.crop)] = ~kept
    return hot


def invert_linearity(linear: Float, low: Float, high: Float) -> Float:
    """Fit the inverse of each pixel's linearity polynomial over the charges it will hold.

    x(q) − q = Σ g_k s^k, s = (2q − low − high) / (high − low), is fitted at 64 Chebyshev nodes to the root x of
    Σ c_k x^k = q, found by Newton's method from x = q − c_0. It is better than 0.01 e⁻ where the polynomial is near the identity;
    elsewhere slopes, steps and roots are clipped, so that the result is finite whatever the coefficients.

    Parameters
    ----------
    linear : ndarray of float64, shape (6, pixel)
        c_k, ascending.
    low, high : ndarray of float64, shape (pixel,)
        Range of true charges, e⁻.

    Returns
    -------
    ndarray of float64, shape (8, pixel)
        g_k, ascending, e⁻.
    """
    nodes = np.cos(np.pi * (np.arange(_NODES) + 0.5) / _NODES)[:, None]
    q = 0.5 * (low + high) + 0.5 * (high - low) * nodes
    c = np.nan_to_num(linear)
    x = q - np.clip(c[0], -3000, 3000)
    for _ in range(_NEWTON_STEPS):
        value, slope = np.broadcast_to(c[5], q.shape), np.zeros_like(q)
        for k in range(4, -1, -1):
            slope = slope * x + value
            value = value * x + c[k]
        step = np.clip((value - q) / np.maximum(slope, 0.2), -5000, 5000)
        x = np.clip(x - step, q - 10_000, q + 10_000)
        if np.abs(step).max() < 1e-6:
            break
    fit = np.linalg.pinv(np.vander(nodes[:, 0], _DEGREE + 1, increasing=True))
    return np.asarray(fit @ (x - q), dtype=np.float64)
