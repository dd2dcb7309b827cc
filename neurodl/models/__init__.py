"""Encoding models: scikit-learn style estimators over plain arrays."""

from neurodl.models.banded_ridge import BandedRidgeCV
from neurodl.models.encoder import NeuralEncoder
from neurodl.models.fractional import FractionalRidgeCV
from neurodl.models.hyperalignment import Hyperalignment
from neurodl.models.kernel_ridge import KernelRidgeCV
from neurodl.models.pls import PLS
from neurodl.models.poisson_ridge import PoissonRidgeCV
from neurodl.models.reduced_rank import ReducedRankRidgeCV
from neurodl.models.ridge import RidgeCV
from neurodl.models.sequence import SequenceDecoder, SequenceEncoder
from neurodl.models.stacked_ridge import StackedRidgeCV

__all__ = [
    "PLS",
    "BandedRidgeCV",
    "FractionalRidgeCV",
    "Hyperalignment",
    "KernelRidgeCV",
    "NeuralEncoder",
    "PoissonRidgeCV",
    "ReducedRankRidgeCV",
    "RidgeCV",
    "SequenceDecoder",
    "SequenceEncoder",
    "StackedRidgeCV",
]
