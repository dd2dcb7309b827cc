"""NeuralEncoder: a pretrained network, adapted to responses, as a scikit-learn style estimator."""

from __future__ import annotations

import dataclasses
import hashlib
import logging
import numbers
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import pandas as pd
import torch
from sklearn.base import BaseEstimator, MultiOutputMixin, RegressorMixin, clone
from sklearn.utils.validation import check_is_fitted

from neurodl.backbones import Backbone, load_backbone
from neurodl.errors import NeurodlWarning, SchemaError, UnknownNameError, did_you_mean
from neurodl.models._adaptation import FINETUNE, NORMS
from neurodl.models._base import FoldPrediction
from neurodl.models._input import as_tensor
from neurodl.models._losses import LOSSES, Scale
from neurodl.models._network import Network
from neurodl.models._shown import Shown, make_augmentation, moving
from neurodl.models._splits import check_rows
from neurodl.models.readouts import READOUTS, RIDGE, field_of
from neurodl.runtime import precision_of, resolve_devices

if TYPE_CHECKING:
    from neurodl.models._adapting import FrozenOutputs

logger = logging.getLogger(__name__)
RETINOTOPIC = ("V1", "V2", "V3", "V4", "LO1", "LO2", "VO1", "VO2", "TO1", "TO2", "LGN")
UNFREEZE = ("together", "gradual")
N_AT_ONCE = 64  # stimuli that pass through the network when it predicts
# Parameters that must not be below 0, and those that must be whole numbers from 1.
AT_LEAST_0 = (
    "lr", "core_lr", "layer_decay", "weight_decay", "l1", "l2", "l2_sp", "ewc", "rehearsal",
    "dropout", "warmup", "clip",
)  # fmt: skip
AT_LEAST_1 = (
    "n_blocks", "lora_rank", "max_epochs", "patience", "readout_epochs", "readout_patience",
    "batch_size", "micro_batch_size",
)  # fmt: skip


