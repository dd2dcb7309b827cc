"""read_nifti against nilearn's masker, its inverse, and what it says about bad files."""

from __future__ import annotations

import bz2
import gzip
import json
import logging
import warnings

import nibabel as nib
import numpy as np
import pytest
import xarray as xr
from nilearn.maskers import NiftiLabelsMasker, NiftiMasker

from neurodl.errors import (
    FileFormatError,
    MissingFileError,
    NeurodlWarning,
    PairingError,
    SchemaError,
)
from neurodl.io.nifti import read_nifti, to_image, write_statmap

SHAPE = (5, 6, 4)
AFFINE = np.array([[-3.0, 0.2, 0, 8], [0, 2.5, -0.1, -7], [0, 0.3, 2, 3], [0, 0, 0, 1]])


def image(values, tr=2.0, unit="sec", affine=AFFINE, dtype=None):
    made = nib.Nifti1Image(np.asarray(values), affine)
    made.header.set_xyzt_units("mm", unit)
    if made.ndim == 4:
        made.header["pixdim"][4] = tr
    if dtype is not None:
        made.set_data_dtype(dtype)
    return made


def saved(path, *args, **options):
    nib.save(image(*args, **options), path)
    return path


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.fixture
def run(rng):
    return rng.normal(1000, 50, (*SHAPE, 20)).astype(np.int16)


@pytest.fixture
def mask(tmp_path, rng):
    return saved(tmp_path / "mask.nii.gz", (rng.random(SHAPE) > 0.5).astype(np.uint8))


def by_nilearn(path, mask, **options):
    masker = NiftiMasker(mask, reports=False, **{"standardize": None, **options}).fit()
    return masker.transform(path)


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
@pytest.mark.parametrize("dtype", ["<i2", ">i2", "u1", "f4", "f8"])
def test_reads_the_bits_that_nilearn_reads(tmp_path, run, mask, suffix, dtype):
    values = run if dtype != "u1" else run // 8
    path = tmp_path / f"run{suffix}"
    header = nib.Nifti1Header(endianness=dtype[0] if dtype[0] in "<>" else "<")
    header.set_data_dtype(dtype)
    stored = nib.Nifti1Image(values.astype(dtype), AFFINE, header)
    stored.header["pixdim"][4] = 2
    stored.header.set_xyzt_units("mm", "sec")
    nib.save(stored, path)
    responses = read_nifti(path, mask)
    assert responses.dtype == np.float32
    np.testing.assert_array_equal(responses, by_nilearn(path, mask).astype(np.float32))


def test_reads_scaled_integers_as_nilearn_does(tmp_path, rng, mask):
    path = saved(tmp_path / "run.nii.gz", rng.normal(0, 1, (*SHAPE, 20)), dtype=np.int16)
    assert nib.load(path).dataobj.slope != 1
    expected = by_nilearn(path, mask).astype(np.float32)
    np.testing.assert_array_equal(read_nifti(path, mask), expected)


def test_reads_in_chunks_what_it_reads_at_once(tmp_path, run, mask, monkeypatch):
    path = saved(tmp_path / "run.nii.gz", run)
    whole = read_nifti(path, mask)
    monkeypatch.setattr("neurodl.io.volumes.CHUNK_BYTES", 3 * run[..., 0].nbytes)
    xr.testing.assert_identical(read_nifti(path, mask), whole)
    xr.testing.assert_identical(read_nifti(nib.load(path), mask), whole)
    np.testing.assert_array_equal(read_nifti(image(run), mask), whole)


@pytest.mark.parametrize("detrend", [False, True])
def test_zscores_and_detrends_as_nilearn_does_but_for_constant_voxels(tmp_path, run, mask, detrend):
    inside = np.argwhere(nib.load(mask).get_fdata())
    run[tuple(inside[3])] = 700
    run[tuple(inside[4])] = np.arange(20) * 3
    path = saved(tmp_path / "run.nii.gz", run)
    responses = read_nifti(path, mask, zscore=True, detrend=detrend)
    expected = by_nilearn(path, mask, standardize="zscore_sample", detrend=detrend)
    flat = [3, 4] if detrend else [3]
    np.testing.assert_allclose(
        np.delete(responses.values, flat, 1), np.delete(expected, flat, 1), atol=1e-5
    )
    assert np.isnan(responses.values[:, flat]).all()
    assert responses.attrs["units"] == "z-scored BOLD"
    assert responses.attrs["n_constant"] == 1


