"""Models as files: the same predictions to the last bit, and nothing but models comes out."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from sklearn.base import clone
from sklearn.linear_model import Ridge
from sklearn.model_selection import GroupKFold, KFold, LeaveOneGroupOut, PredefinedSplit
from sklearn.pipeline import make_pipeline

import neurodl.models
from neurodl.errors import DeviceError, FileFormatError, MissingFileError
from neurodl.io.encoding import Decoder, Encoder
from neurodl.io.store import load, save
from neurodl.models import KernelRidgeCV, RidgeCV

CPU = torch.device("cpu")
# The others have data and round trips of their own: of networks in tests/models, and below.
OTHERS = ("NeuralEncoder", "Hyperalignment", "SequenceDecoder", "SequenceEncoder")
ALL = [getattr(neurodl.models, name) for name in neurodl.models.__all__ if name not in OTHERS]


def make_data(n=48, n_features=6, n_targets=3, dtype="f4"):
    rng = np.random.default_rng(0)
    X = rng.standard_normal((n, n_features)).astype(dtype)
    Y = X @ rng.standard_normal((n_features, n_targets)) + rng.standard_normal((n, n_targets))
    return X, Y.astype(dtype)


def same(one, other):
    """Assert that two values of any kind are the same, as far as numbers go to the last bit."""
    assert type(one) is type(other)
    if isinstance(one, torch.Tensor):
        assert one.stride() == other.stride()
        one, other = one.numpy(), other.numpy()
    if isinstance(one, np.ndarray):
        assert one.dtype == other.dtype
        assert one.strides == other.strides
        np.testing.assert_array_equal(one, other)
    elif isinstance(one, dict):
        assert list(one) == list(other)
        for key, value in one.items():
            same(value, other[key])
    elif isinstance(one, (list, tuple)):
        assert len(one) == len(other)
        for pair in zip(one, other, strict=True):
            same(*pair)
    elif hasattr(one, "__dict__"):
        same(vars(one), vars(other))
    else:
        assert one == other or one != one


def check_round_trip(model, X, tmp_path, **options):
    path = save(model, tmp_path / "model.safetensors")
    again = load(path)
    assert type(again) is type(model)
    same(vars(again), vars(model))
    expected = model.predict(X, **options)
    np.testing.assert_array_equal(again.predict(X, **options), expected)
    elsewhere = load(path, device="cpu")
    assert elsewhere.device == "cpu"
    np.testing.assert_array_equal(elsewhere.predict(X, **options), expected)
    assert again.get_params(deep=False).keys() == model.get_params(deep=False).keys()
    clone(again)
    return again


@pytest.mark.parametrize("kind", ALL, ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("shape", [{}, {"n_features": 300}, {"n_targets": 1}], ids=str)
@pytest.mark.filterwarnings("ignore::neurodl.errors.NeurodlWarning")
def test_every_model_comes_back(kind, shape, tmp_path):
    X, Y = make_data(**shape)
    Y = Y[:, 0] if shape.get("n_targets") == 1 else Y
    Y = np.abs(Y) if kind is neurodl.models.PoissonRidgeCV else Y
    check_round_trip(kind(device="cpu").fit(X[:40], Y[:40]), X[40:], tmp_path)


@pytest.mark.parametrize("method", ["procrustes", "ridge"])
def test_an_alignment_comes_back(method, tmp_path):
    X, Y = make_data(n_targets=5)
    model = neurodl.models.Hyperalignment(method).fit([X[:40], Y[:40]])
    path = save(model, tmp_path / "model.safetensors")
    for again in (load(path), load(path, device="cpu")):
        same(vars(again), vars(model))
        expected = model.predict(X[40:], source=0, target=1)
        np.testing.assert_array_equal(again.predict(X[40:], source=0, target=1), expected)


@pytest.mark.parametrize("kind", ALL, ids=lambda kind: kind.__name__)
def test_models_that_are_not_fitted_keep_their_parameters(kind, tmp_path):
    model = kind(device="cpu", seed=3)
    again = load(save(model, tmp_path / "m.safetensors"))
    assert again.get_params() == model.get_params()
    assert vars(again) == vars(model)


@pytest.mark.parametrize(
    "options",
    [
        {"alphas": [1.0, 10.0], "standardize": False, "nan_targets": "exclude"},
        {"alphas": np.logspace(0, 2, 3), "cv": GroupKFold(3), "delays": range(1, 4)},
        {"delays": (1, 2), "centre": "runs", "cv": LeaveOneGroupOut()},
        {"alphas": torch.tensor([1.0, 5.0]), "cv": KFold(3, shuffle=True, random_state=1)},
        {"cv": [(np.arange(18), np.arange(18, 36)), (np.arange(18, 36), np.arange(18))]},
        {"cv": PredefinedSplit([0, 1] * 18)},
        {"alphas": [float(np.float64(2.0))], "seed": np.int64(4), "device": CPU},
    ],
)
@pytest.mark.parametrize("n_features", [6, 300])
@pytest.mark.filterwarnings("ignore::neurodl.errors.NeurodlWarning")
def test_parameters_of_every_kind(options, n_features, tmp_path):
    X, Y = make_data(n_features=n_features, dtype="f8")
    if "nan_targets" in options:
        Y[3, 1] = np.nan
    runs = np.repeat(["a", "b", "c", "d"], 12)
    model = RidgeCV(**{"device": "cpu", **options})
    grouped = isinstance(model.cv, (GroupKFold, LeaveOneGroupOut))
    model.fit(X[:36], Y[:36], groups=runs[:36] if grouped else None, runs=runs[:36])
    check_round_trip(model, X[36:], tmp_path, runs=runs[36:])


@pytest.mark.parametrize("kernel", ["linear", "rbf", "cosine", "precomputed"])
def test_every_kernel(kernel, tmp_path):
    X, Y = make_data(n_features=80)
    train, test = (X[:40], X[40:]) if kernel != "precomputed" else (X[:40] @ X[:40].T, X @ X[:40].T)
    check_round_trip(KernelRidgeCV(kernel=kernel, device="cpu").fit(train, Y[:40]), test, tmp_path)


def test_names_of_features_come_back(tmp_path):
    X, Y = make_data()
    table = pd.DataFrame(X, columns=list("abcdef"))
    model = RidgeCV(device="cpu").fit(table, Y)
    again = check_round_trip(model, table, tmp_path)
    assert again.feature_names_in_.tolist() == list("abcdef")


def test_arrays_that_share_memory_are_stored_once_and_stay_so(tmp_path):
    X, Y = make_data(n=40, n_features=2000)
    path = save(RidgeCV(device="cpu").fit(X, Y), tmp_path / "m.safetensors")
    assert path.stat().st_size < 1.2 * X.nbytes
    encoder = Encoder("neurodl.models")
    part = torch.arange(12.0).view(3, 4)
    odd = [part, part.T, part[:, ::2], part[1], part.numpy(), part.expand(2, 3, 4), part[:0]]
    code = json.loads(json.dumps(encoder.encode(odd, "odd")))
    found = Decoder("neurodl.models", encoder.tensors.__getitem__, CPU).decode(code)
    for one, other in zip(odd, found, strict=True):
        np.testing.assert_array_equal(one, other)
    assert found[1].stride() == part.T.stride()
    assert found[4].ctypes.data == found[0].data_ptr()


@pytest.mark.parametrize(
    "value",
    [None, True, 3, -0.0, float("inf"), "ü", np.float32(0.1), np.int64(7), np.bool_(True),
     (1, [2.5, "x"]), {"a": 1, 2: (3,)}, range(2, 9, 3), torch.float64, np.array(["a", "bc"]),
     np.zeros((0, 3)), np.array(5), np.array([1 + 2j]), np.asfortranarray(np.ones((2, 3)))],
)  # fmt: skip
def test_values_of_every_kind(value):
    encoder = Encoder("neurodl.models")
    code = json.loads(json.dumps(encoder.encode(value, "x"), allow_nan=False))
    same(Decoder("neurodl.models", encoder.tensors.__getitem__, CPU).decode(code), value)


class Mine(RidgeCV):
    """Somebody's own."""


