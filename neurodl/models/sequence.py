"""SequenceEncoder and SequenceDecoder: networks over time, from features to responses and back."""

from __future__ import annotations

from typing import Any, Self

import numpy as np
import torch
from sklearn.utils.validation import check_is_fitted
from torch.nn import functional

from neurodl.errors import UnknownNameError, did_you_mean
from neurodl.models._input import as_tensor, check_fit_input, check_lengths
from neurodl.models._losses import fit_scale, loss_of, target_weights
from neurodl.models._sequence_model import SequenceModel
from neurodl.runtime import resolve_device

LOSSES = ("poisson", "mse")
TARGETS = ("values", "classes")


class SequenceEncoder(SequenceModel):
    """A network over time that predicts responses: from a population, a stimulus or a movie.

    Rows of one run are a sequence; its states are read out linearly. By default it is causal: a
    prediction knows the features up to its own row only.

    Parameters
    ----------
    cell : {"gru", "rnn", "lstm", "transformer"}
        What carries the past on. "rnn" is the plain network with tanh.
    loss : {"poisson", "mse"}
        Of counts, whose rates stay above 0; or squared, as for fMRI. Each target counts in
        proportion to how much it varies.
    hidden_size, n_layers : int
        States, and layers of them.
    bidirectional : bool
        Whether predictions may know what comes later in the run: smoothing, not forecasting.
        States of both directions are averaged.
    dropout : float
    lr, weight_decay : float
        Of AdamW.
    batch_size : int
        Sequences in a step.
    max_epochs, patience : int
        Epochs at most, and without a better validation loss.
    validation : float
        The share of the training runs, or groups of them, that tells when to stop, so that its
        rows do not train; of a single run, some pieces. 0 trains `max_epochs` on all.
    max_length : int, optional
        Cut longer runs into pieces in training [rows]; a transformer predicts in such pieces, too,
        which overlap by half.
    device : {"auto", "cpu", "cuda", "mps"}
    seed : int
        Of weights, order, dropout and validation.

    Attributes
    ----------
    history_ : list of dict
        epoch, loss, val_loss and seconds.
    state_ : dict of str to torch.Tensor
        Weights of the network; see `network`.

    References
    ----------
    Sussillo & Barak (2013), Opening the black box, Neural Computation 25; Pandarinath et al.
    (2018), Inferring single-trial neural population dynamics using sequential auto-encoders, Nature
    Methods 15; Vaswani et al. (2017), Attention is all you need, NeurIPS.

    Examples
    --------
    >>> import numpy as np
    >>> rng = np.random.default_rng(0)
    >>> X = rng.standard_normal((400, 2)).astype("float32")
    >>> past = np.r_[np.zeros((1, 2)), X[:-1]]  # what was there a row ago
    >>> runs = np.repeat(np.arange(20), 20)
    >>> model = SequenceEncoder("rnn", loss="mse", lr=0.02, max_epochs=40, device="cpu")
    >>> model = model.set_params(validation=0.0).fit(X, past, runs=runs)
    >>> predicted = model.predict(X, runs)
    >>> bool(np.corrcoef(predicted[:, 0], past[:, 0])[0, 1] > 0.9)
    True
    """

    def __init__(
        self,
        cell: str = "gru",
        *,
        loss: str = "poisson",
        hidden_size: int = 32,
        n_layers: int = 1,
        bidirectional: bool = False,
        dropout: float = 0.0,
        lr: float = 5e-3,
        weight_decay: float = 1e-3,
        batch_size: int = 32,
        max_epochs: int = 300,
        patience: int = 20,
        validation: float = 0.1,
        max_length: int | None = None,
        device: Any = "auto",
        seed: int = 0,
    ) -> None:
        super().__init__(
            cell,
            hidden_size=hidden_size,
            n_layers=n_layers,
            bidirectional=bidirectional,
            dropout=dropout,
            lr=lr,
            weight_decay=weight_decay,
            batch_size=batch_size,
            max_epochs=max_epochs,
            patience=patience,
            validation=validation,
            max_length=max_length,
            device=device,
            seed=seed,
        )
        self.loss = loss

    @property
    def predicts(self) -> str:
        """What predictions are: rates, or values."""
        return "rate" if self.loss == "poisson" else "value"

    def fit(self, X: Any, y: Any, groups: Any = None, runs: Any = None) -> Self:
        """Train the network.

        Parameters
        ----------
        X : array-like, shape (n_samples, n_features)
        y : array-like, shape (n_samples,) or (n_samples, n_targets)
        groups : array-like, shape (n_samples,), optional
            Runs of one group validate or train together.
        runs : array-like, shape (n_samples,), optional
            The run of each row; the rows of a run stand together, in the order of time. Without,
            all rows are one run.

        Returns
        -------
        self

        Raises
        ------
        ValueError, UnknownNameError
            Values are not finite, lengths differ, or a parameter is out of range.
        TrainingError
            The loss ran away.
        """
        X, y = check_fit_input(self, X, y)
        check_lengths(X, y, groups=groups, runs=runs)
        self._check_parameters()
        if self.loss not in LOSSES:
            raise UnknownNameError(
                f"`loss` must be one of {LOSSES}, but got {self.loss!r}. "
                f"{did_you_mean(str(self.loss), LOSSES)}"
            )
        device = resolve_device(self.device)
        features = as_tensor(X, device).float()
        targets = as_tensor(y, device).float()
        if not targets.isfinite().all():
            raise ValueError("Input y contains NaN or infinity: leave these rows or targets out.")

        # Of rows that validate, too, which are training rows as well: a unit that fires seldom may
        # fire in these only.
        scale, weights = fit_scale(targets, self.loss), target_weights(targets)
        self._scale = scale.to(torch.device("cpu"))

        def loss(output: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
            return loss_of(output, targets[rows], scale, weights, len(rows))

        self._trained(features, runs, groups, targets.shape[1], loss)
        return self

    def predict(self, X: Any, runs: Any = None) -> np.ndarray:
        """Return predicted responses, shape (n_samples,) or (n_samples, n_targets).

        Parameters
        ----------
        X : array-like, shape (n_samples, n_features)
        runs : array-like, shape (n_samples,), optional
            See `fit`.
        """
        output = self._applied(X, runs, self.network())
        predicted = self._scale.to(output.device).predicted(output).cpu().numpy()
        return predicted[:, 0] if self._single_target else predicted


class SequenceDecoder(SequenceModel):
    """A network over time that reads behaviour or a category from the activity of a population.

    Parameters
    ----------
    cell : {"gru", "rnn", "lstm", "transformer"}
    targets : {"values", "classes"}
        Numbers, such as the speed of a wheel, with squared loss; or labels, such as a choice, with
        cross-entropy. A label per row: one of a whole run is repeated, and decoded anew from what
        was seen so far.
    hidden_size, n_layers, bidirectional, dropout, lr, weight_decay, batch_size, max_epochs
        See `SequenceEncoder`.
    patience, validation, max_length, device, seed
        See `SequenceEncoder`.

    Attributes
    ----------
    classes_ : numpy.ndarray
        With ``targets="classes"``.
    history_, state_
        See `SequenceEncoder`.

    References
    ----------
    Glaser et al. (2020), Machine learning for neural decoding, eNeuro 7.

    Examples
    --------
    >>> import numpy as np
    >>> rng = np.random.default_rng(0)
    >>> y = np.repeat(["left", "right"] * 15, 10)
    >>> X = (y == "left")[:, None] + rng.standard_normal((300, 1))
    >>> runs = np.repeat(np.arange(30), 10)
    >>> model = SequenceDecoder(targets="classes", max_epochs=25, validation=0.0, device="cpu")
    >>> bool((model.fit(X, y, runs=runs).predict(X, runs) == y)[9::10].mean() > 0.9)
    True
    """

    def __init__(
        self,
        cell: str = "gru",
        *,
        targets: str = "values",
        hidden_size: int = 32,
        n_layers: int = 1,
        bidirectional: bool = False,
        dropout: float = 0.0,
        lr: float = 5e-3,
        weight_decay: float = 1e-3,
        batch_size: int = 32,
        max_epochs: int = 300,
        patience: int = 20,
        validation: float = 0.1,
        max_length: int | None = None,
        device: Any = "auto",
        seed: int = 0,
    ) -> None:
        super().__init__(
            cell,
            hidden_size=hidden_size,
            n_layers=n_layers,
            bidirectional=bidirectional,
            dropout=dropout,
            lr=lr,
            weight_decay=weight_decay,
            batch_size=batch_size,
            max_epochs=max_epochs,
            patience=patience,
            validation=validation,
            max_length=max_length,
            device=device,
            seed=seed,
        )
        self.targets = targets

    def fit(self, X: Any, y: Any, groups: Any = None, runs: Any = None) -> Self:
        """Train the network.

        Parameters
        ----------
        X : array-like, shape (n_samples, n_features)
            Activity of the population.
        y : array-like, shape (n_samples,) or (n_samples, n_targets)
            Values, or labels (n_samples,).
        groups, runs
            See `SequenceEncoder.fit`.

        Returns
        -------
        self

        Raises
        ------
        ValueError, UnknownNameError, TrainingError
            See `SequenceEncoder.fit`.
        """
        self._check_parameters()
        if self.targets not in TARGETS:
            raise UnknownNameError(
                f"`targets` must be one of {TARGETS}, but got {self.targets!r}. "
                f"{did_you_mean(str(self.targets), TARGETS)}"
            )
        codes: np.ndarray = np.asarray(y)
        if self.targets == "classes":
            if codes.ndim != 1:
                raise ValueError(f"Labels must be 1-D, but y has shape {codes.shape}.")
            self.classes_, codes = np.unique(codes, return_inverse=True)
            if len(self.classes_) < 2:
                raise ValueError("There is one class only; decoding needs two.")
        X, codes = check_fit_input(self, X, codes)
        check_lengths(X, codes, groups=groups, runs=runs)
        device = resolve_device(self.device)
        features = as_tensor(X, device).float()
        of_kind = self._of_classes if self.targets == "classes" else self._of_values
        n_outputs, loss = of_kind(codes, device)
        self._trained(features, runs, groups, n_outputs, loss)
        return self

    def _of_classes(self, codes: Any, device: torch.device) -> tuple[int, Any]:
        labels = torch.as_tensor(np.asarray(codes)[:, 0], dtype=torch.long, device=device)

        def loss(output: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
            return functional.cross_entropy(output, labels[rows])

        return len(self.classes_), loss

    def _of_values(self, values: Any, device: torch.device) -> tuple[int, Any]:
        targets = as_tensor(values, device).float()
        if not targets.isfinite().all():
            raise ValueError("Input y contains NaN or infinity: leave these rows or targets out.")
        scale, weights = fit_scale(targets, "mse"), target_weights(targets)
        self._scale = scale.to(torch.device("cpu"))

        def loss(output: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
            return loss_of(output, targets[rows], scale, weights, len(rows))

        return targets.shape[1], loss

    def predict(self, X: Any, runs: Any = None) -> np.ndarray:
        """Return values (n_samples,) or (n_samples, n_targets), or labels (n_samples,).

        Parameters
        ----------
        X : array-like, shape (n_samples, n_features)
        runs : array-like, shape (n_samples,), optional
        """
        if self.targets == "classes":
            return self.classes_[self.predict_proba(X, runs).argmax(1)]
        output = self._applied(X, runs, self.network())
        predicted = self._scale.to(output.device).predicted(output).cpu().numpy()
        return predicted[:, 0] if self._single_target else predicted

    def predict_proba(self, X: Any, runs: Any = None) -> np.ndarray:
        """Return probabilities of the classes, shape (n_samples, n_classes).

        Parameters
        ----------
        X : array-like, shape (n_samples, n_features)
        runs : array-like, shape (n_samples,), optional
        """
        check_is_fitted(self, "classes_")
        return self._applied(X, runs, self.network()).softmax(1).cpu().numpy()
