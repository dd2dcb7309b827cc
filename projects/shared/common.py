"""What all steps share: the settings, where results go, and the controls every claim needs."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import Any

import neurodl as ndl
import numpy as np
import xarray as xr

HERE = Path(__file__).parent
SETTINGS = tomllib.loads((HERE / "settings.toml").read_text(encoding="utf-8"))
if SETTINGS["data"] not in ("twin", "real"):
    raise SystemExit(f"settings.toml: data must be 'twin' or 'real', not {SETTINGS['data']!r}.")
TWIN = SETTINGS["data"] == "twin"
SEED = int(SETTINGS["seed"])
DEVICE = str(SETTINGS["device"])
RESULTS = HERE / "results" / SETTINGS["data"]


def keep(step: str, **numbers: float | str) -> None:
    """Write numbers of a step, for the abstract and the slides, as {step_name}."""
    RESULTS.mkdir(parents=True, exist_ok=True)
    plain = {
        key: value if isinstance(value, int | str) else float(value)
        for key, value in numbers.items()
    }
    (RESULTS / f"{step}.json").write_text(json.dumps(plain, indent=2), encoding="utf-8")
    for key, value in plain.items():
        print(f"{step} {key}: {said(value)}")


def said(value: float | str) -> str:
    """Return a number as text: counts whole, small ones with three decimals."""
    if isinstance(value, str):
        return value
    if isinstance(value, int):
        return f"{value:,}"
    digits = 2 if abs(value) >= 0.1 else 3
    return f"{value:.{digits}f}".replace("-", "\N{MINUS SIGN}")


def numbers() -> dict[str, str]:
    """Return what the steps have kept so far, as text."""
    found = {}
    for path in sorted(RESULTS.glob("*.json")):
        for key, value in json.loads(path.read_text(encoding="utf-8")).items():
            found[f"{path.stem}_{key}"] = said(value)
    return found


def write_report(step: str, scores: xr.Dataset, experiment: Any = None) -> ndl.reports.Report:
    """Save scores and a report of a step as results/<data>/<step>/, and return the report."""
    label = " (simulated twin)" if TWIN else ""
    made = ndl.report(scores, experiment, title=f"{step}{label}")
    print(made.finding)
    print(made.save(RESULTS / step / "report.html", slides=True))
    return made


def mean_r(scores: xr.Dataset, layer: str | None = None) -> float:
    """Return the mean over folds, then over targets, of a layer's r; of the best without one."""
    r = scores["r"].mean("fold")
    by_layer = r.mean([dim for dim in r.dims if dim != "layer"])
    return float(by_layer.max() if layer is None else by_layer.sel(layer=layer))


def averaged(responses: xr.DataArray) -> xr.DataArray:
    """Return one row per stimulus."""
    if "repeat" in responses.dims:
        return ndl.average_repeats(responses)
    if "presentation" in responses.dims:
        return ndl.average_repeats(ndl.stack_repeats(responses))
    return responses


def shuffled(responses: xr.DataArray, seed: int = SEED) -> xr.DataArray:
    """Return responses whose stimuli were exchanged: nothing may predict them."""
    order = np.random.default_rng(seed).permutation(responses.shape[0])
    return responses.copy(data=responses.values[order])


def simulated_from(
    features: xr.DataArray, like: xr.DataArray, ceiling: float = 0.5, seed: int = SEED
) -> xr.DataArray:
    """Return responses that are linear in features, with noise: here the answer is known.

    A model of these features that is fitted well reaches an r near the root of `ceiling`, given
    enough stimuli; what it falls short of is what the number of stimuli costs.
    """
    rng = np.random.default_rng(seed)
    rows = features.sel(stimulus=like["stimulus"].values)
    centred = rows.values - rows.values.mean(0)
    few = np.linalg.svd(centred, full_matrices=False)
    parts = few.U[:, :8] * np.sqrt(len(rows))
    signal = parts @ rng.standard_normal((parts.shape[1], like.shape[1]))
    signal /= signal.std(0)
    noise = rng.standard_normal(signal.shape) * np.sqrt(1 / ceiling - 1)
    return like.copy(data=(signal + noise).astype("float32"))