def test_what_cannot_be_saved_is_named(tmp_path):
    path = tmp_path / "m.safetensors"
    model = RidgeCV(cv=KFold(3, shuffle=True, random_state=np.random.RandomState(0)))
    with pytest.raises(ValueError, match=r"`cv`\.random_state is a numpy.*RandomState"):
        save(model, path)
    with pytest.raises(ValueError, match="`alphas` is a builtins.function"):
        save(RidgeCV(lambda: 1), path)
    itself: list = []
    itself.append(itself)
    with pytest.raises(ValueError, match=r"`alphas`\[0\] holds itself"):
        save(RidgeCV(itself), path)
    for other in (Ridge(), Mine(), make_pipeline(RidgeCV())):
        with pytest.raises(ValueError, match="Of a pipeline, save the last step"):
            save(other, path)
    with pytest.raises(ValueError, match=r"RidgeCV is saved to '\*.safetensors', but got 'm.nc'"):
        save(RidgeCV(), tmp_path / "m.nc")
    for thing in (3, RidgeCV):
        with pytest.raises(ValueError, match="What can be saved are scores"):
            save(thing, path)
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def file(tmp_path):
    X, Y = make_data(n_features=60)
    return save(RidgeCV(device="cpu").fit(X, Y), tmp_path / "m.safetensors")


def rewritten(file, **changes):
    """Change the metadata of a file."""
    with safe_open(file, "pt") as opened:
        metadata = {**opened.metadata(), **changes}
        tensors = {key: opened.get_tensor(key) for key in opened.keys()}  # noqa: SIM118
    save_file(tensors, file, metadata={k: v for k, v in metadata.items() if v is not None})
    return file


