"""Broken input: small whole files of every kind that is read, and how they are damaged."""

from __future__ import annotations

import io
import json
import logging
import pickle
import signal
import tarfile
import warnings
import zipfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import nibabel
import numpy as np
import scipy.io
import scipy.sparse
import xarray as xr
from PIL import Image

import neurodl as ndl
from neurodl.errors import NeurodlError
from neurodl.io.archives import unpack
from neurodl.io.hdf5 import read_mat
from neurodl.io.nwb import read_units
from neurodl.io.pickles import read_object_array, read_pickle
from neurodl.io.plain import load_array
from neurodl.io.video import read_frames

SECONDS = 20
STUDY = """
[study]
name = "own"
seed = 1
[responses]
path = "responses.npy"
dims = ["stimulus", "unit"]
[[features]]
path = "features.nc"
[cv]
folds = 3
"""


class Kind(NamedTuple):
    """A kind of file: its name, how a whole one is made, and what reads it."""

    name: str
    make: Callable[[Path], Any]
    read: Callable[[Path], Any]


def _array(shape=(6, 4)):
    return np.random.default_rng(0).standard_normal(shape).astype("f4")


def _nifti(path):
    image = nibabel.Nifti1Image(_array((4, 4, 3, 5)), np.eye(4))
    image.header.set_zooms((2, 2, 2, 1.5))
    image.header.set_xyzt_units("mm", "sec")
    image.to_filename(path)


def _npz(path):
    np.savez(path, responses=_array(), other=np.arange(3))


def _object_npy(path):
    np.save(path, np.array({"lh": _array(), "name": "x"}, object), allow_pickle=True)


def _pickle(path):
    path.write_bytes(pickle.dumps({"a": _array(), "b": [1, 2.5, "text", None]}))


def _mat(path, **options):
    content = {
        "X": _array(),
        "names": np.array(["a", "bb"], object),
        "stim": {"resp": _array((3, 2)), "label": "text"},
        "few": scipy.sparse.csc_array(np.eye(4)),
    }
    scipy.io.savemat(path, content, **options)


def _mat4(path):
    scipy.io.savemat(path, {"X": _array()}, format="4")


def _fields(path):
    return read_mat(path, ["X", "stim.resp"])


def _hdf5(path):
    with h5py.File(path, "w") as file:
        file.create_dataset("X", data=_array(), compression="gzip")
        file.create_dataset("y", data=np.arange(6))


def _nwb(path):
    with h5py.File(path, "w") as file:
        file.attrs["nwb_version"] = "2.6.0"
        units = file.create_group("units")
        units.attrs["colnames"] = ["spike_times"]
        units["id"] = [0, 1]
        units["spike_times"] = np.sort(np.random.default_rng(0).random(20))
        units["spike_times_index"] = [10, 20]


def _events(path):
    path.write_text("onset\tduration\ttrial_type\n0.5\t1.0\timage1\n2.0\t1.0\timage2\n")


def _image(kind):
    def make(path):
        pixels = np.random.default_rng(0).integers(0, 256, (24, 20, 3), "uint8")
        Image.fromarray(pixels).save(path, kind)

    return make


def _video(path):
    import av

    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width = stream.height = 32
        for number in range(6):
            pixels = np.full((32, 32, 3), 40 * number, "uint8")
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())


def _zip(path):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.txt", "hello " * 50)
        archive.writestr("folder/b.json", json.dumps({"a": 1}))


def _tar(path):
    with tarfile.open(path, "w:gz") as archive:
        for name in ("a.txt", "folder/b.txt"):
            member = tarfile.TarInfo(name)
            member.size = 300
            archive.addfile(member, io.BytesIO(b"x" * 300))


def _study(path):
    np.save(path.with_name("responses.npy"), _array())
    ids = [str(number) for number in range(6)]
    features = xr.DataArray(_array(), {"stimulus": ids}, ("stimulus", "feature"))
    ndl.save(features, path.with_name("features.nc"))
    path.write_text(STUDY)


def _loaded(path):
    return load_array(path, "responses" if path.suffix == ".npz" else None, what="responses")


def _volumes(path):
    whole = path.with_name("mask.nii")
    if not whole.exists():
        nibabel.Nifti1Image(np.ones((4, 4, 3), "u1"), np.eye(4)).to_filename(whole)
    return ndl.read_nifti(path, mask=whole).values