class NeuralEncoder(MultiOutputMixin, RegressorMixin, BaseEstimator):
    """A pretrained network whose readout, and as much of it as wanted, is trained on responses.

    First the readout is trained on the network as it is, then both together. A part of the
    training rows is held back for early stopping, in each of the two; what is kept is the best
    epoch, or the start where no epoch was better. It takes stimuli in place of features, in the
    same `cross_validate` as the regressions.

    Parameters
    ----------
    backbone : str or Backbone
        See `load_backbone`.
    layer : str or sequence of str
        The layers that are read; the predictions of several add up.
    readout : {"gaussian2d", "ridge", "linear", "factorised", "point2d", "attention"}
        A target sees a Gaussian part of the map and weighs the channels there; is ridge regression
        of all features; weighs all features; has a free map of places [1]_; sees one point [2]_;
        or the places that its query agrees with. With "ridge" the core is trained under readouts
        that never saw the row they predict, and the readout is solved for once more at the end.
    finetune : {None, "readout", "last", "lora", "all"}
        What is trained beside the readout: nothing (None or "readout"), the last `n_blocks`
        before the layer, low-rank additions to the weights [3]_, or all up to the layer.
    loss : {"mse", "poisson", "correlation"}
        Squared error of z-scored targets; the Poisson deviance of counts and rates, scaled to the
        curvature of squared error; or 1 - r over a batch.
    backbone_options : mapping, optional
        What `load_backbone` is given beside the name, such as ``{"weights": "resnet.pth"}``.
    n_blocks : int
        See `finetune`.
    lora_rank : int
    lora_targets : sequence of str, optional
        Modules that get low-rank additions, by name or pattern (``"*.conv_pw"``); by default all
        linear modules and convolutions without groups.
    norm : {"frozen", "adapt", "train"}
        Statistics of batch normalisation: those of the checkpoint, those of the training stimuli,
        or of each batch. Where the checkpoint has them folded into the weights, they are unfolded
        first.
    lr, core_lr : float
        Learning rates of the readout and of the core at the layer; by default 0.0003 for the core,
        with "lora" 0.001. Readouts see the layer's channels about their mean, in units of what all
        of them vary by, so that `lr`, `l1` and `l2` mean the same for all layers.
    layer_decay : float
        What the learning rate is multiplied by for each block further from the layer.
    unfreeze : {"together", "gradual"}
        Whether all blocks move from the first epoch, or one more in each.
    optimizer : {"adamw", "adam", "sgd", "momentum", "rmsprop"}
    schedule : {"constant", "cosine", "linear", "plateau"}
        Of learning rates over epochs, after `warmup` epochs in which they rise.
    warmup : int
    clip : float, optional
        The largest norm of a gradient.
    weight_decay : float
        Of the optimizer.
    l1, l2 : float
        Penalties on the readout's weights of features, mean over targets.
    l2_sp : float
        Pulls the core towards its pretrained weights [4]_.
    ewc : float
        The same, by how much the source task depends on each weight [5]_, on average 1. That is
        told from `source` where it is given, else from the training stimuli.
    rehearsal : float
        Weight of the source task's cross-entropy, of a batch of `source` in each step.
    source : Stimuli, optional
        Of the network's own task; for `rehearsal` with the class of each in the column label.
    dropout : float
        Share of the layer's channels that are left out while the readout is trained.
    max_epochs, patience : int
        Of the tuning of the core: at most so many, and so many without improvement.
    readout_epochs, readout_patience : int
        The same for the readout alone, whose epochs take no pass through the network.
    batch_size : int
        Of a step.
    micro_batch_size : int, optional
        How many stimuli pass at once; by default all of the batch. Halved when memory runs out,
        with the same result.
    validation : float
        Share of the training rows, or of their groups, that early stopping looks at.
    augment : sequence
        Transforms of torchvision by name, each with its options where it has any:
        ``["RandomHorizontalFlip", ("ColorJitter", {"brightness": 0.2})]``. Those that move things
        in the image warn for retinotopic targets.
    target_weights : {None, "ceiling"} or array-like, shape (n_targets,)
        How much each target counts in the loss; "ceiling" takes what `cross_validate` knows.
    amp : bool, optional
        Mixed precision; by default on GPUs.
    device : str, or list of devices
        See `resolve_devices`. Several share each batch, one process each.
    seed : int
        Of everything random: with it, runs on the CPU are identical.
    logs : str or Path, optional
        A folder for the losses by epoch, as CSV and, where it is installed, for TensorBoard.
    checkpoints : str or Path, optional
        A folder in which an interrupted fit goes on, to the same result.

    Attributes
    ----------
    readout_, core_ : dict of str to torch.Tensor
        The readouts' state, and the tensors of the core that differ from the backbone's.
    history_ : list of dict
        By stage and epoch: loss, val_loss, val_r and seconds; epoch 0 is the start.
    val_r_ : float
        Mean over targets of r on the validation rows, at the epoch that was kept. It chose that
        epoch, and so is above what new stimuli will give.
    remarks_ : list of str
        What was done to the network that was not asked for.

    References
    ----------
    .. [1] Klindt, Ecker, Euler & Bethge (2017), Neural system identification for large
       populations, NeurIPS.
    .. [2] Lurz et al. (2021), Generalization in data-driven models of primary visual cortex, ICLR.
    .. [3] Hu et al. (2022), LoRA: low-rank adaptation of large language models, ICLR.
    .. [4] Li, Grandvalet & Davoine (2018), Explicit inductive bias for transfer learning, ICML.
    .. [5] Kirkpatrick et al. (2017), Overcoming catastrophic forgetting, PNAS 114.
    """

    takes_stimuli: ClassVar[bool] = True
    not_saved: ClassVar[tuple[str, ...]] = ("_network", "_loaded")

    def __init__(
        self,
        backbone: Any = "torchvision:resnet18",
        layer: Any = None,
        readout: str = "gaussian2d",
        finetune: str | None = None,
        loss: str = "mse",
        *,
        backbone_options: Mapping[str, Any] | None = None,
        n_blocks: int = 1,
        lora_rank: int = 8,
        lora_targets: Sequence[str] | None = None,
        norm: str = "frozen",
        lr: float = 3e-3,
        core_lr: float | None = None,
        layer_decay: float = 1.0,
        unfreeze: str = "together",
        optimizer: str = "adamw",
        schedule: str = "constant",
        warmup: int = 0,
        clip: float | None = None,
        weight_decay: float = 0.0,
        l1: float = 0.01,
        l2: float = 0.0,
        l2_sp: float = 0.0,
        ewc: float = 0.0,
        rehearsal: float = 0.0,
        source: Any = None,
        dropout: float = 0.0,
        max_epochs: int = 20,
        patience: int = 3,
        readout_epochs: int = 300,
        readout_patience: int = 20,
        batch_size: int = 32,
        micro_batch_size: int | None = None,
        validation: float = 0.2,
        augment: Sequence[Any] = (),
        target_weights: Any = None,
        amp: bool | None = None,
        device: Any = "auto",
        seed: int = 0,
        logs: Any = None,
        checkpoints: Any = None,
    ) -> None:
        self.backbone = backbone
        self.layer = layer
        self.readout = readout
        self.finetune = finetune
        self.loss = loss
        self.backbone_options = backbone_options
        self.n_blocks = n_blocks
        self.lora_rank = lora_rank
        self.lora_targets = lora_targets
        self.norm = norm
        self.lr = lr
        self.core_lr = core_lr
        self.layer_decay = layer_decay
        self.unfreeze = unfreeze
        self.optimizer = optimizer
        self.schedule = schedule
        self.warmup = warmup
        self.clip = clip
        self.weight_decay = weight_decay
        self.l1 = l1
        self.l2 = l2
        self.l2_sp = l2_sp
        self.ewc = ewc
        self.rehearsal = rehearsal
        self.source = source
        self.dropout = dropout
        self.max_epochs = max_epochs
        self.patience = patience
        self.readout_epochs = readout_epochs
        self.readout_patience = readout_patience
        self.batch_size = batch_size
        self.micro_batch_size = micro_batch_size
        self.validation = validation
        self.augment = augment
        self.target_weights = target_weights
        self.amp = amp
        self.device = device
        self.seed = seed
        self.logs = logs
        self.checkpoints = checkpoints

    def fit(self, X: Any, y: Any, groups: Any = None, ceiling: Any = None) -> NeuralEncoder:
        """Train the readout, and the core where that is wanted.

        Parameters
        ----------
        X : Stimuli, torch Dataset of images, or array (n_samples, 3, height, width) of uint8
        y : array-like, shape (n_samples,) or (n_samples, n_targets)
            NaN where a target was not recorded.
        groups : array-like, shape (n_samples,), optional
            Rows of one group validate or train together. Presentations of one stimulus always do.
        ceiling : array-like, shape (n_targets,), optional
            For ``target_weights="ceiling"``.

        Returns
        -------
        NeuralEncoder
            self.

        Raises
        ------
        UnknownNameError
            There is no such layer, readout, loss ...; near matches are listed.
        SchemaError
            The stimuli are no images, or the readout needs places that the layer does not have.
        TrainingError
            The loss ran away.
        TooLargeError
            Not even one stimulus at a time fits into memory.
        """
        self._check_parameters()
        shown, stimulus = self._shown(X)
        targets = _targets(y, len(stimulus))
        adapted = self._adapt(shown, stimulus, targets, groups, ceiling, None)
        self._learn(adapted, y)
        return self

    def predict(self, X: Any) -> np.ndarray:
        """Return predicted responses, (n_samples, n_targets), float32; (n_samples,) as was y.

        Parameters
        ----------
        X : Stimuli, torch Dataset of images, or array (n_samples, 3, height, width) of uint8
        """
        check_is_fitted(self, "readout_")
        network = self.network()
        shown, stimulus = self._shown(X, augmented=False)
        device = resolve_devices(self.device)[0]
        predicted = _predict(
            network.to(device), self._scale(), shown, stimulus, device, self._amp()
        )
        return predicted[:, 0] if self.single_target_ else predicted

    def predict_folds(
        self,
        X: Any,
        y: Any,
        splits: Sequence[tuple[Any, Any]],
        groups: Any = None,
        runs: Any = None,
        ceilings: Sequence[Any] | None = None,
    ) -> Iterator[FoldPrediction]:
        """Predict the test rows of each split by a model of its training rows.

        The same as ``fit`` and ``predict`` for each split, but stimuli are decoded, and passed
        through the network as it is, once for all.

        Parameters
        ----------
        X, y, groups
            See `fit`.
        splits : sequence of (train, test)
            Row numbers.
        runs : ignored
        ceilings : sequence of array-like, optional
            For each split, as `fit` takes it.

        Yields
        ------
        FoldPrediction
        """
        self._check_parameters()
        shown, stimulus = self._shown(X)
        targets = _targets(y, len(stimulus))
        check_rows(splits, len(stimulus))
        backbone, layers = self.opened()
        device = resolve_devices(self.device)[0]
        probe = Network(backbone, layers, self.readout, 1, shown.example)
        frozen = _engine().FrozenOutputs(probe, shown)
        groups = None if groups is None else np.asarray(groups)
        for fold, (train, test) in enumerate(splits):
            adapted = self._adapt(
                shown,
                stimulus[train],
                targets[train],
                None if groups is None else groups[train],
                None if ceilings is None else ceilings[fold],
                frozen,
            )
            predicted = _predict(
                adapted.network, adapted.scale, shown, stimulus[test], device, self._amp()
            )
            undefined = torch.full((targets.shape[1],), torch.nan)
            yield FoldPrediction(
                fold,
                slice(None),
                torch.from_numpy(predicted),
                undefined,
                history=adapted.history,
            )

    def network(self) -> Network:
        """Return the trained network: its ``core`` is a torch module, its ``readouts`` others."""
        check_is_fitted(self, "readout_")
        if getattr(self, "_network", None) is None:
            backbone, layers = self.opened()
            if backbone.weights_sha256 != self.weights_sha256_:
                raise SchemaError(
                    f"{backbone.name} has other weights ({backbone.weights}) than those that this "
                    f"model was tuned from ({self.weights_}). Give the same in backbone_options."
                )
            example = torch.zeros(1, *self.input_shape_)
            network = Network(backbone, layers, self.readout, len(self.mean_), example)
            network.readouts.load_state_dict(self.readout_)
            network.core.load_state_dict(self.core_, strict=False)
            self._network = network.requires_grad_(False).eval()
        return self._network

    def receptive_fields(self) -> pd.DataFrame:
        """Return where on the network's input each target looks, one row per target and layer.

        Returns
        -------
        pandas.DataFrame
            Columns layer, target (its number), x, y, width_x and width_y [pixels of the input];
            see `neurodl.models.readouts.field_of`.

        Raises
        ------
        SchemaError
            The readout is neither "gaussian2d" nor "point2d".
        """
        network = self.network()
        tables = []
        for layer, readout in zip(network.layers, network.readouts, strict=True):
            inner = getattr(readout, "readout", readout)
            found = {
                name: one.cpu().numpy()
                for name, one in field_of(inner, self.input_shape_[-2:]).items()
            }
            tables.append(pd.DataFrame({"layer": layer, "target": range(len(found["x"])), **found}))
        return pd.concat(tables, ignore_index=True)

    def for_new_subject(self, **changes: Any) -> NeuralEncoder:
        """Return a model, not fitted, that reads the tuned network and leaves it as it is.

        Parameters
        ----------
        **changes
            Parameters that differ from this model's, such as ``readout="ridge"``.
        """
        check_is_fitted(self, "readout_")
        same = {"finetune": None, "norm": "frozen", "backbone_options": None, "rehearsal": 0.0}
        tuned = dataclasses.replace(
            self.network().backbone, weights=f"{self.weights_}, tuned on other responses"
        )
        return clone(self).set_params(**(same | {"backbone": tuned} | changes))

    def describe(self) -> dict[str, str]:
        """Return what results are labelled with: the layers read, and `Backbone.describe`."""
        backbone, layers = self.opened()
        return {**backbone.describe(), "layer": "+".join(layers)}

    def check_targets(self, regions: Sequence[str]) -> None:
        """Warn if the augmentation moves what targets of retinotopic regions see."""
        moved = moving(self.augment)
        found = sorted(
            {one for one in map(str, regions) if one.lstrip("h").startswith(RETINOTOPIC)}
        )
        if moved and found:
            warnings.warn(
                f"augment={moved} moves what is in the image, but {', '.join(found)} are "
                "retinotopic: their targets answer to places. Leave it out, or expect less.",
                NeurodlWarning,
                stacklevel=3,
            )

    def _adapt(
        self,
        shown: Shown,
        stimulus: np.ndarray,
        targets: torch.Tensor,
        groups: Any,
        ceiling: Any,
        frozen: FrozenOutputs | None,
    ) -> Any:
        engine = _engine()
        backbone, layers = self.opened()
        if groups is None and len(np.unique(stimulus)) < len(stimulus):
            groups = stimulus  # presentations of one stimulus validate or train together
        given = engine.Given(
            shown,
            stimulus,
            targets,
            None if groups is None else np.asarray(groups),
            self._weights(targets.shape[1], ceiling),
        )
        where = engine.place(self.device, self.amp, self.logs, self.checkpoints)
        label = self._label(backbone, given)
        with precision_of(where.device, where.amp):
            return engine.Adaptation(self, backbone, layers, given, where, label, frozen).run()

    def _learn(self, adapted: Any, y: Any) -> None:
        network = adapted.network.cpu()
        state = network.core.state_dict()
        self.core_ = {name: state[name].clone() for name in adapted.changed}
        self.readout_ = {name: one.clone() for name, one in network.readouts.state_dict().items()}
        self.mean_, self.sd_ = adapted.scale.mean.numpy(), adapted.scale.sd.numpy()
        self.history_, self.remarks_ = adapted.history, adapted.remarks
        last = [one for one in self.history_ if one["stage"] == self.history_[-1]["stage"]]
        self.val_r_ = min(last, key=lambda one: one["val_loss"])["val_r"]
        opened, _ = self.opened()
        self.weights_, self.weights_sha256_ = opened.weights, opened.weights_sha256
        self.input_shape_ = list(adapted.input_shape)
        self.single_target_ = np.ndim(y) == 1
        self._network = network

    def opened(self) -> tuple[Backbone, list[str]]:
        """Return the backbone as it was before it was tuned, and the names of the read layers."""
        options = dict(self.backbone_options or {})
        if isinstance(self.backbone, Backbone):
            if options:
                raise ValueError("`backbone_options` are for a backbone by name; leave them out.")
            backbone = self.backbone
        else:
            key = repr((self.backbone, sorted(options.items(), key=lambda one: one[0])))
            if getattr(self, "_loaded", (None,))[0] != key:
                self._loaded = key, load_backbone(self.backbone, **options)
            backbone = self._loaded[1]
        if self.layer is None:
            raise ValueError(
                f"`layer` must say which layer of {backbone.name} is read, for instance one of "
                f"{backbone.default_layers}."
            )
        return backbone, backbone.check_layers(self.layer)

    def _shown(self, X: Any, augmented: bool = True) -> tuple[Shown, np.ndarray]:
        """Return the stimuli as inputs, and which of them each row is."""
        augment = make_augmentation(self.augment) if augmented else None
        backbone, _ = self.opened()
        if isinstance(X, torch.utils.data.Subset):
            return Shown(backbone, X.dataset, augment), np.asarray(X.indices)
        if not hasattr(X, "__len__") or not len(X):
            raise SchemaError("There are no stimuli to train on or to predict for.")
        return Shown(backbone, X, augment), np.arange(len(X))

    def _scale(self) -> Scale:
        return Scale(torch.as_tensor(self.mean_), torch.as_tensor(self.sd_), self.loss)

    def _amp(self) -> bool:
        first = resolve_devices(self.device)[0]
        return first.type == "cuda" if self.amp is None else self.amp

    def _weights(self, n_targets: int, ceiling: Any) -> torch.Tensor | None:
        given = self.target_weights
        if given is None:
            return None
        if isinstance(given, str):
            if ceiling is None:
                raise ValueError(
                    "target_weights='ceiling' needs the ceiling of each target: repeats in the "
                    "responses, or fit(..., ceiling=...)."
                )
            given = ceiling
        weights = torch.as_tensor(np.asarray(given, np.float32))
        usable = bool((weights.isfinite() & (weights >= 0)).all() and weights.sum() > 0)
        if weights.shape != (n_targets,) or not usable:
            raise ValueError(
                f"`target_weights` must be {n_targets} numbers from 0, one per target, but got "
                f"shape {tuple(weights.shape)}, {given!r:.60}."
            )
        return weights

    def _label(self, backbone: Backbone, given: Any) -> str:
        """Return a name for a fit that is its own: of the parameters and of what it is given."""
        where = {"device", "logs", "checkpoints", "backbone", "source", "target_weights"}
        told = {
            key: repr(one) for key, one in self.get_params(deep=False).items() if key not in where
        }
        digest = hashlib.sha256(repr(sorted(told.items())).encode())
        for text in (backbone.weights_sha256, backbone.architecture_sha256):
            digest.update(text.encode())
        digest.update(backbone.transform.text.encode())
        for values in (given.rows, given.targets, given.groups, given.weights):
            if values is not None:
                digest.update(repr(np.asarray(values).tolist()).encode())
        for stimuli in (given.shown.stimuli, self.source):
            if self.checkpoints is not None and stimuli is not None:
                digest.update(_fingerprint(stimuli).encode())
        return digest.hexdigest()[:16]

    def _check_parameters(self) -> None:
        engine = _engine()
        known = {
            "readout": READOUTS,
            "finetune": FINETUNE,
            "loss": LOSSES,
            "norm": NORMS,
            "unfreeze": UNFREEZE,
            "optimizer": engine.OPTIMIZERS,
            "schedule": engine.SCHEDULES,
        }
        for name, options in known.items():
            given = getattr(self, name)
            if given not in options:
                raise UnknownNameError(
                    f"`{name}` must be one of {list(options)}, but got {given!r}. "
                    f"{did_you_mean(str(given), [o for o in options if o])}"
                )
        for names, least in ((AT_LEAST_0, 0), (AT_LEAST_1, 1)):
            for name in names:
                given = getattr(self, name)
                if given is None and name in ("core_lr", "clip", "micro_batch_size"):
                    continue
                kind = numbers.Real if least == 0 else numbers.Integral
                if not isinstance(given, kind) or given < least:
                    raise ValueError(f"`{name}` must be a number from {least}, but got {given!r}.")
        if self.readout == RIDGE and self.loss == "poisson":
            raise ValueError("readout='ridge' is of squared error; use loss='mse' with it.")
        if self.dropout >= 1:
            raise ValueError(f"`dropout` must be below 1, but got {self.dropout}.")


