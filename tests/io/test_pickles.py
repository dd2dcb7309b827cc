"""Published pickles as plain data: what numpy and Python 2 wrote, and nothing that runs."""

from __future__ import annotations

import datetime
import io
import os
import pathlib
import pickle
import pickletools
import tracemalloc
import zipfile
from collections import OrderedDict

import numpy as np
import pytest

from neurodl.errors import FileFormatError, MissingFileError
from neurodl.io.one_object import n_objects, read_one_object
from neurodl.io.pickles import read_object_array, read_object_arrays, read_pickle

PLAIN = {
    "train": np.arange(24, dtype=np.float32).reshape(2, 3, 4),
    "fortran": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
    "big": np.arange(5, dtype=">i4"),
    "names": np.array(["V1", "LOC"]),
    "bytes": np.array([b"a", b"bc"]),
    "mask": np.array([True, False]),
    "empty": np.zeros((0, 3)),
    "scalar": np.float64(2.5),
    "count": np.int16(-3),
    "when": np.array(["2021-05-01"], "datetime64[D]"),
    "nested": [1, 2.5, None, True, "é", b"\x00\xff", (1, [2]), {3}, frozenset({4}), 1 + 2j],
    "ordered": OrderedDict(a=1, b=np.arange(3)),
    "raw": bytearray(b"xy"),
    "large": 2**70,
}


def same(found, expected):
    if isinstance(expected, dict):
        assert list(found) == list(expected)
        for key in expected:
            same(found[key], expected[key])
    elif isinstance(expected, np.ndarray) and expected.dtype == object:
        assert found.shape == expected.shape
        for one, other in zip(found.ravel(), expected.ravel(), strict=True):
            same(one, other)
    elif isinstance(expected, (np.ndarray, np.generic)):
        assert found.dtype == expected.dtype
        np.testing.assert_array_equal(found, expected)
    else:
        assert found == expected and type(found) is type(expected)


def written(path, content):
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_plain_data_of_every_protocol(tmp_path, protocol):
    content = pickle.dumps(PLAIN, protocol)
    expected = pickle.loads(content)
    same(
        read_pickle(written(tmp_path / "V1.pkl", content)),
        expected | {"ordered": dict(PLAIN["ordered"])},
    )


