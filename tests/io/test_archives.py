"""Archives of others: what is inside comes out, and nothing gets out of the folder."""

from __future__ import annotations

import io
import stat
import tarfile
import zipfile

import pytest

from neurodl.errors import FileFormatError, MissingFileError
from neurodl.io import archives
from neurodl.io.archives import unpack

FILES = {"subj01/roi_masks/lh.npy": b"left", "subj01/a.txt": b"", "big.bin": b"\1" * 3_000_000}


def zipped(path, files, **info):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("subj01/", "")
        for name, content in files.items():
            member = zipfile.ZipInfo(name)
            member.compress_type = zipfile.ZIP_DEFLATED
            for key, value in info.items():
                setattr(member, key, value)
            archive.writestr(member, content)
    return path


def tarred(path, files, **info):
    with tarfile.open(path, "w:gz" if path.name.endswith("gz") else "w") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            for key, value in info.items():
                setattr(member, key, value)
            archive.addfile(member, io.BytesIO(content))
    return path


MAKERS = [(zipped, "a.zip"), (tarred, "a.tgz"), (tarred, "a.tar.gz"), (tarred, "a.tar")]


@pytest.mark.parametrize(("make", "name"), MAKERS)
def test_files_come_out_as_they_went_in(tmp_path, make, name):
    folder = tmp_path / "out"
    found = unpack(make(tmp_path / name, FILES), folder)
    assert {path.relative_to(folder).as_posix(): path.read_bytes() for path in found} == FILES
    everything = [path for path in folder.rglob("*") if path.is_file()]
    assert sorted(everything) == sorted(found)  # nothing unfinished is left


@pytest.mark.parametrize(("make", "name"), MAKERS[:2])
@pytest.mark.parametrize(
    "path",
    ["../out.txt", "/tmp/neurodl-out.txt", "a/../../out.txt", "..\\out.txt", "C:\\out.txt", ".."],
)
def test_no_member_leaves_the_folder(tmp_path, make, name, path):
    archive = make(tmp_path / name, {"first.txt": b"first", path: b"out"})
    with pytest.raises(FileFormatError, match="would lie outside the folder"):
        unpack(archive, tmp_path / "out")
    assert sorted(tmp_path.rglob("*.txt")) == []  # not even the first member was written


@pytest.mark.parametrize(
    "kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE]
)
def test_links_and_devices_are_refused_tar(tmp_path, kind):
    archive = tarred(tmp_path / "a.tgz", {"link": b""}, type=kind, linkname="/etc/passwd")
    with pytest.raises(FileFormatError, match="'link' is a link or a device"):
        unpack(archive, tmp_path / "out")


def test_links_are_refused_zip(tmp_path):
    attributes = (stat.S_IFLNK | 0o777) << 16
    archive = zipped(tmp_path / "a.zip", {"link": b"/etc"}, external_attr=attributes)
    with pytest.raises(FileFormatError, match="'link' is a link or a device"):
        unpack(archive, tmp_path / "out")


def test_a_link_that_is_there_is_not_followed_out(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "out" / "subj01").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(FileFormatError, match="is a link out of"):
        unpack(tarred(tmp_path / "a.tgz", {"subj01/a.txt": b"a"}), tmp_path / "out")
    assert not list((tmp_path / "elsewhere").iterdir())


@pytest.mark.parametrize(("make", "name"), MAKERS[:2])
def test_bombs_are_refused_before_they_go_off(tmp_path, monkeypatch, make, name):
    monkeypatch.setattr(archives, "SMALL", 1 << 20)
    with pytest.raises(FileFormatError, match="would become 1 files of 20000000 bytes"):
        unpack(make(tmp_path / name, {"zeros": bytes(20_000_000)}), tmp_path / "out")
    monkeypatch.setattr(archives, "MOST_FILES", 2)
    with pytest.raises(FileFormatError, match="would become 3 files"):
        unpack(make(tmp_path / name, dict.fromkeys("abc", b"")), tmp_path / "out")


def test_a_member_larger_than_announced_is_cut_short(tmp_path):
    archive = zipped(tmp_path / "a.zip", {"zeros": bytes(2_000_000)})
    content = archive.read_bytes()
    lie = content.replace((2_000_000).to_bytes(4, "little"), (1000).to_bytes(4, "little"))
    assert lie != content
    archive.write_bytes(lie)
    with pytest.raises(FileFormatError, match="larger than announced|Bad CRC|Cannot unpack"):
        unpack(archive, tmp_path / "out")
    assert not [path for path in (tmp_path / "out").rglob("*") if path.is_file()]


@pytest.mark.parametrize(("make", "name"), MAKERS)
def test_damaged_archives_are_named(tmp_path, make, name):
    whole = make(tmp_path / name, FILES).read_bytes()
    for content in (whole[: len(whole) // 2], b"", b"<html>", b"\x1f\x8b" + bytes(50)):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(FileFormatError, match=f"{name}"):
            unpack(tmp_path / name, tmp_path / "out")


def test_missing_and_encrypted(tmp_path):
    with pytest.raises(MissingFileError, match=r"no\.zip does not exist"):
        unpack(tmp_path / "no.zip", tmp_path)
    archive = zipped(tmp_path / "a.zip", {"a": b"secret"})
    content = bytearray(archive.read_bytes())
    start = content.rindex(b"PK\1\2")
    content[start + 8] |= 1
    archive.write_bytes(bytes(content))
    with pytest.raises(FileFormatError, match="is encrypted"):
        unpack(archive, tmp_path / "out")
