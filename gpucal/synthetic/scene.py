"""The forward model of `gpucal synth`: a star with a transit, the detectors' calibration frames, and noisy reads.

Unless said otherwise, arrays are float64, (spatial, wavelength) as stored; charges are in electrons, times in seconds,
rates in e⁻/s. The statistics were measured on published calibration files and raw frames of the 2024 and 2025 Ariel
Data Challenges. Pointing jitter, the largest noise of real bright pixels, is left out unless it is asked for. With it,
the light of a pixel is linear in the pointing, so that the truth is still a formula.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import accumulate
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from gpucal.inputs.calibration_files import read_times_s
from gpucal.settings.detectors import DETECTORS, Detector

__all__ = [
    "Frames",
    "Target",
    "draw_frames",
    "draw_pointing",
    "draw_target",
    "invert_linearity",
    "mean_pointing",
    "star_rate",
    "star_slopes",
    "wavelengths",
]

Float = NDArray[np.float64]
Bool = NDArray[np.bool_]

FGS1_WAVELENGTH_UM = 0.705
"""Centre of the FGS1 band, µm: the first label of either competition."""

ADC_2025 = (-1000.0, 0.4369)
"""Offset (e⁻) and gain (counts per e⁻) of both detectors in 2025."""

_ADC_2024 = (
    ("AIRS-CH0", (-1174.0, -697.0), ((1.496, 1.526), (0.923, 0.940))),
    ("FGS1", (-493.0, -313.0), ((1.014, 1.059), (0.833, 0.869))),
)
_BANDS_UM = ((0.9, 0.25), (2.0, 0.08), (2.7, 0.15), (3.35, 0.12), (3.75, 0.1))
_LIMB = (0.25, 0.12)
_OUTLIERS = 12
# Above this mean a Poisson draw is a rounded Gaussian. The skewness left out is λ / (λ + read²)^1.5 of the read, whose
# noise is 13 e⁻: at most 0.03 (λ ≈ 340), a distribution wrong by at most 0.002 anywhere.
_GAUSS_ABOVE = 25.0
# Below this mean it is cheaper to scatter the few events than to draw one number a read.
_SCATTER_BELOW = 0.5
_NODES, _DEGREE, _NEWTON_STEPS = 64, 7, 12
# Pointing jitter of both axes: scatter in pixels, which differ in size; correlation time and step in seconds. With
# these, reads show what 50 real frames do: the variance of bright CDS pairs is 2.7 times the detector's own in AIRS-CH0
# and tens of times in FGS1, where start and end reads are 0.96 correlated (benchmarks/jitter.py).
_JITTER_PX = MappingProxyType({"AIRS-CH0": 0.03, "FGS1": 0.055})
_JITTER_S, _STEP_S = 0.6, 0.1
_SLOPE_STEP, _LEAST_SLOPE = 1e-3, 0.01


@dataclass(frozen=True)
class Frames:
    """The five calibration frames of one detector, each (spatial, wavelength).

    Dark current (e⁻/s), dead pixels (bool), relative response, read noise (e⁻), and linearity c_k of shape
    (6, spatial, wavelength), ascending powers: true charge = Σ c_k · (measured charge)^k, e⁻.
    """

    dark: Float
    dead: Bool
    flat: Float
    read: Float
    linear: Float


@dataclass(frozen=True)
class Target:
    """A star (temperature in K, brightness relative to the brightest drawn) and its planet.

    `base` is the transit depth outside the bands, `bands` each band's height relative to it, `impact` the impact
    parameter in stellar radii; `half_duration` and `centre` of the transit are fractions of the observation.
    """

    temperature: float
    brightness: float
    base: float
    bands: tuple[float, ...]
    impact: float
    half_duration: float
    centre: float

    def row(self, rng: np.random.Generator) -> list[float]:
        """Return Rs, Ms, Ts, Mp, e, P, sma, i of a star table: Kepler's law and the impact hold, not the duration."""
        mass, orbit = rng.uniform(0.7, 1.3), rng.uniform(6.0, 15.0)
        period = 365.25 * np.sqrt((orbit * mass**0.8 * 0.0046505) ** 3 / mass)
        tilt = np.degrees(np.arccos(self.impact / orbit))
        row = (mass**0.8, mass, self.temperature, rng.uniform(0.1, 3.0), 0.0, period, orbit, tilt)
        return [float(value) for value in row]

    def depth(self, um: Float) -> Float:
        """Return mid-transit depths at wavelengths µm: base · (1 + Σ band · exp(−(λ − λ_band)² / 2σ_band²))."""
        total = np.ones_like(um)
        for (centre, width), height in zip(_BANDS_UM, self.bands, strict=True):
            total += height * np.exp(-0.5 * ((um - centre) / width) ** 2)
        return np.asarray(self.base * total, dtype=np.float64)

    def shape(self, phase: Float) -> Float:
        """Return the transit's shape at each phase (fraction of the observation): 0 outside, 1 in the middle, (pair,).

        Small planet, quadratic limb darkening: overlap(z) · I(z') / (overlap(b) · I(b)), I = 1 − u₁(1−μ) − u₂(1−μ)²,
        z' the middle of the covered part (Mandel & Agol 2002, section 5).
        """
        p = float(np.sqrt(self.base))
        speed = np.sqrt((1 + p) ** 2 - self.impact**2) / self.half_duration
        z = np.sqrt(self.impact**2 + (speed * (phase - self.centre)) ** 2)
        middle = _blocked(np.array([self.impact]), p)
        return np.asarray(np.minimum(_blocked(z, p) / middle, 1.0), dtype=np.float64)