def test_polynomials_are_regressed_out_of_each_run_alone(tmp_path, run, mask):
    t = np.arange(20)
    paths = [
        saved(tmp_path / f"{k}.nii.gz", run * 1.0 + 5 * (k + 1) * t + (k - 1) * t**2.0)
        for k in range(2)
    ]
    responses = read_nifti(paths, mask, detrend=2)
    for k, path in enumerate(paths):
        raw = read_nifti(path, mask).values.astype(float)
        fit = np.polynomial.polynomial.polyval(t, np.polynomial.polynomial.polyfit(t, raw, 2)).T
        np.testing.assert_allclose(
            responses.sel(time=responses.run == str(k + 1)), raw - fit, atol=1e-3
        )


def test_carries_where_and_when(tmp_path, run, mask):
    name = "sub-07_task-x_run-2_space-MNI152NLin6Asym_bold.nii.gz"
    responses = read_nifti(saved(tmp_path / name, run, tr=2.5), mask)
    assert responses.dims == ("time", "voxel")
    np.testing.assert_allclose(responses["time"], np.arange(20) * 2.5)
    assert "run" not in responses.coords
    ijk = np.stack([responses[name] for name in "ijk"], 1)
    np.testing.assert_array_equal(ijk, np.argwhere(nib.load(mask).get_fdata()))
    xyz = np.stack([responses[name] for name in "xyz"], 1)
    np.testing.assert_allclose(xyz, ijk @ AFFINE[:3, :3].T + AFFINE[:3, 3], atol=1e-5)
    assert responses.attrs["tr"] == 2.5
    assert responses.attrs["shape"] == list(SHAPE)
    np.testing.assert_allclose(np.reshape(responses.attrs["affine"], (4, 4)), AFFINE, atol=1e-6)
    assert responses.attrs["subject"] == "sub-07"
    assert responses.attrs["space"] == "MNI152NLin6Asym"


def test_concatenates_runs_and_restarts_time(tmp_path, run, mask):
    paths = [
        saved(tmp_path / "a.nii.gz", run),
        saved(tmp_path / "b.nii.gz", run[..., :7]),
    ]
    responses = read_nifti(paths, mask)
    assert responses["run"].values.tolist() == ["1"] * 20 + ["2"] * 7
    np.testing.assert_array_equal(responses["time"], np.r_[np.arange(20), np.arange(7)] * 2)
    np.testing.assert_array_equal(responses[20:], responses[:7])
    named = read_nifti(paths, mask, runs=["faces", "houses"])
    assert named["run"].values[[0, -1]].tolist() == ["faces", "houses"]


def test_one_file_may_hold_several_runs(tmp_path, run, mask):
    labels = ["a"] * 12 + ["b"] * 8
    responses = read_nifti(saved(tmp_path / "run.nii.gz", run), mask, runs=labels)
    assert responses["run"].values.tolist() == labels
    np.testing.assert_array_equal(responses["time"], np.r_[np.arange(12), np.arange(8)] * 2)
    with pytest.raises(PairingError, match="together"):
        read_nifti(image(run), mask, runs=["a", "b"] * 10)
    with pytest.raises(PairingError, match="19 names.*1\\).*20\\)"):
        read_nifti(image(run), mask, runs=labels[1:])
    with pytest.raises(PairingError, match="repeats a name"):
        read_nifti([image(run), image(run)], mask, runs=["a", "a"])


def test_volumes_of_one_series_are_one_run(tmp_path, run, mask):
    paths = [saved(tmp_path / f"{n:02d}.nii", run[..., n]) for n in range(4)]
    responses = read_nifti(paths, mask, tr=1.5)
    assert "run" not in responses.coords
    assert responses["time"].values.tolist() == [0, 1.5, 3, 4.5]
    np.testing.assert_array_equal(responses, read_nifti(image(run), mask)[:4])
    with pytest.raises(SchemaError, match="tr=..."):
        read_nifti(paths, mask)


