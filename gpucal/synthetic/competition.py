"""`gpucal synth`: a competition folder of raw detector reads from a forward model, and the truth beside it.

Per pixel and pair of reads, in electrons, with the true integration times t of
:class:`gpucal.settings.detectors.Detector`::

    λ(t)    = (rate · max(flat, 0) · (1 − depth · shape) + max(dark, 0)) · t
    start   ~ Poisson(λ(t_start)),   end = start + Poisson(λ(t_end − t_start))
    read    = charge + min(dark, 0) · t + Normal(0, read²)
    n       = clip(round((x − offset) · gain), 0, 65535),   x the root of Σ c_k x^k = read

so that n / gain + offset, linearity, dark, CDS and flat give the truth back. Dead pixels collect nothing. With jitter,
rate is rate + slopes · pointing, but never below 0. The pointing is one series for both detectors of a visit.
"""

from __future__ import annotations

import csv
import logging
import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, fields, replace
from numbers import Integral
from pathlib import Path
from types import MappingProxyType

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from gpucal.errors import ConfigError, DatasetError, OutputError
from gpucal.hints import did_you_mean, near_path
from gpucal.inputs.calibration_files import read_frames, read_raw_frames
from gpucal.inputs.dataset import SPLITS
from gpucal.results.atomic import writing
from gpucal.science.plan import hot_pixels
from gpucal.settings.arguments import path_of, require_switches
from gpucal.settings.calibration import Calibration
from gpucal.settings.detectors import DETECTORS, Detector
from gpucal.synthetic import scene
from gpucal.synthetic.published_parquet import write_signal
from gpucal.synthetic.scene import Frames, Pixels, Target

__all__ = ["Truth", "synthesize"]

Float = NDArray[np.float64]

_LOG = logging.getLogger(__name__)
_STAR_COLUMNS = ("planet_id", "Rs", "Ms", "Ts", "Mp", "e", "P", "sma", "i")
_KINDS = ("dark", "dead", "flat", "linear_corr", "read")
_AIRS, _FGS1 = DETECTORS["AIRS-CH0"], DETECTORS["FGS1"]
# Reads of one parity that are drawn at a time: a few arrays of this size fit the cache.
_TILE = 49_152
# Brightest pixel outside transit, e⁻, from the published maxima of 26871 and 23892 counts; below, the highest counts.
_FULL_WELL = MappingProxyType({"AIRS-CH0": 62_500.0, "FGS1": 54_500.0})
_COUNTS = 58_000.0
# Planet ids, from and below: real ones are as evenly spread, and half of them need more than 31 bits.
_IDS = (10_000, 2**32)


