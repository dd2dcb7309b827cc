"""NeuralEncoder: parameters, stages, saving, going on, devices, and wrong input."""

from __future__ import annotations

import logging
import subprocess
import sys
import time
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from encoding_cases import (
    TRANSFORM,
    SmallNet,
    gaussian_responses,
    layer_output,
    perturbed,
    random_stimuli,
    small_backbone,
)
from sklearn.base import clone
from torch import nn

import neurodl as ndl
from neurodl.errors import (
    FileFormatError,
    NeurodlWarning,
    SchemaError,
    TooLargeError,
    TrainingError,
    UnknownNameError,
)
from neurodl.models._network import Network
from neurodl.models.readouts import make_readout

# Short fits of few stimuli need not lower the validation loss.
pytestmark = pytest.mark.filterwarnings("ignore::neurodl.errors.NeurodlWarning")
FAST = {"readout_epochs": 4, "max_epochs": 2, "lr": 0.02, "device": "cpu"}


@pytest.fixture(scope="module")
def stimuli():
    return random_stimuli(96)


@pytest.fixture(scope="module")
def backbone():
    return small_backbone()


@pytest.fixture(scope="module")
def responses(stimuli, backbone):
    return gaussian_responses(layer_output(backbone.module, stimuli, "block2"), 5, 0.2)


def encoder(backbone, **changes):
    return ndl.NeuralEncoder(backbone, "block2", **{**FAST, **changes})


@pytest.mark.parametrize("finetune", [None, "readout", "last", "lora", "all"])
def test_what_is_not_tuned_stays_as_it_was(finetune, backbone, stimuli, responses):
    before = {name: one.clone() for name, one in backbone.module.state_dict().items()}
    model = encoder(backbone, finetune=finetune).fit(stimuli, responses)
    for name, values in backbone.module.state_dict().items():
        assert torch.equal(values, before[name])
    core = model.network().core.state_dict()
    assert set(core) == set(before)  # low-rank additions are part of the weights now
    moved = {name.split(".")[0] for name in model.core_}
    expected = {None: set(), "readout": set(), "last": {"block2"}}
    assert moved == expected.get(finetune, {"stem", "block1", "block2"})
    assert not any("running" in name or "num_batches" in name for name in model.core_)


def test_predictions_are_the_same_however_they_are_asked_for(backbone, stimuli, responses):
    model = encoder(backbone, finetune="all").fit(stimuli, responses)
    predicted = model.predict(stimuli)
    assert predicted.shape == responses.shape and predicted.dtype == np.float32
    pixels = torch.stack([stimuli[i] for i in range(len(stimuli))])
    np.testing.assert_array_equal(model.predict(pixels), predicted)
    np.testing.assert_array_equal(model.predict(pixels.numpy()), predicted)
    some = torch.utils.data.Subset(stimuli, [5, 2, 5])
    np.testing.assert_allclose(model.predict(some), predicted[[5, 2, 5]], atol=1e-5)
    network = model.network()
    inputs = torch.stack([TRANSFORM(stimuli[i]) for i in range(8)])
    with torch.no_grad():
        by_hand = network.readouts[0](
            network.core.block2(network.core.block1(network.core.stem(inputs)))
        )
    np.testing.assert_allclose(by_hand.numpy() * model.sd_ + model.mean_, predicted[:8], atol=1e-5)


def test_the_same_seed_gives_the_same_model_and_leaves_the_generator_alone(
    backbone, stimuli, responses
):
    options = {"finetune": "lora", "dropout": 0.2, "augment": ["RandomHorizontalFlip"]}
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    first = encoder(backbone, **options).fit(stimuli, responses)
    assert torch.equal(torch.rand(1), expected)
    second = encoder(backbone, **options).fit(stimuli, responses)
    np.testing.assert_array_equal(first.predict(stimuli), second.predict(stimuli))
    other = encoder(backbone, **options, seed=1).fit(stimuli, responses)
    assert np.abs(other.predict(stimuli) - first.predict(stimuli)).max() > 1e-4


