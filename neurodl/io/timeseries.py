"""Time series of one run: polynomial trends and confounds regressed out, then z-scored."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import scipy.linalg
import xarray as xr

BLOCK = 256  # targets, few enough for the processor's cache
ROUNDING = 8 * float(np.finfo(np.float32).eps)


def run_rows(responses: xr.DataArray) -> dict[str, np.ndarray]:
    """Return the rows of each run, by name and in order of appearance.

    A coord ``session`` is taken into account, since run names may repeat in every session;
    without a coord ``run`` everything is one run, named "".

    Examples
    --------
    >>> responses = xr.DataArray(
    ...     np.zeros((3, 1)), dims=("time", "voxel"), coords={"run": ("time", ["b", "b", "a"])})
    >>> run_rows(responses)
    {'b': array([0, 1]), 'a': array([2])}
    """
    samples = responses.dims[0]
    named = [name for name in ("session", "run") if name in responses.coords]
    if "run" not in named or responses["run"].dims != (samples,):
        return {"": np.arange(len(responses))}
    labels = responses["run"].values.astype(str)
    if "session" in named and len(set(responses["session"].values)) > 1:
        sessions = responses["session"].values.astype(str)
        parts = dict.fromkeys(zip(sessions, labels, strict=True))
        if len({run for _, run in parts}) < len(parts):
            labels = np.array([f"{s}/{r}" for s, r in zip(sessions, labels, strict=True)])
    return {str(run): np.flatnonzero(labels == run) for run in dict.fromkeys(labels)}


def as_slice(rows: np.ndarray) -> slice | np.ndarray:
    """Return rows as a slice where they follow each other, which spares a copy.

    Examples
    --------
    >>> as_slice(np.array([3, 4, 5])), as_slice(np.array([3, 5]))
    (slice(3, 6, None), array([3, 5]))
    """
    first, last = int(rows[0]), int(rows[-1])
    return slice(first, last + 1) if last - first + 1 == len(rows) else rows


def trend_order(detrend: bool | int) -> int | None:
    """Return the polynomial order that `detrend` stands for: True is linear, False is none."""
    if detrend is False:
        return None
    order = int(detrend)
    if order != detrend or order < 0:
        raise ValueError(
            f"`detrend` must be False, True (linear) or a polynomial order 0, 1, 2 ..., but got "
            f"{detrend!r}."
        )
    return order


def constant(values: np.ndarray) -> np.ndarray:
    """Return which columns do not vary beyond the rounding error of float32.

    Parameters
    ----------
    values : numpy.ndarray, shape (n_times, n_targets)

    Returns
    -------
    numpy.ndarray of bool, shape (n_targets,)
        False for a column with NaN.
    """
    return no_range(values.min(0), values.max(0))


def no_range(low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """Return which of these smallest and largest values differ by no more than rounding."""
    return np.asarray(high - low <= ROUNDING * np.maximum(np.abs(low), np.abs(high)))


def clean(
    values: np.ndarray,
    *,
    trend: int | None = None,
    zscore: bool = False,
    confounds: np.ndarray | None = None,
    times: Sequence[float] | np.ndarray | None = None,
    out: np.ndarray | None = None,
) -> np.ndarray:
    """Return one run without its trend and confounds, z-scored if asked.

    Trend and confounds are regressed out together. Without a trend the mean is kept.

    Parameters
    ----------
    values : numpy.ndarray, shape (n_times, n_targets)
    trend : int, optional
        Order of the polynomial to remove; 0 removes the mean.
    zscore : bool
        Divide by the standard deviation (n - 1 degrees of freedom) around the mean. A target that
        is constant, or constant once cleaned, becomes NaN.
    confounds : numpy.ndarray, optional
        Shape (n_times, n_confounds).
    times : sequence of float, optional
        When the rows were sampled [s], if not at regular intervals.
    out : numpy.ndarray of float32, optional
        Where the result is put; may be `values` itself.

    Returns
    -------
    numpy.ndarray of float32, shape (n_times, n_targets)
        A target with a missing value is missing throughout if anything was regressed out or
        z-scored.

    Examples
    --------
    >>> ramp = np.array([[0.0, 5.0], [1.0, 5.0], [2.0, 5.0]])
    >>> clean(ramp, zscore=True)
    array([[-1., nan],
           [ 0., nan],
           [ 1., nan]], dtype=float32)
    """
    basis = _nuisance(len(values), trend, confounds, times)
    cleaned = np.empty(values.shape, np.float32) if out is None else out
    work = np.empty((len(values), min(BLOCK, values.shape[1])))
    for start in range(0, values.shape[1], BLOCK):
        some = values[:, start : start + BLOCK]
        block = work[:, : some.shape[1]]
        block[:] = some
        _clean_block(block, basis, zscore)
        cleaned[:, start : start + BLOCK] = block
    return cleaned


def _clean_block(block: np.ndarray, basis: np.ndarray | None, zscore: bool) -> None:
    """Clean a block, float64, in place."""
    if basis is None and not zscore:
        return
    floor = ROUNDING * np.maximum(block.max(0), -block.min(0))
    if basis is not None:
        block -= basis @ (basis.T @ block)
    mean = block.mean(0)
    block -= mean
    # What is left of a constant target is rounding error; it must not pass for a signal.
    flat = np.maximum(block.max(0), -block.min(0)) <= floor
    if not zscore:
        block[:, flat] = 0
        block += mean
        return
    spread = np.sqrt(np.einsum("ij,ij->j", block, block) / max(len(block) - 1, 1))
    block /= np.where(flat, np.nan, spread)


def _nuisance(
    n_times: int,
    trend: int | None,
    confounds: np.ndarray | None,
    times: Sequence[float] | np.ndarray | None,
) -> np.ndarray | None:
    """Return an orthonormal basis of what is regressed out, shape (n_times, rank)."""
    columns = []
    if trend is not None:
        if trend >= n_times:
            raise ValueError(
                f"detrend={trend} needs more than {trend} volumes in every run, but "
                f"a run has {n_times}."
            )
        at = np.arange(n_times) if times is None else np.asarray(times, np.float64)
        at = (at - at[0]) / max(float(np.ptp(at)), 1e-12) * 2 - 1
        columns.append(np.polynomial.legendre.legvander(at, trend))
    if confounds is not None:
        confounds = np.asarray(confounds, np.float64).reshape(n_times, -1)
        confounds = confounds - confounds.mean(0)
        columns.append(confounds[:, ~constant(confounds)])
    if not columns:
        return None
    regressors = np.hstack(columns)
    return np.asarray(scipy.linalg.orth(regressors / np.linalg.norm(regressors, axis=0)))
