"""Encoding models: scikit-learn style estimators over plain arrays."""

from neurodl.models.kernel_ridge import KernelRidgeCV
from neurodl.models.ridge import RidgeCV
from neurodl.models.stacked_ridge import StackedRidgeCV

__all__ = ["KernelRidgeCV", "RidgeCV", "StackedRidgeCV"]
