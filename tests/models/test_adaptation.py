"""Losses, anchors and the choice of parameters of fine-tuning, and simulations of known truth."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import xarray as xr
from encoding_cases import (
    TRANSFORM,
    SmallNet,
    gaussian_responses,
    layer_output,
    perturbed,
    random_stimuli,
    small_backbone,
)
from scipy import stats
from sklearn.model_selection import ShuffleSplit
from torch import nn

import neurodl as ndl
from neurodl import metrics
from neurodl.models._adaptation import (
    block_depths,
    choose_parameters,
    lora_candidates,
    merge_lora,
    used_parameters,
)
from neurodl.models._anchors import fisher
from neurodl.models._losses import fit_scale, loss_of, target_weights
from neurodl.models._network import Network
from neurodl.models._shown import Shown

pytestmark = pytest.mark.filterwarnings("ignore::neurodl.errors.NeurodlWarning")


def labelled(values, stimuli, dim="unit"):
    coords = {"stimulus": stimuli.ids}
    return xr.DataArray(values, coords, ("stimulus", dim), attrs={"units": "a.u."})


# -- losses --------------------------------------------------------------------------------------


def test_squared_error_is_of_z_scored_targets(rng):
    y = torch.as_tensor(rng.normal(3, [1, 5, 0.1], (40, 3)))
    output = torch.as_tensor(rng.standard_normal((40, 3)))
    scale, zscored = fit_scale(y, "mse"), stats.zscore(y.numpy())
    loss = loss_of(output, y, scale, target_weights(y), len(y))
    np.testing.assert_allclose(loss, np.mean((output.numpy() - zscored) ** 2), 1e-5)
    np.testing.assert_allclose(scale.predicted(torch.as_tensor(zscored)), y, atol=1e-6)


def test_poisson_deviance_is_torch_s_with_the_curvature_of_squared_error(rng):
    y = torch.as_tensor(rng.poisson([1.0, 4.0, 20.0], (500, 3)).astype(float))
    scale = fit_scale(y, "poisson")
    output = torch.as_tensor(rng.standard_normal((500, 3)))
    rate = scale.predicted(output)
    assert (rate > 0).all()
    torch.testing.assert_close(scale.predicted(torch.zeros(3).double()), scale.mean)
    factor = 2 * scale.mean / scale.sd**2
    nll = nn.functional.poisson_nll_loss(rate, y, log_input=False, full=False, reduction="none")
    saturated = nn.functional.poisson_nll_loss(y, y, log_input=False, eps=0, reduction="none")
    saturated = torch.where(y > 0, saturated, 0)
    by_torch = (factor * (nll - saturated)).mean()
    loss = loss_of(output, y, scale, target_weights(y), len(y))
    assert float(loss) == pytest.approx(float(by_torch), rel=1e-4)
    # At the mean, a rate's loss curves as squared error of z-scores does: 2 / variance.
    at = scale.mean.clone().requires_grad_(True)
    deviance = (factor * (at - y + torch.xlogy(y, y) - y * at.log())).mean(0).sum()
    (slope,) = torch.autograd.grad(deviance, at, create_graph=True)
    (curvature,) = torch.autograd.grad(slope.sum(), at)
    torch.testing.assert_close(curvature, 2 / scale.sd**2)


def test_correlation_loss_is_one_minus_r(rng):
    y = torch.as_tensor(rng.standard_normal((30, 4)))
    output = torch.as_tensor(rng.standard_normal((30, 4)))
    y[:5, 1] = torch.nan
    r = [stats.pearsonr(output[5 * (t == 1) :, t], y[5 * (t == 1) :, t])[0] for t in range(4)]
    loss = loss_of(output, y, fit_scale(y, "correlation"), torch.ones(4), len(y))
    assert float(loss) == pytest.approx(1 - np.mean(r), abs=1e-5)


@pytest.mark.parametrize("kind", ["mse", "poisson", "correlation"])
def test_gradients_of_losses(kind, rng):
    y = torch.as_tensor(rng.poisson(3.0, (12, 3)).astype(float))
    y[2, 1] = torch.nan
    scale, weights = fit_scale(y, kind), target_weights(y)
    output = torch.as_tensor(rng.standard_normal((12, 3))).requires_grad_(True)
    loss_of(output, y, scale, weights, 12).backward()
    by_hand = torch.zeros_like(output)
    step = 1e-2  # losses are computed in single precision
    for place in np.ndindex(*output.shape):
        sides = []
        for sign in (1, -1):
            moved = output.detach().clone()
            moved[place] += sign * step
            sides.append(float(loss_of(moved, y, scale, weights, 12)))
        by_hand[place] = (sides[0] - sides[1]) / (2 * step)
    torch.testing.assert_close(output.grad, by_hand, atol=2e-4, rtol=2e-2)
    assert output.grad[2, 1] == 0


@pytest.mark.parametrize("kind", ["mse", "poisson"])
def test_parts_of_a_batch_add_up(kind, rng):
    y = torch.as_tensor(rng.poisson(3.0, (20, 3)).astype(float))
    y[3:9, 0] = torch.nan
    output = torch.as_tensor(rng.standard_normal((20, 3)))
    scale, weights = fit_scale(y, kind), target_weights(y, torch.tensor([1.0, 2.0, 0.5]))
    whole = loss_of(output, y, scale, weights, 20)
    parts = [
        loss_of(output[rows], y[rows], scale, weights, 20) for rows in (slice(7), slice(7, 20))
    ]
    torch.testing.assert_close(sum(parts), whole)


def test_weights_of_targets_have_mean_one_and_make_up_for_what_is_missing():
    y = torch.ones(4, 3)
    y[:2, 1] = torch.nan
    torch.testing.assert_close(target_weights(y), torch.tensor([0.75, 1.5, 0.75]))
    given = target_weights(torch.ones(4, 2), torch.tensor([0.2, 0.6]))
    torch.testing.assert_close(given, torch.tensor([0.5, 1.5]))


# -- which parameters ----------------------------------------------------------------------------


def network_of(module, layer, n_targets=2):
    backbone = ndl.load_backbone(module, transform=TRANSFORM)
    example = torch.zeros(1, 3, 24, 24)
    return Network(backbone, [layer], "gaussian2d", n_targets, example), example


def test_parameters_after_the_layer_and_of_the_head_are_not_used():
    network, example = network_of(SmallNet(), "block1")
    used = used_parameters(network, example)
    assert {name.split(".")[0] for name in used} == {"stem", "block1"}
    assert not any(p.requires_grad for p in network.core.parameters())


def test_depths_are_blocks_back_from_the_layer():
    names = ["conv.weight", "layer1.0.weight", "norm.bias", "layer2.weight"]
    found = block_depths(["conv", "layer1", "layer1.0", "layer2", "layer3"], names)
    assert found == {
        "conv.weight": 2, "layer1.0.weight": 1, "norm.bias": 1, "layer2.weight": 0
    }  # fmt: skip


def test_lora_starts_as_nothing_and_merges_to_the_same():
    network, example = network_of(SmallNet(), "block2")
    inputs = torch.randn(4, 3, 24, 24)
    before = network.outputs(inputs)[0]
    depths = choose_parameters(network, "lora", example, lora_rank=4)
    assert len(depths) == 6 and all(".lora_" in name for name in depths)
    torch.testing.assert_close(network.outputs(inputs)[0], before)
    with torch.no_grad():
        for name in depths:
            network.core.get_parameter(name).normal_(0, 0.1)
    moved = network.outputs(inputs)[0].detach()
    assert (moved - before).abs().max() > 0.01
    weight = network.core.get_submodule("block1.0").base_layer.weight
    merge_lora(network.core)
    torch.testing.assert_close(network.outputs(inputs)[0], moved, atol=1e-4, rtol=1e-4)
    change = network.core.block1[0].weight.data - SmallNet().block1[0].weight.data
    assert weight is network.core.block1[0].weight
    assert torch.linalg.matrix_rank(change.flatten(1), tol=1e-4) <= 4


def test_lora_goes_to_what_torch_calls():
    class Attentive(nn.Module):
        def __init__(self):
            super().__init__()
            self.attention = nn.MultiheadAttention(8, 2)
            self.grouped = nn.Conv2d(8, 8, 3, groups=2)
            self.mlp = nn.Linear(8, 8)

    module = Attentive()
    used = [name for name, _ in module.named_parameters()]
    assert lora_candidates(module, used) == ["mlp"]


def test_lora_of_a_network_that_pads_by_its_own_rule(recordings):
    weights = recordings / "weights_mobilenetv2_imagenet" / "mobilenetv2_100_timm_same.pth"
    backbone = ndl.load_backbone("timm:mobilenetv2_100", weights=weights, pad_type="same")
    example = torch.zeros(1, 3, 64, 64)
    network = Network(backbone, ["blocks.3"], "gaussian2d", 2, example)
    depths = choose_parameters(network, "lora", example)
    kinds = {name.split(".lora_")[0].rsplit(".", 1)[-1] for name in depths}
    assert kinds == {"conv_pw", "conv_pwl"}
    n_added = sum(network.core.get_parameter(name).numel() for name in depths)
    assert 35_000 < n_added < 45_000


@pytest.mark.parametrize(
    ("name", "layer"),
    [
        ("timm:vit_tiny_patch16_224", "blocks.2"),
        ("timm:swin_tiny_patch4_window7_224", "layers.0"),
        ("torchvision:alexnet", "features.8"),
        ("timm:regnety_002", "s2"),
    ],
)
@pytest.mark.slow
def test_networks_of_every_kind_can_be_adapted(name, layer):
    stimuli = random_stimuli(12)
    y = np.random.default_rng(0).standard_normal((12, 3)).astype("float32")
    options = {"pretrained": False}
    for finetune in ("lora", "all"):
        model = ndl.NeuralEncoder(
            name, layer, finetune=finetune, backbone_options=options,
            readout_epochs=1, max_epochs=1, patience=2, core_lr=1e-5, device="cpu",
        )  # fmt: skip
        assert np.isfinite(model.fit(stimuli, y).predict(stimuli)).all()


# -- anchors -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def shifted():
    backbone = small_backbone()
    stimuli = random_stimuli(240)
    moved = perturbed(backbone.module, 1.0)
    return backbone, stimuli, gaussian_responses(layer_output(moved, stimuli, "block2"), 6, 0.2)


def distance(model):
    before = dict(model.backbone.module.state_dict())
    return sum(float((one - before[name]).square().sum()) for name, one in model.core_.items())


@pytest.mark.parametrize("penalty", ["l2_sp", "ewc"])
def test_anchors_hold_the_core_to_its_start(penalty, shifted):
    backbone, stimuli, y = shifted
    far = []
    for strength in (0.0, 10.0, 100.0):
        model = ndl.NeuralEncoder(
            backbone, "block2", finetune="all", lr=0.02, core_lr=1e-3, readout_epochs=20,
            max_epochs=6, patience=6, device="cpu", **{penalty: strength},
        )  # fmt: skip
        far.append(distance(model.fit(stimuli, y)))
    assert far[0] > 1.5 * far[1] > 1.5 * 1.5 * far[2]


def test_fisher_information_is_the_expected_squared_gradient():
    network, example = network_of(SmallNet(), "block2")
    stimuli = random_stimuli(40)
    shown = Shown(network.backbone, stimuli)
    names = ["block2.0.bias", "stem.0.weight"]
    for name in names:
        network.core.get_parameter(name).requires_grad_(True)
    found = fisher(network, names, shown, np.arange(40), 0, torch.device("cpu"))
    exact = [torch.zeros_like(network.core.get_parameter(name)) for name in names]
    for row in range(40):
        said = network.core(shown.inputs([row])).log_softmax(1)[0]
        for c in range(10):
            grads = torch.autograd.grad(
                said[c], [network.core.get_parameter(n) for n in names], retain_graph=True
            )
            for total, grad in zip(exact, grads, strict=True):
                total += said[c].exp().item() * grad**2
    joined = [torch.cat([one.flatten() for one in parts]) for parts in (found, exact)]
    assert float(joined[0].mean()) == pytest.approx(1)
    assert np.corrcoef(joined[0], joined[1].detach())[0, 1] > 0.9  # classes are drawn, not summed


def test_rehearsal_keeps_the_source_task():
    source = random_stimuli(300, seed=5)
    brightness = np.array([float(source[i].float().mean()) for i in range(300)])
    labels = np.digitize(brightness, np.quantile(brightness, np.linspace(0, 1, 11)[1:-1]))
    source.table = source.table.assign(label=labels)
    module = SmallNet()
    x = torch.stack([TRANSFORM(source[i]) for i in range(300)])
    optimizer = torch.optim.Adam(module.parameters(), 0.01)
    module.eval()
    for _ in range(150):
        optimizer.zero_grad()
        nn.functional.cross_entropy(module(x), torch.as_tensor(labels)).backward()
        optimizer.step()
    backbone = ndl.load_backbone(module, transform=TRANSFORM)
    stimuli = random_stimuli(300)
    y = gaussian_responses(layer_output(perturbed(module, 1.0), stimuli, "block2"), 6, 0.0)
    accuracy = []
    for strength in (0.0, 1.0):
        model = ndl.NeuralEncoder(
            backbone, "block2", finetune="all", lr=0.02, core_lr=5e-3, readout_epochs=20,
            max_epochs=15, patience=15, rehearsal=strength, source=source, device="cpu",
        ).fit(stimuli, y)  # fmt: skip
        with torch.no_grad():
            said = model.network().core(x).argmax(1)
        accuracy.append(float((said.numpy() == labels).mean()))
    with torch.no_grad():
        before = float((module(x).argmax(1).numpy() == labels).mean())
    assert accuracy[0] < before - 0.15
    assert accuracy[1] > accuracy[0] + 0.1


# -- the ridge readout ---------------------------------------------------------------------------


def test_a_ridge_readout_is_ridge_regression():
    backbone, stimuli = small_backbone(), random_stimuli(90)
    y = gaussian_responses(layer_output(backbone.module, stimuli, "block2"), 4, 0.5)
    y = 3 * y + 7
    features = ndl.extract_features(backbone, stimuli, ["block1", "block2"], pool="flatten")
    joined = np.concatenate([features[name].values for name in ("block1", "block2")], 1)
    expected = ndl.RidgeCV(device="cpu").fit(joined, y).predict(joined)
    model = ndl.NeuralEncoder(backbone, ["block1", "block2"], readout="ridge", device="cpu")
    np.testing.assert_allclose(model.fit(stimuli, y).predict(stimuli), expected, atol=1e-3)
    # With a core that does not move, that is also where tuning starts and ends.
    tuned = ndl.NeuralEncoder(
        backbone, ["block1", "block2"], readout="ridge", finetune="all", core_lr=0.0, max_epochs=1,
        device="cpu",
    ).fit(stimuli, y)  # fmt: skip
    np.testing.assert_allclose(tuned.predict(stimuli), expected, atol=1e-3)


def test_rows_are_predicted_by_readouts_that_never_saw_them(rng):
    from neurodl.models._crossfit import fit_bank

    x = torch.as_tensor(rng.standard_normal((60, 200)), dtype=torch.float32)
    y = torch.as_tensor(rng.standard_normal((60, 8)), dtype=torch.float32)
    rows = np.arange(0, 60, 2)
    bank, part = fit_bank(x, y, fit_scale(y, "mse"), rows, 0, "cpu")
    said = bank(x[rows], part[rows])
    honest = np.corrcoef(said.flatten(), y[rows].flatten())[0, 1]
    own = bank(x[rows], None)
    assert abs(honest) < 0.2  # of noise, nothing is known
    assert np.corrcoef(own.flatten(), y[rows].flatten())[0, 1] > 0.7
    assert (part[1::2] == -1).all()


# -- known truth ---------------------------------------------------------------------------------

ONE_SPLIT = ShuffleSplit(1, test_size=0.25, random_state=0)


def mean_r(model, X, responses, cv=ONE_SPLIT):
    return float(ndl.cross_validate(model, X, responses, cv=cv)["r"].mean())


@pytest.mark.slow
def test_where_nothing_has_to_be_adapted_tuning_neither_wins_nor_loses():
    """Responses are linear in a frozen layer."""
    backbone, stimuli = small_backbone(), random_stimuli(360)
    output = layer_output(backbone.module, stimuli, "block2").flatten(1).numpy()
    rng = np.random.default_rng(0)
    scaled = (output - output.mean(0)) / output.std(0).clip(0.05)
    signal = scaled @ rng.standard_normal((output.shape[1], 16))
    y = labelled(
        (signal / signal.std(0) + rng.standard_normal(signal.shape)).astype("float32"), stimuli
    )
    features = ndl.extract_features(backbone, stimuli, "block2", pool="flatten")
    ridge = mean_r(ndl.RidgeCV(device="cpu"), features, y)
    assert ridge > 0.3
    for finetune in ("lora", "all"):
        model = ndl.NeuralEncoder(
            backbone, "block2", readout="ridge", finetune=finetune, device="cpu"
        )
        assert mean_r(model, stimuli, y) == pytest.approx(ridge, abs=0.02)


@pytest.mark.slow
def test_after_a_shift_of_domain_tuning_wins():
    """Responses come from a network whose weights moved from those at hand."""
    backbone, stimuli = small_backbone(width=8), random_stimuli(600)
    moved = perturbed(backbone.module, 1.0)
    y = labelled(gaussian_responses(layer_output(moved, stimuli, "block2"), 12, 0.3), stimuli)
    features = ndl.extract_features(backbone, stimuli, "block2", pool="flatten")
    ridge = mean_r(ndl.RidgeCV(device="cpu"), features, y)
    options = {
        "lr": 0.02, "readout_epochs": 60, "max_epochs": 40, "patience": 6, "batch_size": 64,
        "core_lr": 5e-3, "device": "cpu",
    }  # fmt: skip
    r = {
        finetune: mean_r(
            ndl.NeuralEncoder(backbone, "block2", finetune=finetune, **options), stimuli, y
        )
        for finetune in (None, "lora", "all")
    }
    assert r["all"] > max(ridge, r[None]) + 0.1
    assert r["lora"] - ridge > 0.6 * (r["all"] - ridge)


@pytest.mark.slow
def test_two_subjects_of_one_core_are_better_together():
    """Each subject saw stimuli of its own, too few to learn the core from alone."""
    backbone, stimuli = small_backbone(width=8), random_stimuli(600)
    moved = perturbed(backbone.module, 1.0)
    truth = gaussian_responses(layer_output(moved, stimuli, "block2"), 16, 0.3)
    train = [np.arange(0, 200), np.arange(200, 400)]
    test = np.arange(400, 600)
    options = {
        "finetune": "all", "lr": 0.02, "readout_epochs": 60, "max_epochs": 40, "patience": 6,
        "core_lr": 5e-3, "device": "cpu",
    }  # fmt: skip
    encoder = ndl.NeuralEncoder(backbone, "block2", **options)
    own, both = [slice(0, 8), slice(8, 16)], np.full(truth.shape, np.nan, "float32")
    for rows, columns in zip(train, own, strict=True):
        both[rows, columns] = truth[rows, columns]

    def r(predicted, columns):
        return float(
            metrics.pearson_r(
                torch.as_tensor(predicted), torch.as_tensor(truth[test][:, columns])
            ).mean()
        )

    held = torch.utils.data.Subset(stimuli, test)
    rows = torch.utils.data.Subset(stimuli, np.concatenate(train))
    joint = encoder.fit(rows, both[:400]).predict(held)
    together = np.mean([r(joint[:, columns], columns) for columns in own])
    separate = []
    for rows, columns in zip(train, own, strict=True):
        some = torch.utils.data.Subset(stimuli, rows)
        separate.append(r(encoder.fit(some, truth[rows, columns]).predict(held), columns))
    assert together > np.mean(separate) + 0.03
