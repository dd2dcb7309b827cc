"""Archives of predictions as the Algonauts challenges take them, checked before they are made."""

from __future__ import annotations

import io
import pickle
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from neurodl.datasets.algonauts2021 import N_TEST, ROIS
from neurodl.datasets.algonauts2025 import N_PARCELS
from neurodl.datasets.cards import subject_number
from neurodl.errors import PairingError, SchemaError, UnknownNameError, did_you_mean, listed
from neurodl.io.pickles import read_object_array
from neurodl.io.store import atomic_path

MOST_BYTES = 300_000_000  # of an archive in 2023
N_TEST_2023 = (159, 159, 293, 395, 159, 293, 159, 395)
N_VERTICES = {"lh": 19004, "rh": 20544}
FEWER_VERTICES = (6, 8)  # subjects; their numbers are those of their own masks
SUBJECTS_2025 = (1, 2, 3, 5)
COUNTS = {
    "friends-s7": "sub-{0:02d}_friends-s7_fmri_samples.npy",
    "ood": "sub-{0:02d}_ood_fmri_samples.npy",
}
FILES_2025 = {"friends-s7": "fmri_predictions_friends_s7", "ood": "fmri_predictions_ood"}
WHEN = (1980, 1, 1, 0, 0, 0)  # so that the same predictions give the same bytes


def submission(
    name: str,
    predictions: Mapping[Any, Any],
    path: str | Path,
    *,
    root: str | Path | None = None,
) -> Path:
    """Check predictions for a challenge's test set and write the archive that it takes.

    Parameters
    ----------
    name : {"algonauts2021", "algonauts2023", "algonauts2025"}
    predictions : mapping
        Arrays or DataArrays, of which the values are taken. Subjects as numbers or "sub01",
        "subj01", "sub-01".

        - 2021: ``{roi: {subject: (102, n_voxels)}}`` with all nine regions (mini track) or "WB"
          (full track), and all ten subjects.
        - 2023: ``{subject: {"lh": (n_images, n_vertices), "rh": ...}}`` with all eight subjects.
        - 2025: ``{subject: {part: (n_samples, 1000)}}`` with all four subjects, the parts of
          season 7 of Friends or those of the out-of-distribution movies.
    path : str or Path
        The ``.zip`` file.
    root : str or Path, optional
        The dataset's folder. For 2023 the numbers of vertices, for 2025 the numbers of samples are
        then compared with it; 2025 needs it.

    Returns
    -------
    Path
        The archive, whole or not there. The same predictions give the same bytes.

    Raises
    ------
    UnknownNameError
        There is no such challenge.
    SchemaError, PairingError
        A subject, region or part is missing or unknown, or an array has a wrong shape or values
        that are not finite; the message names it.
    """
    if name not in WRITERS:
        raise UnknownNameError(f"There is no challenge {name!r}. {did_you_mean(name, WRITERS)}")
    path = Path(path)
    if path.suffix != ".zip":
        raise ValueError(f"A submission is written to '*.zip', but got {path.name!r}.")
    if not isinstance(predictions, Mapping) or not predictions:
        raise SchemaError("`predictions` must be a mapping that is not empty; see the docstring.")
    members = WRITERS[name](predictions, None if root is None else Path(root))
    with atomic_path(path) as temporary:
        with zipfile.ZipFile(temporary, "w", zipfile.ZIP_DEFLATED) as archive:
            for member, content in members.items():
                info = zipfile.ZipInfo(member, WHEN)
                info.compress_type = zipfile.ZIP_DEFLATED
                archive.writestr(info, content)
        if name == "algonauts2023" and temporary.stat().st_size > MOST_BYTES:
            raise SchemaError(
                f"The archive has {temporary.stat().st_size / 1e6:.0f} MB; at most "
                f"{MOST_BYTES / 1e6:.0f} MB are taken."
            )
    return path


def _of_2021(predictions: Mapping[Any, Any], _root: Path | None) -> dict[str, bytes]:
    track = "full" if set(predictions) == {"WB"} else "mini"
    rois = ["WB"] if track == "full" else list(ROIS)
    _check_names(predictions, rois, "regions")
    content = {}
    for roi in rois:
        by_subject = _by_subject(predictions[roi], range(1, 11), f"{roi}: ")
        content[roi] = {
            f"sub{subject:02d}": _array(array, (N_TEST, None), f"{roi}, subject {subject}")
            for subject, array in by_subject.items()
        }
    return {f"{track}_track.pkl": pickle.dumps(content, protocol=4)}


