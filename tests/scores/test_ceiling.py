"""Ceilings against simulations whose reliability is known."""

from __future__ import annotations

import numpy as np
import pytest
import xarray as xr

from neurodl.errors import SchemaError
from neurodl.scores import noise_ceiling


def simulate(reliability_of_one, n_stimuli=400, n_repeats=3, n_targets=200, seed=0):
    rng = np.random.default_rng(seed)
    signal = rng.standard_normal((n_stimuli, 1, n_targets)) * np.sqrt(reliability_of_one)
    noise = rng.standard_normal((n_stimuli, n_repeats, n_targets)) * np.sqrt(1 - reliability_of_one)
    return xr.DataArray(
        (signal + noise).astype("f4"),
        dims=("stimulus", "repeat", "unit"),
        coords={"stimulus": [f"s{i}" for i in range(n_stimuli)]},
        attrs={"units": "a.u."},
    )


@pytest.mark.parametrize("method", ["ncsnr", "split_half"])
@pytest.mark.parametrize("n_repeats", [2, 4])
@pytest.mark.parametrize("single", [0.1, 0.5])
def test_is_unbiased(method, n_repeats, single):
    responses = simulate(single, n_repeats=n_repeats)
    truth = single / (single + (1 - single) / n_repeats)
    estimates = noise_ceiling(responses, method).values
    error = estimates.std() / np.sqrt(len(estimates))
    assert abs(estimates.mean() - truth) < 4 * error + 0.005
    one = noise_ceiling(responses, method, n_averaged="one").values
    assert abs(one.mean() - single) < 4 * one.std() / np.sqrt(len(one)) + 0.005


def test_root_is_the_r_of_the_true_model():
    rng = np.random.default_rng(3)
    signal = rng.standard_normal((500, 300))
    measured = signal[:, None] + 1.5 * rng.standard_normal((500, 3, 300))
    responses = simulate(0.5, 500, 3, 300).copy(data=measured.astype("f4"))
    r = [np.corrcoef(a, b)[0, 1] for a, b in zip(signal.T, measured.mean(1).T, strict=True)]
    normalized = np.array(r) / np.sqrt(noise_ceiling(responses).values)
    assert abs(normalized.mean() - 1) < 4 * normalized.std() / np.sqrt(300)


def test_unequal_repeats_are_weighed_as_they_are():
    full = simulate(0.4, n_stimuli=600, n_repeats=4)
    values = full.values.copy()
    values[::2, 2:] = np.nan
    estimates = noise_ceiling(full.copy(data=values)).values
    truth = 0.4 / (0.4 + 0.6 * np.mean([1 / 4, 1 / 2]))
    assert abs(estimates.mean() - truth) < 4 * estimates.std() / np.sqrt(len(estimates)) + 0.005


def test_presentations_equal_stacked_repeats():
    stacked = simulate(0.5, n_stimuli=20, n_targets=4)
    flat = stacked.stack(presentation=("stimulus", "repeat")).transpose("presentation", "unit")
    ids = flat["stimulus"].values
    flat = flat.drop_vars(["presentation", "stimulus", "repeat"]).assign_coords(
        stimulus=("presentation", ids)
    )
    np.testing.assert_allclose(noise_ceiling(flat), noise_ceiling(stacked), rtol=1e-6)


def test_constant_and_missing_targets_have_no_ceiling():
    responses = simulate(0.5, n_stimuli=30, n_targets=3)
    responses.values[..., 0] = 2.0
    responses.values[..., 1] = np.nan
    ceiling = noise_ceiling(responses).values
    assert np.isnan(ceiling[:2]).all()
    assert np.isfinite(ceiling[2])


def test_without_repeats_is_an_error():
    with pytest.raises(SchemaError, match="repeated"):
        noise_ceiling(simulate(0.5, n_repeats=1))