def _fingerprint(stimuli: Any) -> str:
    """Return what tells stimuli from others: the hashes of their bytes, or of their pixels."""
    if hasattr(stimuli, "hashes"):
        return "".join(stimuli.hashes())
    pixels = (np.asarray(stimuli[row]).tobytes() for row in range(len(stimuli)))
    return "".join(hashlib.sha256(one).hexdigest() for one in pixels)


def _engine() -> Any:
    """Return what trains, which needs Lightning and is imported when it is first asked for."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of libraries about each other
            from neurodl.models import _adapting
    except ImportError as error:
        raise ImportError(
            f"NeuralEncoder is trained with Lightning ({error}): pip install 'neurodl[finetune]'."
        ) from error
    return _adapting


def _targets(y: Any, n_rows: int) -> torch.Tensor:
    """Return responses as float32, (n_rows, n_targets); whole numbers stay what they are."""
    targets = as_tensor(y, torch.device("cpu")).float()
    targets = targets[:, None] if targets.ndim == 1 else targets
    if targets.ndim != 2 or len(targets) != n_rows:
        raise SchemaError(
            f"There are {n_rows} stimuli but responses of shape {tuple(targets.shape)}; give "
            "(n_samples, n_targets), row by row as the stimuli."
        )
    if targets.isinf().any() or not targets.isfinite().any(0).all():
        raise SchemaError(
            f"{int(targets.isinf().any(0).sum())} targets have infinite values, and "
            f"{int((~targets.isfinite()).all(0).sum())} have none at all: leave them out."
        )
    return targets


def _predict(
    network: Network,
    scale: Scale,
    shown: Shown,
    stimulus: np.ndarray,
    device: torch.device,
    amp: bool,
) -> np.ndarray:
    """Return predictions (n_rows, n_targets) in the units of the responses."""
    network.eval().to(device)
    scale = scale.to(device)
    parts = []
    with (
        torch.inference_mode(),
        torch.autocast(device.type, enabled=amp),
        precision_of(device, amp),
    ):
        for start in range(0, len(stimulus), N_AT_ONCE):
            inputs = shown.inputs(stimulus[start : start + N_AT_ONCE]).to(device)
            output = network(network.backbone.as_input(inputs)).float()
            parts.append(scale.predicted(output).cpu())
    return torch.cat(parts).numpy()
