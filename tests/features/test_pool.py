"""Pooling: maps, tokens with and without a class token, clips, each against its definition."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from neurodl.features.pool import pool_output

CLASS = {"prefix_tokens": ["class"]}
DINO = {"prefix_tokens": ["class", *["register"] * 4]}


@pytest.mark.parametrize(
    ("shape", "pool", "options", "expected"),
    [
        ((2, 8, 14, 14), "spatial:7", {}, 8 * 49),
        ((2, 8, 5, 5), "spatial:7", {}, 8 * 25),
        ((2, 14, 14, 8), "spatial:7", {"channels_last": True}, 8 * 49),
        ((2, 197, 8), "spatial:7", CLASS, 8 * 49),
        ((2, 197, 8), "mean_patch", CLASS, 8),
        ((2, 197, 8), "cls", CLASS, 8),
        ((2, 197, 8), "flatten", CLASS, 8 * 197),
        ((2, 8, 4, 14, 14), "avg", {}, 8),
        ((2, 8, 4, 14, 14), "avg", {"time": "keep"}, 4 * 8),
        ((2, 4, 14, 14, 8), "gem", {"channels_last": True, "time": "keep"}, 4 * 8),
        ((2, 1 + 4 * 49, 8), "spatial:7", {**CLASS, "n_steps": 4}, 8 * 49),
        ((2, 8, 14, 14), "max", {}, 8),
        ((2, 9), "spatial:7", {}, 9),
    ],
)
def test_shapes(shape, pool, options, expected):
    assert pool_output(torch.randn(shape), pool, **options).shape == (2, expected)


@pytest.mark.parametrize("pool", ["spatial:7", "spatial:3", "avg", "max", "gem"])
@pytest.mark.parametrize("options", [{}, CLASS, DINO])
@pytest.mark.parametrize("size", [(14, 14), (7, 14)])
def test_tokens_give_what_the_map_they_come_from_gives(pool, options, size):
    maps = torch.randn(3, 8, *size)
    before = torch.full((3, len(options.get("prefix_tokens", ())), 8), 100.0)
    tokens = torch.cat([before, maps.flatten(2).transpose(1, 2)], 1)
    found = pool_output(tokens, pool, aspect=size[0] / size[1], **options)
    torch.testing.assert_close(found, pool_output(maps, pool))
    last = pool_output(maps.movedim(1, -1), pool, channels_last=True)
    torch.testing.assert_close(last, pool_output(maps, pool))


def test_values_are_those_of_the_definitions():
    maps = torch.randn(3, 8, 14, 14)
    grid = pool_output(maps, "spatial:7").view(3, 8, 7, 7)
    torch.testing.assert_close(grid, functional.avg_pool2d(maps, 2))
    positive = maps.clamp(min=1e-6)
    expected = functional.lp_pool2d(positive, 3.0, 14) / 14 ** (2 / 3)
    torch.testing.assert_close(pool_output(maps, "gem"), expected.flatten(1))
    torch.testing.assert_close(pool_output(maps, "max"), maps.amax((2, 3)))
    torch.testing.assert_close(pool_output(maps, "avg"), maps.mean((2, 3)))


def test_clips_are_averaged_over_time_or_kept_step_by_step():
    clips = torch.randn(2, 8, 4, 6, 6)
    tokens = clips.movedim(1, -1).flatten(1, 3)
    for pool in ("spatial:3", "max", "gem"):
        torch.testing.assert_close(pool_output(clips, pool), pool_output(clips.mean(2), pool))
        steps = torch.cat([pool_output(clips[:, :, step], pool) for step in range(4)], 1)
        torch.testing.assert_close(pool_output(clips, pool, time="keep"), steps)
        for time in ("mean", "keep"):
            found = pool_output(tokens, pool, n_steps=4, time=time)
            torch.testing.assert_close(found, pool_output(clips, pool, time=time))


def test_the_class_token_is_told_from_registers_and_patches():
    tokens = torch.arange(1 + 4 + 9.0).repeat(2, 1)[..., None]
    assert (pool_output(tokens, "cls", **DINO) == 0).all()
    assert (pool_output(tokens[:, 1:], "avg", prefix_tokens=["register"] * 4) == 9).all()
    with pytest.raises(ValueError, match="mean_patch"):
        pool_output(tokens[:, 1:], "cls", prefix_tokens=["register"] * 4)
    with pytest.raises(ValueError, match="mean_patch"):
        pool_output(torch.randn(2, 8, 4, 4), "cls")


def test_before_a_late_class_token_all_tokens_are_patches():
    early, late = torch.ones(2, 196, 3), torch.ones(2, 197, 3)
    early[:, 0] = late[:, 0] = 197
    assert (pool_output(early, "avg", **CLASS) == 2).all()
    assert (pool_output(late, "avg", **CLASS) == 1).all()
    with pytest.raises(ValueError, match="needs a transformer layer with a class token"):
        pool_output(early, "cls", **CLASS)


def test_tokens_that_fill_no_grid_are_not_laid_out():
    tokens = torch.randn(2, 30, 3)
    with pytest.raises(ValueError, match="30 tokens .* fill no grid"):
        pool_output(tokens, "spatial:7")
    torch.testing.assert_close(pool_output(tokens, "avg"), tokens.mean(1))
    with pytest.raises(ValueError, match="197 tokens .* fill no grid of places .*none"):
        pool_output(torch.randn(2, 197, 3), "avg")
