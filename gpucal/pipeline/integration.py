"""Checks integration times against the data: charge grows with time, so bright pixels tell the ratio of both reads."""

from __future__ import annotations

import warnings
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from gpucal.errors import InputError, IntegrationWarning
from gpucal.inputs.dataset import Observation
from gpucal.inputs.signal_file import open_signal
from gpucal.pipeline.calibrate import calibrate
from gpucal.pipeline.calibrated import Calibrated
from gpucal.science.plan import Plan, integration_times_s
from gpucal.settings.arguments import require_kind
from gpucal.settings.calibration import Calibration, settings_of
from gpucal.settings.detectors import DETECTORS, Detector
from gpucal.settings.rules import Choice
from gpucal.settings.table import SETTINGS

__all__ = ["IntegrationCheck", "check_integration"]

# The notebook's first times and the updated ones differ by 2 % in AIRS-CH0, and by a factor of 2 in FGS1.
_TOLERANCE = 0.01
_BRIGHT = 0.01  # the part of all pixels that is looked at
_FEWEST = 8
_OF_MEDIAN = 1.2533 * 1.4826  # standard error of a median over median absolute deviation / √n, of normal noise


class IntegrationCheck(NamedTuple):
    """Charge in end reads over charge in start reads: as measured, with its error, and as integration times have it."""

    measured: float
    error: float
    used: float

    @property
    def fits(self) -> bool:
        """Whether the two differ by at most 1 % and three errors."""
        return self._fits(self.used)

    def _fits(self, ratio: float) -> bool:
        return abs(self.measured - ratio) <= _TOLERANCE * ratio + 3.0 * self.error


def check_integration(obs: Observation, settings: Calibration | None = None) -> dict[str, IntegrationCheck]:
    """Compare the integration times in use with the charge of bright pixels, and warn where they do not fit.

    Charge grows evenly during an exposure, so the charge of the end read over that of the start read is the ratio of
    their integration times. It is 46.05 and 2.001 in real frames of 2025, where the updated times have 46 and 2. Dark
    current is subtracted by these times; it is small in most pixels.

    Parameters
    ----------
    obs : Observation
        An observation.
    settings : Calibration, optional
        Settings, as for `calibrate`. Here linearity is always corrected, and counts are divided by the gain.

    Returns
    -------
    dict of str to IntegrationCheck
        For each detector ``measured``, the median ratio of the brightest 1 % of pixels, its ``error``, the ratio
        ``used``, and whether one ``fits`` the other.

    Warns
    -----
    IntegrationWarning
        For a detector whose times do not fit; the line names the value of ``integration`` that does.

    Raises
    ------
    ConfigError
        If an argument is of a wrong type.
    InputError
        If files cannot be used, or no usable pixel has charge in its start reads.

    Examples
    --------
    >>> obs = gpucal.open_dataset("ariel-data-challenge-2025")[20955726]
    >>> found = gpucal.check_integration(obs)
    >>> {name: (round(one.measured), round(one.used), one.fits) for name, one in found.items()}
    {'AIRS-CH0': (46, 46, True), 'FGS1': (2, 2, True)}
    """
    require_kind("obs", obs, Observation, "ds[17]")
    filled = settings_of(settings, None).filled(obs.dataset.layout.preset)
    how = filled.replace(gain="divide", linearity=True, bad_pixels="keep", cosmic_rays=0.0)
    found = {}
    for name, detector in DETECTORS.items():
        cal = calibrate(obs, name, how)
        assert cal.plan is not None
        ratios = _ratios(obs, cal, cal.plan)
        measured = float(np.median(ratios))
        error = _OF_MEDIAN * float(np.median(np.abs(ratios - measured))) / ratios.size**0.5
        choices = {one: _used(obs, detector, how.replace(integration=one), cal.plan) for one in _words()}
        found[name] = check = IntegrationCheck(measured, error, choices[str(how.integration)])
        if not check.fits:
            warnings.warn(_line(cal.where, str(how.integration), check, choices), IntegrationWarning, stacklevel=2)
    return found


def _ratios(obs: Observation, cal: Calibrated, plan: Plan) -> NDArray[np.float64]:
    """Return mean charge of end reads over that of start reads, of the brightest pixels that have any."""
    with np.errstate(over="ignore", invalid="ignore"):  # of bad pixels
        light = np.where(cal.dq == 0, cal.signal.sum(axis=0), -np.inf).T.ravel()  # as the plan has its pixels
    n = max(_FEWEST, int(_BRIGHT * light.size))
    bright = [pixel for pixel in np.argsort(-light)[:n].tolist() if light[pixel] > 0.0]
    path = obs.signal_path(cal.detector)
    loaded = open_signal(path, cal.detector).load()
    ratios = []
    for pixels, counts in loaded.counts(slice(pixel, pixel + 1) for pixel in bright):
        raw = np.maximum(counts[:, : plan.used_frames].astype(np.float64), plan.floor)
        with np.errstate(over="ignore", invalid="ignore"):  # coefficients may be wild
            charge = np.polynomial.polynomial.polyval(raw[0], plan.coefficients[:, pixels.start])
            start, end = charge[0::2].mean(), charge[1::2].mean()
        if start > 0.0 and np.isfinite(end):
            ratios.append(end / start)
    if not ratios:
        problem, mend = (
            "no usable pixel has charge in its start reads",
            "check the ADC table and the calibration frames",
        )
        raise InputError(problem, mend, path, cal.where)
    return np.array(ratios)


def _words() -> tuple[str, ...]:
    rule = SETTINGS["integration"].rule
    assert isinstance(rule, Choice)
    return rule.words


def _used(obs: Observation, detector: Detector, settings: Calibration, plan: Plan) -> float:
    """Return the ratio of the mean integration times of end and start reads."""
    start_s, end_s = integration_times_s(detector, settings, obs.axis(detector), plan.used_frames)
    return float(end_s.mean() / start_s.mean())


def _line(where: str, integration: str, check: IntegrationCheck, choices: dict[str, float]) -> str:
    """Say what does not fit, and which value of the setting does."""
    measured = f"{check.measured:.4g} times the charge of start reads"
    problem = f"end reads of bright pixels have {measured}, but integration = {integration!r} has {check.used:.4g}"
    better = [one for one, ratio in choices.items() if check._fits(ratio)]
    check_files = "no value of it fits: check axis_info.parquet and the ADC table"
    mend = f"set integration = {better[0]!r}" if better else check_files
    return f"{where}: {problem}; {mend}"