def _blocked(z: Float, p: float) -> Float:
    """Return the light covered by a disc of radius p at distance z from a limb-darkened star of radius 1."""
    edge = np.clip(z, 1 - p, 1 + p)
    a = p * p * np.arccos(np.clip((edge**2 + p * p - 1) / (2 * edge * p), -1, 1))
    b = np.arccos(np.clip((edge**2 + 1 - p * p) / (2 * edge), -1, 1))
    c = 0.5 * np.sqrt(np.maximum((1 + p - edge) * (edge + p - 1) * (edge - p + 1) * (edge + p + 1), 0))
    reach = np.minimum(z, (edge - p + 1) / 2)
    dim = 1 - np.sqrt(np.maximum(1 - reach**2, 0))
    return np.where(z < 1 + p, (a + b - c) * (1 - _LIMB[0] * dim - _LIMB[1] * dim**2), 0.0)


def draw_target(rng: np.random.Generator) -> Target:
    """Draw a star and its planet: depths of 0.5–1.5 %, the transit 30–44 % of the observation long."""
    return Target(
        temperature=float(rng.uniform(4200, 6200)),
        brightness=float(rng.uniform(0.94, 1.0)),
        base=float(rng.uniform(0.006, 0.012)),
        bands=tuple(float(height) for height in rng.uniform(-0.1, 0.2, len(_BANDS_UM))),
        impact=float(rng.uniform(0.0, 0.5)),
        half_duration=float(rng.uniform(0.15, 0.22)),
        centre=float(rng.uniform(0.48, 0.52)),
    )


def draw_adc(rng: np.random.Generator, layout: str) -> tuple[dict[str, tuple[float, float]], int]:
    """Draw (offset e⁻, gain counts per e⁻) by detector and the star, 0 or 1: measured ranges, constants in 2025."""
    star = int(rng.integers(2))
    if layout == "2025":
        return dict.fromkeys(DETECTORS, ADC_2025), star
    draws = {name: (rng.uniform(*offset), rng.uniform(*gains[star])) for name, offset, gains in _ADC_2024}
    return {name: (float(offset), float(gain)) for name, (offset, gain) in draws.items()}, star


