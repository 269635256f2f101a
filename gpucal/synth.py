"""`gpucal synth`: a competition folder of raw detector reads from a forward model, and the truth beside it.

Per pixel and pair of reads, in electrons and with the true integration times t of :class:`gpucal.detectors.Detector`::

    λ(t)    = (rate · max(flat, 0) · (1 − depth · shape) + max(dark, 0)) · t
    start   ~ Poisson(λ(t_start)),   end = start + Poisson(λ(t_end − t_start))
    read    = charge + min(dark, 0) · t + Normal(0, read²)
    n       = clip(round((x − offset) · gain), 0, 65535),   x the root of Σ c_k x^k = read

so that n / gain + offset, linearity, dark, CDS and flat give the truth back. Dead pixels collect nothing.
"""

from __future__ import annotations

import csv
import logging
import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from gpucal.detectors import DETECTORS, Detector
from gpucal.errors import ConfigError, DatasetError, OutputError
from gpucal.scene import (
    FGS1_WAVELENGTH_UM,
    Frames,
    Target,
    draw_frames,
    draw_target,
    hot_pixels,
    invert_linearity,
    star_rate,
    wavelengths,
)

__all__ = ["Truth", "synthesize"]

Float = NDArray[np.float64]

_LOG = logging.getLogger(__name__)
_KINDS = ("dark", "dead", "flat", "linear_corr", "read")
_AIRS, _FGS1 = DETECTORS["AIRS-CH0"], DETECTORS["FGS1"]
# Above this mean a Poisson draw is a rounded Gaussian. The skewness left out is λ / (λ + read²)^1.5 of the read, whose
# noise is 13 e⁻: at most 0.03 (λ ≈ 340), a distribution wrong by at most 0.002 anywhere.
_GAUSS_ABOVE = 25.0
# Below this mean it is cheaper to scatter the few events than to draw one number a read.
_SCATTER_BELOW = 0.5
_TILE = 49_152
# Brightest pixel outside transit, e⁻, from the published maxima of 26871 and 23892 counts; and the ADC ceiling aimed at.
_FULL_WELL = {"AIRS-CH0": 62_500.0, "FGS1": 54_500.0}
_COUNTS = 58_000.0
# Gain and offset ranges: of the two stars of 2024, and the constants of 2025.
_OFFSETS = {"AIRS-CH0": (-1174.0, -697.0), "FGS1": (-493.0, -313.0)}
_GAINS = {"AIRS-CH0": ((1.496, 1.526), (0.923, 0.940)), "FGS1": ((1.014, 1.059), (0.833, 0.869))}
_ADC_2025 = (-1000.0, 0.4369)


@dataclass(frozen=True)
class Truth:
    """What one detector's raw reads of one visit were made from.

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
        Dead pixels, and hot ones by :func:`gpucal.scene.hot_pixels`.
    gain, offset : float
        ADC: n = (x − offset) · gain, counts per e⁻ and e⁻.
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

    def save(self, path: Path) -> None:
        """Write every field into one ``.npz``, making its folder.

        Parameters
        ----------
        path : Path
            The file.
        """
        path.parent.mkdir(parents=True, exist_ok=True)
        np.savez(path, allow_pickle=False, **{field.name: getattr(self, field.name) for field in fields(self)})

    @classmethod
    def load(cls, path: Path) -> Truth:
        """Read what :meth:`save` wrote.

        Parameters
        ----------
        path : Path
            ``truth/<planet>/<visit>/<detector>.npz``.

        Returns
        -------
        Truth
            The truth.
        """
        with np.load(path) as stored:
            values = {field.name: stored[field.name] for field in fields(cls)}
        values["gain"], values["offset"] = float(values["gain"]), float(values["offset"])
        return cls(**values)

    def expected(self, detector: Detector, pairs_per_bin: int) -> tuple[Float, Float]:
        """Mean and variance of the calibrated, binned (summed) cube, with masks off and the true integration times.

        signal = Σ rate · (1 − depth · shape) · Δt, without dark and divided by the flat (0 where flat ≤ 0);
        variance = (Σ (rate · flat⁺ · (1 − depth · shape) + dark⁺) · Δt + 2N · read² + 2N / (12 gain²)) / flat², with
        Δt = t_end − t_start and N pairs a bin. Dead pixels have dark 0 and flat 1, as in the organisers' notebook.

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
        signal = np.where(flat > 0, light, 0.0)
        shot = light * np.maximum(flat, 0) + np.maximum(dark, 0) * spans * pairs_per_bin
        noise = 2 * pairs_per_bin * (read**2 + 1 / (12 * self.gain**2))
        with np.errstate(divide="ignore"):
            return signal, np.asarray((shot + noise) / flat**2, dtype=np.float64)


