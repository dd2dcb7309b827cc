"""Vision networks of Hugging Face transformers: images and videos, from the hub or a folder."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from neurodl.backbones.base import Backbone, ImageTransform, VideoTransform, describe_transform
from neurodl.backbones.weights import explain_download, load_weights, seeded
from neurodl.errors import (
    FileFormatError,
    MissingFileError,
    NeurodlError,
    UnknownNameError,
    did_you_mean,
    listed,
)

# The kinds of network whose tokens and outputs are known here; of others, features would be pooled
# by guess.
IMAGE_TYPES = (
    "beit", "clip_vision_model", "convnext", "convnextv2", "deit", "dinov2",
    "dinov2_with_registers", "dinov3_convnext", "dinov3_vit", "ijepa", "resnet",
    "siglip_vision_model", "swin", "swinv2", "vit", "vit_mae", "vit_msn",
)  # fmt: skip
VIDEO_TYPES = ("videomae", "vjepa2")
TOKENS = {
    "cls_token": "class",
    "class_embedding": "class",
    "distillation_token": "distillation",
    "register_tokens": "register",
}
TRANSFORM_OPTIONS = (
    "size", "crop_size", "resample", "image_mean", "image_std", "rescale_factor", "do_resize",
    "do_center_crop", "do_rescale", "do_normalize",
)  # fmt: skip
# What an image processor's code may do beside resize, crop, rescale and normalize.
OTHER_STEPS = ("do_pad", "do_flip_channel_order", "do_rescale_offset", "offset", "do_split_image")
WAYS_ON = (  # an untrained network, too, needs the repository's configuration
    "  - fetch the repository elsewhere (huggingface_hub.snapshot_download) and give its folder, "
    "as in 'hf:path/to/folder'."
)
INTERPOLATIONS = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic", 4: "box", 5: "hamming"}


def load(
    name: str,
    *,
    weights: str | None = None,
    pretrained: bool = True,
    seed: int | None = None,
    transform: Mapping[str, Any] | None = None,
    **model_kwargs: Any,
) -> Backbone:
    """Return ``"facebook/dinov2-small"``, or the network saved in a folder.

    Of networks of images and texts, the image tower. Options in `model_kwargs` replace values of
    the configuration, such as ``frames_per_clip`` of V-JEPA 2.
    """
    library = _transformers()
    place = _folder(name) or name
    full_name = f"hf:{name}"
    for key in transform or {}:
        if key not in TRANSFORM_OPTIONS:
            raise UnknownNameError(
                f"`transform` has no option {key!r}. {did_you_mean(key, TRANSFORM_OPTIONS)}"
            )
    with _quiet(library), explain_download(full_name, _said(place), _cache_folder(), WAYS_ON):
        config = _vision_config(library, place, full_name, model_kwargs)
        processor = _processor(library, place, config, dict(transform or {}))
        kind = library.MODEL_MAPPING[type(config)]
        if pretrained and weights is None:
            module, left_out = _pretrained(kind, place, config, full_name)
            origin = f"pretrained {_origin(place, config)}{left_out}"
        else:
            with seeded(seed):
                module = kind(config)
            origin = f"untrained, seed {0 if seed is None else seed}"
    if weights is not None:
        origin = load_weights(module, weights, full_name)
    is_video = config.model_type in VIDEO_TYPES
    return Backbone(
        name=full_name,
        module=_frames_first(_tower(module)) if is_video else module,
        transform=_video(processor, config, full_name) if is_video else _image(processor),
        weights=origin,
        licence=_licence(place) if pretrained and weights is None else "not stated",
        prefix_tokens=_prefix_tokens(module),
        frames_per_token=int(getattr(config, "tubelet_size", 1)) if is_video else 1,
        suggested_layers=_blocks(_tower(module)),
    )


def _transformers() -> Any:
    try:
        import transformers
    except ImportError as error:
        raise NeurodlError(
            "Networks of Hugging Face need the package transformers: pip install 'neurodl[hf]'"
        ) from error
    return transformers


@contextmanager
def _quiet(library: Any) -> Iterator[None]:
    """Keep transformers' bars and reports of unused tensors from the screen; errors are ours."""
    log = library.utils.logging
    before, bars = log.get_verbosity(), log.is_progress_bar_enabled()
    log.set_verbosity_error()
    log.disable_progress_bar()
    try:
        yield
    finally:
        log.set_verbosity(before)
        if bars:
            log.enable_progress_bar()


