"""From a name to an experiment."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pandas as pd

from neurodl.datasets.algonauts2021 import load_algonauts2021
from neurodl.datasets.algonauts2023 import load_algonauts2023
from neurodl.datasets.algonauts2025 import load_algonauts2025
from neurodl.datasets.allen_vb2p import load_allen_vb2p
from neurodl.datasets.bold_moments import load_bold_moments
from neurodl.datasets.cards import Card, card_folder, subject_number
from neurodl.datasets.experiment import Experiment
from neurodl.datasets.fetching import (
    check_files,
    data_folder,
    fetch_files,
    ready_folder,
    show_terms,
)
from neurodl.datasets.fslcourse import load_fslcourse
from neurodl.datasets.haxby2001 import load_haxby2001
from neurodl.datasets.hcp import load_hcp_behavior, load_hcp_rest, load_hcp_task
from neurodl.datasets.hcp_retino import load_hcp_retino
from neurodl.datasets.kay2008 import load_kay2008
from neurodl.datasets.nsd import load_nsd
from neurodl.datasets.rdms import load_bonner2017, load_cichy2014
from neurodl.datasets.simulated import (
    PopulationSimulation,
    Simulation,
    simulate,
    simulate_population,
)
from neurodl.datasets.steinmetz2019 import load_steinmetz2019
from neurodl.datasets.stringer import (
    load_stringer_images,
    load_stringer_orientations,
    load_stringer_spontaneous,
)
from neurodl.errors import UnknownNameError, did_you_mean
from neurodl.responses import select

LOADERS: dict[str, Callable[..., Experiment | Simulation | PopulationSimulation]] = {
    "simulated": simulate,
    "simulated_population": simulate_population,
    "kay2008": load_kay2008,
    "algonauts2023": load_algonauts2023,
    "nsd": load_nsd,
    "haxby2001": load_haxby2001,
    "bonner2017": load_bonner2017,
    "cichy2014": load_cichy2014,
    "algonauts2021": load_algonauts2021,
    "bold_moments": load_bold_moments,
    "algonauts2025": load_algonauts2025,
    "hcp_task": load_hcp_task,
    "hcp_behavior": load_hcp_behavior,
    "hcp_rest": load_hcp_rest,
    "hcp_retino": load_hcp_retino,
    "fslcourse": load_fslcourse,
    "steinmetz2019": load_steinmetz2019,
    "stringer_images": load_stringer_images,
    "stringer_orientations": load_stringer_orientations,
    "stringer_spontaneous": load_stringer_spontaneous,
    "allen_vb2p": load_allen_vb2p,
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
        The folder that holds the dataset's files. By default ``$NEURODL_DATA/name``
        (``~/neurodl_data/name``), into which what is missing is fetched if it is public.
    subject : int or str, optional
        Which subject, as a number or a label; the first by default.
    roi : str or sequence of str, optional
        Only the targets of these regions.
    **options
        The dataset's own, such as ``n_images`` and ``seed`` of "simulated", or ``track`` of
        "algonauts2021"; see docs/datasets.md.

    Returns
    -------
    Experiment
        With its card: who made it, licence, how to cite it.

    Raises
    ------
    UnknownNameError
        There is no such dataset, option, subject or region; near matches are named.
    MissingFileError
        Files are missing that cannot be fetched; the message says how to get them.
    DownloadError
        Fetching failed; what has arrived is kept and continued by the next call.

    Examples
    --------
    >>> experiment = load_dataset("simulated", n_images=8, image_size=64, roi="V1")
    >>> dict(experiment.responses.sizes)
    {'presentation': 24, 'voxel': 200}
    """
    card, loader = read_card(name), LOADERS[name]
    allowed = inspect.signature(loader).parameters
    _check_options(name, allowed, {"root": root, "subject": subject} | options)
    given, chosen = dict(options), _chosen(card, loader, subject, roi, options)
    if subject is not None:
        given["subject"] = chosen["subject"] if "subject" in card.choices else subject
    if "root" in allowed:
        given["root"] = ready_folder(card, root, chosen)
    selects_roi = "roi" in allowed
    if selects_roi and roi is not None:
        given["roi"] = chosen["roi"]
    loaded = loader(**given)
    experiment = loaded if isinstance(loaded, Experiment) else loaded.experiment
    experiment = dataclasses.replace(experiment, card=card.facts)
    return experiment if roi is None or selects_roi else _only_roi(experiment, chosen["roi"])


