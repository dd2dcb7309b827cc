"""Input of models: checked, and as tensors without copies where that can be."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from sklearn.base import BaseEstimator
from sklearn.utils.validation import check_consistent_length, column_or_1d, validate_data

from neurodl.errors import listed

BLOCK_ELEMENTS = 2**18  # that are looked at together


def check_fit_input(model: BaseEstimator, X: Any, y: Any) -> tuple[np.ndarray | torch.Tensor, Any]:
    """Return features and two-dimensional targets, checked; targets may stay on disk.

    Raises
    ------
    ValueError
        Shapes do not fit, or features are not finite; the message names the rows.
    """
    X = check_features_input(model, X, reset=True)
    if y is None:
        raise ValueError(
            f"{type(model).__name__} requires y to be passed, but the target y is None."
        )
    if not hasattr(y, "shape"):
        y = np.asarray(y)
    kind = np.dtype(str(y.dtype).removeprefix("torch.")).kind
    if kind not in "fiub":
        y = np.asarray(y).astype(float)
    if len(y.shape) not in (1, 2):
        raise ValueError(f"y must have 1 or 2 dimensions, but has shape {tuple(y.shape)}.")
    check_consistent_length(X, y)
    model._single_target = len(y.shape) == 1
    if len(y.shape) == 1:
        y = y.reshape(-1, 1) if isinstance(y, torch.Tensor) else column_or_1d(y)[:, None]
    return X, y


def check_lengths(X: Any, y: Any, **labels: Any) -> None:
    """Raise unless targets and labels, such as groups, have a row for each row of features.

    Both must be real and two-dimensional.
    """
    for name, values in {"X": X, "y": y}.items():
        if len(getattr(values, "shape", ())) != 2 or "complex" in str(values.dtype):
            raise ValueError(
                f"{name} must be a real array with 2 dimensions, but is "
                f"{getattr(values, 'dtype', type(values).__name__)} with shape {np.shape(values)}."
            )
    n_samples = X.shape[0]
    if y.shape[0] != n_samples:
        raise ValueError(
            f"X has {n_samples} rows, but y has {y.shape[0]}: pair features and responses by id "
            "first."
        )
    for name, given in labels.items():
        if given is not None and len(given) != n_samples:
            raise ValueError(
                f"`{name}` has {len(given)} labels, but there are {n_samples} rows. Give one label "
                "per row."
            )


def check_features_input(model: BaseEstimator, X: Any, *, reset: bool) -> np.ndarray | torch.Tensor:
    """Return features (n_samples, n_features) in float32 or float64, checked to be finite."""
    if isinstance(X, torch.Tensor):
        check_finite(X)
        validate_data(model, X[:1].detach().cpu().numpy(), reset=reset, ensure_min_samples=0)
        if len(X) < 2 and reset:
            raise ValueError(
                f"Found array with {len(X)} sample(s), but a minimum of 2 is required."
            )
        return X.detach() if X.dtype in (torch.float32, torch.float64) else X.detach().float()
    if getattr(X, "dtype", None) == np.float16:
        X = np.asarray(X, np.float32)
    if isinstance(X, np.ndarray) and X.ndim == 2 and X.dtype.kind == "f":
        check_finite(from_numpy(X))
    return validate_data(
        model,
        X,
        dtype=(np.float64, np.float32),
        reset=reset,
        ensure_min_samples=2 if reset else 1,
    )


def check_finite(X: torch.Tensor) -> None:
    """Raise with the rows and columns of values that are not finite."""
    step = max(1, BLOCK_ELEMENTS // max(X.shape[1], 1))
    bad_rows = ~torch.cat([part.isfinite().all(1) for part in X.split(step)])
    if not bad_rows.any():
        return
    rows = bad_rows.nonzero()[:, 0].tolist()
    n_columns = int((~X[bad_rows].isfinite()).any(0).sum())
    raise ValueError(
        f"Input X contains NaN or infinity: in {len(rows)} rows ({listed(rows)}) and {n_columns} "
        "features. Leave them out, or see where the features come from."
    )


def as_tensor(values: Any, device: torch.device) -> torch.Tensor:
    """Return an array as a tensor on the device: float32 unless it is float64, without a copy."""
    if not isinstance(values, torch.Tensor):
        values = from_numpy(np.asarray(values))
    return values.detach().to(device, dtype_of(values))


def dtype_of(values: Any) -> torch.dtype:
    """Return in which type an array is computed with: float32 unless it is float64."""
    dtype = values.dtype if hasattr(values, "dtype") else np.asarray(values).dtype
    return torch.float64 if str(dtype).endswith("float64") else torch.float32


def copies(values: Any, device: torch.device) -> bool:
    """Return whether `as_tensor` copies an array: it is of another type, or on another device."""
    same = str(getattr(values, "dtype", "")).removeprefix("torch.") in ("float32", "float64")
    return not same or device.type not in str(getattr(values, "device", "cpu"))


def from_numpy(values: np.ndarray) -> torch.Tensor:
    """Return an array as a tensor; one that torch cannot share (read-only, reversed) is copied."""
    shared = values.flags.writeable and all(stride >= 0 for stride in values.strides)
    return torch.from_numpy(values if shared else values.copy())


def as_index(rows: Any, device: torch.device) -> torch.Tensor:
    """Return row numbers as a tensor."""
    return torch.as_tensor(np.asarray(rows), dtype=torch.long, device=device)


def part_of(labels: Any, rows: Any) -> Any:
    """Return the labels of some rows, if there are labels."""
    return None if labels is None else np.asarray(labels)[rows]