@dataclass(frozen=True)
class Truth:
    """The parameters that one detector's raw reads of one visit were made from.

    Parameters
    ----------
    rate : ndarray of float64, shape (spatial, wavelength)
        Starlight outside transit at flat 1, e⁻/s; 0 at dead pixels.
    depth : ndarray of float64, shape (wavelength,)
        Mid-transit depth of each stored column.
    shape : ndarray of float64, shape (pair,)
        Transit shape, 0 outside and 1 in the middle: a pair's light is rate · (1 − depth · shape).
    exposure_s : ndarray of float64, shape (2,)
        Integration times of start and end read, s.
    dark, flat, read : ndarray of float64, shape (spatial, wavelength)
        Dark current (e⁻/s), relative response and read noise (e⁻), as in the calibration files.
    dead, hot : ndarray of bool, shape (spatial, wavelength)
        Dead pixels, and hot ones by :func:`gpucal.science.plan.hot_pixels`.
    gain, offset : float
        ADC: n = (x − offset) · gain, counts per e⁻ and e⁻.
    slopes : ndarray of float64, shape (2, spatial, wavelength), optional
        What a shift of the image along the slit, and along wavelength, adds to the rate, e⁻/s a pixel; with jitter.
    pointing : ndarray of float64, shape (2, pair, 2), optional
        Mean shifts, pixels, until the start read, and from there to the end read; with jitter.
    """

    rate: Float
    depth: Float
    shape: Float
    exposure_s: Float
    dark: Float
    flat: Float
    dead: NDArray[np.bool_]
    read: Float
    hot: NDArray[np.bool_]
    gain: float
    offset: float
    slopes: Float | None = None
    pointing: Float | None = None

    def save(self, path: Path) -> None:
        """Write every field that has a value into one ``.npz`` (gain and offset 0-d), making its folder."""
        path.parent.mkdir(parents=True, exist_ok=True)
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        np.savez(path, allow_pickle=False, **{name: value for name, value in values.items() if value is not None})

    @classmethod
    def load(cls, path: Path) -> Truth:
        """Read a file that :meth:`save` wrote: ``truth/<planet>/<visit>/<detector>.npz``."""
        with np.load(path) as stored:
            values = {field.name: stored[field.name] for field in fields(cls) if field.name in stored}
        values["gain"], values["offset"] = float(values["gain"]), float(values["offset"])
        return cls(**values)

    def expected(self, detector: Detector, pairs_per_bin: int) -> tuple[Float, Float]:
        """Mean and variance of the calibrated, binned (summed) cube, with masks off and the true integration times.

        signal = Σ rate · (1 − depth · shape) · Δt, without dark and divided by the flat (0 where flat ≤ 0);
        variance = (Σ (rate · flat⁺ · (1 − depth · shape) + dark⁺) · Δt + 2N · read² + 2N / (12 gain²)) / flat², with
        Δt = t_end − t_start and N pairs a bin. Dead pixels have dark 0 and flat 1, as in the organisers' notebook.
        With jitter, rate is rate + slopes · pointing; the pointing is known, so that it adds nothing to the variance.

        Parameters
        ----------
        detector : Detector
            The detector, for its crop.
        pairs_per_bin : int
            N; the pairs left over at the end are dropped.

        Returns
        -------
        signal, variance : ndarray of float64, shape (bin, wavelength, spatial)
            e⁻ and e⁻², over the crop. The variance is infinite where the flat is exactly 0.
        """
        bins = self.shape.size // pairs_per_bin
        cut = slice(*detector.crop)
        rate, flat, dark, read = (
            np.ascontiguousarray(frame[:, cut].T)
            for frame in (self.rate, np.where(self.dead, 1.0, self.flat), self.dark * ~self.dead, self.read)
        )
        spans = float(self.exposure_s[1] - self.exposure_s[0])
        shape = self.shape[: bins * pairs_per_bin].reshape(bins, pairs_per_bin).sum(axis=1)
        light = (pairs_per_bin - self.depth[None, cut] * shape[:, None])[:, :, None] * rate * spans
        if self.slopes is not None and self.pointing is not None:
            moves = self.pointing[:, : bins * pairs_per_bin, 1].reshape(2, bins, pairs_per_bin)
            blocked = (moves * self.shape[: bins * pairs_per_bin].reshape(bins, pairs_per_bin)).sum(axis=2)
            shifts = moves.sum(axis=2)[:, :, None] - self.depth[cut] * blocked[:, :, None]
            light += np.einsum("abx,axy->bxy", shifts, self.slopes[:, :, cut].transpose(0, 2, 1)) * spans
        signal = np.where(flat > 0, light, 0.0)
        shot = light * np.maximum(flat, 0) + np.maximum(dark, 0) * spans * pairs_per_bin
        noise = 2 * pairs_per_bin * (read**2 + 1 / (12 * self.gain**2))
        with np.errstate(divide="ignore"):
            return signal, np.asarray((shot + noise) / flat**2, dtype=np.float64)


