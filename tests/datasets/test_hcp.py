"""The collections of the Human Connectome Project, which must not be taken for each other."""

from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest
from nibabel.cifti2 import BrainModelAxis, SeriesAxis

import neurodl as ndl
from neurodl.errors import FileFormatError, MissingFileError, SchemaError, UnknownNameError

NAMES = [f"{side}_{name}" for side in "RL" for name in [f"P{n}" for n in range(180)]]
LENGTH = 20


def regions(names=NAMES):
    return np.array([names, ["Visual1", "Somatomotor"] * 180, ["1.2"] * 360]).T


@pytest.fixture
def task(tmp_path, rng):
    folder = tmp_path / "hcp_task" / "subjects" / "7"
    (folder / "timeseries").mkdir(parents=True)
    np.save(tmp_path / "hcp_task" / "regions.npy", regions())
    arrays = {}
    for number in (5, 6, 17, 18):
        arrays[number] = rng.standard_normal((360, LENGTH + number))
        np.save(
            folder / "timeseries" / f"bold{number}_Atlas_MSMAll_Glasser360Cortical.npy",
            arrays[number],
        )
    for experiment, conditions in (("MOTOR", ("lf", "rf", "cue")), ("SOCIAL", ("mental", "rnd"))):
        for run in ("RL", "LR"):
            evs = folder / "EVs" / f"tfMRI_{experiment}_{run}"
            evs.mkdir(parents=True)
            for place, name in enumerate(conditions):
                start = 30 - 10 * place + (1 if run == "LR" else 0)
                (evs / f"{name}.txt").write_text(f"{start}\t12\t1\n{start + 50}\t12\t1\n")
    return tmp_path, arrays


@pytest.fixture
def behavior(tmp_path, rng):
    base = tmp_path / "hcp"
    base.mkdir()
    np.save(base / "regions.npy", regions())
    (base / "subjects_list.txt").write_text("100307\n100408\n")
    arrays = {}
    for run in ("LR", "RL"):
        folder = base / "subjects" / "100408" / "SOCIAL" / f"tfMRI_SOCIAL_{run}"
        (folder / "EVs").mkdir(parents=True)
        arrays[run] = rng.standard_normal((360, LENGTH))
        np.save(folder / "data.npy", arrays[run])
        for name in ("ment", "rnd"):
            (folder / "EVs" / f"{name}.txt").write_text("8 23 1\n")
        (folder / "EVs" / "Sync.txt").write_text("17.9")
        (folder / "EVs" / "Stats.txt").write_text("Percent Mental: 0.8\nMedian RT: 650.5\nnote")
    return tmp_path, arrays


def test_task_has_the_run_rl_first_and_the_right_hemisphere_first(task):
    root, arrays = task
    experiment = ndl.load_dataset("hcp_task", root=root, subject=7)
    responses, events = experiment.responses, experiment.events
    for run, number in (("RL", 5), ("LR", 6)):
        rows = responses[responses["run"].values == run]
        np.testing.assert_allclose(rows, arrays[number].T, rtol=1e-6)
        np.testing.assert_allclose(rows["time"], np.arange(len(rows)) * 0.72)
    assert list(dict.fromkeys(responses["run"].values)) == ["RL", "LR"]
    assert responses["roi"].values.tolist() == NAMES
    assert set(responses["hemisphere"].values[:180]) == {"right"}
    assert responses["network"].values[1] == "Somatomotor"
    first = events[events["run"] == "RL"]
    assert first["trial_type"].tolist() == ["cue", "rf", "lf"] * 2  # in the order of time
    assert first["onset"].tolist() == [10, 20, 30, 60, 70, 80] and set(first["duration"]) == {12}
    social = ndl.load_dataset("hcp_task", root=root, subject=7, task="SOCIAL")
    assert len(social.responses) == 2 * LENGTH + 35
    assert set(social.events["trial_type"]) == {"mental", "rnd"}