@pytest.mark.parametrize("finetune", [None, "lora", "all"])
def test_saved_and_loaded_it_predicts_the_same(finetune, stimuli, responses, tmp_path):
    name = "torchvision:resnet18"
    options = {"pretrained": False, "transform": {"resize_size": 32, "crop_size": 32}}
    model = ndl.NeuralEncoder(
        name, "layer1.0", finetune=finetune, backbone_options=options, **FAST
    ).fit(stimuli, responses)
    path = ndl.save(model, tmp_path / "model.safetensors")
    loaded = ndl.load(path)
    np.testing.assert_array_equal(loaded.predict(stimuli), model.predict(stimuli))
    np.testing.assert_equal(loaded.history_, model.history_)
    whole = sum(p.numel() for p in model.network().core.parameters()) * 4
    assert path.stat().st_size < whole  # only what was changed
    loaded.set_params(backbone_options={**options, "seed": 1})
    loaded._network = None
    with pytest.raises(SchemaError, match="other weights"):
        loaded.predict(stimuli)


def test_a_network_of_ones_own_cannot_be_saved_but_says_why(backbone, stimuli, responses, tmp_path):
    model = encoder(backbone).fit(stimuli, responses)
    with pytest.raises(ValueError, match="`backbone` is a .*Backbone"):
        ndl.save(model, tmp_path / "model.safetensors")


def test_clones_share_the_network_and_nothing_learned(backbone, stimuli, responses):
    model = encoder(backbone).fit(stimuli, responses)
    copy = clone(model)
    assert copy.backbone is backbone
    assert not hasattr(copy, "readout_")


class _Killed(Exception):
    pass


@pytest.mark.parametrize("options", [{}, {"dropout": 0.3, "schedule": "plateau", "norm": "train"}])
@pytest.mark.parametrize("stop", [("readout", 2), ("all", 1)])
def test_an_interrupted_fit_goes_on_to_the_same_result(
    stop, options, backbone, stimuli, responses, tmp_path, monkeypatch
):
    from neurodl.models import _fitting

    options = options | {"finetune": "all", "max_epochs": 3}
    whole = encoder(backbone, **options).fit(stimuli, responses)
    model = encoder(backbone, **options, checkpoints=tmp_path)
    real = _fitting.Fitting.on_train_epoch_start

    def killed(self):
        if (self.stage.name, self.current_epoch) == stop:
            raise _Killed
        real(self)

    with monkeypatch.context() as patch, pytest.raises(_Killed):
        patch.setattr(_fitting.Fitting, "on_train_epoch_start", killed)
        model.fit(stimuli, responses)
    n_steps = 0
    real_step = _fitting.Fitting.training_step

    def counted(self, *args):
        nonlocal n_steps
        n_steps += 1
        real_step(self, *args)

    with monkeypatch.context() as patch:
        patch.setattr(_fitting.Fitting, "training_step", counted)
        model.fit(stimuli, responses)
        n_left = n_steps
        again = encoder(backbone, **options, checkpoints=tmp_path).fit(stimuli, responses)
        assert n_steps == n_left  # all of it was there
    np.testing.assert_array_equal(model.predict(stimuli), whole.predict(stimuli))
    np.testing.assert_array_equal(again.predict(stimuli), whole.predict(stimuli))
    forget = [{k: v for k, v in one.items() if k != "seconds"} for one in model.history_]
    np.testing.assert_equal(
        forget, [{k: v for k, v in one.items() if k != "seconds"} for one in whole.history_]
    )