def synthesize(
    out: str | Path,
    *,
    layout: str = "2024",
    planets: int = 1,
    frames: int | None = None,
    seed: int = 0,
    calibration: str | Path | None = None,
    visits: int = 1,
    splits: Sequence[str] = ("train",),
    workers: int | None = None,
    progress: Callable[[str], object] | None = None,
    jitter: bool = False,
) -> list[int]:
    """Write a competition folder of synthetic raw reads, and their truth under ``truth/``.

    In 2024 the planets of a split share their calibration files. In 2025 each visit has its own, so that a mix-up
    shows. Signal files are encoded as the published ones of that year. The result depends on the seed, never on the
    number of threads.

    Parameters
    ----------
    out : str or Path
        The folder; must be empty or not exist.
    layout : {"2024", "2025"}
        The year's competition folder to write.
    planets, visits : int
        Planets in each split, and visits of each planet; layout 2024 has one visit.
    frames : int, optional
        AIRS-CH0 frames, even; 11250 by default. FGS1 has 12 times as many.
    seed : int
        Seed of every draw.
    calibration : str or Path, optional
        Competition folder or planet folder whose calibration files are copied instead of drawn.
    splits : sequence of str
        ``train``, ``test`` or both, or the name of one; only train has labels.
    workers : int, optional
        Threads that draw; by default one per core.
    progress : callable, optional
        Called with one line for each signal file.
    jitter : bool
        Move the image as real frames show it, see `gpucal.synthetic.scene.draw_pointing`; the truth holds the pointing.

    Returns
    -------
    list of int
        Planet ids, split after split.

    Raises
    ------
    ConfigError, OutputError, DatasetError
        For a setting that is not possible, a folder in use or not writable, and missing calibration files.
    """
    out = path_of("out", out)
    calibration = None if calibration is None else path_of("calibration", calibration)
    count = _AIRS.frames if frames is None else frames
    threads = (os.cpu_count() or 1) if workers is None else workers
    splits = (splits,) if isinstance(splits, str) else splits
    require_switches(jitter=jitter)
    if progress is not None and not callable(progress):
        raise ConfigError(f"progress = {progress!r}: must be a function of a line, such as print")
    _check(layout, planets, count, seed, visits, splits, threads)
    with writing(out):
        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            raise OutputError(f"{out}: is not an empty folder; name a new one")
    source = None if calibration is None else _find_calibration(calibration)
    ids = _draw_ids(seed, planets * len(splits))
    try:
        with ThreadPoolExecutor(threads) as pool, ThreadPoolExecutor(1) as writer:
            job = _Job(out, layout, count, seed, source, visits, pool, writer, progress or _LOG.info, jitter)
            for at, split in enumerate(splits):
                job.write_split(split, ids[at * planets : (at + 1) * planets])
    except OSError as error:
        raise OutputError(f"{out}: {error}; free space or name another folder") from error
    return ids


def _check(layout: str, planets: int, frames: int, seed: int, visits: int, splits: Sequence[str], workers: int) -> None:
    """Refuse settings that are not possible."""
    if unknown := [name for name in DETECTORS if name not in _FULL_WELL]:
        mend = "use real data, or add it to the tables in gpucal/synthetic"
        raise ConfigError(f"synthetic data: the brightness of {', '.join(unknown)} is not known; {mend}")
    if not isinstance(layout, str) or layout not in ("2024", "2025"):
        raise ConfigError(f"layout = {layout!r}: must be '2024' or '2025'")
    for name, value, least in (
        ("frames", frames, 2),
        ("planets", planets, 1),
        ("visits", visits, 1),
        ("workers", workers, 1),
        ("seed", seed, 0),
    ):
        if isinstance(value, bool) or not isinstance(value, Integral):
            raise ConfigError(f"{name} = {value!r}: must be an integer, {least} or more")
        if value < least:
            raise ConfigError(f"{name} = {value}: must be {least} or more")
    if frames % 2:
        raise ConfigError(f"frames = {frames}: reads come in pairs; use an even number of at least 2")
    if visits > 1 and layout != "2025":
        raise ConfigError(f"visits={visits}: layout 2024 has one visit a planet; use layout 2025")
    named = [*splits] if isinstance(splits, Sequence) else []
    if not named or any(named.count(one) > 1 or one not in SPLITS for one in named):
        raise ConfigError(f"splits = {splits!r}: name train, test or both, once each")