def test_behavior_has_real_ids_and_the_run_lr_first(behavior):
    root, arrays = behavior
    experiment = ndl.load_dataset("hcp_behavior", root=root, subject="100408", task="SOCIAL")
    assert list(dict.fromkeys(experiment.responses["run"].values)) == ["LR", "RL"]
    np.testing.assert_allclose(experiment.responses[:LENGTH], arrays["LR"].T, rtol=1e-6)
    assert set(experiment.events["trial_type"]) == {"ment", "rnd"}  # here it is called ment
    assert experiment.events.attrs["RL Median RT"] == 650.5
    inside = ndl.load_dataset("hcp_behavior", root=root / "hcp", subject="100408", task="SOCIAL")
    assert inside.responses.identical(experiment.responses)


def test_ids_of_one_collection_are_an_error_in_the_other(task, behavior):
    root, _ = task
    with pytest.raises(UnknownNameError, match=r"hcp_task has no subject '100307'.*hcp_behavior"):
        ndl.load_dataset("hcp_task", root=root, subject=100307)
    with pytest.raises(UnknownNameError, match=r"no subject '7'.*hcp_task, who are other people"):
        ndl.load_dataset("hcp_behavior", root=behavior[0], subject=7)
    with pytest.raises(UnknownNameError, match=r"no subject '100309'. Did you mean '100307'"):
        ndl.load_dataset("hcp_behavior", root=behavior[0], subject="100309")


def test_parcels_in_another_order_are_an_error(task):
    root, _ = task
    swapped = NAMES[180:] + NAMES[:180]
    np.save(root / "hcp_task" / "regions.npy", regions(swapped))
    with pytest.raises(FileFormatError, match="'R_P0' is among the parcels of the other"):
        ndl.load_dataset("hcp_task", root=root, subject=7)


def test_rest_runs_by_name(tmp_path, rng):
    folder = tmp_path / "hcp_rest" / "subjects" / "0" / "timeseries"
    folder.mkdir(parents=True)
    np.save(tmp_path / "hcp_rest" / "regions.npy", regions())
    arrays = {}
    for number, run in enumerate(("REST1_LR", "REST1_RL", "REST2_LR", "REST2_RL"), 1):
        arrays[run] = rng.standard_normal((360, LENGTH))
        np.save(folder / f"bold{number}_Atlas_MSMAll_Glasser360Cortical.npy", arrays[run])
    experiment = ndl.load_dataset("hcp_rest", root=tmp_path, runs=["REST2_LR"])
    np.testing.assert_allclose(experiment.responses, arrays["REST2_LR"].T, rtol=1e-6)
    assert len(ndl.load_dataset("hcp_rest", root=tmp_path).responses) == 4 * LENGTH
    with pytest.raises(UnknownNameError, match="no runs 'REST3_LR'"):
        ndl.load_dataset("hcp_rest", root=tmp_path, runs="REST3_LR")


def test_parcels_go_onto_the_surface(task, rng):
    root, _ = task
    responses = ndl.load_dataset("hcp_task", root=root, subject=7).responses
    experiment = ndl.load_dataset("hcp_task", root=root, subject=7)
    with pytest.raises(SchemaError, match="no surface atlas"):
        experiment.to_surface(responses[0])
    labels = {"labels_L": rng.integers(180, 360, 10242), "labels_R": rng.integers(0, 180, 10242)}
    np.savez(root / "atlas.npz", coords=np.zeros((360, 3)), **labels)
    experiment = ndl.load_dataset("hcp_task", root=root, subject=7)
    values = experiment.responses[3]
    meshes = experiment.to_surface(values)
    np.testing.assert_array_equal(meshes["left"], values.values[labels["labels_L"]])
    part = experiment.to_surface(values[values["label"].values > 180])
    assert np.isnan(part["right"]).all() and not np.isnan(part["left"]).any()


