"""Allen Institute, Visual Behavior 2P: interneurons of mice that detect changes of images."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from neurodl.datasets.experiment import Experiment
from neurodl.errors import FileFormatError, UnknownNameError, listed

FILE = "allen_visual_behavior_2p_change_detection_familiar_novel_image_sets.parquet"
EXPERIMENT, CELL, PRESENTATION = (
    "ophys_experiment_id", "cell_specimen_id", "stimulus_presentations_id",
)  # fmt: skip
OF_PRESENTATIONS = (
    "image_index", "is_change", "omitted", "mean_running_speed", "mean_pupil_area",
    "response_latency", "rewarded",
)  # fmt: skip
OF_EXPERIMENTS = (
    "cre_line", "imaging_depth", "targeted_structure", "session_type", "exposure_level",
    "mouse_id", "ophys_session_id", "ophys_container_id",
)  # fmt: skip
VALUES = ("mean_response", "baseline_response", "trace")


def load_allen_vb2p(
    root: Path, experiment: int | None = None, value: str = "mean_response"
) -> Experiment:
    """Open one experiment (one plane of one session); only its rows are kept.

    Parameters
    ----------
    root : Path
        The folder with the parquet file.
    experiment : int, optional
        An ophys_experiment_id; the first one by default. A wrong one lists all.
    value : {"mean_response", "baseline_response", "trace"}
        The mean over 500 ms after the image, the one before it, or the trace around it.

    Returns
    -------
    Experiment
        Responses with dims ``(presentation, unit)``, or ``(presentation, time, unit)`` for traces
        (time from the image [s], attr bin_width). Coords stimulus (the image's name, or
        "omitted"), is_change, omitted, mean_running_speed and the other facts of presentations;
        cell (the cell_specimen_id) and roi (unit). Cells without a value are NaN.

    Raises
    ------
    UnknownNameError, MissingFileError, FileFormatError
        There is no such experiment or value; the file is missing or holds something else.

    References
    ----------
    Garrett et al. (2020), Experience shapes activity dynamics and stimulus coding of VIP inhibitory
    cells, eLife 9; Allen Institute for Brain Science, Visual Behavior 2P.
    """
    if value not in VALUES:
        raise UnknownNameError(f"`value` must be one of {VALUES}, but got {value!r}.")
    path = root / FILE
    known = _read(path, [EXPERIMENT])[EXPERIMENT].unique().tolist()
    chosen = known[0] if experiment is None else int(experiment)
    if chosen not in known:
        raise UnknownNameError(f"There is no experiment {chosen}; there are {listed(known, 40)}.")
    columns = [CELL, PRESENTATION, "image_name", value, *OF_PRESENTATIONS, *OF_EXPERIMENTS]
    columns += ["trace_timestamps"] if value == "trace" else []
    table = _read(path, columns, [(EXPERIMENT, "==", chosen)])
    if table.duplicated([CELL, PRESENTATION]).any():
        raise FileFormatError(f"{path}: a cell has several rows for the same presentation.")
    presentations = table.drop_duplicates(PRESENTATION).sort_values(PRESENTATION)
    rows = pd.Index(presentations[PRESENTATION]).get_indexer(table[PRESENTATION])
    cells = np.sort(table[CELL].unique())
    units = np.searchsorted(cells, table[CELL])
    shape: tuple[int, ...] = (len(presentations), len(cells))
    dims: tuple[str, ...] = ("presentation", "unit")
    if value == "trace":
        times = np.asarray(table["trace_timestamps"].iloc[0], dtype=np.float64)
        if any(len(trace) != len(times) for trace in table["trace"]):
            raise FileFormatError(f"{path}: the traces differ in length.")
        values = np.full((*shape, len(times)), np.nan, np.float32)
        values[rows, units] = np.stack(table["trace"].to_numpy())
        values, dims = np.moveaxis(values, 2, 1), ("presentation", "time", "unit")
        coords: dict[str, Any] = {"time": times}
        attrs: dict[str, Any] = {"bin_width": float(np.median(np.diff(times)))}
    else:
        values = np.full(shape, np.nan, np.float32)
        values[rows, units] = table[value].to_numpy(np.float32)
        coords, attrs = {}, {}
    first = table.iloc[0]
    coords |= {
        "stimulus": ("presentation", np.array([str(n) for n in presentations["image_name"]])),
        **{name: ("presentation", _plain(presentations[name])) for name in OF_PRESENTATIONS},
        "cell": ("unit", cells),
        "roi": ("unit", np.repeat(str(first["targeted_structure"]), len(cells))),
    }
    attrs |= {name: _attr(first[name]) for name in OF_EXPERIMENTS}
    attrs |= {"units": "calcium events", "subject": str(first["mouse_id"]), EXPERIMENT: chosen}
    responses = xr.DataArray(values, dims=dims, coords=coords, attrs=attrs)
    return Experiment(responses=responses, name="allen_vb2p")


def _read(path: Path, columns: list[str], filters: Any = None) -> pd.DataFrame:
    """Read some columns, of the rows that `filters` leaves."""
    try:
        import pyarrow.parquet as parquet
    except ImportError as error:
        raise ImportError("allen_vb2p needs pyarrow: pip install 'neurodl[spikes]'.") from error
    try:
        there = parquet.read_schema(path).names
        missing = [name for name in columns if name not in there]
        if missing:
            raise FileFormatError(f"{path} lacks the columns {listed(missing, 8)}.")
        return parquet.read_table(path, columns=columns, filters=filters).to_pandas()
    except (OSError, ValueError) as error:
        if isinstance(error, FileFormatError):
            raise
        raise FileFormatError(f"Cannot read {path} as parquet: {error}") from error


def _plain(column: pd.Series) -> np.ndarray:
    """Return a column as numbers or, where it is none, text; missing values as NaN."""
    return column.astype(np.float64).to_numpy()


def _attr(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else str(value)