def _draw_ids(seed: int, count: int) -> list[int]:
    least, behind = _IDS
    return [least + int(number) for number in _random(seed, 0).choice(behind - least, count, replace=False)]


def _random(*key: int) -> np.random.Generator:
    """Return the random numbers of one purpose; SFC64 draws normals a quarter faster than the default."""
    return np.random.Generator(np.random.SFC64(np.random.SeedSequence(key[0], spawn_key=key[1:])))


def _find_calibration(folder: Path) -> dict[str, Path]:
    """Find each detector's calibration folder in a competition or planet folder."""
    if not folder.is_dir():
        problem = "is a file" if folder.exists() else "does not exist"
        raise DatasetError(f"{folder}: {problem}{did_you_mean(near_path(folder), 'name a planet folder')}")
    found = {}
    for name in DETECTORS:
        patterns = (f"{name}_calibration*", f"train/*/{name}_calibration*", f"test/*/{name}_calibration*")
        first = next((path for pattern in patterns for path in sorted(folder.glob(pattern))), None)
        missing = _KINDS if first is None else [kind for kind in _KINDS if not (first / f"{kind}.parquet").is_file()]
        if first is None or missing:
            lacks = ", ".join(missing)
            raise DatasetError(f"{first or folder}: no {name} calibration ({lacks}); name a planet's folder")
        found[name] = first
    return found


def _load_frames(folder: Path, detector: Detector) -> Frames:
    """Read the five calibration files, uncropped."""
    stored = read_frames(read_raw_frames(folder), folder, replace(detector, crop=(0, detector.shape[1])))
    return Frames(stored.dark, stored.dead, stored.flat, stored.read, stored.linear_corr)


def _hot(dark: Float, detector: Detector, config: Calibration) -> NDArray[np.bool_]:
    """Find hot pixels inside the crop; False outside it."""
    hot = np.zeros(dark.shape, dtype=np.bool_)
    cut = slice(*detector.crop)
    hot[:, cut] = hot_pixels(dark[:, cut], config.hot_sigma, config.hot_iterations)
    return hot


def _full_well(detector: Detector, gain: float, offset: float) -> float:
    """Return the charge of the fullest pixel, e⁻: a large gain leaves room for a fainter star only."""
    return min(_FULL_WELL[detector.name], _COUNTS / gain + offset)


def _write_frames(folder: Path, frames: Frames) -> None:
    """Write the five calibration files in the published layout."""
    folder.mkdir(parents=True)
    stacked = frames.linear.reshape(-1, frames.linear.shape[2])
    for kind, array in zip(_KINDS, (frames.dark, frames.dead, frames.flat, stacked, frames.read), strict=True):
        _write_columns(folder / f"{kind}.parquet", np.ascontiguousarray(array.T))


def _write_columns(path: Path, columns: NDArray[np.generic]) -> None:
    """Write (column, row) of a calibration file as ``column_0``, ``column_1``, ...; the array is not copied."""
    table = pa.Table.from_arrays([pa.array(c) for c in columns], names=[f"column_{k}" for k in range(len(columns))])
    options = {"compression": "zstd", "compression_level": 1, "write_statistics": False, "store_schema": False}
    options["use_dictionary"] = False  # as published
    with path.open("wb") as stream:  # pyarrow takes no path that is not UTF-8
        pq.write_table(table, stream, row_group_size=columns.shape[1], **options)


