"""What gpucal accepts: the kinds of people's files and folders, what becomes of each, and the tests that show it.

``examples/inputs.md`` is made from this list: ``python tests/support/accepted.py > examples/inputs.md``.
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["KINDS", "Kind", "page"]


@dataclass(frozen=True)
class Kind:
    """A kind of input.

    Parameters
    ----------
    title : str
        Its name.
    rows : tuple of (str, str)
        What someone has, and what gpucal does.
    tests : tuple of str
        Tests, as file below ``tests/`` and name.
    """

    title: str
    rows: tuple[tuple[str, str], ...]
    tests: tuple[str, ...]


KINDS = (
    Kind(
        "Planet ids",
        (
            ("`1103775`, `1103775.0`, `1.103775e6`, as numbers or texts, of Python, NumPy or pandas", "one id"),
            ("the same in ADC tables and after `--planet`", "one id"),
            ("a float32 of 2^24 or more, a float64 of 2^53 or more", "an error, as it may be a rounded id; use int64"),
            ("a negative int32", "an error, as it may be an id that was too large; use int64"),
            ("`17.5`, `True`, `1_7`, digits of other scripts", "an error"),
        ),
        (
            "inputs/test_peoples_ids.py::test_the_same_integer",
            "inputs/test_peoples_ids.py::test_no_id",
            "inputs/test_peoples_ids.py::test_a_data_set_takes_them",
            "inputs/test_peoples_ids.py::test_a_run_takes_them",
            "inputs/test_peoples_ids.py::test_results_take_them",
            "inputs/test_peoples_ids.py::test_the_command_line_takes_them",
            "inputs/test_calibration_files.py::test_ids_as_numbers",
        ),
    ),
    Kind(
        "Folders and links",
        (
            ("a planet folder `0017`, `17.0`, `planet_17`", "left out; a warning names it"),
            ("a hidden folder, such as `.ipynb_checkpoints`", "left out"),
            ("a planet folder that is a link", "calibrated"),
            ("a planet folder that is a link to nowhere", "left out; a warning names it"),
            ("a file that is a link to nowhere", "an error that costs this detector of this observation"),
            ("names that are not UTF-8", "every verb works; names are printed with backslashes"),
        ),
        (
            "inputs/test_peoples_ids.py::test_folders_of_other_names_are_warned_of",
            "inputs/test_peoples_ids.py::test_planets_that_are_links_to_nowhere_are_warned_of",
            "inputs/test_peoples_ids.py::test_files_that_are_links_to_nowhere_cost_their_item",
            "inputs/test_peoples_ids.py::test_links_to_nowhere_of_the_data_set",
            "inputs/test_peoples_folders.py::test_names_that_are_not_utf_8",
        ),
    ),
    Kind(
        "The year of the layout",
        (
            ("signal files without visit numbers, also beside a stray `adc_info.csv`", "2024"),
            ("signal files with visit numbers, also beside a stray `train_adc_info.csv`", "2025"),
            ("a few files of the other year", "left out; the more frequent kind decides"),
            ("empty planet folders", "the ADC table's name decides"),
        ),
        (
            "inputs/test_peoples_folders.py::test_what_is_stray_does_not_change_the_layout",
            "inputs/test_peoples_folders.py::test_without_files_of_planets_the_tables_decide",
        ),
    ),
    Kind(
        "Calibration frames",
        (
            ("null or NaN in `dark`", "the pixel is NaN and flagged BAD_DARK"),
            ("null or NaN in `flat`", "the pixel is NaN and flagged BAD_FLAT"),
            ("null or NaN in `linear_corr`", "the pixel is NaN and flagged BAD_LINEARITY"),
            ("null or NaN in `read`", "the signal is unchanged, and its variance is NaN"),
            ("a whole frame of them", "an error"),
            ("an infinite dark, an infinite or negative read noise", "an error"),
            ("a dead map of bool, or of 0 and 1 as integers or floats", "a dead map"),
            ("a dead map with anything else in it", "an error"),
            ("no `read.parquet`", "signals are calibrated; errors are NaN, and a warning says so once"),
            ("no `read.parquet`, with `--variance` or `--weights variance`", "an error that names the flag"),
        ),
        (
            "inputs/test_peoples_frames.py::test_gaps_are_what_the_oracle_makes_of_them",
            "inputs/test_peoples_frames.py::test_a_gap_costs_its_pixel_a_flag",
            "inputs/test_peoples_frames.py::test_a_frame_without_a_value_is_an_error",
            "inputs/test_peoples_frames.py::test_a_dead_map_of_numbers",
            "inputs/test_peoples_frames.py::test_no_dead_map",
            "inputs/test_peoples_frames.py::test_without_read_noise_only_errors_are_missing",
            "inputs/test_peoples_frames.py::test_what_needs_the_read_noise_is_refused_by_name",
            "inputs/test_calibration_files.py::test_values_that_are_refused_inside_the_crop_only",
        ),
    ),
    Kind(
        "Tables and columns",
        (
            ("a pandas index, in signals and calibration files, also if another library saved it again", "no pixel"),
            ("columns `column_0`, `column_1`, `column_10`, ... in any order", "pixels in the order of the numbers"),
            ("any integers that fit 16 bits, any encoding, any number of row groups", "counts"),
            ("a planet twice in the ADC table with equal values", "accepted"),
            ("a planet twice in the ADC table with other values", "an error that names both lines"),
            ("no `axis_info.parquet`", "times are the documented ones, wavelengths are not known; a warning says so"),
        ),
        (
            "inputs/test_peoples_frames.py::test_an_index_is_no_pixel",
            "inputs/test_calibration_files.py::test_numbered_columns_in_any_order",
            "inputs/test_calibration_files.py::test_lines_that_do_not_differ",
            "inputs/test_peoples_frames.py::test_without_axes_the_documented_ones_do",
            "inputs/test_peoples_frames.py::test_without_axes_from_beginning_to_end",
        ),
    ),
    Kind(
        "Other files under these names",
        (
            ("a ZIP or gzip file, a web page, a Git LFS pointer, a file of zeros", "an error that says what it is"),
            ("`read.parquet.zip`, `adc_info.csv.gz`, ... where the file itself is missing", "a line that names it"),
        ),
        (
            "inputs/test_kinds.py::test_no_parquet",
            "inputs/test_dataset.py::test_a_packed_table_is_seen",
            "inputs/test_peoples_frames.py::test_packed_read_noise_is_named",
        ),
    ),
    Kind(
        "Detectors in flags",
        (
            (
                "`--bin AIRS=30`, `--bin airs-ch0=30`, `--bin AIRS=30,FGS1=360`",
                "accepted; so are `--crop`, `--rows`, ...",
            ),
            ("`--bin NIR=30`", "an error that names the detectors"),
        ),
        (
            "inputs/test_peoples_folders.py::test_detectors_as_people_write_them",
            "inputs/test_peoples_folders.py::test_other_flags_by_detector_are_written_so_too",
            "inputs/test_peoples_folders.py::test_a_detector_that_could_be_either_is_refused",
        ),
    ),
    Kind(
        "Surroundings",
        (
            ("a home folder that cannot be written", "runs and pictures work; CuPy needs `CUPY_CACHE_DIR`"),
            ("two CuPy wheels installed together", "an error that names both; `auto` takes another backend"),
            ("an NVIDIA driver too old for CuPy", "an error that says for which CUDA the driver is"),
            ("`python -W error`", "importing gpucal warns of nothing"),
            ("an event loop of asyncio, a thread other than the main one", "everything works there"),
            (
                "a `DataLoader` with workers and 64 MB of `/dev/shm`",
                "reading needs none of it, PyTorch's batches do; `collate_fn=np.stack` makes batches that need none",
            ),
        ),
        (
            "system/test_environments.py::test_a_home_that_cannot_be_written",
            "system/test_environments.py::test_the_real_cupy_needs_a_folder_for_kernels",
            "system/test_environments.py::test_two_wheels_of_cupy",
            "system/test_environments.py::test_a_driver_that_is_too_old",
            "system/test_environments.py::test_warnings_are_errors",
            "system/test_environments.py::test_other_places_than_the_main_thread",
            "system/test_environments.py::test_results_are_loaded_without_shared_memory",
            "results/test_dataloader.py::test_stacked_batches_need_no_shared_memory",
            "results/test_dataloader.py::test_a_dataloader_of_stacked_batches",
        ),
    ),
)
"""Every kind, in the order of the page."""

_HEAD = """# What gpucal accepts

People copy, link, re-save and lose parts of the competition's folders. This page says what gpucal makes of them.
Before a run, `gpucal check DATASET` tells which of your files would fail. An error costs one detector of one
observation, never the run, unless it concerns the whole folder.
"""


def page() -> str:
    """Write the page."""
    parts = [_HEAD]
    for kind in KINDS:
        rows = "\n".join(f"| {what} | {becomes} |" for what, becomes in kind.rows)
        parts.append(f"\n## {kind.title}\n\n| what you have | what becomes of it |\n|---|---|\n{rows}\n")
    return "".join(parts)


if __name__ == "__main__":
    import sys

    sys.stdout.write(page())
