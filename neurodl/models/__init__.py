"""Encoding models: scikit-learn style estimators over plain arrays."""

from neurodl.models.ridge import RidgeCV

__all__ = ["RidgeCV"]
