"""What a study would take: its script runs with a trial of each network, and without a model."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import xarray as xr

import neurodl
from neurodl.features.forecast import Forecast, forecast_features
from neurodl.study.script import script_parts
from neurodl.study.sections import Study

# What a trial does not depend on.
LATER = ("reduce_fit", "memory", "on_unreadable")


class Estimate(NamedTuple):
    """What a study would take.

    Attributes
    ----------
    stimuli, cached : int
        Pairs of a stimulus and a network, and of how many the cache has the features.
    extraction_s : float
        For extracting the others [s].
    disk_mb : float
        How much the cache would grow [MB].
    memory_mb : float
        Of features and responses together [MB]; of features before PCA, which holds them whole.
        Models take smaller blocks where what is left is short.
    """

    stimuli: int
    cached: int
    extraction_s: float
    disk_mb: float
    memory_mb: float


class Estimator:
    """Estimates what studies take that run one after the other and share a cache.

    The data are opened once for all studies of the same.
    """

    def __init__(self) -> None:
        self._experiments: dict[str, Any] = {}
        self._places: set[Path] = set()

    def estimate(self, study: Study) -> Estimate:
        """Open the data of a study and try its networks.

        Raises
        ------
        NeurodlError, OSError, ValueError
            What running the study would raise.
        """
        opening, extraction, scoring = script_parts(study)
        trial = _Trial()
        names: dict[str, Any] = {"ndl": trial}
        exec("from pathlib import Path\nfrom sklearn.pipeline import make_pipeline", names)
        if opening not in self._experiments:
            exec(opening, names)
            self._experiments[opening] = names["experiment"]
        names["experiment"] = self._experiments[opening]
        exec(extraction, names)
        exec(scoring, names)
        n_stimuli, n_missing, seconds, n_bytes = 0, 0, 0.0, 0
        for one in trial.forecasts:
            new = one.growth.keys() - self._places
            self._places |= new
            n_stimuli += one.n_stimuli
            n_bytes += sum(one.growth[place] for place in new)
            if new or not one.growth:  # else an earlier study has made all of it
                n_missing += one.n_stimuli - one.n_cached
                seconds += one.seconds
        cached = n_stimuli - n_missing
        return Estimate(n_stimuli, cached, seconds, n_bytes / 1e6, trial.n_bytes / 1e6)


class _Trial:
    """neurodl, but for what takes long: features are tried and stood in for, and not scored."""

    def __init__(self) -> None:
        self.forecasts: list[Forecast] = []
        self.n_bytes = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(neurodl, name)

    def extract_features(self, *args: Any, **options: Any) -> dict[str, xr.DataArray]:
        return self._tried(*args, **options)

    def extract_kernels(self, *args: Any, **options: Any) -> dict[str, xr.DataArray]:
        return self._tried(*args, **options, kernel=True)

    def _tried(self, *args: Any, **options: Any) -> dict[str, xr.DataArray]:
        known = {key: value for key, value in options.items() if key not in LATER}
        found = forecast_features(*args, **known)
        self.forecasts.append(found)
        return {name: _stand_in(found.n_stimuli, size) for name, size in found.sizes.items()}

    def concatenate_features(self, layers: Mapping[str, xr.DataArray]) -> dict[str, xr.DataArray]:
        n_samples = len(next(iter(layers.values())))
        return {"all": _stand_in(n_samples, sum(one.shape[1] for one in layers.values()))}

    def cross_validate(
        self, model: Any, features: Mapping[str, Any], responses: xr.DataArray, **_: Any
    ) -> xr.Dataset:
        """Note the memory of features and responses, as float32."""
        arrays = [*features.values(), responses]
        self.n_bytes = sum(4 * int(np.prod(one.shape)) for one in arrays)
        return xr.Dataset()


def _stand_in(n_samples: int, n_features: int) -> xr.DataArray:
    """Return features of zeros, which take no memory."""
    zeros = np.broadcast_to(np.float32(0), (n_samples, n_features))
    return xr.DataArray(zeros, dims=("stimulus", "feature"))
