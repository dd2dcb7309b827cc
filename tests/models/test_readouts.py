"""Readouts against loops over their definitions, with gradients checked."""

from __future__ import annotations

import math

import pytest
import torch

from neurodl.errors import SchemaError, UnknownNameError
from neurodl.models.readouts import NARROWEST, READOUTS, Standardized, at_places, make_readout

N, T, C, H, W = 2, 3, 4, 4, 5


@pytest.fixture
def output():
    return torch.randn(N, C, H, W, dtype=torch.double, generator=torch.Generator().manual_seed(0))


def trained(name, shape=(C, H, W), n_prefix=0):
    """Return a readout with random parameters."""
    readout = make_readout(name, shape, T, n_prefix).double()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in readout.parameters():
            noise = torch.randn(parameter.shape, dtype=torch.double, generator=generator)
            parameter.copy_(0.4 * noise)
    return readout.eval()


LINEAR = ("linear", "ridge")


@pytest.mark.parametrize("name", READOUTS)
def test_predictions_are_zero_until_trained_and_gradients_are_right(name, output):
    assert (make_readout(name, (C, H, W), T).double()(output) == 0).all()
    readout = trained(name)
    assert torch.autograd.gradcheck(readout, output.requires_grad_())
    parameters = tuple(readout.parameters())

    def of_parameters(*values):
        names = [name for name, _ in readout.named_parameters()]
        return torch.func.functional_call(readout, dict(zip(names, values, strict=True)), output)

    assert torch.autograd.gradcheck(of_parameters, parameters)


def test_factorised(output):
    readout = trained("factorised")
    found = readout(output)
    for n in range(N):
        for t in range(T):
            seen = sum(
                readout.places[t, y * W + x] * (readout.channels[t] @ output[n, :, y, x])
                for y in range(H)
                for x in range(W)
            )
            torch.testing.assert_close(found[n, t], seen + readout.bias[t])


def test_gaussian(output):
    readout = trained("gaussian2d")
    mask = readout.mask().reshape(T, H, W)
    torch.testing.assert_close(mask.sum((1, 2)), torch.ones(T, dtype=torch.double))
    for t in range(T):
        width = readout.log_width[t].exp() + NARROWEST
        expected = torch.zeros(H, W, dtype=torch.double)
        for y in range(H):
            for x in range(W):
                place = torch.tensor([2 * y / (H - 1) - 1, 2 * x / (W - 1) - 1])
                expected[y, x] = torch.exp(
                    -0.5 * (((place - readout.centre[t]) / width) ** 2).sum()
                )
        torch.testing.assert_close(mask[t], expected / expected.sum())
    pooled = torch.einsum("nchw,thw->ntc", output, mask)
    expected = (pooled * readout.channels).sum(-1) + readout.bias
    torch.testing.assert_close(readout(output), expected)


def test_a_point_is_interpolated_and_moves_only_in_training(output):
    readout = trained("point2d")
    with torch.no_grad():
        readout.centre[0] = torch.tensor([2 * 2 / (H - 1) - 1, 2 * 2.5 / (W - 1) - 1])
    between = (output[:, :, 2, 2] + output[:, :, 2, 3]) / 2
    expected = between @ readout.channels[0] + readout.bias[0]
    torch.testing.assert_close(readout(output)[:, 0], expected)
    torch.testing.assert_close(readout(output), readout(output))
    readout.train()
    torch.manual_seed(0)
    first, second = readout(output), readout(output)
    assert not torch.allclose(first, second)
    torch.manual_seed(0)
    torch.testing.assert_close(readout(output), first)  # from the seed


def test_attention(output):
    readout = trained("attention")
    found = readout(output)
    for n in range(N):
        values = output[n].flatten(1)
        for t in range(T):
            agreement = readout.query[t] @ values / math.sqrt(C) + readout.place[t]
            seen = values @ torch.exp(agreement) / torch.exp(agreement).sum()
            expected = readout.channels[t] @ seen + readout.bias[t]
            torch.testing.assert_close(found[n, t], expected)


@pytest.mark.parametrize("name", [name for name in READOUTS if name not in LINEAR])
def test_patches_of_a_transformer_are_the_same_places(name, output):
    """The class token has no place, and changes nothing."""
    tokens = torch.cat([torch.randn(N, 1, C, dtype=torch.double), output[..., :H].flatten(2).mT], 1)
    as_map = trained(name, (C, H, H))
    as_tokens = trained(name, (1 + H * H, C), n_prefix=1)
    torch.testing.assert_close(as_tokens(tokens), as_map(output[..., :H]))


def test_outputs_without_places():
    readout = make_readout("linear", (10,), T)
    assert readout(torch.zeros(2, 10)).shape == (2, T)
    for name in READOUTS:
        if name not in LINEAR:
            with pytest.raises(SchemaError, match=r"shape \(1, 10\), without places"):
                make_readout(name, (10,), T)
    places = at_places(torch.zeros(2, 7, C))  # no square number of tokens
    assert (places.height, places.width) == (1, 7)
    with pytest.raises(UnknownNameError, match="Did you mean 'gaussian2d'"):
        make_readout("gaussian", (C, H, W), T)


@pytest.mark.parametrize(("shape", "axis"), [((C, H, W), 1), ((9, C), 2), ((C,), 1)])
def test_readouts_see_channels_in_units_of_what_all_of_them_vary_by(shape, axis):
    outputs = 3 + 5 * torch.randn(40, *shape)
    readout = Standardized(make_readout("linear", shape, T), shape)
    readout.take_scale(outputs)
    seen = []
    readout.readout.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    readout(outputs)
    channels = seen[0].movedim(axis, 0).flatten(1)
    torch.testing.assert_close(channels.mean(1), torch.zeros(C), atol=1e-5, rtol=0)
    assert float(channels.var(1).mean()) == pytest.approx(1, abs=1e-5)
    readout.take_scale(torch.full((4, *shape), 7.0))  # constant: no division by 0
    assert torch.isfinite(readout(outputs)).all()