def test_a_damaged_checkpoint_says_what_to_do(backbone, stimuli, responses, tmp_path):
    encoder(backbone, checkpoints=tmp_path).fit(stimuli, responses)
    (kept,) = tmp_path.rglob("last.ckpt")
    whole = kept.read_bytes()
    for damaged in (whole[: len(whole) // 2], b"", b"nothing of the kind"):
        kept.write_bytes(damaged)
        with pytest.raises(FileFormatError, match="is damaged .* Remove its folder"):
            encoder(backbone, checkpoints=tmp_path).fit(stimuli, responses)


def test_small_parts_of_a_batch_give_the_same_model(backbone, stimuli, responses):
    whole = encoder(backbone, finetune="all").fit(stimuli, responses)
    parts = encoder(backbone, finetune="all", micro_batch_size=5).fit(stimuli, responses)
    np.testing.assert_allclose(parts.predict(stimuli), whole.predict(stimuli), atol=2e-3)


def test_out_of_memory_halves_the_parts_and_says_so(
    backbone, stimuli, responses, monkeypatch, caplog
):
    whole = encoder(backbone, finetune="all").fit(stimuli, responses)
    real = Network.forward

    def small_only(self, inputs):
        if self.training and len(inputs) > 10:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(self, inputs)

    monkeypatch.setattr(Network, "forward", small_only)
    with caplog.at_level(logging.WARNING, "neurodl"):
        model = encoder(backbone, finetune="all").fit(stimuli, responses)
    said = [record.getMessage() for record in caplog.records]
    assert [one for one in said if "batches of 32 pass in parts of 8" in one]
    np.testing.assert_allclose(model.predict(stimuli), whole.predict(stimuli), atol=2e-3)

    monkeypatch.setattr(
        Network, "forward", lambda *_: (_ for _ in ()).throw(torch.OutOfMemoryError())
    )
    with pytest.raises(TooLargeError, match="Not even 1 stimuli"):
        encoder(backbone, finetune="all").fit(stimuli, responses)


def test_a_start_that_nothing_improves_is_kept(backbone, stimuli, responses):
    frozen = encoder(backbone).fit(stimuli, responses)
    with pytest.warns(NeurodlWarning, match="did not lower the validation loss"):
        tuned = encoder(backbone, finetune="all", core_lr=0.3, lr=1e-9, readout_epochs=1).fit(
            stimuli, responses
        )
    assert tuned.core_ == {}
    assert len(frozen.history_) == 5


def test_an_exploding_loss_says_what_to_try(backbone, stimuli, responses):
    with pytest.raises(TrainingError, match="Try a tenth of the learning rate, clip=1.0"):
        encoder(backbone, finetune="all", core_lr=1e6, optimizer="sgd").fit(stimuli, responses)


def test_targets_of_few_whole_numbers_are_not_truncated(backbone, stimuli):
    signal = gaussian_responses(layer_output(backbone.module, stimuli, "block2"), 3, 0.0)
    counts = np.digitize(signal, [-0.5, 0.5])
    model = encoder(backbone, readout_epochs=60, lr=0.03).fit(stimuli, counts)
    predicted = model.predict(stimuli)
    assert np.abs(predicted - predicted.round()).max() > 0.3
    as_floats = encoder(backbone, readout_epochs=60, lr=0.03).fit(stimuli, counts.astype(float))
    np.testing.assert_array_equal(as_floats.predict(stimuli), predicted)
    assert np.corrcoef(predicted[:, 0], counts[:, 0])[0, 1] > 0.6


def test_fewer_rows_than_a_batch_are_one_batch(backbone, stimuli, responses):
    few = torch.utils.data.Subset(stimuli, range(12))
    model = encoder(backbone, finetune="all", batch_size=64).fit(few, responses[:12])
    assert np.isfinite(model.predict(few)).all()
    with pytest.raises(ValueError, match="at least 4 rows"):
        encoder(backbone).fit(torch.utils.data.Subset(stimuli, range(3)), responses[:3])


def test_one_target_as_a_vector(backbone, stimuli, responses):
    model = encoder(backbone).fit(stimuli, responses[:, 0])
    assert model.predict(stimuli).shape == (len(stimuli),)


def test_several_layers_add_up(backbone, stimuli, responses):
    model = ndl.NeuralEncoder(backbone, ["block1", "block2"], **FAST).fit(stimuli, responses)
    network = model.network()
    inputs = torch.stack([TRANSFORM(stimuli[i]) for i in range(4)])
    with torch.no_grad():
        parts = [
            one(out) for one, out in zip(network.readouts, network.outputs(inputs), strict=True)
        ]
        by_hand = sum(parts) * torch.as_tensor(model.sd_) + torch.as_tensor(model.mean_)
    np.testing.assert_allclose(by_hand, model.predict(stimuli)[:4], atol=1e-5)


def test_presentations_of_a_stimulus_validate_together(backbone, stimuli, responses):
    from neurodl.models._splits import split_validation

    rows = np.repeat(np.arange(48), 2)
    train, validation = split_validation(0.2, 96, rows, 0)
    assert not set(rows[train]) & set(rows[validation])
    assert len(validation) == 20
    model = encoder(backbone).fit(torch.utils.data.Subset(stimuli, rows), responses[rows])
    assert model.predict(torch.utils.data.Subset(stimuli, rows)).shape == (96, 5)


def test_two_processes_do_as_one(backbone, stimuli, responses):
    options = {"finetune": "all", "norm": "frozen", "batch_size": 20}
    one = encoder(backbone, **options).fit(stimuli, responses)
    options["device"] = ["cpu", "cpu"]
    two = ndl.NeuralEncoder(backbone, "block2", **(FAST | options)).fit(stimuli, responses)
    np.testing.assert_allclose(two.predict(stimuli), one.predict(stimuli), atol=2e-3)
    np.testing.assert_allclose(
        [e["val_loss"] for e in two.history_], [e["val_loss"] for e in one.history_], atol=1e-4
    )


def test_half_precision_trains_alike(backbone, stimuli, responses):
    full = encoder(backbone, finetune="all").fit(stimuli, responses)
    half = encoder(backbone, finetune="all", amp=True).fit(stimuli, responses)
    assert np.abs(half.predict(stimuli) - full.predict(stimuli)).max() > 0
    np.testing.assert_allclose(half.predict(stimuli), full.predict(stimuli), atol=0.05)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"readout": "gausian2d"}, UnknownNameError, "Did you mean 'gaussian2d'"),
        ({"finetune": "full"}, UnknownNameError, "`finetune` must be one of"),
        ({"loss": "mae"}, UnknownNameError, "`loss` must be one of"),
        ({"optimizer": "lion"}, UnknownNameError, "`optimizer` must be one of"),
        ({"lr": -1}, ValueError, "`lr` must be a number from 0"),
        ({"batch_size": 2.5}, ValueError, "`batch_size` must be a number from 1"),
        ({"validation": 0}, ValueError, "`validation` must be between 0 and 1"),
        ({"dropout": 1.0}, ValueError, "`dropout` must be below 1"),
        ({"layer": "blok2"}, UnknownNameError, "block2"),
        ({"layer": "head"}, SchemaError, "without places; use readout='linear'"),
        ({"augment": ["RandomFlip"]}, UnknownNameError, "RandomVerticalFlip"),
        ({"augment": [("ColorJitter", {"bright": 1})]}, ValueError, "ColorJitter"),
        ({"target_weights": [1.0]}, ValueError, "must be 5 numbers"),
        ({"target_weights": "ceiling"}, ValueError, "needs the ceiling"),
        ({"loss": "poisson"}, ValueError, "targets are below 0"),
        ({"norm": "train"}, ValueError, "needs a core that is trained"),
        ({"finetune": "lora", "l2_sp": 1.0}, ValueError, "take a smaller lora_rank"),
        ({"finetune": "lora", "lora_targets": ["*.attn"]}, UnknownNameError, "'block1.0'"),
        ({"finetune": "all", "rehearsal": 1.0}, ValueError, "needs `source`"),
        ({"backbone_options": {"seed": 1}}, ValueError, "for a backbone by name"),
    ],
)
def test_wrong_use_says_what_to_do(changes, error, message, backbone, stimuli, responses):
    model = encoder(backbone, finetune=None).set_params(**changes)
    with pytest.raises(error, match=message):
        model.fit(stimuli, responses)