@pytest.mark.parametrize("share", [0.0, 0.001, 0.3, 0.999])
def test_truncated_files_are_errors(file, share):
    whole = file.read_bytes()
    file.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(FileFormatError, match="Cannot read the model .* save the model again"):
        load(file)


def test_foreign_files_are_errors(file, tmp_path):
    weights = tmp_path / "net.safetensors"
    save_file({"conv.weight": torch.zeros(2)}, weights)
    with pytest.raises(FileFormatError, match=r"holds no model .* load_backbone"):
        load(weights)
    weights.write_text("something else altogether")
    with pytest.raises(FileFormatError, match="Cannot read the model"):
        load(weights)
    with pytest.raises(FileFormatError, match="but 'neurodl model 9'"):
        load(rewritten(file, format="neurodl model 9"))
    with pytest.raises(MissingFileError):
        load(tmp_path / "gone.safetensors")


@pytest.mark.parametrize("name", ["RidgeCW", "_base", "Popen", "PenaltyCV", "__all__"])
def test_only_public_models_are_loaded(file, name):
    with pytest.raises(FileFormatError, match=f"holds a {name} of neurodl .* Install that version"):
        load(rewritten(file, **{"class": name}))


def evil(place, name):
    return json.dumps({"x": {"class": [place, name], "attributes": {"args": ["touch", "here"]}}})


@pytest.mark.parametrize(
    "learned",
    [
        evil("subprocess", "Popen"),
        evil("neurodl.models.ridge", "PenaltyCV"),
        evil("neurodl.models.ridge", "resolve_device"),
        evil("neurodl.models._nothing", "Popen"),
        evil("neurodl.modelsx", "Popen"),
        evil("sklearn.model_selection", "GridSearchCV"),
        evil("sklearn.model_selection", "_split"),
        json.dumps({"x": {"dtype": "load"}}),
        json.dumps({"x": {"pickle": "abc"}}),
        json.dumps({"x": {"tensor": ["tensor9999", [0]]}}),
        json.dumps({"x": {}}),
        json.dumps([1]),
        "{not json",
        None,
    ],
)
def test_a_file_makes_only_what_models_are_made_of(file, learned):
    with pytest.raises(FileFormatError, match="Cannot read the model"):
        load(rewritten(file, learned=learned))


def test_parameters_of_another_version(file):
    with safe_open(file, "pt") as opened:
        parameters = json.loads(opened.metadata()["parameters"])
    newer = json.dumps({**parameters, "momentum": 3})
    with pytest.raises(FileFormatError, match="does not have: 'momentum'"):
        load(rewritten(file, parameters=newer, neurodl="9.0"))
    del parameters["screening"]
    assert load(rewritten(file, parameters=json.dumps(parameters))).screening is True


def test_a_device_that_is_not_there(file, tmp_path):
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    gone = save(RidgeCV(device="cuda"), tmp_path / "cuda.safetensors")
    with pytest.raises(DeviceError, match=r"0 CUDA GPUs.*load\(path, device='auto'\)"):
        load(gone)
    assert load(gone, device="cpu").device == "cpu"
    with pytest.raises(ValueError, match=r"`device` is for models"):
        load(tmp_path, device="cpu")


def test_a_full_disk_keeps_the_old_file(file):
    """In a process that may write 20 kB per file."""
    pytest.importorskip("resource")  # not on Windows
    before, code = file.read_bytes(), """if True:
        import resource, signal, sys
        import numpy as np
        from neurodl import RidgeCV, errors, save
        model = RidgeCV(device="cpu", alphas=np.arange(1.0, 9000.0))
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
        try:
            save(model, sys.argv[1])
        except errors.StorageError as error:
            sys.exit(str(error))
    """  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-c", code, file],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1, done.stderr
    assert "File too large" in done.stderr
    assert file.read_bytes() == before
    assert list(file.parent.iterdir()) == [file]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_between_a_gpu_and_the_cpu(tmp_path):
    X, Y = make_data(n_features=300)
    model = RidgeCV([1.0], device="cuda").fit(X, Y)
    path = save(model, tmp_path / "m.safetensors")
    np.testing.assert_array_equal(load(path).predict(X), model.predict(X))
    np.testing.assert_allclose(load(path, device="cpu").predict(X), model.predict(X), atol=1e-4)


def test_a_new_process_predicts_the_same_to_the_last_bit(file):
    X = make_data(n_features=60)[0]
    np.save(file.with_name("X.npy"), X)
    code = (
        "import sys, numpy as np, neurodl as ndl; folder = sys.argv[1]; "
        "model = ndl.load(folder + '/m.safetensors'); "
        "np.save(folder + '/P.npy', model.predict(np.load(folder + '/X.npy')))"
    )
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    subprocess.run([sys.executable, "-c", code, file.parent], env=env, check=True)
    np.testing.assert_array_equal(np.load(file.with_name("P.npy")), load(file).predict(X))
