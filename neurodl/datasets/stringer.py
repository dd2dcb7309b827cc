"""Two-photon recordings of ten thousand neurons of mouse visual cortex (Stringer et al.)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from neurodl.datasets.assemble import check_shape, first_file
from neurodl.datasets.experiment import Experiment
from neurodl.errors import FileFormatError
from neurodl.io.hdf5 import read_mat
from neurodl.io.images import image_stack
from neurodl.io.pickles import read_object_array
from neurodl.stimuli import Stimuli

N_IMAGES = 2800
BIN = 1.2  # s, of the spontaneous activity
IMAGES = "images_natimg2800_all.mat"
RECORDINGS = "natimg2800_M*.mat"


def load_stringer_orientations(root: Path) -> Experiment:
    """Open the responses of 23,589 neurons to 4598 gratings of all orientations.

    Parameters
    ----------
    root : Path
        The folder with ``stringer_orientations.npy``.

    Returns
    -------
    Experiment
        Responses with dims ``(presentation, unit)``, float32. Coords stimulus (its orientation to
        1e-4 rad), orientation [rad, 0 to 2 pi] and run_speed (presentation); x, y and z (unit).

    Raises
    ------
    MissingFileError, FileFormatError
        The file is missing, damaged or holds something else.

    References
    ----------
    Stringer, Michaelos, Tsyboulski, Lindo & Pachitariu (2021), High-precision coding in visual
    cortex, Cell 184.
    """
    path = root / "stringer_orientations.npy"
    content = _content(path, ("sresp", "istim"))
    angles = np.ravel(content["istim"]).astype(np.float64)
    check_shape(content["sresp"], (None, len(angles)), f"{path}: sresp")
    coords: dict[str, Any] = {
        "stimulus": ("presentation", [f"{angle:.4f} rad" for angle in angles]),
        "orientation": ("presentation", angles),
        **_along("presentation", content, {"run_speed": "run"}, len(angles)),
        **_xyz(content, len(content["sresp"])),
    }
    responses = _transposed(content["sresp"], ("presentation", "unit"), coords)
    return Experiment(responses=responses, name="stringer_orientations")


def load_stringer_spontaneous(root: Path) -> Experiment:
    """Open the spontaneous activity of 11,983 neurons, with the mouse's face and running.

    Parameters
    ----------
    root : Path
        The folder with ``stringer_spontaneous.npy``.

    Returns
    -------
    Experiment
        Responses with dims ``(time, unit)``, float32, attr bin_width = 1.2 s. Coords time (start of
        the bin [s]), run_speed, pupil_area, pupil_x and pupil_y; x, y and z (unit).
        ``features["face"]``: the 1000 components of the motion of the face, dims ``(time,
        feature)``, which predict much of the activity.

    Raises
    ------
    MissingFileError, FileFormatError
        The file is missing, damaged or holds something else.

    References
    ----------
    Stringer et al. (2019), Spontaneous behaviors drive multidimensional, brainwide activity,
    Science 364.
    """
    path = root / "stringer_spontaneous.npy"
    content = _content(path, ("sresp", "beh_svd_time"))
    n_times = len(content["beh_svd_time"])
    check_shape(content["sresp"], (None, n_times), f"{path}: sresp")
    check_shape(content["beh_svd_time"], (n_times, None), f"{path}: beh_svd_time")
    time = np.arange(n_times) * BIN
    names = {"run_speed": "run", "pupil_area": "pupilArea"}
    coords = {
        "time": time,
        **_along("time", content, names, n_times),
        **_xyz(content, len(content["sresp"])),
    }
    center = np.asarray(content.get("pupilCOM", []))
    if center.shape == (n_times, 2):
        coords |= {"pupil_x": ("time", center[:, 0]), "pupil_y": ("time", center[:, 1])}
    responses = _transposed(content["sresp"], ("time", "unit"), coords)
    responses.attrs["bin_width"] = BIN
    face = xr.DataArray(
        np.ascontiguousarray(content["beh_svd_time"], dtype=np.float32),
        dims=("time", "feature"),
        coords={"time": time},
        attrs={"layer": "face", "bin_width": BIN},
    )
    return Experiment(responses=responses, features={"face": face}, name="stringer_spontaneous")


def load_stringer_images(root: Path, recording: int = 0) -> Experiment:
    """Open the responses of about 10,000 neurons to 2800 photographs, each shown twice.

    Parameters
    ----------
    root : Path
        The folder with ``natimg2800_M*.mat`` and, if wanted, ``images_natimg2800_all.mat``.
    recording : int
        Which of the recordings, in the order of their names, from 0.

    Returns
    -------
    Experiment
        Responses with dims ``(presentation, unit)``, float32; grey screens are left out. Coords
        stimulus ("image-0001" ...) and repeat (presentation); x, y and z (unit) where they are
        published.

    Raises
    ------
    MissingFileError, FileFormatError, ValueError
        A file is missing, damaged or holds something else; there is no such recording.

    References
    ----------
    Stringer, Pachitariu, Steinmetz, Carandini & Harris (2019), High-dimensional geometry of
    population responses in visual cortex, Nature 571.
    """
    files = sorted(root.rglob(RECORDINGS))
    first_file(root, [f"**/{RECORDINGS}"])
    if not 0 <= recording < len(files):
        raise ValueError(f"`recording` must be from 0 to {len(files) - 1}, but got {recording}.")
    path = files[recording]
    content = read_mat(path, ["stim.resp", "stim.istim"])
    number = content["stim.istim"].ravel().astype(int)
    check_shape(content["stim.resp"], (len(number), None), f"{path}: stim.resp")
    shown = number <= N_IMAGES  # the number after is the grey screen
    number, values = number[shown], content["stim.resp"][shown]
    names = np.array([f"image-{one:04d}" for one in number])
    order: dict[str, int] = {}
    repeat = []
    for name in names.tolist():
        order[name] = order.get(name, 0) + 1
        repeat.append(order[name])
    coords = {"stimulus": ("presentation", names), "repeat": ("presentation", repeat)}
    try:
        places = read_mat(path, ["med"])["med"]
        coords |= _xyz({"xyz": places.T}, values.shape[1])
    except FileFormatError:
        pass  # not published with every recording
    responses = xr.DataArray(
        values.astype(np.float32),
        dims=("presentation", "unit"),
        coords=coords,
        attrs={"units": "deconvolved fluorescence", "subject": path.stem.split("_")[1]},
    )
    stimuli = _photographs(root, sorted(order))
    return Experiment(stimuli=stimuli, responses=responses, name="stringer_images")


def _content(path: Path, keys: tuple[str, ...]) -> dict[str, Any]:
    """Return the dict that a file holds."""
    stored = read_object_array(path)
    content = stored.item() if stored.ndim == 0 else None
    if not isinstance(content, dict) or any(key not in content for key in keys):
        raise FileFormatError(f"{path} holds no dict with {' and '.join(keys)}.")
    return content


def _transposed(neurons: np.ndarray, dims: tuple[str, str], coords: dict[str, Any]) -> xr.DataArray:
    """Return neurons x samples as responses."""
    values = np.ascontiguousarray(neurons.T, dtype=np.float32)
    attrs = {"units": "deconvolved fluorescence"}
    return xr.DataArray(values, dims=dims, coords=coords, attrs=attrs)


def _along(
    dim: str, content: dict[str, Any], names: dict[str, str], size: int
) -> dict[str, tuple[str, np.ndarray]]:
    """Return what was measured along with the samples, of what is there."""
    found = {name: np.ravel(content.get(key, [])) for name, key in names.items()}
    return {name: (dim, values) for name, values in found.items() if len(values) == size}


def _xyz(content: dict[str, Any], n_units: int) -> dict[str, Any]:
    places = np.asarray(content.get("xyz", []))
    if places.shape != (3, n_units):
        return {}
    return {axis: ("unit", row) for axis, row in zip("xyz", places.astype(float), strict=True)}


def _photographs(root: Path, ids: list[str]) -> Stimuli | None:
    """Return the photographs that were shown, or None where they are not there."""
    files = sorted(root.rglob(IMAGES))
    if not files:
        return None
    images = read_mat(files[0], ["imgs"])["imgs"]  # height, width, number
    check_shape(images, (None, None, None), f"{files[0]}: imgs")
    numbers = [int(name.removeprefix("image-")) - 1 for name in ids]
    if max(numbers) >= images.shape[2]:
        raise FileFormatError(f"{files[0]} has {images.shape[2]} images; {ids[-1]} was shown.")
    shown = np.moveaxis(images[..., numbers], 2, 0)
    value_range = (float(images.min()), float(images.max()))
    stack = image_stack(shown, value_range=value_range, name=IMAGES)
    return Stimuli.from_arrays(stack, ids)