def test_wrong_data_says_what_to_do(backbone, stimuli, responses):
    with pytest.raises(SchemaError, match="For features, use RidgeCV"):
        encoder(backbone).fit(np.zeros((96, 10), "float32"), responses)
    with pytest.raises(SchemaError, match="There are 96 stimuli but responses of shape"):
        encoder(backbone).fit(stimuli, responses[:90])
    with pytest.raises(SchemaError, match="1 targets have infinite values"):
        encoder(backbone).fit(stimuli, np.where(np.arange(5) == 2, np.inf, responses))
    with pytest.raises(SchemaError, match="1 have none at all"):
        encoder(backbone).fit(stimuli, np.where(np.arange(5) == 2, np.nan, responses))


def test_lora_on_a_network_without_such_modules_names_what_there_is(stimuli, responses):
    net = nn.Sequential(nn.Conv2d(3, 3, 3, groups=3), nn.Hardtanh())
    grouped = ndl.load_backbone(net, transform=TRANSFORM)
    with pytest.raises(UnknownNameError, match="It is made of 'Conv2d', 'Hardtanh'"):
        ndl.NeuralEncoder(grouped, "1", finetune="lora", **FAST).fit(stimuli, responses)


def test_a_layer_before_all_weights_cannot_be_tuned(stimuli, responses):
    net = nn.Sequential(nn.AvgPool2d(4), nn.Conv2d(3, 3, 3))
    pooled = ndl.load_backbone(net, transform=TRANSFORM)
    with pytest.raises(ValueError, match="nothing to tune"):
        ndl.NeuralEncoder(pooled, "0", finetune="all", **FAST).fit(stimuli, responses)
    ndl.NeuralEncoder(pooled, "0", **FAST).fit(stimuli, responses)