def test_beta_images_are_presentations(run, mask):
    unique = read_nifti(image(run[..., :3], tr=0), mask, ids=["a", "b", "c"])
    assert unique.dims == ("stimulus", "voxel")
    assert unique["stimulus"].values.tolist() == ["a", "b", "c"]
    assert "tr" not in unique.attrs
    pair = [image(run[..., :2]), image(run[..., 2:4])]
    repeated = read_nifti(pair, mask, ids=["a", "b", "b", "a"], zscore=True)
    assert repeated.dims == ("presentation", "voxel")
    assert repeated["run"].values.tolist() == ["1", "1", "2", "2"]
    np.testing.assert_allclose(repeated[:2].mean("presentation"), 0, atol=1e-6)
    mixed = read_nifti(pair, mask, ids=list("abba"), runs=["1", "2", "1", "2"], zscore=True)
    expected = read_nifti(image(run[..., [0, 2]]), mask, ids=["a", "b"], zscore=True)
    np.testing.assert_allclose(mixed[[0, 2]], expected, atol=1e-6)
    with pytest.raises(PairingError, match="2 ids were given for 3 volumes"):
        read_nifti(image(run[..., :3]), mask, ids=["a", "b"])


@pytest.mark.parametrize(("number", "unit"), [(1500, "msec"), (1.5e6, "usec"), (1.5, "sec")])
def test_respects_the_unit_of_the_tr(run, mask, number, unit):
    assert read_nifti(image(run, tr=number, unit=unit), mask).attrs["tr"] == 1.5


def test_float32_headers_give_round_trs(run, mask):
    assert read_nifti(image(run, tr=0.72), mask).attrs["tr"] == 0.72


def test_a_tr_without_unit_is_taken_as_seconds_with_a_warning(run, mask):
    with pytest.warns(NeurodlWarning, match="without a unit") as caught:
        assert read_nifti(image(run, unit="unknown"), mask).attrs["tr"] == 2
    assert caught[0].filename == __file__


@pytest.mark.parametrize(
    ("tr", "unit", "words"),
    [(0, "sec", "is 0"), (2000, "sec", "say tr=2"), (2000, "unknown", "say tr=2"),
     (2, "hz", "in hz"), (np.nan, "sec", "is nan")],
)  # fmt: skip
def test_a_missing_or_impossible_tr_says_what_to_do(run, mask, tr, unit, words):
    with pytest.raises(SchemaError, match=words) as error:
        read_nifti(image(run, tr=tr, unit=unit), mask)
    assert "tr=" in str(error.value)
    assert read_nifti(image(run, tr=tr, unit=unit), mask, tr=3).attrs["tr"] == 3


def test_runs_must_agree_on_the_tr(run, mask):
    with pytest.raises(SchemaError, match="2 s.*2.5 s"):
        read_nifti([image(run), image(run, tr=2.5)], mask)


def test_counts_and_keeps_constant_and_missing_voxels(run, mask, caplog):
    inside = np.argwhere(nib.load(mask).get_fdata())
    values = run.astype(np.float32)
    second = values.copy()
    second[tuple(inside[0])] = 5
    values[tuple(inside[1])][3] = np.nan
    values[tuple(inside[2])][4] = np.inf
    with caplog.at_level(logging.WARNING):
        responses = read_nifti([image(values), image(second)], mask)
    assert (responses.attrs["n_constant"], responses.attrs["n_missing"]) == (1, 2)
    assert "1 are constant in a run and 2 have missing values" in caplog.text
    assert np.isnan(responses).sum() == 2
    assert responses.sizes["voxel"] == len(inside)
    scored = read_nifti([image(values), image(second)], mask, zscore=True)
    assert np.isnan(scored[20:, 0]).all()
    assert np.isfinite(scored[:20, 0]).all()
    assert np.isnan(scored[:20, [1, 2]]).all()


def test_atlas_names_the_rois(tmp_path, run, rng):
    numbers = rng.integers(0, 4, SHAPE).astype(np.int16)
    atlas = saved(tmp_path / "atlas.nii.gz", numbers)
    responses = read_nifti(image(run), atlas, atlas_labels={1: "V1", 3: "V4"})
    expected = np.where(numbers == 1, "V1", "V4")[np.isin(numbers, [1, 3])]
    assert responses["roi"].values.tolist() == expected.tolist()
    np.testing.assert_array_equal(
        responses, by_nilearn(image(run), image(np.isin(numbers, [1, 3]).astype(np.uint8)))
    )
    by_position = read_nifti(image(run), atlas, atlas_labels=["Background", "V1", "V2", "V4"])
    assert set(by_position["roi"].values) == {"V1", "V2", "V4"}
    assert by_position.sizes["voxel"] == (numbers > 0).sum()


