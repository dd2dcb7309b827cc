"""Responses from arrays and tables: names on every row, and no guess that could be wrong."""

from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest
import xarray as xr

from neurodl.errors import FileFormatError, MissingFileError, PairingError, SchemaError
from neurodl.io.arrays import read_responses

IDS = [f"s{number}" for number in range(6)]


@pytest.fixture
def values(rng):
    return rng.standard_normal((6, 3)).astype("float32")


def saved(tmp_path, values, name, **more):
    """Save values as a file of the kind that the name says."""
    path = tmp_path / name
    if path.suffix == ".npy":
        np.save(path, values)
    elif path.suffix == ".npz":
        np.savez(path, responses=values, **more)
    elif path.suffix == ".nc":
        array = xr.DataArray(values, dims=("stimulus", "unit"), coords={"stimulus": IDS})
        array.assign_attrs(units="spikes / s").to_netcdf(path, engine="h5netcdf")
    else:
        separator = "\t" if path.suffix == ".tsv" else ","
        rows = [["stimulus", "a", "b", "c"]]
        rows += [[name, *map(repr, map(float, row))] for name, row in zip(IDS, values, strict=True)]
        path.write_text("\n".join(separator.join(row) for row in rows))
    return path


@pytest.mark.parametrize("name", ["r.npy", "r.npz", "r.nc", "r.tsv", "r.csv"])
def test_every_kind_of_file_gives_the_same(tmp_path, values, name):
    path = saved(tmp_path, values, name, **({"ids": np.array(IDS)} if name == "r.npz" else {}))
    found = read_responses(path, ids=IDS if name == "r.npy" else None)
    assert found.dims == ("stimulus", "unit")
    assert found.dtype == np.float32
    assert found["stimulus"].values.tolist() == IDS
    np.testing.assert_allclose(found, values, rtol=1e-6)
    assert found.attrs["units"] == ("spikes / s" if name == "r.nc" else "a.u.")
    if name.endswith("sv"):
        assert found["unit"].values.tolist() == ["a", "b", "c"]


def test_dims_say_how_it_is_stored(values):
    found = read_responses(values.T, dims=("voxel", "presentation"), ids=IDS, units="spikes")
    assert found.dims == ("presentation", "voxel")
    np.testing.assert_array_equal(found, values)
    assert found.attrs == {"units": "spikes"}


def test_three_dims_are_repeats(rng):
    found = read_responses(rng.standard_normal((6, 2, 3)), fallback_ids=IDS, subject="sub-01")
    assert found.dims == ("stimulus", "repeat", "unit")
    assert found.attrs["subject"] == "sub-01"


def test_time_series_start_at_zero(values):
    found = read_responses(values, dims=("time", "voxel"), tr=2.0)
    np.testing.assert_array_equal(found["time"], [0, 2, 4, 6, 8, 10])
    with pytest.raises(SchemaError, match="attr 'tr' or 'bin_width'"):
        read_responses(values, dims=("time", "voxel"))


def test_ids_and_rois_come_from_text_files_too(tmp_path, values):
    (tmp_path / "ids.txt").write_text("\n".join(IDS))
    (tmp_path / "roi.txt").write_text("V1\nV1\nV4\n")
    found = read_responses(values, ids=tmp_path / "ids.txt", roi=tmp_path / "roi.txt")
    assert found["stimulus"].values.tolist() == IDS
    assert found["roi"].values.tolist() == ["V1", "V1", "V4"]
    with pytest.raises(MissingFileError, match="ids.tx"):
        read_responses(values, ids=tmp_path / "ids.tx")


def test_ids_in_the_file_come_before_the_order_of_the_stimuli(tmp_path, values):
    path = saved(tmp_path, values, "r.npz", stimulus=np.array(IDS[::-1]))
    assert read_responses(path, fallback_ids=IDS)["stimulus"].values.tolist() == IDS[::-1]


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({}, PairingError, "carry no stimulus ids"),
        ({"ids": IDS[:4]}, PairingError, "4 ids were given for 6 response rows"),
        ({"fallback_ids": IDS * 2}, PairingError, "6 rows .* but there are 12 stimuli"),
        ({"fallback_ids": IDS[:3]}, PairingError, r"are the dims \('unit', 'stimulus'\)\?"),
        ({"ids": ["s0", *IDS[:5]]}, SchemaError, r"1 stimulus ids repeat.*'s0'"),
        ({"dims": ("stimuli", "unit")}, FileFormatError, "Did you mean 'stimulus'"),
        ({"dims": ("stimulus", "repeat", "unit")}, FileFormatError, "name their 2 dims"),
        ({"ids": IDS, "roi": ["V1"]}, PairingError, "`roi` has 1 entries for 3 targets"),
        ({"ids": IDS, "mask": "m.nii"}, ValueError, "'mask' are only for NIfTI"),
        ({"ids": IDS, "zscore": True}, ValueError, "'zscore' are only for NIfTI"),
    ],
)
def test_what_cannot_be_paired_is_an_error(values, options, error, message):
    with pytest.raises(error, match=message):
        read_responses(values, **options)