def fetch_dataset(
    name: str,
    *,
    root: str | Path | None = None,
    subject: int | str | None = None,
    roi: str | Iterable[str] | None = None,
    **options: Any,
) -> Path:
    """Fetch what is missing of a dataset's public files, and return its folder.

    Parameters
    ----------
    name, root, subject, roi, **options
        See `load_dataset`; only what these choose is fetched.

    Raises
    ------
    DownloadError, MissingFileError, StorageError
        See `load_dataset`; or there is not enough room.
    """
    card, loader = _with_files(name)
    _check_options(name, inspect.signature(loader).parameters, {"subject": subject} | options)
    show_terms(card)
    return fetch_files(card, root, _chosen(card, loader, subject, roi, options))


def check_dataset(
    name: str,
    root: str | Path | None = None,
    *,
    subject: int | str | None = None,
    roi: str | Iterable[str] | None = None,
    **options: Any,
) -> pd.DataFrame:
    """Compare a folder with a dataset's card; see `check_files` for the table.

    Parameters
    ----------
    name, root, subject, roi, **options
        See `load_dataset`; all subjects by default.
    """
    card, loader = _with_files(name)
    _check_options(name, inspect.signature(loader).parameters, {"subject": subject} | options)
    chosen = _chosen(card, loader, subject, roi, options)
    if subject is None:
        chosen.pop("subject", None)
    folder = data_folder() / name if root is None else Path(root).expanduser()
    return check_files(card, folder, chosen)


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
    return read_card(name).facts


def read_card(name: str) -> Card:
    """Return a dataset's card with its files; see `dataset_card`."""
    if name not in LOADERS:
        raise UnknownNameError(
            f"There is no dataset {name!r}. {did_you_mean(str(name), LOADERS)} Your own files are "
            "opened by Experiment.from_files(stimuli=..., responses=...)."
        )
    return Card.read(card_folder() / f"{name}.toml")


def _with_files(name: str) -> tuple[Card, Callable[..., Any]]:
    """Return the card and the loader of a dataset that has files."""
    card = read_card(name)
    if not card.files():
        raise UnknownNameError(f"The dataset {name!r} has no files: it is made, not fetched.")
    return card, LOADERS[name]


def _check_options(name: str, allowed: Iterable[str], given: dict[str, Any]) -> None:
    """Raise if an option says nothing to this dataset."""
    for option in (key for key, value in given.items() if value is not None):
        if option not in allowed:
            if option == "root":
                raise UnknownNameError(f"The dataset {name!r} has no files; leave out `root`.")
            raise UnknownNameError(
                f"The dataset {name!r} has no option {option!r}. "
                f"{did_you_mean(option, [*allowed, 'roi'])}"
            )


def _chosen(
    card: Card,
    loader: Callable[..., Any],
    subject: int | str | None,
    roi: str | Iterable[str] | None,
    options: dict[str, Any],
) -> dict[str, Any]:
    """Return what is chosen of a dataset, with the defaults of its loader."""
    parameters = inspect.signature(loader).parameters.values()
    defaults = {one.name: one.default for one in parameters if one.default is not one.empty}
    chosen = {key: value for key, value in (defaults | options).items() if value is not None}
    if "subject" in card.choices:
        subjects = card.choices["subject"]
        number = chosen.get("subject", subjects[0]) if subject is None else subject
        chosen["subject"] = subject_number(number) if isinstance(subjects[0], int) else str(number)
    if roi is not None:
        chosen["roi"] = card.united([roi] if isinstance(roi, str) else list(roi))
    return chosen


def _only_roi(experiment: Experiment, names: list[str]) -> Experiment:
    """Return the experiment with the targets of some regions."""
    if experiment.responses is None:
        raise ValueError(f"{experiment.name} has no responses, so `roi` selects nothing.")
    responses = select(experiment.responses, roi=names)
    ceiling = experiment.ceiling
    if ceiling is not None:
        ceiling = select(ceiling, roi=names)
    return dataclasses.replace(experiment, responses=responses, ceiling=ceiling)
