"""stringer and allen_vb2p: calcium imaging in the published layouts."""

from __future__ import annotations

import h5py
import numpy as np
import pandas as pd
import pytest
import scipy.io

import neurodl as ndl
from neurodl.datasets import stringer
from neurodl.datasets.allen_vb2p import FILE
from neurodl.errors import FileFormatError, MissingFileError, UnknownNameError


def saved(path, content):
    np.save(path, np.array(content, object), allow_pickle=True)


def test_orientations(tmp_path, rng):
    stored = {
        "sresp": rng.standard_normal((7, 12)).astype(np.float32),
        "istim": rng.uniform(0, 2 * np.pi, 12),
        "run": rng.random(12),
        "xyz": rng.random((3, 7)),
        "stat": [{"npix": 3}] * 7,
        "info": {"mouse_name": "a"},
    }
    saved(tmp_path / "stringer_orientations.npy", stored)
    responses = ndl.load_dataset("stringer_orientations", root=tmp_path).responses
    np.testing.assert_array_equal(responses, stored["sresp"].T)
    np.testing.assert_array_equal(responses["orientation"], stored["istim"])
    np.testing.assert_array_equal(responses["run_speed"], stored["run"])
    np.testing.assert_array_equal(responses["z"], stored["xyz"][2])
    ndl.check_responses(responses)
    saved(tmp_path / "stringer_orientations.npy", stored | {"istim": stored["istim"][1:]})
    with pytest.raises(FileFormatError, match=r"sresp .*expected .*\(any, 11\)"):
        ndl.load_dataset("stringer_orientations", root=tmp_path)
    saved(tmp_path / "stringer_orientations.npy", [1])
    with pytest.raises(FileFormatError, match="holds no dict with sresp and istim"):
        ndl.load_dataset("stringer_orientations", root=tmp_path)


def test_the_face_predicts_spontaneous_activity(tmp_path, rng):
    face = rng.standard_normal((90, 6))
    stored = {
        "sresp": (face @ rng.standard_normal((6, 8)) + rng.standard_normal((90, 8))).T,
        "run": rng.random((90, 1)),
        "beh_svd_time": face,
        "beh_svd_mask": np.zeros((4, 5, 6)),
        "pupilArea": rng.random((90, 1)),
        "pupilCOM": rng.random((90, 2)),
        "xyz": rng.random((3, 8)),
    }
    saved(tmp_path / "stringer_spontaneous.npy", stored)
    experiment = ndl.load_dataset("stringer_spontaneous", root=tmp_path)
    responses = experiment.responses
    np.testing.assert_allclose(responses, stored["sresp"].T, rtol=1e-6)
    np.testing.assert_array_equal(responses["pupil_y"], stored["pupilCOM"][:, 1])
    np.testing.assert_allclose(responses["time"].values[:3], [0, 1.2, 2.4])
    model = ndl.RidgeCV([1.0], cv=2, device="cpu")
    blocks = ndl.PurgedKFold(3, purge=3)
    scores = ndl.cross_validate(model, experiment.features, responses, cv=blocks)
    assert scores["r"].mean() > 0.6


@pytest.mark.parametrize("version", [5, 7.3])
def test_images(tmp_path, rng, version, monkeypatch):
    monkeypatch.setattr(stringer, "N_IMAGES", 6)  # in place of 2800
    istim = np.r_[rng.permutation(6), rng.permutation(6), 6, 6] + 1  # 7 is the grey screen
    resp = rng.standard_normal((14, 5))
    places = rng.random((5, 3))
    for name in ("natimg2800_M170604_MP031_2017-06-28.mat", "natimg2800_M170714_MP032.mat"):
        path = tmp_path / name
        if version == 5:
            stim = {"resp": resp, "istim": istim[:, None], "spont": np.zeros((3, 5))}
            scipy.io.savemat(path, {"stim": stim, "med": places})
        else:
            with h5py.File(path, "w", userblock_size=512) as file:
                file["stim/resp"], file["stim/istim"] = resp.T, istim[None]
                file["med"] = places.T
    images = rng.uniform(-20, 60, (8, 12, 6))
    scipy.io.savemat(tmp_path / "images_natimg2800_all.mat", {"imgs": images})
    experiment = ndl.load_dataset("stringer_images", root=tmp_path, recording=1)
    responses = experiment.responses
    np.testing.assert_allclose(responses, resp[:12], rtol=1e-6)
    assert responses["stimulus"].values.tolist() == [f"image-{n:04d}" for n in istim[:12]]
    assert responses["repeat"].values.tolist() == [1] * 6 + [2] * 6
    assert responses.attrs["subject"] == "M170714"
    np.testing.assert_array_equal(responses["y"], places[:, 1])
    pixels = experiment.stimuli[experiment.stimuli.ids.index("image-0004")].numpy()
    expected = (images[..., 3] - images.min()) / np.ptp(images) * 255
    np.testing.assert_allclose(pixels[0], expected, atol=0.51)
    with pytest.raises(ValueError, match="`recording` must be from 0 to 1"):
        ndl.load_dataset("stringer_images", root=tmp_path, recording=2)
    with pytest.raises(MissingFileError, match="figshare"):
        (tmp_path / "empty").mkdir()
        ndl.load_dataset("stringer_images", root=tmp_path / "empty")