def _write_csv(path: Path, header: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as stream:
        table = csv.writer(stream, lineterminator="\n")
        table.writerow(header)
        table.writerows(rows)


@dataclass(frozen=True)
class _Job:
    """One call of :func:`synthesize`: target, settings and threads; at most two detectors are in memory at once."""

    out: Path
    layout: str
    frames: int
    seed: int
    source: dict[str, Path] | None
    visits: int
    pool: ThreadPoolExecutor
    writer: ThreadPoolExecutor
    progress: Callable[[str], object]
    jitter: bool

    def write_split(self, split: str, ids: Sequence[int]) -> None:
        """Write the planets and the tables of one split."""
        targets = {planet: scene.draw_target(_random(self.seed, 1, planet)) for planet in ids}
        header = [f"{name}_adc_{what}" for name in ("FGS1", "AIRS-CH0") for what in ("offset", "gain")]
        adc = {planet: scene.draw_adc(_random(self.seed, 2, planet), self.layout) for planet in ids}
        um = np.concatenate([[scene.FGS1_WAVELENGTH_UM], scene.wavelengths()[slice(*_AIRS.crop)]])
        names = [f"wl_{k}" for k in range(1, um.size + 1)]
        folder = self.out / split
        folder.mkdir(parents=True)
        self._write_axes()
        _write_csv(self.out / "wavelengths.csv", names, [um.tolist()])
        if self.layout == "2024":
            rows = [[planet, *adc[planet][0]["FGS1"], *adc[planet][0]["AIRS-CH0"], adc[planet][1]] for planet in ids]
            _write_csv(self.out / f"{split}_adc_info.csv", ["planet_id", *header, "star"], rows)
        else:
            _write_csv(self.out / "adc_info.csv", header, [[*scene.ADC_2025, *scene.ADC_2025]])
            stars = [[planet, *targets[planet].row(_random(self.seed, 3, planet))] for planet in ids]
            _write_csv(self.out / f"{split}_star_info.csv", _STAR_COLUMNS, stars)
        if split == "train":
            labels = [[planet, *targets[planet].depth(um).tolist()] for planet in ids]
            name = "train_labels.csv" if self.layout == "2024" else "train.csv"
            _write_csv(self.out / name, ["planet_id", *names], labels)
        pending: Future[None] = Future()
        pending.set_result(None)
        for planet in ids:
            for visit in range(self.visits):
                for index, detector in enumerate(DETECTORS.values()):
                    suffix = "" if self.layout == "2024" else f"_{visit}"
                    frames = self._frames(detector, folder / str(planet), split, (planet, visit, index))
                    truth = self._truth(detector, frames, targets[planet], *adc[planet][0][detector.name])
                    if self.jitter:
                        truth = self._with_jitter(truth, detector, targets[planet], planet, visit)
                    truth.save(self.out / "truth" / str(planet) / str(visit) / f"{detector.name}.npz")
                    raw = self._expose(detector, truth, frames.linear, (planet, visit, index))
                    pending.result()
                    path = folder / str(planet) / f"{detector.name}_signal{suffix}.parquet"
                    pending = self.writer.submit(self._write_signal, path, raw)
                    del raw
        pending.result()

    def _write_signal(self, path: Path, raw: NDArray[np.uint16]) -> None:
        write_signal(path, raw, self.layout, self.pool)
        self.progress(f"{path}: {raw.shape[1]} frames")

    def _write_axes(self) -> None:
        """Write axis_info.parquet, the shorter columns padded with NaN at the end."""
        airs, fgs1 = (scene.read_times(detector, self.frames) for detector in (_AIRS, _FGS1))
        columns = {
            "AIRS-CH0-axis0-h": airs / 3600,
            "AIRS-CH0-axis2-um": scene.wavelengths(),
            "AIRS-CH0-integration_time": np.resize([0.1, 4.5], airs.size),
            "FGS1-axis0-h": fgs1 / 3600,
        }
        rows = max(column.size for column in columns.values())
        padded = {name: np.pad(c, (0, rows - c.size), constant_values=np.nan) for name, c in columns.items()}
        with (self.out / "axis_info.parquet").open("wb") as stream:
            pq.write_table(pa.table(padded), stream, compression="zstd")

    def _frames(self, detector: Detector, planet: Path, split: str, key: tuple[int, int, int]) -> Frames:
        """Write one detector's calibration folder and return its frames."""
        suffix = "" if self.layout == "2024" else f"_{key[1]}"
        folder = planet / f"{detector.name}_calibration{suffix}"
        if self.source is not None:
            folder.mkdir(parents=True)
            for name in (f"{kind}.parquet" for kind in _KINDS):
                (folder / name).write_bytes((self.source[detector.name] / name).read_bytes())
            return _load_frames(folder, detector)
        if self.layout == "2024":
            rng, series = _random(self.seed, 4, int(split == "test"), key[2]), f"2024-{split}"
        else:
            rng, series = _random(self.seed, 5, *key), "2025"
        frames = scene.draw_frames(rng, detector, series)
        _write_frames(folder, frames)
        return frames

    def _truth(self, detector: Detector, frames: Frames, target: Target, offset: float, gain: float) -> Truth:
        """Choose all parameters but the noise."""
        full = _full_well(detector, gain, offset)
        um = np.full(detector.shape[1], scene.FGS1_WAVELENGTH_UM) if detector.photometer else scene.wavelengths()
        middle = scene.read_times(detector, self.frames).reshape(-1, 2).mean(axis=1)
        span = detector.true_integration_s[1] + 2 * detector.true_integration_s[0]
        rate = np.where(frames.dead, 0.0, scene.star_rate(detector, target, frames.flat * ~frames.dead, full))
        shape, exposure = target.shape(middle / (middle.size * span)), np.array(detector.true_integration_s)
        maps = (frames.dark, frames.flat, frames.dead, frames.read, _hot(frames.dark, detector, Calibration()))
        return Truth(rate, target.depth(um), shape, exposure, *maps, gain, offset)

    def _with_jitter(self, truth: Truth, detector: Detector, target: Target, planet: int, visit: int) -> Truth:
        """Add the pointing, which is the same for both detectors, and what it does to the light."""
        start_s, end_s = detector.true_integration_s
        seconds = truth.shape.size * (end_s + 2 * start_s)
        pointing = scene.draw_pointing(_random(self.seed, 7, planet, visit), seconds)
        full = _full_well(detector, truth.gain, truth.offset)
        slopes = np.where(truth.dead, 0.0, scene.star_slopes(detector, target, truth.flat * ~truth.dead, full))
        return replace(truth, slopes=slopes, pointing=scene.mean_pointing(detector, pointing))

    def _expose(self, detector: Detector, truth: Truth, linear: Float, key: tuple[int, int, int]) -> NDArray[np.uint16]:
        """Draw all reads of one detector, block by block of pixels: uint16, (pixel, frame)."""
        light = (truth.rate * np.maximum(truth.flat, 0)).ravel()
        dark, read = np.where(truth.dead, 0.0, truth.dark).ravel(), truth.read.ravel()
        start_s, end_s = detector.true_integration_s
        slopes = pointing = None
        brightest = light
        if truth.slopes is not None and truth.pointing is not None:
            slopes, pointing = (truth.slopes * np.maximum(truth.flat, 0)).reshape(2, -1), truth.pointing
            brightest = light + np.abs(pointing).max(axis=(1, 2)) @ np.abs(slopes)
        most = (brightest + np.maximum(dark, 0)) * end_s
        low = np.minimum(dark, 0) * end_s - 7 * read
        high = most + 7 * np.sqrt(most + read**2) + 10
        lost = light * np.broadcast_to(truth.depth, truth.rate.shape).ravel()
        inverse = scene.invert_linearity(linear.reshape(6, -1), low, high)
        middle, half = (low + high) / 2, (high - low) / 2
        times, adc = (start_s, end_s), (truth.offset, truth.gain)
        pixels = Pixels(light, lost, dark, read, middle, half, inverse, truth.shape, times, adc, slopes, pointing)
        raw = np.empty((detector.n_columns, 2 * truth.shape.size), dtype=np.uint16)
        step = max(1, _TILE // truth.shape.size)

        def draw(first: int) -> None:
            block = slice(first, first + step)
            pixels.draw(_random(self.seed, 6, *key, first), block, raw[block])

        list(self.pool.map(draw, range(0, detector.n_columns, step)))
        return raw