def read_times(detector: Detector, frames: int) -> Float:
    """Return the time of each read, (frame,), s, for `frames` AIRS-CH0 frames."""
    return read_times_s(detector, detector.frames * frames // DETECTORS["AIRS-CH0"].frames // 2 * 2)


def wavelengths() -> Float:
    """Return each stored AIRS-CH0 column's wavelength, (356,), µm: a quadratic from 4.078 to 1.633, as published."""
    step = np.linspace(0.004441, 0.009321, DETECTORS["AIRS-CH0"].shape[1] - 1)
    fall = np.concatenate([[0.0], np.cumsum(step)])
    return np.asarray(4.07846314 - fall * ((4.07846314 - 1.63325272) / fall[-1]), dtype=np.float64)


def star_rate(detector: Detector, target: Target, flat: Float, full_well: float) -> Float:
    """Return the starlight on each pixel at flat 1, (spatial, wavelength), e⁻/s.

    Photometer: a Gaussian spot, σ 1.14 pixels. Spectrometer: black-body photons × throughput along a slightly tilted
    trace near row 16, σ 1.1 pixels, with faint wide wings as the raw frames have them. `full_well` is the charge (e⁻)
    of the fullest pixel under `flat` at the end of an exposure outside transit, for a star of brightness 1.
    """
    light = _light(detector, target)
    scale = _light_scale(detector, target, light, flat, full_well)
    return np.asarray(light * scale, dtype=np.float64)


def star_slopes(detector: Detector, target: Target, flat: Float, full_well: float) -> Float:
    """Return what a shift of the image adds to `star_rate`, (2, spatial, wavelength), e⁻/s a pixel of shift.

    The shift is along the slit, then along wavelength. Slopes below 0.01 e⁻/s are 0.
    """
    light = _light(detector, target)
    scale = _light_scale(detector, target, light, flat, full_well)
    h = _SLOPE_STEP
    up = (_light(detector, target, h, 0.0) - _light(detector, target, -h, 0.0)) / (2 * h)
    if detector.photometer:
        aside = (_light(detector, target, 0.0, h) - _light(detector, target, 0.0, -h)) / (2 * h)
    else:
        aside = -np.gradient(light, axis=1)
    slopes = np.stack([up, aside]) * scale
    return np.where(np.abs(slopes) < _LEAST_SLOPE, 0.0, slopes)


def draw_pointing(rng: np.random.Generator, seconds: float) -> Float:
    """Draw the pointing along the slit and along wavelength, (2, step), in units of its scatter and steps of 0.1 s.

    A random walk with a pull to the middle: p_k = φ · p_(k−1) + √(1 − φ²) · normal, φ = exp(−0.1 s / correlation time).
    """
    fall = float(np.exp(-_STEP_S / _JITTER_S))
    normal = rng.standard_normal((2, round(seconds / _STEP_S)))
    normal[:, 1:] *= np.sqrt(1 - fall**2)
    walks = [list(accumulate(row.tolist(), lambda before, kick: fall * before + kick)) for row in normal]
    return np.array(walks, dtype=np.float64)


def mean_pointing(detector: Detector, pointing: Float) -> Float:
    """Return the mean shifts until the start read, and from there to the end read, of each exposure: (2, pair, 2)."""
    start, end = (round(seconds / _STEP_S) for seconds in detector.true_integration_s)
    exposures = _JITTER_PX[detector.name] * pointing.reshape(2, -1, end + 2 * start)
    return np.stack([exposures[:, :, :start].mean(axis=2), exposures[:, :, start:end].mean(axis=2)], axis=2)


def _light_scale(detector: Detector, target: Target, light: Float, flat: Float, full_well: float) -> float:
    brightest = float((light * np.maximum(flat, 0)).max()) * detector.true_integration_s[1]
    return full_well * target.brightness / brightest


def _light(detector: Detector, target: Target, up: float = 0.0, aside: float = 0.0) -> Float:
    """Return the light in arbitrary units, with the image shifted; a spectrum is shifted along the slit alone."""
    height, width = detector.shape
    y = np.arange(height, dtype=np.float64)[:, None] - up
    x = np.arange(width, dtype=np.float64)[None, :] - aside
    if detector.photometer:
        light = np.exp(-0.5 * ((x - width / 2 - 0.2) ** 2 + (y - height / 2 + 0.1) ** 2) / 1.14**2)
    else:
        um = wavelengths()
        planck = um**-4.7 / np.expm1(14387.77 / (um * target.temperature)) * np.abs(np.gradient(um))
        # The extra power 0.7 is the blaze that gives the published frames' ratio of mean to maximum.
        edges = 1 / ((1 + np.exp((1.93 - um) / 0.03)) * (1 + np.exp((um - 3.93) / 0.03)))
        ripple = 1 + 0.05 * np.sin(14 * um) + 0.03 * np.sin(37 * um)
        trace = height / 2 + 0.1 + 0.3 * (x / width - 0.5)
        core = np.exp(-0.5 * ((y - trace) / 1.1) ** 2)
        wings = 0.012 * np.exp(-0.5 * ((y - trace) / 10) ** 2)
        light = planck * edges * ripple * (core + wings)
    return np.asarray(light, dtype=np.float64)


@dataclass(frozen=True)
class _Known:
    """Measured statistics of a detector's calibration frames; linearity as (median, scatter) of each coefficient."""

    dead: int
    hot: int
    dark: tuple[float, float, float]
    flat: tuple[float, float, float]
    nonpositive: int
    read: tuple[float, float]
    linear: tuple[tuple[float, float], ...]


_AIRS_LINEAR = ((0.1, 0.15), (1.0, 5e-3), (2.7e-8, 6e-8), (1.18e-11, 1.2e-12), (-6e-17, 8.5e-18), (1.3e-22, 1.8e-23))
_FGS1_LINEAR = ((0.29, 0.11), (1.0, 5e-3), (3.7e-8, 5e-8), (8.7e-12, 9e-13), (-3.5e-17, 5.5e-18), (6e-23, 7e-24))

_STATISTICS: Mapping[str, _Known] = MappingProxyType(
    {
        "AIRS-CH0 2024-train": _Known(
            15, 48, (0.0068, -0.322, 8.93), (1.0066, -0.025, 1.093), 4, (13.1, 250.2), _AIRS_LINEAR
        ),
        "AIRS-CH0 2024-test": _Known(
            32, 95, (0.0067, -0.9, 12.4), (1.0066, -0.006, 1.08), 13, (13.5, 170.0), _AIRS_LINEAR
        ),
        "AIRS-CH0 2025": _Known(12, 82, (0.0063, -0.024, 11.9), (1.0066, -0.048, 1.11), 6, (13.0, 153.0), _AIRS_LINEAR),
        "FGS1 2024-train": _Known(
            1, 1, (0.0072, 0.0012, 0.0171), (0.981, -0.002, 1.019), 1, (13.3, 80.4), _FGS1_LINEAR
        ),
        "FGS1 2024-test": _Known(2, 1, (0.0072, 0.0012, 0.0171), (0.981, -0.002, 1.019), 1, (13.3, 80.4), _FGS1_LINEAR),
        "FGS1 2025": _Known(3, 11, (0.0072, 0.0012, 9.0), (0.981, -0.002, 1.019), 1, (13.3, 80.4), _FGS1_LINEAR),
    }
)


def draw_frames(rng: np.random.Generator, detector: Detector, series: str) -> Frames:
    """Draw calibration frames with the published ones' statistics; the series is 2024-train, 2024-test or 2025."""
    known, n = _STATISTICS[f"{detector.name} {series}"], detector.n_columns
    odd = rng.permutation(detector.columns())[: known.dead + known.hot + known.nonpositive]
    dead_at, hot_at, dark_flat = np.split(odd, [known.dead, known.dead + known.hot])

    median, least, most = known.dark
    dark = median + 0.0014 * np.clip(rng.standard_normal(n), -3.5, 3.5)
    # Hot pixels are rare and span decades; the published files hold the extremes too.
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
    # A positive shift beyond the ADC's offset would leave the pixel at 0 counts: large shifts are negative.
    shift = np.exp(rng.uniform(np.log(10), np.log(25 if detector.photometer else 1100), _OUTLIERS))
    shift *= np.where(shift > 300, -1.0, rng.choice([-1.0, 1.0], _OUTLIERS))
    linear[:3, wild] = np.stack([shift, 1 - 3e-4 * shift * rng.random(_OUTLIERS), 2e-9 * shift])
    dead = np.zeros(n, dtype=np.bool_)
    dead[dead_at] = True
    shape = detector.shape
    return Frames(
        dark.reshape(shape), dead.reshape(shape), flat.reshape(shape), read.reshape(shape), linear.reshape(6, *shape)
    )


def invert_linearity(linear: Float, low: Float, high: Float) -> Float:
    """Invert each pixel's polynomial c_k (6, pixel) over true charges low..high (pixel,): returns g_k (8, pixel), e⁻.

    x(q) − q = Σ g_k s^k, s = (2q − low − high) / (high − low), is fitted at 64 Chebyshev nodes to the root x of
    Σ c_k x^k = q, found by Newton's method. Better than 0.01 e⁻ where the polynomial is near the identity; slopes,
    steps and roots are clipped, so that the result is finite whatever the coefficients.
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


@dataclass(frozen=True)
class Pixels:
    """The model of the reads of each pixel, arrays (pixel,).

    `inverse` is (8, pixel), and the transit's `shape` (pair,). Light and dark are in e⁻/s behind the flat, `lost` is
    the light missing at mid-transit, `middle` and `half` are the range of the inverse's fit in e⁻, `exposure_s` the
    times of start and end read, `adc` offset and gain. With jitter, `slopes` (2, pixel) are what a shift of the image
    adds to the light, and `pointing` (2, pair, 2) the shifts until the start read and from there to the end read.
    """

    light: Float
    lost: Float
    dark: Float
    read: Float
    middle: Float
    half: Float
    inverse: Float

    shape: Float
    exposure_s: tuple[float, float]
    adc: tuple[float, float]
    slopes: Float | None = None
    pointing: Float | None = None

    def draw(self, rng: np.random.Generator, block: slice, raw: NDArray[np.uint16]) -> None:
        """Fill raw (pixel, frame) for one block of pixels."""
        start_s, end_s = self.exposure_s
        most = self.light[block] + np.maximum(self.dark[block], 0)
        below = np.minimum(self.dark[block], 0)[:, None].astype(np.float32)
        read = self.read[block][:, None].astype(np.float32)
        charge = np.empty((most.size, self.shape.size), dtype=np.float32)
        noisy = np.empty_like(charge)
        before = np.zeros_like(charge)
        for parity, (seconds, total) in enumerate(((start_s, start_s), (end_s - start_s, end_s))):
            if self.slopes is None or self.pointing is None:
                _arrivals(rng, most * seconds, self.lost[block] * seconds, self.shape, charge)
            else:
                self._jittered(rng, block, seconds, parity, charge)
            charge += before
            before[...] = charge
            rng.standard_normal(out=noisy, dtype=np.float32)
            noisy *= read
            noisy += charge
            noisy += below * np.float32(total)
            self._digitise(noisy, charge, block)
            raw[:, parity::2] = noisy

    def _jittered(
        self, rng: np.random.Generator, block: slice, seconds: float, part: int, out: NDArray[np.float32]
    ) -> None:
        """Draw out[pixel, pair] ~ Poisson((light + slopes · pointing) · (1 − depth · shape) + dark), below 0 as 0."""
        assert self.slopes is not None
        assert self.pointing is not None
        light, lost, slopes = self.light[block], self.lost[block], self.slopes[:, block] * seconds
        most = (light + np.maximum(self.dark[block], 0)) * seconds
        still = ~slopes.any(axis=0)
        if still.any():
            drawn = np.empty((int(still.sum()), out.shape[1]), np.float32)
            _arrivals(rng, most[still], lost[still] * seconds, self.shape, drawn)
            out[still] = drawn
        depth = np.divide(lost, light, out=np.zeros_like(light), where=light > 0)
        for pixel in np.flatnonzero(~still):
            moved = slopes[:, pixel] @ self.pointing[:, :, part] * (1 - depth[pixel] * self.shape)
            mean = np.maximum(most[pixel] - lost[pixel] * seconds * self.shape + moved, 0)
            if mean.min() > _GAUSS_ABOVE:
                out[pixel] = mean
                _rounded_gauss(rng, out[pixel])
            else:
                out[pixel] = rng.poisson(mean)

    def _digitise(self, q: NDArray[np.float32], x: NDArray[np.float32], block: slice) -> None:
        """Turn true charges q into counts in place, with x for scratch: x(q), then n = round((x − offset) · gain)."""
        scale = (1 / self.half[block])[:, None].astype(np.float32)
        s = (q - self.middle[block][:, None].astype(np.float32)) * scale
        np.clip(s, -1, 1, out=s)
        g = self.inverse[:, block, None].astype(np.float32)
        x[...] = g[-1]
        for term in g[-2::-1]:
            x *= s
            x += term
        q += x
        q -= np.float32(self.adc[0])
        q *= np.float32(self.adc[1])
        np.rint(q, out=q)
        np.clip(q, 0, 65535, out=q)


def _arrivals(rng: np.random.Generator, most: Float, lost: Float, shape: Float, out: NDArray[np.float32]) -> None:
    """Draw out[pixel, pair] ~ Poisson(most − lost · shape)."""
    np.multiply(lost[:, None].astype(np.float32), -shape.astype(np.float32), out=out)
    out += most[:, None].astype(np.float32)
    bright = most - lost > _GAUSS_ABOVE
    if bright.all():
        _rounded_gauss(rng, out)
        return
    for row, level, drop, is_bright in zip(out, most, lost, bright, strict=True):
        if is_bright:
            _rounded_gauss(rng, row)
        else:
            row[:] = _few(rng, float(level), float(drop), shape)


def _rounded_gauss(rng: np.random.Generator, mean: NDArray[np.float32]) -> None:
    """Replace means by rounded Gaussian draws of the same variance."""
    spread = np.sqrt(mean)
    spread *= rng.standard_normal(mean.shape, dtype=np.float32)
    mean += spread
    np.rint(mean, out=mean)


def _few(rng: np.random.Generator, most: float, lost: float, shape: Float) -> NDArray[np.intp]:
    """Draw Poisson(most − lost · shape) exactly: a constant part by inversion, the rest by thinning."""
    constant = most - lost if most > _SCATTER_BELOW else 0.0
    rest = most - constant
    at = rng.integers(0, shape.size, rng.poisson(rest * shape.size))
    kept = rng.random(at.size) * rest < rest - lost * shape[at]
    counts = np.bincount(at[kept], minlength=shape.size)
    if constant:
        ladder = constant / np.arange(1, int(constant + 12 * np.sqrt(constant)) + 12)
        chance = np.exp(-constant) * np.cumsum(np.concatenate([[1.0], np.cumprod(ladder)]))
        counts += np.searchsorted(chance, rng.random(shape.size), side="right")
    return counts