def test_an_atlas_without_the_rois_says_so(run, rng):
    atlas = image(rng.integers(0, 3, SHAPE).astype(np.int16))
    with pytest.warns(NeurodlWarning, match="1 ROIs have no voxels.*'hV4'") as caught:
        responses = read_nifti(image(run), atlas, atlas_labels={1: "V1", 7: "hV4"})
    assert caught[0].filename == __file__
    assert set(responses["roi"].values) == {"V1"}
    with pytest.raises(SchemaError, match="'7'.*holds the values"):
        read_nifti(image(run), atlas, atlas_labels={7: "hV4"})
    with pytest.raises(SchemaError, match="atlas_labels={1: 'V1'"):
        read_nifti(image(run), atlas)


def test_plain_maskers_give_their_mask_fitted_or_not(run, mask):
    expected = read_nifti(image(run), mask)
    masker = NiftiMasker(mask, reports=False)
    xr.testing.assert_identical(read_nifti(image(run), masker), expected)
    assert not hasattr(masker, "mask_img_")
    xr.testing.assert_identical(read_nifti(image(run), masker.fit()), expected)


def test_what_a_masker_does_beyond_masking_is_honoured(run, mask):
    masker = NiftiMasker(mask, smoothing_fwhm=5, standardize=None, reports=False)
    responses = read_nifti([image(run), image(run[..., ::-1])], masker)
    np.testing.assert_array_equal(responses[:20], masker.fit().transform(image(run)))
    assert np.abs(responses - read_nifti([image(run)] * 2, mask)).max() > 1


