"""Fitted models as files: tensors and JSON in one safetensors file, and back."""

from __future__ import annotations

import json
import re
from importlib import import_module
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from neurodl import __version__
from neurodl.errors import DeviceError, FileFormatError, did_you_mean, listed
from neurodl.io.encoding import Decoder, Encoder
from neurodl.runtime import resolve_device

# Named, not imported: models import io. What is loaded from there is its public names only.
HOME = "neurodl.models"
FORMAT = "neurodl model 1"


def write_model(model: Any, path: Path) -> None:
    """Write an estimator of neurodl: its parameters and whatever it learned.

    Parameters
    ----------
    model : estimator
        Fitted or not.
    path : Path

    Raises
    ------
    ValueError
        It is another library's, or holds something that a file cannot hold.
    """
    name = type(model).__name__
    known = import_module(HOME)
    if name not in known.__all__ or getattr(known, name) is not type(model):
        raise ValueError(
            f"Models are saved of the classes {listed(known.__all__, 20)} of neurodl, but this is "
            f"a {type(model).__module__}.{name}. Of a pipeline, save the last step."
        )
    encoder = Encoder(HOME)
    parameters = model.get_params(deep=False)
    left_out = {*parameters, *getattr(model, "not_saved", ())}
    learned = {key: one for key, one in vars(model).items() if key not in left_out}
    metadata = {
        "format": FORMAT,
        "neurodl": __version__,
        "class": name,
        **{
            kind: json.dumps({key: encoder.encode(one, f"`{key}`") for key, one in state.items()})
            for kind, state in (("parameters", parameters), ("learned", learned))
        },
    }
    try:
        save_file(encoder.tensors, path, metadata=metadata)
    except SafetensorError as error:
        number = re.search(r"os error (\d+)", str(error))
        if number is None:
            raise
        raise OSError(int(number[1]), str(error)) from error


def read_model(path: Path, device: str | None = None) -> Any:
    """Return the estimator that `write_model` wrote.

    Parameters
    ----------
    path : Path
    device : str, optional
        Where it predicts; by default as it says itself. See `resolve_device`.

    Raises
    ------
    FileFormatError
        The file is damaged, of something else, or of a class that is not there.
    DeviceError
        The device is not there.
    """
    try:
        with safe_open(path, "pt", device="cpu") as file:
            metadata = file.metadata() or {}
            kind = _class_of(metadata, path)
            return _restored(kind, metadata, file.get_tensor, path, device)
    except (SafetensorError, KeyError, TypeError, ValueError, AttributeError, OSError) as error:
        if isinstance(error, (FileFormatError, DeviceError)):
            raise
        raise FileFormatError(
            f"Cannot read the model {path}: {error}. The file is damaged; save the model again."
        ) from error


def _class_of(metadata: dict[str, str], path: Path) -> Any:
    """Return the class of the model in a file."""
    if metadata.get("format") != FORMAT:
        raise FileFormatError(
            f"{path} holds no model that this neurodl ({__version__}) has saved"
            + (f", but {metadata['format']!r}" if "format" in metadata else "")
            + ". Weights of a network are for load_backbone(..., weights=path)."
        )
    known, name = import_module(HOME), metadata["class"]
    if name not in known.__all__:
        raise FileFormatError(
            f"{path} holds a {name} of neurodl {metadata['neurodl']}, which neurodl {__version__} "
            f"does not have. Install that version. {did_you_mean(name, known.__all__)}"
        )
    return getattr(known, name)


def _restored(
    kind: Any, metadata: dict[str, str], tensors: Any, path: Path, device: str | None
) -> Any:
    """Return a model of class `kind` with the state of a file."""
    content = {name: json.loads(metadata[name]) for name in ("parameters", "learned")}
    unknown = set(content["parameters"]) - set(kind().get_params(deep=False))
    if unknown:
        raise FileFormatError(
            f"{path} is of neurodl {metadata['neurodl']}, whose {kind.__name__} has parameters "
            f"that neurodl {__version__} does not have: {listed(sorted(unknown))}. Install that "
            "version."
        )
    has_device = "device" in content["parameters"]
    if device is not None and has_device:
        content["parameters"]["device"] = device
    wanted = content["parameters"]["device"] if has_device else "cpu"
    try:
        place = resolve_device(wanted["device"] if isinstance(wanted, dict) else wanted)
    except DeviceError as error:
        raise DeviceError(f"{error} Load it with load(path, device='auto').") from error
    decoder = Decoder(HOME, tensors, place)
    model = kind(**{key: decoder.decode(one) for key, one in content["parameters"].items()})
    vars(model).update({key: decoder.decode(one) for key, one in content["learned"].items()})
    return model
