"""Datasets by name: every card has a loader, every loader a card, every mistake a next step."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from neurodl.datasets import cards, dataset_card, list_datasets, load_dataset, registry, simulate
from neurodl.errors import MissingFileError, UnknownNameError

SMALL: dict[str, Any] = {"n_images": 6, "n_repeats": 2, "n_runs": 2, "image_size": 64}


def test_cards_and_loaders_are_the_same_datasets() -> None:
    """One TOML file per dataset, and nothing is listed that cannot be loaded."""
    folder = Path(__file__).parents[2] / "datasets"
    assert {path.stem for path in folder.glob("*.toml")} == set(registry.LOADERS)
    assert set(list_datasets().index) == set(registry.LOADERS)
    for name in registry.LOADERS:
        card = dataset_card(name)
        assert card["name"] == name
        needed = {"title", "authors", "citation", "stimuli", "responses", *registry.COLUMNS}
        assert all(card[key] for key in needed)
    assert not list_datasets().isna().any(axis=None)


def test_simulated_by_name_is_the_simulation() -> None:
    """With its card, its ceiling, and its options passed on."""
    experiment = load_dataset("simulated", **SMALL, seed=2)
    assert experiment.responses is not None and experiment.ceiling is not None
    expected = simulate(**SMALL, seed=2).experiment.responses
    assert expected is not None and experiment.responses.identical(expected)
    assert experiment.card["licence"] == "CC0-1.0"
    assert experiment.ceiling.sizes["voxel"] == experiment.responses.sizes["voxel"]
    other = load_dataset("simulated", **SMALL, subject=2)
    assert other.responses is not None
    assert other.responses.attrs["subject"] == "sub-02"


def test_roi_selects_responses_and_ceiling() -> None:
    """One region or several, in the order of the voxels."""
    whole = load_dataset("simulated", **SMALL)
    part = load_dataset("simulated", **SMALL, roi=["V4", "noise"])
    for mine, all_of_it in ((part.responses, whole.responses), (part.ceiling, whole.ceiling)):
        assert mine is not None and all_of_it is not None
        chosen = all_of_it.isel(voxel=np.isin(all_of_it["roi"].values, ["V4", "noise"]))
        assert mine.identical(chosen)
    only = load_dataset("simulated", **SMALL, roi="V1").responses
    assert only is not None
    assert set(only["roi"].values) == {"V1"}


def test_unknown_names_are_answered_with_near_ones() -> None:
    """Dataset, option and region."""
    with pytest.raises(UnknownNameError, match="Did you mean 'simulated'.*from_files"):
        load_dataset("simulate")
    with pytest.raises(UnknownNameError, match="no option 'n_image'. Did you mean 'n_images'"):
        load_dataset("simulated", n_image=5)
    with pytest.raises(UnknownNameError, match="'v1'. Did you mean 'V1'"):
        load_dataset("simulated", **SMALL, roi="v1")
    with pytest.raises(UnknownNameError, match="has no files; leave out `root`"):
        load_dataset("simulated", root="somewhere")
    with pytest.raises(UnknownNameError, match="Did you mean 'simulated'"):
        dataset_card("simulatd")


def test_cards_are_found_in_a_checkout_and_in_a_wheel(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Cards packed inside the package come first; a missing one is an error that says so."""
    module = tmp_path / "neurodl" / "datasets" / "cards.py"
    monkeypatch.setattr(cards, "__file__", str(module))
    checkout, wheel = tmp_path / "datasets", module.parent / "cards"
    for folder, licence in ((checkout, "of the checkout"), (wheel, "of the wheel")):
        folder.mkdir(parents=True)
        with pytest.raises(MissingFileError, match="install neurodl again"):
            dataset_card("simulated")
        (folder / "simulated.toml").write_text(f'licence = "{licence}"')
        assert dataset_card("simulated")["licence"] == licence
