"""Backbones: networks by name, each with the transform, licence and layers that belong to it."""

from neurodl.backbones.base import Backbone, ImageTransform, VideoTransform
from neurodl.backbones.registry import list_backbones, load_backbone

__all__ = ["Backbone", "ImageTransform", "VideoTransform", "list_backbones", "load_backbone"]