def test_moving_augmentation_warns_of_retinotopic_targets(backbone):
    model = encoder(backbone, augment=["RandomHorizontalFlip", "RandomGrayscale"])
    with pytest.warns(NeurodlWarning, match=r"\['RandomHorizontalFlip'\] .* V1, hV4 are"):
        model.check_targets(["V1", "hV4", "FFA"])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.check_targets(["FFA"])
        encoder(backbone, augment=["RandomGrayscale"]).check_targets(["V1"])


def test_losses_by_epoch_are_logged(backbone, stimuli, responses, tmp_path):
    model = encoder(backbone, finetune="all", logs=tmp_path).fit(stimuli, responses)
    files = sorted(tmp_path.rglob("metrics.csv"))
    assert [file.parent.name.rsplit("-")[-1] for file in files] == ["all", "readout"]
    logged = np.genfromtxt(files[1], delimiter=",", names=True)
    kept = [one["val_loss"] for one in model.history_ if one["stage"] == "readout"][1:]
    np.testing.assert_allclose(logged["val_loss"], kept, rtol=1e-5)
    assert len(list(tmp_path.rglob("events.out.tfevents*"))) == 2


@pytest.fixture(scope="module")
def shifted(backbone):
    """Stimuli, and responses that the network explains better once it has moved."""
    more = random_stimuli(240)
    moved = perturbed(backbone.module, 1.0)
    return more, gaussian_responses(layer_output(moved, more, "block2"), 5, 0.0)


@pytest.fixture
def last_epoch(monkeypatch):
    """Every epoch counts as better than those before."""
    monkeypatch.setattr("neurodl.models._fitting.IMPROVED", -np.inf)


def test_gradual_unfreezing_moves_one_block_more_in_each_epoch(backbone, shifted, last_epoch):
    moved = []
    for n_epochs in (1, 2, 3):
        options = {
            "finetune": "all",
            "unfreeze": "gradual",
            "max_epochs": n_epochs,
            "core_lr": 3e-4,
        }
        model = encoder(backbone, **options, readout_epochs=20).fit(*shifted)
        moved.append({name.split(".")[0] for name in model.core_})
    assert moved == [{"block2"}, {"block1", "block2"}, {"stem", "block1", "block2"}]


def test_layers_further_from_the_readout_learn_more_slowly(backbone, shifted, last_epoch):
    options = {"finetune": "all", "optimizer": "adam", "max_epochs": 1, "readout_epochs": 20}

    def distances(decay):
        model = encoder(backbone, **options, layer_decay=decay).fit(*shifted)
        before = backbone.module.state_dict()
        return [
            float((model.core_[f"{name}.0.weight"] - before[f"{name}.0.weight"]).abs().mean())
            for name in ("block2", "block1", "stem")
        ]

    even, decayed = distances(1.0), distances(0.1)
    assert decayed[0] > 0.5 * even[0]
    assert decayed[1] < 0.3 * even[1]
    assert decayed[2] < 0.03 * even[2]


def test_a_folded_batch_normalisation_can_be_trained(stimuli):
    module = SmallNet()
    for part in (module.stem, module.block1, module.block2):
        norm = part[1]
        factor = norm.weight / (norm.running_var + norm.eps).sqrt()
        part[0].weight.data *= factor[:, None, None, None].detach()
        part[0].bias.data = ((part[0].bias - norm.running_mean) * factor + norm.bias).detach()
        norm.running_mean.zero_()
        norm.running_var.fill_(1)
        norm.weight.data.fill_(float(np.sqrt(1 + norm.eps)))
        norm.bias.data.zero_()
    folded = ndl.load_backbone(module, transform=TRANSFORM)
    original = layer_output(SmallNet(), stimuli, "block2")
    assert (layer_output(module, stimuli, "block2") - original).abs().max() < 1e-4
    y = gaussian_responses(original, 5, 0.3)
    options = {
        "finetune": "all",
        "norm": "train",
        "core_lr": 3e-4,
        "readout_epochs": 60,
        "lr": 0.03,
    }
    model = ndl.NeuralEncoder(folded, "block2", **(FAST | options)).fit(stimuli, y)
    assert "3 batch normalisations" in model.remarks_[0]
    tuned = [one for one in model.history_ if one["stage"] == "all"]
    readout = [one for one in model.history_ if one["stage"] == "readout"]
    best = min(one["val_loss"] for one in readout)
    assert tuned[0]["val_loss"] == pytest.approx(best, abs=1e-3)  # unfolding changed nothing
    assert tuned[1]["val_loss"] < 1.5 * best  # training mode did not destroy it
    assert "stem.1.running_mean" in model.core_