def test_a_masker_may_resample(run, mask):
    masker = NiftiMasker(mask, target_affine=np.diag([4.0, 4, 4]), standardize=None, reports=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # nilearn says that it resamples
        masker = masker.fit()
        responses = read_nifti(image(run.astype(np.float32)), masker)
    assert responses.attrs["shape"] == list(masker.mask_img_.shape)
    np.testing.assert_allclose(
        np.reshape(responses.attrs["affine"], (4, 4)), masker.mask_img_.affine
    )


def test_other_maskers_are_refused_with_what_to_give(run, mask):
    with pytest.raises(TypeError, match="NiftiLabelsMasker.*mask=masker.labels_img"):
        read_nifti(image(run), NiftiLabelsMasker(mask))
    with pytest.raises(ValueError, match="atlas_labels"):
        read_nifti(image(run), "auto", atlas_labels={1: "V1"})


def test_automatic_mask_finds_the_brain(rng):
    values = rng.normal(20, 5, (16, 16, 16, 10))
    values[4:12, 4:12, 4:12] += 1000
    responses = read_nifti(image(values), "auto")
    ijk = np.stack([responses[name] for name in "ijk"])
    assert ijk.min() >= 3
    assert ijk.max() <= 12
    assert 400 < responses.sizes["voxel"] < 1000


def test_automatic_mask_without_a_brain_is_an_error():
    with pytest.raises(SchemaError, match="no brain"):
        read_nifti(image(np.arange(320.0).reshape(4, 4, 4, 5)[:, :1]), "auto")


def test_a_run_without_any_signal_is_an_error(run, mask):
    with pytest.raises(
        SchemaError, match="voxels of 'the image in memory' are constant in run '2'"
    ):
        read_nifti([image(run), image(np.zeros_like(run))], mask)


def test_no_mask_says_what_a_mask_may_be(run):
    with pytest.raises(ValueError, match="120 voxels.*mask='auto'"):
        read_nifti(image(run))


def test_truncated_run_is_named(tmp_path, run, mask):
    for suffix in (".nii.gz", ".nii"):
        path = saved(tmp_path / f"run{suffix}", run)
        whole = path.read_bytes()
        for part in (0.6, 0.02, 0.0):
            path.write_bytes(whole[: int(len(whole) * part)])
            for how in (mask, "auto"):
                with pytest.raises(FileFormatError, match=f"run{suffix}"):
                    read_nifti(path, how)
    path = saved(tmp_path / "run.nii.gz", run)
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(FileFormatError, match="truncated or damaged"):
        read_nifti(path, mask)


def test_damaged_run_fails_its_checksum(tmp_path, mask):
    path = saved(tmp_path / "run.nii.gz", np.zeros((*SHAPE, 50), np.int16))
    damaged = bytearray(path.read_bytes())
    damaged[-8] ^= 255
    path.write_bytes(damaged)
    with pytest.raises(FileFormatError, match="run.nii.gz is truncated or damaged"):
        read_nifti(path, mask)


def test_a_run_damaged_in_the_middle_is_named(tmp_path, rng, mask):
    path = saved(tmp_path / "run.nii.gz", rng.normal(0, 1, (*SHAPE, 50)))
    whole = path.read_bytes()
    for start in range(len(whole) // 2, len(whole) - 200, len(whole) // 20):
        path.write_bytes(whole[:start] + b"\xff" * 100 + whole[start + 100 :])
        with pytest.raises(FileFormatError, match="run.nii.gz is truncated or damaged"):
            read_nifti(path, mask)


@pytest.mark.parametrize("name", ["run.nii.gz", "RUN.NII.GZ", "run.nii.bz2"])
def test_compressed_in_another_way(tmp_path, run, mask, name):
    whole = image(run).to_bytes()
    packed = gzip.compress(whole[:1001]) + gzip.compress(whole[1001:])  # as pigz and bgzip do
    path = tmp_path / name
    path.write_bytes(bz2.compress(whole) if name.endswith("bz2") else packed)
    np.testing.assert_array_equal(read_nifti(path, mask), read_nifti(image(run), mask))


@pytest.mark.parametrize("length", [0, -4])
def test_lengths_that_no_volume_has_are_damage(tmp_path, run, mask, length):
    path = saved(tmp_path / "run.nii", run)
    header = bytearray(path.read_bytes())
    header[42:44] = np.int16(length).tobytes()  # dim[1]
    path.write_bytes(header)
    with pytest.raises(FileFormatError, match="run.nii"):
        read_nifti(path, mask)


def test_truncated_mask_is_named(tmp_path, run, mask):
    mask.write_bytes(mask.read_bytes()[:-30])
    with pytest.raises(FileFormatError, match="mask.nii.gz"):
        read_nifti(image(run), mask)


def test_mask_of_another_shape_says_both(run):
    with pytest.raises(SchemaError, match=r"\(5, 6, 3\).*\(5, 6, 4\).*resample_to_img"):
        read_nifti(image(run), image(np.ones((5, 6, 3), np.uint8)))


def test_mask_of_another_affine_says_both(run, mask):
    moved = AFFINE.copy()
    moved[0, 3] += 1.5
    with pytest.raises(SchemaError, match="1.5 mm apart") as error:
        read_nifti(image(run, affine=moved), mask)
    assert "resample_to_img" in str(error.value)
    assert str(moved[0, 3]) in str(error.value)
    moved[0, 3] -= 1.5 - 1e-4
    assert read_nifti(image(run, affine=moved), mask).sizes["voxel"] > 0


def test_runs_of_another_geometry_are_refused(tmp_path, run, mask):
    first = saved(tmp_path / "first.nii.gz", run)
    with pytest.raises(SchemaError, match=r"first.nii.gz has shape .*4\).*\(5, 6, 3\)"):
        read_nifti([first, image(run[:, :, :3])], mask)
    with pytest.raises(SchemaError, match="mm apart"):
        read_nifti([first, image(run, affine=np.eye(4))], mask)


def test_masks_that_are_none(run):
    with pytest.raises(SchemaError, match="empty"):
        read_nifti(image(run), image(np.zeros(SHAPE, np.uint8)))
    with pytest.raises(SchemaError, match="20 volumes"):
        read_nifti(image(run), image(run))
    with pytest.raises(SchemaError, match="probability map"):
        read_nifti(image(run), image(np.linspace(0, 1, 120).reshape(SHAPE).astype("f4")))


def test_masks_that_are_unusual_but_right(run, mask):
    inside = nib.load(mask).get_fdata()
    odd = np.where(inside > 0, 255.0, np.nan)[..., None].astype(np.float32)
    np.testing.assert_array_equal(read_nifti(image(run), image(odd)), read_nifti(image(run), mask))


def test_files_that_are_no_nifti(tmp_path, run, mask):
    text = tmp_path / "run.nii.gz"
    text.write_text("not an image")
    with pytest.raises(FileFormatError, match="Cannot read .*run.nii.gz"):
        read_nifti(text, mask)
    nib.save(nib.MGHImage(run.astype(np.float32), AFFINE), tmp_path / "run.mgz")
    with pytest.raises(FileFormatError, match="run.mgz is a MGHImage"):
        read_nifti(tmp_path / "run.mgz", mask)
    with pytest.raises(FileFormatError, match="is a ndarray"):
        read_nifti(run, mask)
    with pytest.raises(FileFormatError, match="shape .*5, 6, 4, 2, 2"):
        read_nifti(image(np.zeros((*SHAPE, 2, 2), np.float32)), mask)
    with pytest.raises(FileFormatError, match="complex64"):
        read_nifti(image(run.astype(np.complex64)), mask)


def test_missing_files_name_their_neighbours(tmp_path, run, mask):
    with pytest.raises(MissingFileError, match="rum.nii.gz does not exist. Did you mean 'mask"):
        read_nifti(tmp_path / "rum.nii.gz", mask)
    with pytest.raises(MissingFileError, match="does not exist"):
        read_nifti(image(run), tmp_path / "nowhere" / "mask.nii.gz")
    with pytest.raises(ValueError, match="empty list"):
        read_nifti([], mask)


@pytest.mark.parametrize("detrend", [-1, 1.5, 20])
def test_impossible_trends_are_refused(run, mask, detrend):
    with pytest.raises(ValueError, match="detrend"):
        read_nifti(image(run), mask, detrend=detrend)


def test_to_image_is_the_inverse(run, mask):
    responses = read_nifti(image(run), mask)
    inside = nib.load(mask).get_fdata() > 0
    back = to_image(responses)
    np.testing.assert_allclose(back.affine, AFFINE, atol=1e-6)
    assert back.header.get_zooms()[3] == 2
    assert back.header.get_xyzt_units() == ("mm", "sec")
    np.testing.assert_array_equal(back.get_fdata(), np.where(inside[..., None], run, 0))
    xr.testing.assert_allclose(
        read_nifti(back, mask, space="unknown"), responses.assign_attrs(space="unknown")
    )
    one = responses[0].copy()
    one[2] = np.nan
    volume = to_image(one, fill=-1).get_fdata()
    assert np.isnan(volume).sum() == 1
    assert (volume[~inside] == -1).all()


def test_to_image_takes_lost_attrs_from_what_the_map_was_made_of(run, mask):
    responses = read_nifti(image(run), mask, space="MNI152NLin6Asym")
    mean = responses.mean("time").drop_attrs()
    with pytest.raises(SchemaError, match="'affine', 'shape'.*like="):
        to_image(mean)
    with pytest.raises(SchemaError, match="'i', 'j', 'k'"):
        to_image(mean.drop_vars(["i", "j", "k"]), like=responses)
    with pytest.raises(SchemaError, match="dims"):
        to_image(responses.T)
    back = to_image(mean, like=responses)
    assert back.header["sform_code"] == 4
    assert back.shape == SHAPE
    with pytest.raises(SchemaError, match="outside the grid"):
        to_image(mean.assign_coords(i=mean.i + 5), like=responses)
    with pytest.raises(SchemaError, match="same coords"):
        to_image(mean.assign_coords(i=mean.i * 0, j=mean.j * 0), like=responses)


def test_write_statmap(tmp_path, run, mask):
    values = read_nifti(image(run), mask)[0]
    path = tmp_path / "new" / "sub-01_stat-r_statmap.nii.gz"
    about = {"model": "RidgeCV", "n": np.int64(3), "alphas": np.arange(2.0), "name": "Größe"}
    assert write_statmap(values, path, about) == path
    np.testing.assert_array_equal(nib.load(path).get_fdata(), to_image(values).get_fdata())
    sidecar = path.with_name("sub-01_stat-r_statmap.json")
    assert json.loads(sidecar.read_text("utf-8")) == {**about, "n": 3, "alphas": [0.0, 1.0]}
    before = path.read_bytes()
    write_statmap(values, path, about)
    assert path.read_bytes() == before
    assert sorted(file.name for file in path.parent.iterdir()) == [sidecar.name, path.name]
    with pytest.raises(ValueError, match="nii.gz"):
        write_statmap(values, tmp_path / "map.nii")


def test_a_failed_write_leaves_the_old_map(tmp_path, run, mask, monkeypatch):
    values = read_nifti(image(run), mask)[0]
    path = write_statmap(values, tmp_path / "map.nii.gz", {"version": 1})
    before = path.read_bytes()

    def full(self, data):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pathlib.Path.write_bytes", full)
    with pytest.raises(OSError, match="make room"):
        write_statmap(values + 1, path, {"version": 2})
    assert path.read_bytes() == before
    assert json.loads((tmp_path / "map.json").read_text()) == {"version": 1}
    assert len(list(tmp_path.glob(".*"))) == 0
