"""Datasets by name: every card has a loader, every loader a card, every mistake a next step."""

from __future__ import annotations

import inspect
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


@pytest.mark.parametrize("name", registry.LOADERS)
def test_each_card_fits_its_loader(name: str) -> None:
    """What files differ by are options; addresses and hashes are such; terms go with a form."""
    card, loader = registry.read_card(name), registry.LOADERS[name]
    options = set(inspect.signature(loader).parameters)
    assert ("root" in options) == bool(card.files())
    inside = {"hemisphere", "class", "side"}  # differ within what is chosen
    assert set(card.choices) <= options | inside
    for file in (*card.files(), *card.archives()):
        assert all(url.startswith(("https://", "http://data.pymvpa.org/")) for url in file.urls)
        assert file.sha256 is None or len(file.sha256) == 64
        assert not file.path.startswith(("/", "..")) and "{" not in file.path
    fetched = any(file.urls for file in (*card.files(), *card.archives()))
    assert not card.files() or fetched or "steps" in card.facts
    for part in (one for union in card.unions.values() for one in union):
        assert "roi" not in card.choices or part in card.choices["roi"]


def test_each_dataset_is_in_the_docs() -> None:
    """With a call that names it."""
    page = (Path(__file__).parents[2] / "docs" / "datasets.md").read_text()
    rows = [line for line in page.splitlines() if line.startswith("| `")]
    assert [row.split("`")[1] for row in rows] == list(registry.LOADERS)
    for row, (name, loader) in zip(rows, registry.LOADERS.items(), strict=True):
        call = row.split("`")[-2]
        assert call.startswith(f'load_dataset("{name}"')
        given = {word.split("=")[0].strip() for word in call.split(",")[1:] if "=" in word}
        assert given <= {*inspect.signature(loader).parameters, "roi", "root"}