@pytest.mark.parametrize("protocol", [0, 2])
def test_pickles_of_the_old_numpy_and_python_2(tmp_path, protocol):
    content = pickle.dumps({"train": PLAIN["train"], "n": np.float64(2.5)}, protocol)
    old = content.replace(b"numpy._core.multiarray", b"numpy.core.multiarray")
    assert old != content
    found = read_pickle(written(tmp_path / "old.pkl", old))
    same(found, {"train": PLAIN["train"], "n": PLAIN["scalar"]})
    # Python 2 wrote an array's bytes as a str: SHORT_BINSTRING
    raw = np.array([1.5, -2.0]).tobytes()
    python2 = (
        b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(I0\ntU\x01btR(I1\n(I2\nt"
        b"cnumpy\ndtype\n(U\x02f8I0\nI1\ntR(I3\nU\x01<NNNI-1\nI-1\nI0\ntbI00\nU"
        + bytes([len(raw)]) + raw + b"tb."
    )  # fmt: skip
    pickletools.dis(python2, out=io.StringIO())
    same(read_pickle(written(tmp_path / "two.pkl", python2)), np.array([1.5, -2.0]))


def test_dates_are_dates_and_paths_become_text(tmp_path):
    when = datetime.datetime(2021, 5, 1, 12, 30)
    content = pickle.dumps({"when": when, "path": pathlib.PurePosixPath("a/b")})
    same(read_pickle(written(tmp_path / "a.pkl", content)), {"when": when, "path": "a/b"})


def test_arrays_of_objects(tmp_path):
    sessions = np.empty(2, object)
    sessions[:] = [{"spks": PLAIN["train"], "area": ["VISp"]}, {"spks": np.zeros((1, 2))}]
    np.save(tmp_path / "one.npy", sessions, allow_pickle=True)
    same(read_object_array(tmp_path / "one.npy"), sessions)
    np.savez(tmp_path / "part.npz", dat=sessions, plain=PLAIN["fortran"], names=PLAIN["names"])
    found = read_object_arrays(tmp_path / "part.npz")
    same(found, {"dat": sessions, "plain": PLAIN["fortran"], "names": PLAIN["names"]})
    assert list(read_object_arrays(tmp_path / "part.npz", ["names"])) == ["names"]
    with pytest.raises(FileFormatError, match="lacks the arrays 'lfp'; it holds 'dat', 'plain'"):
        read_object_arrays(tmp_path / "part.npz", ["dat", "lfp"])
    alone = np.array({"stat": np.arange(3)}, object)  # a dict saved as an array of no dimension
    np.save(tmp_path / "dict.npy", alone, allow_pickle=True)
    same(read_object_array(tmp_path / "dict.npy").item(), {"stat": np.arange(3)})


class Runs:
    """Pickled as a call."""

    def __init__(self, function, *args, state=None):
        self.call = (function, args) if state is None else (function, args, state)

    def __reduce__(self):
        return self.call


def exploits(canary):
    touch = f"open({str(canary)!r}, 'w')"
    text = str(canary).encode()
    yield "os.system", pickle.dumps(Runs(os.system, f"touch {canary}"))
    yield "eval", pickle.dumps(Runs(eval, touch))
    yield "exec", pickle.dumps(Runs(exec, touch))
    yield "open", pickle.dumps(Runs(open, str(canary), "w"))
    yield "in a dict of arrays", pickle.dumps({"train": np.arange(3), "x": Runs(eval, touch)})
    yield "in an array", pickle.dumps(np.array([Runs(eval, touch), 1], object))
    yield "getattr", pickle.dumps(Runs(getattr, dict, "clear"))
    yield "GLOBAL of a dotted name", b"\x80\x04\x8c\x05numpy\x8c\x0fndarray.tofile\x93."
    yield "INST", b"(S'touch " + text + b"'\nios\nsystem\n."
    yield "OBJ", b"(cos\nsystem\nS'touch " + text + b"'\no."
    yield "numpy's loader", b"cnumpy\nload\n(S'" + text + b"'\nI1\ntR."
    yield "memmap", b"cnumpy\nmemmap\n(S'" + text + b"'\nS'u1'\nS'w+'\nI0\n(I1\nttR."
    yield "reconstructor", b"ccopyreg\n_reconstructor\n(c__main__\nX\nc__builtin__\nobject\nNtR."
    yield "persistent id", b"Ppid\n."
    yield "what is outside numpy", b"cnumpy.testing._private.utils\nrunstring\n(S'1'\n}tR."
    yield (
        "another class of array",
        (b"cnumpy.core.multiarray\n_reconstruct\n(c__builtin__\nset\n(I0\ntS'b'\ntR."),
    )
    yield "an array called", b"cnumpy\nndarray\n((I1\ntS'O'\ntR."
    yield "so many bytes", b"c__builtin__\nbytearray\n(I99999999999\ntR."
    yield "a structure", b"cnumpy\ndtype\n(S'V8'\nI0\nI1\ntR."
    yield "a changed reader", b"c_codecs\nencode\n}S'_make'\nI1\nsb."
    yield "a changed reader by slots", b"c_codecs\nencode\n(N}S'_make'\nI1\nstb."


READERS = {"pkl": read_pickle, "npy": read_object_array, "npz": read_object_arrays}
EXPLOITS = [name for name, _ in exploits("x")]


@pytest.mark.parametrize("name", EXPLOITS)
@pytest.mark.parametrize("inside", ["pkl", "npy", "npz"])
def test_what_would_run_is_refused_before_it_runs(tmp_path, name, inside):
    canary = tmp_path / "canary"
    content = dict(exploits(canary))[name]
    if inside != "pkl":
        stream = io.BytesIO()
        np.save(stream, np.array([None], object), allow_pickle=True)
        header = stream.getvalue()[: 10 + int.from_bytes(stream.getvalue()[8:10], "little")]
        content = header + content
    path = tmp_path / f"data.{inside}"
    if inside == "npz":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("dat.npy", content)
    else:
        path.write_bytes(content)
    with pytest.raises(FileFormatError, match=r"data\."):
        read_pickle(path) if inside == "pkl" else (
            read_object_array if inside == "npy" else read_object_arrays
        )(path)
    assert not canary.exists()


def long(content):
    return len(content).to_bytes(4, "little") + content


def growing():
    """Small files that stand for gigabytes."""
    path = b"cpathlib\nPurePosixPath\nq\x00"
    text = b"X" + long(b"x" * 10) + b"q\x01"
    joined = b"0h\x00h\x01h\x01\x86Rq\x01"
    yield "text joined to itself", path + text + joined * 60 + b"."
    encode, latin = b"c_codecs\nencode\nq\x00", b"X" + long(b"latin1") + b"q\x02"
    text = b"X" + long(b"x" * 10**6) + b"q\x01"
    copied = b"h\x00h\x01h\x02\x86R" * 10**4
    yield "text copied", encode + latin + text + b"](" + copied + b"e."
    numbers = b"](" + b"".join(b"J" + n.to_bytes(4, "little") for n in range(10**5)) + b"eq\x01"
    sets = b"h\x00h\x01\x85R" * 10**4
    yield "sets of a list", b"c__builtin__\nset\nq\x00" + numbers + b"](" + sets + b"e."
    make = b"cnumpy.core.numeric\n_frombuffer\nq\x00"
    buffer = b"B" + long(bytes(10**6)) + b"q\x01"
    dtype = b"cnumpy\ndtype\n(X" + long(b"u1") + b"I0\nI1\ntRq\x02"
    shape, order = b"J" + (10**6).to_bytes(4, "little") + b"\x85q\x03", b"X" + long(b"C") + b"q\x04"
    arrays = b"h\x00(h\x01h\x02h\x03h\x04tR" * 10**4
    yield "arrays of one buffer", make + buffer + dtype + shape + order + b"](" + arrays + b"e."


@pytest.mark.parametrize("name", [name for name, _ in growing()])
def test_few_bytes_do_not_become_gigabytes(tmp_path, name):
    path = written(tmp_path / "data.pkl", dict(growing())[name])
    tracemalloc.start()
    with pytest.raises(FileFormatError, match="more memory than it has bytes"):
        read_pickle(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 200e6


def test_an_array_of_lists_within_lists_is_not_spread_out(tmp_path):
    nested = [0]
    for _ in range(40):
        nested = [nested, nested]
    np.save(tmp_path / "data.npy", np.array([None], object), allow_pickle=True)
    header = (tmp_path / "data.npy").read_bytes()
    header = header[: 10 + int.from_bytes(header[8:10], "little")]
    path = written(tmp_path / "data.npy", header + pickle.dumps(nested))
    with pytest.raises(FileFormatError, match="holds a list in place of an array"):
        read_object_array(path)


def test_the_readers_still_work_after_they_were_attacked(tmp_path):
    for number, (_, content) in enumerate(exploits(tmp_path / "canary")):
        with pytest.raises(FileFormatError):
            read_pickle(written(tmp_path / f"{number}.pkl", content))
    same(
        read_pickle(written(tmp_path / "good.pkl", pickle.dumps(PLAIN["bytes"], 0))), PLAIN["bytes"]
    )


def test_damage_is_named(tmp_path):
    whole = pickle.dumps(PLAIN)
    for n_bytes in (0, 1, 10, len(whole) // 2, len(whole) - 1):
        path = written(tmp_path / "cut.pkl", whole[:n_bytes])
        with pytest.raises(FileFormatError, match=r"cut\.pkl"):
            read_pickle(path)
    np.save(tmp_path / "cut.npy", PLAIN["train"])
    whole = (tmp_path / "cut.npy").read_bytes()
    for n_bytes in (0, 5, 40, len(whole) - 1):
        with pytest.raises(FileFormatError, match=r"cut\.npy"):
            read_object_array(written(tmp_path / "cut.npy", whole[:n_bytes]))
    with pytest.raises(FileFormatError, match=r"bad\.npz"):
        read_object_arrays(written(tmp_path / "bad.npz", b"<html>"))
    with pytest.raises(MissingFileError, match="none.pkl"):
        read_pickle(tmp_path / "none.pkl")
    with pytest.raises(MissingFileError, match="none.npz"):
        read_object_arrays(tmp_path / "none.npz")


def sessions_of(rng, n=4, size=200_000):
    return np.array(
        [
            {
                "spks": rng.integers(0, 3, (size // 100, 100), np.int8),
                "ss": np.array([[rng.random(3), []], [np.array([]), [1.5]]], object),
                "area": np.array(["VISp", "root"]),
                "nested": {"a": np.arange(number), "b": {"c": [b"", b"x"]}},
                "name": "Cori",
                "n": number,
                "empty": b"",
            }
            for number in range(n)
        ],
        object,
    )


@pytest.mark.parametrize("index", range(4))
@pytest.mark.parametrize("one_key", [False, True])
def test_one_object_of_many_is_that_object(tmp_path, rng, index, one_key):
    sessions = sessions_of(rng)
    if one_key:
        sessions = np.array([{"ss": each["ss"]} for each in sessions], object)
    np.savez(tmp_path / "part.npz", dat=sessions, other=np.arange(3))
    same(read_one_object(tmp_path / "part.npz", "dat", index), sessions[index])
    assert n_objects(tmp_path / "part.npz", "dat") == 4


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_one_object_of_every_protocol(tmp_path, rng, protocol):
    sessions = sessions_of(rng, 3, 5000)
    sessions[1] |= {f"key {number}": number for number in range(2500)}
    header = io.BytesIO()
    description = {"descr": "|O", "fortran_order": False, "shape": (3,)}
    np.lib.format.write_array_header_1_0(header, description)
    with zipfile.ZipFile(tmp_path / "part.npz", "w") as archive:
        archive.writestr("dat.npy", header.getvalue() + pickle.dumps(sessions, protocol))
    for index in range(3):
        same(read_one_object(tmp_path / "part.npz", "dat", index), sessions[index])


def test_one_object_takes_the_memory_of_two_at_most(tmp_path, rng):
    size = 2_000_000
    np.savez(tmp_path / "part.npz", dat=sessions_of(rng, 8, size))
    tracemalloc.start()
    try:
        read_one_object(tmp_path / "part.npz", "dat", 3)
        assert tracemalloc.get_traced_memory()[1] < 4 * size  # bytes and array of two, not of 8
    finally:
        tracemalloc.stop()


def test_objects_that_share_arrays_are_still_right(tmp_path, rng):
    shared = rng.random(5000)
    sessions = np.array([{"x": shared, "n": 0}, {"x": shared, "n": 1}], object)
    np.savez(tmp_path / "part.npz", dat=sessions)
    for index in range(2):
        same(read_one_object(tmp_path / "part.npz", "dat", index), sessions[index])


def test_one_object_runs_nothing_either(tmp_path):
    canary = tmp_path / "canary"
    for name, content in exploits(canary):
        header = io.BytesIO()
        description = {"descr": "|O", "fortran_order": False, "shape": (2,)}
        np.lib.format.write_array_header_1_0(header, description)
        with zipfile.ZipFile(tmp_path / "part.npz", "w") as archive:
            archive.writestr("dat.npy", header.getvalue() + content)
        with pytest.raises(FileFormatError):
            read_one_object(tmp_path / "part.npz", "dat", 0)
        assert not canary.exists(), name


def test_one_object_that_is_not_there(tmp_path, rng):
    np.savez(tmp_path / "part.npz", dat=sessions_of(rng, 2), plain=np.arange(3))
    for name, index, message in (
        ("dat", 2, "has no object 2"),
        ("plain", 0, "has no object 0"),
        ("dta", 0, "Cannot read .*dta"),
    ):
        with pytest.raises(FileFormatError, match=message):
            read_one_object(tmp_path / "part.npz", name, index)
    with pytest.raises(MissingFileError):
        read_one_object(tmp_path / "none.npz", "dat", 0)