@pytest.fixture
def allen(tmp_path, rng):
    rows = []
    for experiment, cells, presentations in ((101, 3, 5), (102, 4, 6)):
        for presentation in range(presentations):
            for cell in range(cells):
                if (experiment, presentation, cell) == (102, 2, 1):
                    continue  # a cell that is not there in a presentation
                omitted = presentation == 3
                rows.append(
                    {
                        "stimulus_presentations_id": 1000 + presentation,
                        "cell_specimen_id": 9000 - cell + experiment,
                        "trace": rng.standard_normal(31),
                        "trace_timestamps": np.linspace(-1.25, 1.5, 31),
                        "mean_response": rng.random(),
                        "baseline_response": rng.random(),
                        "image_name": "omitted" if omitted else f"im{presentation % 2:03d}",
                        "image_index": presentation % 2,
                        "is_change": presentation == 1,
                        "omitted": omitted,
                        "mean_running_speed": rng.random(),
                        "mean_pupil_area": None if omitted else rng.random(),
                        "response_latency": np.nan,
                        "rewarded": None if omitted else True,
                        "cre_line": "Vip-IRES-Cre",
                        "imaging_depth": 175,
                        "targeted_structure": "VISp",
                        "session_type": "OPHYS_1_images_A",
                        "exposure_level": "familiar",
                        "mouse_id": 42,
                        "ophys_session_id": 7,
                        "ophys_experiment_id": experiment,
                        "ophys_container_id": 8,
                    }
                )
    table = pd.DataFrame(rows).sample(frac=1, random_state=0)
    table.to_parquet(tmp_path / FILE, row_group_size=8)
    return tmp_path, table


@pytest.mark.parametrize("value", ["mean_response", "trace"])
def test_one_experiment_is_cells_by_presentations(allen, value):
    root, table = allen
    responses = ndl.load_dataset("allen_vb2p", root=root, experiment=102, value=value).responses
    assert responses.sizes["presentation"] == 6 and responses.sizes["unit"] == 4
    mine = table[table["ophys_experiment_id"] == 102]
    for _, row in mine.iterrows():
        presentation = row["stimulus_presentations_id"] - 1000
        unit = np.flatnonzero(responses["cell"].values == row["cell_specimen_id"])[0]
        found = responses.isel(presentation=presentation, unit=unit)
        np.testing.assert_allclose(found, row[value], rtol=1e-6)
        assert found["stimulus"] == row["image_name"]
    assert np.isnan(responses.isel(presentation=2)).any("unit").all()  # a cell is not there
    assert responses["omitted"].values.tolist() == [0, 0, 0, 1, 0, 0]
    assert np.isnan(responses["mean_pupil_area"].values[3])
    assert responses.attrs["cre_line"] == "Vip-IRES-Cre" and set(responses["roi"].values) == {
        "VISp"
    }
    if value == "trace":
        assert responses.dims == ("presentation", "time", "unit")
        np.testing.assert_allclose(responses.attrs["bin_width"], 2.75 / 30)
    ndl.check_responses(responses)


def test_what_is_missing_or_wrong(allen):
    root, table = allen
    with pytest.raises(UnknownNameError, match="no experiment 103; there are '10"):
        ndl.load_dataset("allen_vb2p", root=root, experiment=103)
    with pytest.raises(UnknownNameError, match="`value` must be one of"):
        ndl.load_dataset("allen_vb2p", root=root, value="dff")
    pd.concat([table, table.iloc[:1]]).to_parquet(root / FILE)
    chosen = int(table["ophys_experiment_id"].iloc[0])
    with pytest.raises(FileFormatError, match="several rows for the same presentation"):
        ndl.load_dataset("allen_vb2p", root=root, experiment=chosen)
    table.drop(columns="omitted").to_parquet(root / FILE)
    with pytest.raises(FileFormatError, match="lacks the columns 'omitted'"):
        ndl.load_dataset("allen_vb2p", root=root)
    (root / FILE).write_bytes(b"nothing")
    with pytest.raises(FileFormatError, match="as parquet"):
        ndl.load_dataset("allen_vb2p", root=root)