def synthesize(
    out: Path,
    *,
    layout: str = "2024",
    planets: int = 1,
    frames: int | None = None,
    seed: int = 0,
    calibration: Path | None = None,
    visits: int = 1,
    splits: tuple[str, ...] = ("train",),
    workers: int | None = None,
    progress: Callable[[str], None] | None = None,
) -> list[int]:
    """Write a competition folder of synthetic raw reads, and what they were made from under ``truth/``.

    In 2024 the planets of a split share their calibration files; in 2025 each visit has its own, so that a mix-up shows.
    The result depends on the seed, never on the number of threads.

    Parameters
    ----------
    out : Path
        The folder; must be empty or not exist.
    layout : {"2024", "2025"}
        Whose competition folder to write.
    planets : int
        Planets in each split.
    frames : int, optional
        AIRS-CH0 frames, even; 11250 by default. FGS1 has 12 times as many.
    seed : int
        Seed of every draw.
    calibration : Path, optional
        Competition folder or planet folder whose calibration files are copied instead of drawn.
    visits : int
        Observations of each planet; more than one only in layout 2025.
    splits : tuple of str
        Of ``train`` and ``test``.
    workers : int, optional
        Threads that draw; one a core by default.
    progress : callable, optional
        Called with one line for each signal file.

    Returns
    -------
    list of int
        Planet ids, split after split.

    Raises
    ------
    ConfigError
        If a setting is not possible.
    OutputError
        If the folder is in use or cannot be written.
    DatasetError
        If `calibration` holds no calibration files.
    """
    count = _AIRS.frames if frames is None else frames
    _check(layout, planets, count, seed, visits, splits, workers)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise OutputError(f"{out} is not an empty folder; name another or remove it")
    source = None if calibration is None else _find_calibration(calibration)
    ids = _random(seed, 0).choice(np.arange(100_000_000, 1_000_000_000, 7), planets * len(splits), replace=False).tolist()
    threads = workers or os.cpu_count() or 1
    try:
        with ExitStack() as stack:
            pool = stack.enter_context(ThreadPoolExecutor(threads))
            writer = stack.enter_context(ThreadPoolExecutor(1))
            job = _Job(out, layout, count, seed, source, visits, pool, writer, progress or _LOG.info)
            for at, split in enumerate(splits):
                job.write_split(split, ids[at * planets : (at + 1) * planets])
    except OSError as error:
        raise error if isinstance(error, OutputError) else OutputError(f"{out}: {error}; free space or choose another") from error
    return [int(planet) for planet in ids]


def _check(
    layout: str, planets: int, frames: int, seed: int, visits: int, splits: Sequence[str], workers: int | None
) -> None:
    """Refuse settings that are not possible."""
    if layout not in ("2024", "2025"):
        raise ConfigError(f"layout {layout!r} is unknown; use 2024 or 2025")
    if frames < 2 or frames % 2:
        raise ConfigError(f"frames={frames}: reads come in pairs; use an even number of at least 2")
    if min(planets, visits) < 1 or seed < 0 or (workers is not None and workers < 1):
        raise ConfigError("planets, visits and workers must be at least 1 and seed at least 0")
    if visits > 1 and layout != "2025":
        raise ConfigError(f"visits={visits}: layout 2024 has one visit a planet; use layout 2025")
    if not splits or len(set(splits)) < len(splits) or not {*splits} <= {"train", "test"}:
        raise ConfigError(f"splits={','.join(splits)!r}: name train, test or both, once each")


def _random(*key: int) -> np.random.Generator:
    """Return the random numbers of one purpose; SFC64 draws normals a quarter faster than the default."""
    return np.random.Generator(np.random.SFC64(np.random.SeedSequence(key[0], spawn_key=key[1:])))


def _find_calibration(folder: Path) -> dict[str, Path]:
    """Find each detector's calibration folder in a competition or planet folder."""
    found = {}
    for name in DETECTORS:
        patterns = (f"{name}_calibration*", f"train/*/{name}_calibration*", f"test/*/{name}_calibration*")
        first = next((path for pattern in patterns for path in sorted(folder.glob(pattern))), None)
        missing = _KINDS if first is None else [kind for kind in _KINDS if not (first / f"{kind}.parquet").is_file()]
        if first is None or missing:
            raise DatasetError(f"{first or folder}: no {name} calibration ({', '.join(missing)}); name a planet's folder")
        found[name] = first
    return found


def _load_frames(folder: Path, detector: Detector) -> Frames:
    """Read the five calibration files."""
    height, width = detector.shape
    arrays = {}
    for kind in _KINDS:
        path = folder / f"{kind}.parquet"
        try:
            table = pq.read_table(path)
        except pa.ArrowInvalid as error:
            raise DatasetError(f"{path}: not a Parquet file; download it again") from error
        rows = 6 * height if kind == "linear_corr" else height
        if (table.num_rows, table.num_columns) != (rows, width):
            raise DatasetError(f"{path}: {table.num_rows} × {table.num_columns}, not {rows} × {width}; download it again")
        arrays[kind] = np.column_stack([column.to_numpy() for column in table.columns])
    linear = arrays["linear_corr"].reshape(6, height, width)
    return Frames(arrays["dark"], arrays["dead"].astype(np.bool_), arrays["flat"], arrays["read"], linear)


def _write_frames(folder: Path, frames: Frames) -> None:
    """Write the five calibration files as the publishers' are laid out."""
    folder.mkdir(parents=True)
    stacked = frames.linear.reshape(-1, frames.linear.shape[2])
    for kind, array in zip(_KINDS, (frames.dark, frames.dead, frames.flat, stacked, frames.read), strict=True):
        _write_columns(folder / f"{kind}.parquet", np.ascontiguousarray(array.T))


def _write_columns(path: Path, columns: NDArray[np.generic]) -> None:
    """Write (column, row) as one row group of ``column_0``…; a row of the array is a column, so nothing is copied."""
    table = pa.Table.from_arrays([pa.array(c) for c in columns], names=[f"column_{k}" for k in range(len(columns))])
    options = {"compression": "zstd", "compression_level": 1, "write_statistics": False, "store_schema": False}
    pq.write_table(table, path, row_group_size=columns.shape[1], **options)


def _write_csv(path: Path, header: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Write a small table."""
    with path.open("w", newline="", encoding="utf-8") as stream:
        table = csv.writer(stream, lineterminator="\n")
        table.writerow(header)
        table.writerows(rows)