def _folder(name: str) -> Path | None:
    """Return the folder that a name stands for; None for a name of the hub.

    Raises
    ------
    MissingFileError
        It is written as a path, and no such folder is there.
    """
    path = Path(name).expanduser()
    if path.is_dir():
        return path
    if path.is_absolute() or name.startswith(("./", "../", "~")):
        near = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
        raise MissingFileError(f"The folder {path} does not exist. {did_you_mean(path.name, near)}")
    return None


def _cache_folder() -> str:
    from huggingface_hub.constants import HF_HUB_CACHE

    return str(HF_HUB_CACHE)


def _said(place: str | Path) -> str:
    return f"the folder {place}" if isinstance(place, Path) else f"the Hugging Face hub ({place})"


def _origin(place: str | Path, config: Any) -> str:
    if isinstance(place, Path):
        return f"folder {place.name}"
    commit = getattr(config, "_commit_hash", None)
    return f"{place} at {commit[:12]}" if commit else str(place)


def _vision_config(library: Any, place: str | Path, name: str, options: dict[str, Any]) -> Any:
    """Return the configuration of the image tower, with single values replaced."""
    whole = library.AutoConfig.from_pretrained(place)
    config = getattr(whole, "vision_config", whole)
    config._commit_hash = getattr(whole, "_commit_hash", None)
    if config.model_type not in IMAGE_TYPES + VIDEO_TYPES:
        raise UnknownNameError(
            f"{name} is a {config.model_type!r} network, whose tokens and layers are not known "
            f"here. Known are {', '.join(IMAGE_TYPES + VIDEO_TYPES)}; any other can be given as a "
            "module of your own, with its transform."
        )
    if config.model_type == "vit_mae":
        # The same encoder, without the random masking of three quarters of the patches that
        # ViTMAEModel does even in evaluation mode.
        config = library.ViTConfig.from_pretrained(place)
    for key, value in options.items():
        if not hasattr(config, key):
            raise UnknownNameError(
                f"The configuration of {name} has no option {key!r}. "
                f"{did_you_mean(key, config.to_dict())}"
            )
        setattr(config, key, value)
    return config


def _processor(library: Any, place: str | Path, config: Any, overrides: dict[str, Any]) -> Any:
    """Return the checkpoint's own processor of images or videos."""
    is_video = config.model_type in VIDEO_TYPES
    names = ("video_preprocessor_config.json",) * is_video + (
        "preprocessor_config.json",
        "processor_config.json",
    )
    if isinstance(place, Path) and not any((place / name).is_file() for name in names):
        raise FileFormatError(
            f"{place} has no preprocessor_config.json, which says how images become the network's "
            "input. Save the processor that belongs to the weights there (save_pretrained)."
        )
    kind = library.AutoVideoProcessor if is_video else library.AutoImageProcessor
    return kind.from_pretrained(place, **overrides)


def _pretrained(kind: Any, place: str | Path, config: Any, name: str) -> tuple[nn.Module, str]:
    """Return the network with every tensor from the checkpoint, and what was left out, as text."""
    module, info = kind.from_pretrained(
        place, config=config, output_loading_info=True, dtype=torch.float32
    )
    missing = set(info["missing_keys"])
    pooler = {key for key in missing if key.startswith("pooler.")}
    said = ""
    if pooler and module.pooler is not None and missing == pooler:
        # Checkpoints with a classifier have no pooler: it would be random.
        module.pooler = None
        missing, said = set(), ", without its pooler, which the checkpoint lacks"
    problems = [
        f"{len(found)} {what} ({listed(sorted(map(str, found)), 4)})"
        for what, found in (
            ("missing", missing),
            ("of another shape", info["mismatched_keys"]),
            ("unreadable", info["error_msgs"]),
        )
        if found
    ]
    if problems:
        raise FileFormatError(
            f"The weights of {name} do not fill the network: {'; '.join(problems)}. Random weights "
            "are not used in their place. Check that the checkpoint is whole and of this network."
        )
    return module, said


def _tower(module: nn.Module) -> nn.Module:
    """Return the encoder of V-JEPA 2, without the predictor of masked patches; else the whole."""
    is_jepa = type(module).__name__ == "VJEPA2Model"
    return module.get_submodule("encoder") if is_jepa else module


def _frames_first(module: nn.Module) -> nn.Module:
    module.register_forward_pre_hook(_swap_frames)
    return module