def test_files_that_cannot_be_understood_are_errors(tmp_path, values):
    np.savez(tmp_path / "two.npz", a=values, b=values)
    with pytest.raises(FileFormatError, match=r"holds the arrays 'a', 'b'.*key="):
        read_responses(tmp_path / "two.npz", ids=IDS)
    np.testing.assert_array_equal(read_responses(tmp_path / "two.npz", key="b", ids=IDS), values)
    with pytest.raises(FileFormatError, match="no array 'c'"):
        read_responses(tmp_path / "two.npz", key="c", ids=IDS)
    np.save(tmp_path / "objects.npy", np.array([{"a": 1}], dtype=object))
    with pytest.raises(FileFormatError, match="objects.npy"):
        read_responses(tmp_path / "objects.npy", ids=IDS)
    np.save(tmp_path / "text.npy", np.array([["a"]]))
    with pytest.raises(FileFormatError, match="must be numbers"):
        read_responses(tmp_path / "text.npy", ids=["a"])
    (tmp_path / "words.tsv").write_text("stimulus\ta\tnote\ns0\t1\tgood\n")
    with pytest.raises(FileFormatError, match=r"columns 'note' of .* are not numbers"):
        read_responses(tmp_path / "words.tsv")
    whole = saved(tmp_path, values, "cut.npy").read_bytes()
    (tmp_path / "cut.npy").write_bytes(whole[:-20])
    with pytest.raises(FileFormatError, match="cut.npy"):
        read_responses(tmp_path / "cut.npy", ids=IDS)
    (tmp_path / "bad.nc").write_bytes(b"not netCDF")
    with pytest.raises(FileFormatError, match="bad.nc"):
        read_responses(tmp_path / "bad.nc")
    with pytest.raises(FileFormatError, match=r"from \.npy, \.npz"):
        (tmp_path / "r.mat").write_bytes(b"")
        read_responses(tmp_path / "r.mat")
    with pytest.raises(MissingFileError, match="Did you mean 'words.tsv'"):
        read_responses(tmp_path / "word.tsv")


def test_infinite_responses_are_named(values):
    values[2, 1] = np.inf
    with pytest.raises(SchemaError, match=r"infinite values in 1 rows \('s2'\)"):
        read_responses(values, ids=IDS)


@pytest.fixture
def nifti(tmp_path, rng):
    """A mask of four voxels and five volumes."""
    mask = np.zeros((3, 3, 3), np.uint8)
    mask[1, 1, :2] = mask[2, 2, :2] = 1
    nib.Nifti1Image(mask, np.eye(4)).to_filename(tmp_path / "mask.nii.gz")
    image = nib.Nifti1Image(rng.standard_normal((3, 3, 3, 5)).astype("float32"), np.eye(4))
    image.header.set_zooms((1, 1, 1, 2))
    image.header.set_xyzt_units("mm", "sec")
    image.to_filename(tmp_path / "bold.nii.gz")
    return tmp_path / "bold.nii.gz", tmp_path / "mask.nii.gz"


def test_nifti_is_a_time_series_unless_it_has_ids(nifti):
    image, mask = nifti
    series = read_responses(image, mask=mask, fallback_ids=IDS[:5], roi=["a", "a", "b", "b"])
    assert series.dims == ("time", "voxel")
    assert (series.attrs["units"], series.attrs["tr"]) == ("BOLD", 2.0)
    assert series["roi"].values.tolist() == ["a", "a", "b", "b"]
    betas = read_responses([image], mask=mask, ids=IDS[:5], units="beta")
    assert betas.dims == ("stimulus", "voxel")
    assert betas.attrs["units"] == "beta"


@pytest.mark.parametrize(("name", "value"), [("dims", ("voxel",)), ("key", "a"), ("bin_width", 1)])
def test_what_means_nothing_for_nifti_is_an_error(nifti, name, value):
    with pytest.raises(ValueError, match=f"'{name}' say nothing for NIfTI"):
        read_responses(nifti[0], mask=nifti[1], **{name: value})
