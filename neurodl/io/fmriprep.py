"""The confounds that fMRIPrep estimates: loaded by strategy, regressed out run by run."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from neurodl.errors import (
    FileFormatError,
    PairingError,
    UnknownNameError,
    did_you_mean,
    listed,
)
from neurodl.io.timeseries import clean, run_rows, trend_order

logger = logging.getLogger(__name__)

Confounds = tuple[np.ndarray, np.ndarray | None]


def load_confounds(path: Path, strategy: Sequence[str], **options: Any) -> Confounds:
    """Return the confounds of one preprocessed run, and which of its volumes to keep.

    Parameters
    ----------
    path : Path
        The run, ``*_desc-preproc_bold.nii.gz``, with its confounds beside it.
    strategy : sequence of str
        Names of nilearn's `load_confounds`, such as ``("motion", "wm_csf")``.
    **options
        Passed to nilearn: ``motion="basic"``.

    Returns
    -------
    confounds : numpy.ndarray, shape (n_times, n_confounds)
    kept : numpy.ndarray of int or None
        Volumes that are not censored; None for all.

    Raises
    ------
    UnknownNameError, FileFormatError
        A strategy does not exist, or the files lack what it needs.
    """
    from nilearn.interfaces import fmriprep
    from nilearn.interfaces.fmriprep.load_confounds import ALL_CONFOUNDS

    names = [strategy] if isinstance(strategy, str) else list(strategy)
    for name in names:
        if name not in ALL_CONFOUNDS:
            raise UnknownNameError(
                f"`confounds` has no strategy {name!r}. {did_you_mean(name, ALL_CONFOUNDS)}"
            )
    try:
        table, kept = fmriprep.load_confounds(str(path), strategy=tuple(names), **options)
    except ValueError as error:
        raise FileFormatError(f"Cannot load the confounds of {path}: {error}") from error
    incomplete = table.columns[table.isna().any()]
    if len(incomplete):
        raise FileFormatError(f"The confounds {listed(incomplete)} of {path} have missing values.")
    return table.to_numpy(float), kept


def remove_confounds(
    responses: xr.DataArray,
    confounds: Mapping[str, Confounds],
    *,
    detrend: bool | int = False,
    zscore: bool = False,
) -> xr.DataArray:
    """Regress confounds and trend out of each run together, and leave censored volumes out.

    Parameters
    ----------
    responses : xarray.DataArray
        Dims ``(time, target)``, as they were scanned.
    confounds : mapping of str to (confounds, kept)
        By run, see `load_confounds`.
    detrend, zscore
        See `read_nifti`.

    Returns
    -------
    xarray.DataArray
        The volumes that are kept, at their times. Attr n_censored counts the others.
    """
    order = trend_order(detrend)
    responses = responses.copy()
    kept_rows = []
    for run, rows in run_rows(responses).items():
        regressors, kept = confounds[run]
        if len(regressors) != len(rows):
            raise PairingError(
                f"Run {run!r} has {len(rows)} volumes, but {len(regressors)} rows of confounds."
            )
        kept = np.arange(len(rows)) if kept is None else kept
        responses.values[rows[kept]] = clean(
            responses.values[rows[kept]],
            trend=order,
            zscore=zscore,
            confounds=regressors[kept],
            times=responses["time"].values[rows[kept]],
        )
        kept_rows.append(rows[kept])
    n_censored = len(responses) - sum(map(len, kept_rows))
    if n_censored:
        logger.warning("left out %d censored volumes of %d", n_censored, len(responses))
    responses = responses.isel(time=np.concatenate(kept_rows))
    responses.attrs["n_censored"] = n_censored
    if zscore:
        responses.attrs["units"] = f"z-scored {responses.attrs['units']}"
    return responses