def _swap_frames(_module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    """Turn clips (n, 3, t, height, width), as all other networks take them, to (n, t, 3, ...)."""
    return (inputs[0].transpose(1, 2), *inputs[1:])


def _prefix_tokens(module: nn.Module) -> list[str]:
    """Return the tokens before the patches: class, then distillation or registers."""
    found = []
    for name, values in module.named_parameters():
        last = name.rpartition(".")[2]
        n_tokens = values.shape[1] if last == "register_tokens" else 1
        found += [TOKENS[last]] * n_tokens if last in TOKENS else []
    return sorted(found)


def _blocks(module: nn.Module) -> list[str]:
    """Return the members of the outermost list of modules: blocks, or stages."""
    for name, part in module.named_modules():
        if isinstance(part, nn.ModuleList) and len(part):
            return [f"{name}.{index}" for index in range(len(part))]
    return []


def _image(processor: Any) -> ImageTransform:
    def function(image: Any) -> torch.Tensor:
        return processor(image, return_tensors="pt")["pixel_values"][0]

    return ImageTransform(function, describe_processor(processor))


def _video(processor: Any, config: Any, name: str) -> VideoTransform:
    """Return the transform of clips, which have the number of frames that the network takes."""
    option = "num_frames" if hasattr(config, "num_frames") else "frames_per_clip"
    n_frames = int(getattr(config, option))

    def function(clip: torch.Tensor) -> torch.Tensor:
        if len(clip) != n_frames:
            raise ValueError(
                f"{name} takes clips of {n_frames} frames, but got {len(clip)}. Open the videos "
                f"with n_frames={n_frames}"
                + ("." if option == "num_frames" else f", or give {option}={len(clip)}.")
            )
        made = processor([clip], return_tensors="pt", do_sample_frames=False)
        values = made["pixel_values"] if "pixel_values" in made else made["pixel_values_videos"]
        return values[0].transpose(0, 1)

    text = f"{n_frames} frames, {describe_processor(processor)}"
    return VideoTransform(function, text, n_frames)


def describe_processor(processor: Any) -> str:
    """Return an image or video processor's steps as text.

    Raises
    ------
    UnknownNameError
        It does more than to resize, crop, rescale and normalize, which is not described here.
    """
    kind = type(processor).__name__
    more = [step for step in OTHER_STEPS if getattr(processor, step, None)]
    if more:
        raise UnknownNameError(
            f"{kind} has the steps {listed(more)}, which are not known here. Give the network as "
            "a module of your own, with its transform."
        )
    resize, crop = _resize_and_crop(processor)
    scale = float(processor.rescale_factor) if processor.do_rescale else 1.0
    return describe_transform(
        resize,
        crop,
        INTERPOLATIONS[int(processor.resample)],
        processor.image_mean if processor.do_normalize else (0.0,) * 3,
        processor.image_std if processor.do_normalize else (1.0,) * 3,
        largest=255 * scale,
    )


def _resize_and_crop(processor: Any) -> tuple[Any, Any]:
    """Return what `describe_transform` takes; None for a step that is left out."""
    size = processor.size if processor.do_resize else None
    resize = _sides(size)
    if getattr(processor, "crop_pct", None) is not None and resize is not None:
        # ConvNeXt: below 384 a larger image, cropped; from there on no crop.
        side = resize if isinstance(resize, int) else resize[0]
        if side < 384:
            return int(side / processor.crop_pct), side
        return (side, side), None
    return resize, _sides(processor.crop_size) if processor.do_center_crop else None


def _sides(size: Any) -> Any:
    """Return the shorter side, or (height, width)."""
    if size is None:
        return None
    shorter, height = (_side(size, key) for key in ("shortest_edge", "height"))
    return int(shorter) if shorter else (int(height), int(_side(size, "width")))


def _side(size: Any, key: str) -> Any:
    return size.get(key) if isinstance(size, Mapping) else getattr(size, key, None)


def _licence(place: str | Path) -> str:
    """Return the licence in the model card's header, as far as one is there or was fetched."""
    card = place / "README.md" if isinstance(place, Path) else _fetched_card(place)
    if card is None or not card.is_file():
        return "not stated"
    head = card.read_text(encoding="utf-8", errors="replace").split("---")
    for line in (head[1] if len(head) > 2 and not head[0].strip() else "").splitlines():
        key, _, value = line.partition(":")
        if key.strip() == "license" and value.strip():
            return value.strip().strip("'\"")
    return "not stated"


def _fetched_card(repository: str) -> Path | None:
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(repository, "README.md"))
    except Exception:  # without a connection the licence is unknown; the weights are there
        return None
