"""Checks of what was fitted or chosen where, and of the weights and the transform."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import xarray as xr
from sklearn.frozen import FrozenEstimator

from neurodl.backbones.untrained import UNTRAINED
from neurodl.errors import listed
from neurodl.schema import is_kernel, sample_ids, target_dim
from neurodl.scores._audit_case import NOTE, SEVERE, WARNING, Case, Finding
from neurodl.scores.pairing import takes_bands

LOOKED_AT = 64  # columns
MIN_COLUMNS, MIN_ROWS = 3, 10
ROUNDING = 1e-4  # relative, of float32 features
TRACES = ("fold", "r_normalized", "n_test", "p_fwe", "q_by", "r_low", "r_high")
MAYBE_TRACES = ("r",)
SIZES = {"crop_size", "resize_size", "input_size", "crop_pct", "size", "crop", "img_size"}


def fitted_outside(case: Case) -> list[Finding] | str:
    """Find scalers, components and networks that were fitted to test rows."""
    found = [*_recorded(case), *_from_values(case), *_responses_scaled(case)]
    frozen = list(_frozen(case.model))
    if frozen:
        found.append(
            Finding(
                SEVERE,
                f"The model has parts that were fitted before, and are not in each fold: "
                f"{listed(frozen)}.",
                "Put the estimators themselves into the pipeline, not fitted.",
            )
        )
    return found


def selected_on_test(case: Case) -> list[Finding] | str:
    """Find targets and layers that were chosen by the scores of test rows."""
    target = target_dim(case.responses)
    found = []
    for names, severity, so in ((TRACES, SEVERE, ""), (MAYBE_TRACES, WARNING, "maybe ")):
        said = [
            str(name)
            for name, one in case.responses.coords.items()
            if name in names and one.dims in ((), (target,))
        ]
        if not said:
            continue
        found.append(
            Finding(
                severity,
                f"The {target}s carry {listed(said)}, {so}of scores by which they were chosen.",
                "Score all of them, or choose by something that knows no model: a region, or the "
                "ceiling.",
            )
        )
    found += _chosen_by_earlier(case, target)
    several = len(case.given) > 1 and case.model is not None
    if several and not takes_bands(case.model):
        found.append(
            Finding(
                NOTE,
                f"The best of {len(case.given)} feature spaces is chosen by the scores of the same "
                "test rows, which makes its own slightly too high.",
                "For a layer per target that is chosen inside the folds: "
                "StackedRidgeCV(combine='select').",
            )
        )
    return found


def untrained(case: Case) -> list[Finding] | str:
    """Find networks that look untrained, and those that are meant to be."""
    networks = _networks(case)
    if not networks:
        return "the features do not say which network they are of"
    found = []
    for name, attrs in networks:
        signs = str(attrs.get("signs_untrained", ""))
        if signs:
            found.append(
                Finding(
                    SEVERE,
                    f"{name} ({attrs.get('weights', 'no weights named')}) looks untrained: "
                    f"{signs}.",
                    "Load its weights (weights='path/to/file'); or, if an untrained control is "
                    "meant, say load_backbone(..., pretrained=False).",
                )
            )
        elif str(attrs.get("weights", "")).startswith(UNTRAINED):
            found.append(
                Finding(
                    NOTE,
                    f"{name} is an untrained control ({attrs['weights']}).",
                    "Compare it with the same network trained.",
                )
            )
    return found


def other_transform(case: Case) -> list[Finding] | str:
    """Find networks that see stimuli through another transform than they were trained with."""
    networks = _networks(case)
    if not networks:
        return "the features do not say which network they are of"
    found = []
    for name, attrs in networks:
        own = str(attrs.get("own_transform", ""))
        if not own:
            continue
        replaced = {part.strip(" '") for part in own.removeprefix("another ").split(",")}
        only_size = own.startswith("another ") and replaced <= SIZES
        found.append(
            Finding(
                NOTE if only_size else WARNING,
                f"{name} was given {attrs['transform']!r}; its weights belong to {own}.",
                "Leave `transform` out, unless the difference is meant.",
            )
        )
    return found


def _recorded(case: Case) -> list[Finding]:
    """Find rows that features say something was fitted to, among the test rows."""
    ids = np.asarray(sample_ids(case.responses)).astype(str)
    for layer, array in case.layers.items():
        if "fitted_on" not in array.coords:
            continue
        rows = array["fitted_on"].values.astype(bool) & case.tested
        if rows.any():
            names = np.unique(ids[rows])
            how = [str(array.attrs.get(key, "none")) for key in ("reduce", "weights")]
            components = how[0].startswith("pca")
            by = how[0] if components else how[1]
            return [
                Finding(
                    SEVERE if components else WARNING,
                    f"{len(names)} test stimuli ({listed(names, 3)}) shaped the features of "
                    f"{layer!r}: {by}.",
                    "Fit on stimuli that are never tested (a published split), or inside the "
                    "folds: make_pipeline(StreamedPCA(100), RidgeCV()).",
                    tuple(names.tolist()),
                )
            ]
    return []


def _from_values(case: Case) -> Iterator[Finding]:
    """Find features whose values tell that a scaler or PCA was fitted to all rows."""
    for layer, array in case.given.items():
        if is_kernel(array) or array.shape[0] < MIN_ROWS or array.shape[1] < MIN_COLUMNS:
            continue
        values = np.asarray(array.values[:, :LOOKED_AT], np.float64)
        spread = values.std(0)
        known = spread > 0
        if known.sum() < MIN_COLUMNS or not _centred(values[:, known], spread[known]):
            continue
        if _centred_within_runs(array, values[:, known], spread[known]):
            continue
        values, spread = values[:, known], spread[known]
        n_rows = len(values)
        if _uncorrelated(values / spread) and n_rows > len(spread):
            yield Finding(
                SEVERE,
                f"The features of {layer!r} are principal components of all their rows, the test "
                "rows among them.",
                "Put PCA into the model, which fits it in each fold: "
                "make_pipeline(StreamedPCA(100), RidgeCV()).",
            )
            return
        if np.abs(spread - 1).max() < 10 * ROUNDING or _unit(spread, n_rows):
            yield Finding(
                WARNING,
                f"The features of {layer!r} were standardised over all their rows, the test rows "
                "among them.",
                "Give them as they were; RidgeCV(standardize=True) standardises in each fold.",
            )
            return


def _centred(values: np.ndarray, spread: np.ndarray) -> bool:
    return bool((np.abs(values.mean(0)) < ROUNDING * spread).all())


def _unit(spread: np.ndarray, n_rows: int) -> bool:
    """Return whether standard deviations are 1 with n - 1 degrees of freedom."""
    return bool(np.abs(spread * (n_rows / (n_rows - 1)) ** 0.5 - 1).max() < 10 * ROUNDING)


def _uncorrelated(scaled: np.ndarray) -> bool:
    products = scaled.T @ scaled / len(scaled)
    return bool(np.abs(products - np.diag(np.diag(products))).max() < 10 * ROUNDING)


def _centred_within_runs(array: xr.DataArray, values: np.ndarray, spread: np.ndarray) -> bool:
    """Return whether values have mean 0 in each of several runs, by which no row shapes another."""
    if "run" not in array.coords or array["run"].dims != array.dims[:1]:
        return False
    runs = array["run"].values.astype(str)
    names = np.unique(runs)
    return len(names) > 1 and all(_centred(values[runs == name], spread) for name in names)


def _responses_scaled(case: Case) -> Iterator[Finding]:
    """Note responses that were z-scored over training and test rows together."""
    responses = case.responses
    if len(responses) < MIN_ROWS:
        return
    values = np.asarray(responses.values[:, :LOOKED_AT], np.float64)
    values = values[:, np.isfinite(values).all(0)]
    spread = values.std(0)
    values, spread = values[:, spread > 0], spread[spread > 0]
    if not len(spread) or not _centred(values, spread):
        return
    if _centred_within_runs(responses, values, spread):
        return
    if np.abs(spread - 1).max() < 10 * ROUNDING or _unit(spread, len(values)):
        yield Finding(
            NOTE,
            "The responses were z-scored over training and test rows together: r is as it would "
            "be without, r2 is slightly better.",
            "Leave it out: the models have an intercept.",
        )


def _frozen(model: Any) -> Iterator[str]:
    """Yield the parts of a model that its `fit` does not fit."""
    if model is None or not hasattr(model, "get_params"):
        return
    parts: Mapping[str, Any] = {"": model} | model.get_params(deep=True)
    for name, part in parts.items():
        if isinstance(part, FrozenEstimator):
            yield f"{name or 'model'} = {part}"
        elif (name.endswith("prefit") and part is True) or (
            name.split("__")[-1] == "cv" and isinstance(part, str) and part == "prefit"
        ):
            yield f"{name} = {part}"


def _chosen_by_earlier(case: Case, target: str) -> list[Finding]:
    """Find targets that are exactly the best of an earlier score on rows that are tested again."""
    found = []
    for scores in case.earlier:
        kept = _places(case.responses, scores, target)
        n_before = scores.sizes.get(target, 0)
        if kept is None or not 0 < len(kept) < n_before:
            continue
        dims = [dim for dim in scores["r"].dims if dim != target]
        r = scores["r"].mean(dims).values
        others = np.delete(r, kept)
        others = others[np.isfinite(others)]
        if len(others) and np.nanmin(r[kept]) >= others.max():
            found.append(
                Finding(
                    SEVERE,
                    f"The {len(kept)} {target}s are those with the highest r of {n_before} in "
                    "earlier scores of the same stimuli.",
                    "Score all of them, or choose on stimuli that are not tested.",
                )
            )
    return found


def _places(responses: xr.DataArray, scores: xr.Dataset, target: str) -> np.ndarray | None:
    """Return where targets are among those of scores, by the coords that tell them."""
    if target not in scores.dims:
        return None
    shared = [
        name
        for name, one in responses.coords.items()
        if one.dims == (target,) and name in scores.coords and name not in (*TRACES, *MAYBE_TRACES)
    ]
    if not shared:
        return None

    def keys(array: Any) -> list[tuple[str, ...]]:
        return list(zip(*(array[name].values.astype(str).tolist() for name in shared), strict=True))

    before = keys(scores)
    if len(set(before)) < len(before):
        return None
    place = {key: number for number, key in enumerate(before)}
    found = [place.get(key) for key in keys(responses)]
    return None if None in found else np.array(found, int)


def _networks(case: Case) -> list[tuple[str, Mapping[Any, Any]]]:
    """Return name and attrs of one layer of each network; trained and untrained ones are two."""
    found: dict[tuple[str, str], Mapping[Any, Any]] = {}
    for array in case.given.values():
        name, weights = (str(array.attrs.get(key, "")) for key in ("backbone", "weights"))
        if name and weights:
            found.setdefault((name, str(array.attrs.get("weights_sha256", weights))), array.attrs)
    return [(name, attrs) for (name, _), attrs in found.items()]