def test_statistics_can_be_those_of_the_training_stimuli(backbone, stimuli, responses):
    model = encoder(backbone, norm="adapt").fit(stimuli, responses)
    assert {name.split(".")[-1] for name in model.core_} == {"running_mean", "running_var"}
    from neurodl.models._splits import split_validation

    train, _ = split_validation(0.2, 96, None, 0)
    some = stimuli.sel([stimuli.ids[row] for row in train])
    before_norm = layer_output(model.network().core, some, "block1.0")
    torch.testing.assert_close(
        model.core_["block1.1.running_mean"], before_norm.mean((0, 2, 3)), atol=1e-4, rtol=1e-3
    )


@pytest.mark.parametrize("optimizer", ["sgd", "momentum", "rmsprop", "adam", "adamw"])
def test_every_optimizer_lowers_the_loss(optimizer, backbone, shifted):
    lr = 0.2 if optimizer in ("sgd", "momentum") else 0.01
    model = encoder(backbone, optimizer=optimizer, lr=lr, readout_epochs=15).fit(*shifted)
    losses = [one["loss"] for one in model.history_][1:]
    assert losses[-1] < losses[0]
    assert model.history_[-1]["val_loss"] < model.history_[0]["val_loss"]


def test_learning_rates_follow_the_schedule():
    from neurodl.models._fitting import Fitting, Stage

    def rates(schedule, warmup=0, n=5):
        stage = Stage("x", [], n, 1, 8, 8, schedule=schedule, warmup=warmup)
        fitting = Fitting.__new__(Fitting)
        torch.nn.Module.__init__(fitting)
        fitting.stage = stage
        return [fitting._rate(epoch) for epoch in range(n)]

    assert rates("constant") == [1.0] * 5
    np.testing.assert_allclose(rates("linear"), [1, 0.8, 0.6, 0.4, 0.2])
    np.testing.assert_allclose(rates("cosine"), (1 + np.cos(np.pi * np.arange(5) / 5)) / 2)
    np.testing.assert_allclose(rates("constant", warmup=2), [1 / 3, 2 / 3, 1, 1, 1])


def test_gradients_are_clipped_to_their_norm(backbone, stimuli, responses, last_epoch):
    def moved(clip):
        options = {"optimizer": "sgd", "lr": 1.0, "l1": 0.0, "readout_epochs": 1}
        model = encoder(backbone, **options, clip=clip).fit(stimuli, responses)
        start = make_readout("gaussian2d", (12, 6, 6), 5).state_dict()
        return sum(
            float((model.readout_[f"0.readout.{name}"] - one).square().sum())
            for name, one in start.items()
        )

    n_steps = 3  # 77 rows in batches of 32
    assert 0 < moved(1e-3) <= (n_steps * 1e-3) ** 2
    assert moved(None) > 1e-3


def test_the_epoch_that_is_kept_is_the_best_on_the_validation_rows(backbone, stimuli, responses):
    from neurodl.models._splits import split_validation

    options = {"readout_epochs": 60, "readout_patience": 8, "lr": 0.1}
    model = encoder(backbone, **options).fit(stimuli, responses)
    losses = [one["val_loss"] for one in model.history_]
    best = int(np.argmin(losses))
    assert len(losses) == min(best + 8, 60) + 1  # and the start
    _, validation = split_validation(0.2, 96, None, 0)
    predicted = model.predict(torch.utils.data.Subset(stimuli, validation.tolist()))
    z = (predicted - model.mean_) / model.sd_
    truth = (responses[validation] - model.mean_) / model.sd_
    assert np.mean((z - truth) ** 2) == pytest.approx(losses[best], rel=1e-3)
    assert model.val_r_ == pytest.approx(
        np.mean([np.corrcoef(predicted[:, t], responses[validation, t])[0, 1] for t in range(5)]),
        abs=1e-4,
    )


@pytest.mark.parametrize("readout", ["gaussian2d", "ridge"])
def test_test_rows_touch_nothing(readout, backbone, stimuli, responses):
    train, test = np.arange(70), np.arange(70, 96)
    changed = responses.copy()
    changed[test] = 1e3
    model = encoder(backbone, finetune="all", readout=readout)
    said = [
        next(iter(model.predict_folds(stimuli, y, [(train, test)]))).predicted
        for y in (responses, changed)
    ]
    assert torch.equal(*said)