def _of_2023(predictions: Mapping[Any, Any], root: Path | None) -> dict[str, bytes]:
    members = {}
    for subject, sides in _by_subject(predictions, range(1, 9)).items():
        _check_names(sides, list(N_VERTICES), f"hemispheres of subject {subject}")
        for side in N_VERTICES:
            count = _n_vertices(root, subject, side)
            shape = (N_TEST_2023[subject - 1], count)
            array = _array(sides[side], shape, f"subject {subject}, {side}")
            members[f"subj{subject:02d}/{side}_pred_test.npy"] = _npy(array)
    return members


def _n_vertices(root: Path | None, subject: int, side: str) -> int | None:
    """Return how many vertices a subject has, by the subject's own mask where it is there."""
    if root is not None:
        path = root / f"subj{subject:02d}/roi_masks/{side}.all-vertices_fsaverage_space.npy"
        return int(np.count_nonzero(read_object_array(path)))
    return None if subject in FEWER_VERTICES else N_VERTICES[side]


def _of_2025(predictions: Mapping[Any, Any], root: Path | None) -> dict[str, bytes]:
    if root is None:
        raise ValueError(
            "The numbers of samples of 2025 lie in the dataset's folder; say where: root='folder'."
        )
    by_subject = _by_subject(predictions, SUBJECTS_2025)
    first = {str(part) for part in next(iter(by_subject.values()))}
    phase = "friends-s7" if any(part.startswith("s07") for part in first) else "ood"
    content = {}
    for subject, parts in by_subject.items():
        folder = root / "fmri" / f"sub-{subject:02d}" / "target_sample_number"
        stored = read_object_array(folder / COUNTS[phase].format(subject))
        counts = stored.item() if stored.ndim == 0 else None
        if not isinstance(counts, dict):
            raise SchemaError(f"{folder} does not say how many samples each part has.")
        _check_names(parts, list(counts), f"parts of subject {subject}")
        content[f"sub-{subject:02d}"] = {
            part: _array(parts[part], (int(count), N_PARCELS), f"subject {subject}, {part}")
            for part, count in counts.items()
        }
    return {f"{FILES_2025[phase]}.npy": _npy(np.array(content, dtype=object))}


def _by_subject(predictions: Any, expected: Sequence[int], where: str = "") -> dict[int, Any]:
    """Return what is given for each subject, all of them and in order."""
    if not isinstance(predictions, Mapping):
        raise SchemaError(
            f"{where}expected a mapping by subject, got {type(predictions).__name__}."
        )
    found = {subject_number(key): value for key, value in predictions.items()}
    _check_names(found, list(expected), f"{where}subjects")
    return {subject: found[subject] for subject in expected}


def _check_names(given: Any, expected: Sequence[Any], what: str) -> None:
    """Raise unless a mapping has exactly the expected keys."""
    keys = list(given) if isinstance(given, Mapping) else []
    missing = [one for one in expected if one not in keys]
    unknown = [one for one in keys if one not in expected]
    if missing or unknown:
        parts = [f"missing are {listed(missing)}"] if missing else []
        parts += [f"unknown are {listed(unknown)}"] if unknown else []
        raise PairingError(f"The {what} are not those of the challenge: {'; '.join(parts)}.")


def _array(values: Any, shape: tuple[int | None, ...], what: str) -> np.ndarray:
    """Return predictions as float32 after a look at shape and values."""
    array = np.asarray(getattr(values, "values", values))
    agrees = array.ndim == len(shape) and all(
        wanted in (None, size) for wanted, size in zip(shape, array.shape, strict=True)
    )
    if not agrees or array.dtype.kind not in "fiu":
        wanted = ", ".join("any" if size is None else str(size) for size in shape)
        raise SchemaError(
            f"The predictions of {what} are {array.dtype} of shape {array.shape}; expected numbers "
            f"of shape ({wanted})."
        )
    if not np.isfinite(array).all():
        raise SchemaError(f"The predictions of {what} have values that are not finite.")
    return array.astype(np.float32)


def _npy(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=True)
    return buffer.getvalue()


WRITERS: dict[str, Callable[[Mapping[Any, Any], Path | None], dict[str, bytes]]] = {
    "algonauts2021": _of_2021,
    "algonauts2023": _of_2023,
    "algonauts2025": _of_2025,
}