def _unpacked(path):
    folder = path.parent / "unpacked"
    found = unpack(path, folder)
    assert all(one.resolve().is_relative_to(folder.resolve()) for one in found)


KINDS = [
    Kind("a.nii", _nifti, _volumes),
    Kind("a.nii.gz", _nifti, _volumes),
    Kind("a.npy", lambda path: np.save(path, _array()), _loaded),
    Kind("a.npz", _npz, _loaded),
    Kind("object.npy", _object_npy, read_object_array),
    Kind("a.pkl", _pickle, read_pickle),
    Kind("a.mat", _mat, _fields),
    Kind("packed.mat", lambda path: _mat(path, do_compression=True), _fields),
    Kind("four.mat", _mat4, lambda path: read_mat(path, ["X"])),
    Kind("hdf5.mat", _hdf5, lambda path: read_mat(path, ["X", "y"])),
    Kind("a.nwb", _nwb, read_units),
    Kind("events.tsv", _events, ndl.read_events),
    Kind("study.toml", _study, ndl.load_study),
    Kind("a.png", _image("PNG"), lambda path: ndl.Stimuli.from_files([path])[0]),
    Kind("a.jpg", _image("JPEG"), lambda path: ndl.Stimuli.from_files([path])[0]),
    Kind("a.mp4", _video, lambda path: read_frames(path, n_frames=4)),
    Kind("a.zip", _zip, _unpacked),
    Kind("a.tar.gz", _tar, _unpacked),
    Kind("scores.nc", lambda path: ndl.save(_scores(), path), ndl.load),
]


def _scores():
    r = xr.DataArray([[[0.4, 0.6]]], dims=("layer", "fold", "unit"), coords={"layer": ["a"]})
    return xr.Dataset({"r": r, "r2": r**2})


def damaged(content: bytes, rng: np.random.Generator) -> bytes:
    """Return a file's bytes with something wrong in one to four places."""
    kept = bytearray(content)
    for _ in range(rng.integers(1, 5)):
        at = int(rng.integers(0, len(kept) or 1))
        # Headers decide the most: half of all damage is in the first 512 bytes.
        if rng.random() < 0.5:
            at = min(at, int(rng.integers(0, 512)))
        size = int(rng.choice([1, 2, 4, 8, 64]))
        kind = rng.integers(0, 7)
        if kind == 0:
            kept[at : at + size] = rng.bytes(size)
        elif kind == 1:
            del kept[at:]
        elif kind == 2:
            del kept[at : at + size]
        elif kind == 3:
            kept[at:at] = rng.bytes(size)
        elif kind == 4:
            extreme = (b"\xff", b"\x00", b"\x7f", b"\x80", b"9", b"-")[rng.integers(0, 6)]
            kept[at : at + size] = extreme * size
        elif kind == 5 and kept:
            kept[at % len(kept)] ^= 1 << int(rng.integers(0, 8))
        else:
            kept[at:at] = kept[at : at + 256]
    return bytes(kept)


def try_damaged(kind, folder, n_inputs, seed=0):
    """Read so many damaged files of a kind; return how many were read, and how many errors were.

    Any other exception, or a file that takes longer than `SECONDS`, is raised with its number.
    """
    path = folder / kind.name
    kind.make(path)
    whole = path.read_bytes()
    kind.read(path)
    rng = np.random.default_rng(seed)
    found = Counter(read=0, error=0)
    before = signal.signal(signal.SIGALRM, _too_slow)
    logging.getLogger("libav").setLevel(logging.CRITICAL)
    try:
        for number in range(n_inputs):
            path.write_bytes(damaged(whole, rng))
            signal.alarm(SECONDS)
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    kind.read(path)
                found["read"] += 1
            except NeurodlError as error:
                assert kind.name in str(error), (number, str(error))
                found["error"] += 1
            except Exception as error:
                raise AssertionError(f"{kind.name}, damaged file {number}: {error!r}") from error
            finally:
                signal.alarm(0)
    finally:
        signal.signal(signal.SIGALRM, before)
    return found


def _too_slow(*_):
    raise TimeoutError(f"reading takes longer than {SECONDS} s")