def test_the_core_never_sees_the_validation_rows(backbone, stimuli, responses):
    """They choose the epoch; with one epoch that always improves, they change nothing."""
    from neurodl.models._splits import split_validation

    _, validation = split_validation(0.2, 96, None, 0)
    seen = []
    real = SmallNet.forward

    class Spy(SmallNet):
        def forward(self, x):
            if torch.is_grad_enabled() and len(x) > 1:
                seen.append(x.detach().clone())
            return real(self, x)

    spied = ndl.load_backbone(Spy(), transform=TRANSFORM)
    encoder(spied, finetune="all").fit(stimuli, responses)
    passed = {round(float(row.double().sum()), 3) for batch in seen for row in batch}
    held = {round(float(TRANSFORM(stimuli[row]).double().sum()), 3) for row in validation}
    assert len(passed) == 77 and not passed & held


@pytest.mark.slow
def test_a_killed_process_goes_on_to_the_same_result(stimuli, responses, tmp_path):
    """Killed by the system in the middle of an epoch, with nothing said."""
    script = tmp_path / "fit.py"
    cases = Path(__file__).parents[1] / "cases"
    script.write_text(
        f"""
import sys; sys.path.insert(0, {str(cases)!r})
import numpy as np, neurodl as ndl
from encoding_cases import small_backbone, random_stimuli
y = np.load({str(tmp_path / "y.npy")!r})
model = ndl.NeuralEncoder(small_backbone(), "block2", finetune="all", lr=0.02, device="cpu",
    readout_epochs=4, max_epochs=400, patience=400, core_lr=1e-4,
    checkpoints={str(tmp_path / "c")!r})
model.fit(random_stimuli(96), y)
"""
    )
    np.save(tmp_path / "y.npy", responses)
    process = subprocess.Popen([sys.executable, str(script)], stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        if list((tmp_path / "c").glob("*-all/last.ckpt")):
            break
        time.sleep(0.05)
    process.kill()
    process.wait()
    (kept,) = (tmp_path / "c").glob("*-all/last.ckpt")
    n_done = torch.load(kept, weights_only=False)["epoch"]
    n_epochs = n_done + 4  # it had not come to its end
    assert n_done < 390
    options = {"finetune": "all", "core_lr": 1e-4, "patience": 400, "max_epochs": 400}

    def ended(checkpoints):
        model = encoder(small_backbone(), **options, checkpoints=checkpoints)
        with pytest.MonkeyPatch.context() as patch:
            from neurodl.models import _training

            real = _training.run

            def shorter(fitting, where, label):
                # The same run, but not all of its 400 epochs.
                fitting.stage.max_epochs = min(fitting.stage.max_epochs, n_epochs)
                return real(fitting, where, label)

            patch.setattr(_training, "run", shorter)
            return model.fit(stimuli, responses).predict(stimuli)

    np.testing.assert_array_equal(ended(tmp_path / "c"), ended(None))


def test_videos_pass_frame_by_frame_or_whole(rng):
    clips = [torch.as_tensor(rng.integers(0, 256, (4, 3, 24, 24)), dtype=torch.uint8)] * 12
    y = rng.standard_normal((12, 2)).astype("f4")
    model = encoder(small_backbone(), finetune="all", readout_epochs=1, max_epochs=1)
    predicted = model.fit(clips, y).predict(clips)
    network = model.network()
    with torch.no_grad():
        frames = network.core.block1(network.core.stem(TRANSFORM(clips[0])))
        mean = network.core.block2(frames).mean(0, keepdim=True)
        by_hand = network.readouts[0](mean).numpy() * model.sd_ + model.mean_
    np.testing.assert_allclose(predicted[:1], by_hand, atol=1e-5)
    uneven = [*clips[:11], clips[0][:3]]
    with pytest.raises(SchemaError, match="Open clips with n_frames"):
        encoder(small_backbone()).fit(uneven, y)


@pytest.mark.slow
def test_a_network_of_videos_can_be_tuned(rng):
    clips = [torch.as_tensor(rng.integers(0, 256, (8, 3, 40, 40)), dtype=torch.uint8)] * 8
    y = rng.standard_normal((8, 2)).astype("f4")
    model = ndl.NeuralEncoder(
        "torchvision:r3d_18", "layer1", finetune="last", readout_epochs=1, max_epochs=1,
        batch_size=4, device="cpu", backbone_options={"pretrained": False},
    )  # fmt: skip
    assert np.isfinite(model.fit(clips, y).predict(clips)).all()
    assert len(model.network().shapes[0]) == 3  # over time it is averaged


def test_a_bar_shows_loss_and_val_loss(backbone, stimuli, responses, monkeypatch, capsys):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    encoder(backbone, finetune="all").fit(stimuli, responses)
    shown = "".join(capsys.readouterr())
    assert "val_loss=" in shown and "loss=" in shown and "v_num" not in shown


def test_without_lightning_it_says_what_to_install(backbone, stimuli, responses, monkeypatch):
    from neurodl import models

    monkeypatch.delattr(models, "_adapting", raising=False)
    monkeypatch.setitem(sys.modules, "neurodl.models._adapting", None)
    with pytest.raises(ImportError, match=r"pip install 'neurodl\[finetune\]'"):
        encoder(backbone).fit(stimuli, responses)
    monkeypatch.undo()
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(ImportError, match="needs peft"):
        encoder(backbone, finetune="lora").fit(stimuli, responses)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA GPU")
@pytest.mark.parametrize(
    "options",
    [
        {"finetune": "all", "l2_sp": 0.1, "ewc": 0.1},
        {"finetune": "lora", "loss": "correlation"},
        {"finetune": "all", "readout": "ridge", "norm": "train"},
    ],
)
def test_a_gpu_gives_the_same_model(options, backbone, stimuli, responses):
    on = {
        device: encoder(backbone, **options, amp=False).set_params(device=device)
        for device in ("cpu", "cuda")
    }
    said = {device: one.fit(stimuli, responses).predict(stimuli) for device, one in on.items()}
    np.testing.assert_allclose(said["cuda"], said["cpu"], atol=2e-2)


def test_what_does_not_fit_into_memory_is_computed_anew(backbone, stimuli, responses, monkeypatch):
    model = encoder(backbone, finetune="all").fit(stimuli, responses)
    for module in ("_shown", "_adapting"):
        monkeypatch.setattr(f"neurodl.models.{module}.available_memory", lambda _: 0)
    again = encoder(backbone, finetune="all").fit(stimuli, responses)
    # The same but for the order of sums.
    np.testing.assert_allclose(again.predict(stimuli), model.predict(stimuli), atol=2e-3)
    with pytest.raises(TooLargeError, match="use extract_kernels with KernelRidgeCV"):
        encoder(backbone, readout="ridge").fit(stimuli, responses)


def test_augmentation_varies_training_rows_by_the_seed_and_nothing_else(stimuli):
    from neurodl.models._shown import Shown, make_augmentation

    backbone = small_backbone()
    names = ["RandomHorizontalFlip", ("ColorJitter", {"brightness": 0.5})]
    shown = Shown(backbone, stimuli, make_augmentation(names))
    rows = np.arange(10)
    plain, first, again = shown.inputs(rows), shown.varied(rows, 1), shown.varied(rows, 1)
    assert torch.equal(first, again)
    assert not torch.equal(first, plain) and not torch.equal(first, shown.varied(rows, 2))
    assert torch.equal(shown.varied(rows[::-1].copy(), 1).flip(0), first)  # by row, not by place
    assert torch.equal(shown.inputs(rows), plain)
    flips = make_augmentation([("RandomHorizontalFlip", {"p": 1.0})])
    flipped = Shown(backbone, stimuli, flips).varied(rows, 0)
    assert torch.equal(flipped.flip(-1), plain)


def test_other_stimuli_groups_or_weights_do_not_take_up_a_fit(
    backbone, stimuli, responses, tmp_path
):
    model = encoder(backbone, checkpoints=tmp_path, readout_epochs=1)
    pixels = np.stack([stimuli[i].numpy() for i in range(96)])
    model.fit(pixels, responses)
    model.fit(255 - pixels, responses)
    model.fit(pixels, responses, groups=np.repeat(np.arange(48), 2))
    model.set_params(target_weights=[1.0, 1.0, 1.0, 1.0, 2.0]).fit(pixels, responses)
    assert len(list(tmp_path.glob("*-readout"))) == 4
    model.fit(pixels, responses)
    assert len(list(tmp_path.glob("*-readout"))) == 4


def test_constant_predictions_have_no_correlation(backbone, stimuli, responses):
    model = encoder(backbone).fit(stimuli, responses)
    assert np.isnan(model.history_[0]["val_r"])  # before it is trained it says the mean
    assert np.isfinite(model.history_[-1]["val_r"])