def test_what_is_missing_or_wrong(task):
    root, _ = task
    with pytest.raises(UnknownNameError, match="There is no task 'MOTR'. Did you mean 'MOTOR'"):
        ndl.load_dataset("hcp_task", root=root, subject=7, task="MOTR")
    with pytest.raises(MissingFileError, match=r"bold7_Atlas|tfMRI_WM_RL"):
        ndl.load_dataset("hcp_task", root=root, subject=7, task="WM")
    with pytest.raises(MissingFileError, match="fetches what is public; access is given by"):
        ndl.load_dataset("hcp_task", root=root, subject=8)
    evs = root / "hcp_task" / "subjects" / "7" / "EVs" / "tfMRI_MOTOR_RL"
    (evs / "lf.txt").write_text("1 2\n")
    with pytest.raises(FileFormatError, match="has 2 columns; expected onset, duration"):
        ndl.load_dataset("hcp_task", root=root, subject=7)
    (evs / "lf.txt").write_text("one 2 3\n")
    with pytest.raises(FileFormatError, match="no table of numbers"):
        ndl.load_dataset("hcp_task", root=root, subject=7)


def cifti(path, values, n_nodes=32):
    left = BrainModelAxis.from_mask(np.arange(n_nodes) > 3, name="cortex_left")
    right = BrainModelAxis.from_mask(np.arange(n_nodes) % 2 == 0, name="cortex_right")
    below = BrainModelAxis.from_mask(
        np.ones((2, 2, 2), bool), name="thalamus_left", affine=np.eye(4)
    )
    axes = SeriesAxis(0, 1, len(values), "SECOND"), below + left + right
    nib.save(nib.Cifti2Image(values.astype(np.float32), header=axes), path)
    return left.vertex, right.vertex


def test_retinotopy_is_the_cortex_with_the_frames_that_were_shown(tmp_path, rng):
    arrays, folder = {}, tmp_path / "top"
    folder.mkdir()
    for run, direction in (("BAR1", "AP"), ("EXP", "AP"), ("CON", "PA")):
        arrays[run] = rng.standard_normal((30, 8 + 28 + 16))
        path = folder / f"tfMRI_RET{run}_7T_{direction}.dtseries.nii"
        left, right = cifti(path, arrays[run])
    experiment = ndl.load_dataset("hcp_retino", root=tmp_path, runs=["EXP", "CON"])
    responses = experiment.responses
    assert dict(responses.sizes) == {"time": 60, "vertex": 44} and experiment.stimuli is None
    expected = np.concatenate([arrays["EXP"], arrays["CON"]])[:, 8:]  # without the thalamus
    np.testing.assert_allclose(responses, expected, rtol=1e-6)
    assert responses.attrs["tr"] == 1 and responses.attrs["n_nodes"] == [32, 32]
    meshes = experiment.to_surface(responses[5])
    np.testing.assert_allclose(meshes["left"][left], expected[5, :28], rtol=1e-6)
    np.testing.assert_allclose(meshes["right"][right], expected[5, 28:], rtol=1e-6)
    assert np.isnan(meshes["left"][:4]).all()
    for number, run in enumerate(("EXP", "CON")):
        np.save(folder / f"RET{run}small.npy", np.full((60, 6, 6, 3), 40 * number, np.uint8))
    stimuli = ndl.load_dataset("hcp_retino", root=tmp_path, runs=["EXP", "CON"]).stimuli
    assert len(stimuli) == 120 and (stimuli[60].numpy() == 40).all()
    assert stimuli.table.loc["CON-0003", ["onset", "duration", "run"]].tolist() == [1.5, 0.5, "CON"]
    assert len(ndl.load_dataset("hcp_retino", root=tmp_path).responses) == 90
    with pytest.raises(MissingFileError, match="no runs 'CW'"):
        ndl.load_dataset("hcp_retino", root=tmp_path, runs="CW")
    with pytest.raises(UnknownNameError, match="no run 'CWW'"):
        ndl.load_dataset("hcp_retino", root=tmp_path, runs="CWW")
    cifti(folder / "tfMRI_RETCCW_7T_AP.dtseries.nii", rng.standard_normal((30, 8 + 30 + 17)), 34)
    with pytest.raises(FileFormatError, match="differ in vertices or TR"):
        ndl.load_dataset("hcp_retino", root=tmp_path)
    (folder / "tfMRI_RETCCW_7T_AP.dtseries.nii").write_bytes(b"nothing")
    with pytest.raises(FileFormatError, match="Cannot read .*CCW"):
        ndl.load_dataset("hcp_retino", root=tmp_path)
