"""Responses from arrays and tables: names on every row, and no guess that could be wrong."""

from __future__ import annotations

import nibabel as nib
import numpy as np
import pandas as pd
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


def test_dims_come_into_the_order_of_the_schema(rng):
    stored = rng.standard_normal((3, 4, 2, 6)).astype("float32")
    dims = ("unit", "time", "repeat", "stimulus")
    found = read_responses(stored, dims=dims, ids=IDS, bin_width=0.1)
    assert found.dims == ("stimulus", "repeat", "time", "unit")
    np.testing.assert_array_equal(found, stored.transpose(3, 2, 1, 0))
    np.testing.assert_allclose(found["time"], [0, 0.1, 0.2, 0.3])
    assert found.attrs["bin_width"] == 0.1


def test_time_series_start_at_zero(values):
    found = read_responses(values, dims=("time", "voxel"), tr=2.0)
    np.testing.assert_array_equal(found["time"], [0, 2, 4, 6, 8, 10])
    with pytest.raises(SchemaError, match="attr 'tr' or 'bin_width'"):
        read_responses(values, dims=("time", "voxel"))
    with pytest.raises(PairingError, match="Time series have no stimulus ids"):
        read_responses(values, dims=("time", "voxel"), tr=2.0, ids=IDS)


def test_labels_and_rois_are_added_to_what_has_names(tmp_path, values):
    path = saved(tmp_path, values, "r.nc")
    array = xr.load_dataarray(path, engine="h5netcdf")
    assert read_responses(array) is array
    for source in (path, array):
        found = read_responses(source, roi=["a", "b", "c"], subject="1", units="mV")
        assert found.attrs == {"units": "mV", "subject": "1"}
        assert found["roi"].values.tolist() == ["a", "b", "c"]
        with pytest.raises(ValueError, match="'ids' are not for arrays whose dims have names"):
            read_responses(source, ids=IDS[::-1])
    assert array.attrs == {"units": "spikes / s"}


def test_ids_in_tables_are_text_and_holes_are_missing_values(tmp_path):
    (tmp_path / "r.csv").write_text("stimulus,a,b\n007,1,\nNA,2,n/a\n1e3,3,0.5\n")
    found = read_responses(tmp_path / "r.csv", dims=("stimulus", "voxel"))
    assert found["stimulus"].values.tolist() == ["007", "NA", "1e3"]
    assert found["voxel"].values.tolist() == ["a", "b"]
    np.testing.assert_array_equal(found, [[1, np.nan], [2, np.nan], [3, 0.5]])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "Cannot read the table"),
        (b"\xff\xfe\x00", "Cannot read the table"),
        (b"stimulus,a\ns0,1\n,2\n", "'stimulus' of the table .* empty in 1 rows, first in row 2"),
        (b"stimulus,a\ns0,1,2\ns1,3,4\n", "have more cells than its header"),
        (b"stimulus,a,a b\ns0,1,x\n", r"columns 'a b' of .* are not numbers"),
    ],
)
def test_damaged_tables_are_errors(tmp_path, content, message):
    (tmp_path / "r.csv").write_bytes(content)
    with pytest.raises(FileFormatError, match=message):
        read_responses(tmp_path / "r.csv")


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
        ({"fallback_ids": IDS[:3], "dims": ("presentation", "voxel")}, PairingError,
         r"The voxel dim has that length: are the dims \('voxel', 'presentation'\)\?"),
        ({"dims": ("stimulus", "stimulus"), "ids": IDS}, FileFormatError, "each once"),
        ({"key": "a", "ids": IDS}, ValueError, "`key` chooses an array of an .npz file"),
        ({"tr": 1, "bin_width": 1, "ids": IDS}, ValueError, "give one of them"),
        ({"tr": 0, "dims": ("time", "unit")}, ValueError, "above 0 s, but got 0"),
        ({"ids": ["s0", *IDS[:5]]}, SchemaError, r"1 stimulus ids repeat.*'s0'"),
        ({"dims": ("stimuli", "unit")}, FileFormatError, "Did you mean 'stimulus'"),
        ({"dims": ("stimulus", "repeat", "unit")}, FileFormatError, "name their 2 dims"),
        ({"ids": IDS, "roi": ["V1"]}, PairingError, "`roi` has 1 entries for 3 targets"),
        ({"ids": IDS, "mask": "m.nii"}, ValueError, "'mask' are only for NIfTI"),
        ({"ids": IDS, "zscore": True}, ValueError, "'zscore' are only for NIfTI"),
    ],
)  # fmt: skip
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
    for name in ("cut.npy", "cut.npz"):
        whole = saved(tmp_path, values, name).read_bytes()
        (tmp_path / name).write_bytes(whole[:-20])
        with pytest.raises(FileFormatError, match=name):
            read_responses(tmp_path / name, ids=IDS)
    changed = bytearray(saved(tmp_path, values, "bit.npz").read_bytes())
    changed[180] ^= 1
    (tmp_path / "bit.npz").write_bytes(changed)
    with pytest.raises(FileFormatError, match="bit.npz: Bad CRC"):
        read_responses(tmp_path / "bit.npz", ids=IDS)
    objects = saved(tmp_path, values, "ids.npz", ids=np.array(IDS, dtype=object))
    with pytest.raises(FileFormatError, match="Python objects; save plain numbers or text"):
        read_responses(objects)
    table = saved(tmp_path, values, "r.csv")
    with pytest.raises(FileFormatError, match="columns of a table are targets"):
        read_responses(table, dims=("unit", "stimulus"))
    (tmp_path / "bad.nc").write_bytes(b"not netCDF")
    with pytest.raises(FileFormatError, match="bad.nc"):
        read_responses(tmp_path / "bad.nc")
    with pytest.raises(FileFormatError, match=r"from \.npy, \.npz"):
        (tmp_path / "r.mat").write_bytes(b"")
        read_responses(tmp_path / "r.mat")
    with pytest.raises(MissingFileError, match="Did you mean 'words.tsv'"):
        read_responses(tmp_path / "word.tsv")
    with pytest.raises(FileFormatError, match="are a folder"):
        read_responses(tmp_path)
    for source in ([tmp_path / "cut.npy"], pd.DataFrame(values)):
        with pytest.raises(TypeError, match="but got (list|DataFrame)"):
            read_responses(source, ids=IDS)


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
    opened = read_responses(nib.load(image), mask=nib.load(mask))
    np.testing.assert_array_equal(opened, series)
    with pytest.raises(PairingError, match="`roi` has 1 entries for 4 targets"):
        read_responses(image, mask=mask, roi=["a"])
    with pytest.raises(ValueError, match="'atlas_labels' and `roi` both name ROIs"):
        read_responses(image, mask=mask, roi=list("aabb"), atlas_labels={1: "V1"})


@pytest.mark.parametrize(("name", "value"), [("dims", ("voxel",)), ("key", "a"), ("bin_width", 1)])
def test_what_means_nothing_for_nifti_is_an_error(nifti, name, value):
    with pytest.raises(ValueError, match=f"'{name}' say nothing for NIfTI"):
        read_responses(nifti[0], mask=nifti[1], **{name: value})
