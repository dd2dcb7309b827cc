"""From a name to an experiment, and the cards that say what each dataset is."""

from __future__ import annotations

import dataclasses
import inspect
import tomllib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pandas as pd

from neurodl.datasets.experiment import Experiment
from neurodl.datasets.kay2008 import load_kay2008
from neurodl.datasets.simulated import Simulation, simulate
from neurodl.errors import MissingFileError, UnknownNameError, did_you_mean
from neurodl.responses import select

LOADERS: dict[str, Callable[..., Experiment | Simulation]] = {
    "kay2008": load_kay2008,
    "simulated": simulate,
}
COLUMNS = ("modality", "description", "licence", "access", "n_subjects", "size")


def load_dataset(
    name: str,
    *,
    root: str | Path | None = None,
    subject: int | str | None = None,
    roi: str | Iterable[str] | None = None,
    **options: Any,
) -> Experiment:
    """Load a dataset by name; your own files are opened by `Experiment.from_files`.

    Parameters
    ----------
    name : str
        One of the names that `list_datasets` lists.
    root : str or Path, optional
        The folder that holds the dataset's files, for datasets that have files.
    subject : int or str, optional
        Which subject, as a number or a label; the first by default.
    roi : str or sequence of str, optional
        Only the targets of these regions.
    **options
        The dataset's own, such as ``n_images`` and ``seed`` of "simulated"; see `simulate`.

    Returns
    -------
    Experiment
        With its card: who made it, licence, how to cite it.

    Raises
    ------
    UnknownNameError
        There is no such dataset, option or region; near matches are named.

    Examples
    --------
    >>> experiment = load_dataset("simulated", n_images=8, image_size=64, roi="V1")
    >>> dict(experiment.responses.sizes)
    {'presentation': 24, 'voxel': 200}
    """
    if name not in LOADERS:
        raise UnknownNameError(
            f"There is no dataset {name!r}. {did_you_mean(str(name), LOADERS)} Your own files are "
            "opened by Experiment.from_files(stimuli=..., responses=...)."
        )
    given = {key: each for key, each in (("root", root), ("subject", subject)) if each is not None}
    given |= options
    loader = LOADERS[name]
    allowed = list(inspect.signature(loader).parameters)
    for option in given:
        if option not in allowed:
            if option == "root":
                raise UnknownNameError(f"The dataset {name!r} has no files; leave out `root`.")
            raise UnknownNameError(
                f"The dataset {name!r} has no option {option!r}. "
                f"{did_you_mean(option, [*allowed, 'roi'])}"
            )
    loaded = loader(**given)
    experiment = loaded.experiment if isinstance(loaded, Simulation) else loaded
    experiment = dataclasses.replace(experiment, card=dataset_card(name))
    return experiment if roi is None else _only_roi(experiment, roi)


def list_datasets() -> pd.DataFrame:
    """Return what `load_dataset` can open, one row per dataset.

    Returns
    -------
    pandas.DataFrame
        Indexed by name; columns modality, description, licence, access (how to get it),
        n_subjects and size.

    Examples
    --------
    >>> list_datasets().loc["simulated", "modality"]
    'fMRI'
    """
    cards = [dataset_card(name) for name in LOADERS]
    return pd.DataFrame(cards, index=pd.Index(LOADERS, name="name"))[list(COLUMNS)]


def dataset_card(name: str) -> dict[str, str]:
    """Return what a dataset is, who made it, its licence, and how to get and cite it.

    Raises
    ------
    UnknownNameError
        There is no such dataset.

    Examples
    --------
    >>> dataset_card("simulated")["licence"]
    'CC0-1.0'
    """
    if name not in LOADERS:
        raise UnknownNameError(f"There is no dataset {name!r}. {did_you_mean(str(name), LOADERS)}")
    path = _card_folder() / f"{name}.toml"
    if not path.is_file():
        raise MissingFileError(f"The card {path} is missing; install neurodl again.")
    card = tomllib.loads(path.read_text(encoding="utf-8"))
    return {key: str(value).strip() for key, value in card.items()}


def _card_folder() -> Path:
    """Return where the cards are: inside an installed package, or beside it in a checkout."""
    here = Path(__file__)
    packaged = here.parent / "cards"
    return packaged if packaged.is_dir() else here.parents[2] / "datasets"


def _only_roi(experiment: Experiment, roi: str | Iterable[str]) -> Experiment:
    """Return the experiment with the targets of some regions."""
    if experiment.responses is None:
        raise ValueError(f"{experiment.name} has no responses, so `roi` selects nothing.")
    names = [roi] if isinstance(roi, str) else list(roi)
    responses = select(experiment.responses, roi=names)
    ceiling = experiment.ceiling
    if ceiling is not None:
        ceiling = select(ceiling, roi=names)
    return dataclasses.replace(experiment, responses=responses, ceiling=ceiling)
