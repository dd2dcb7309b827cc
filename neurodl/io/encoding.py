"""Python objects as tensors and JSON, and back: no pickle, nothing that runs code from a file.

What may stand in a file: numbers, text, lists, dicts, arrays, tensors, scikit-learn's splitters,
and objects of the classes of one package, by their attributes.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from importlib import import_module
from typing import Any

import numpy as np
import torch

SPLITTERS = "sklearn.model_selection"


class Encoder:
    """Takes objects apart into JSON and tensors.

    Parameters
    ----------
    package : str
        The package whose objects may be stored.

    Attributes
    ----------
    tensors : dict of str to torch.Tensor
        Contiguous, on the CPU, none of which share memory.
    """

    def __init__(self, package: str) -> None:
        self.package = package
        self.tensors: dict[str, torch.Tensor] = {}
        self._keys: dict[Any, str] = {}
        self._alive: list[Any] = []
        self._inside: list[int] = []

    def encode(self, value: Any, name: str) -> Any:
        """Return what stands for a value in JSON; its tensors are added to `tensors`.

        Parameters
        ----------
        value : object
        name : str
            What it is, for errors.

        Raises
        ------
        ValueError
            It is, or holds, something that a file cannot hold; the message names it.
        """
        if value is None or isinstance(value, (bool, int)):
            return value
        if isinstance(value, str):
            return str(value)
        if isinstance(value, float) and not isinstance(value, np.floating):
            return value if math.isfinite(value) else {"float": repr(value)}
        if isinstance(value, torch.Tensor):
            return {"tensor": self._stored(value.detach())}
        if isinstance(value, np.ndarray) and value.dtype.kind in "OUS":
            return {"text": self.encode(value.tolist(), name), "object": value.dtype.kind == "O"}
        if isinstance(value, (np.ndarray, np.generic)) and value.dtype.kind in "biufc":
            kind = "array" if isinstance(value, np.ndarray) else "scalar"
            return {kind: self._stored(_shared(np.asarray(value)))}
        if isinstance(value, (torch.dtype, torch.device)):
            return {type(value).__name__: str(value).removeprefix("torch.")}
        return self._container(value, name)

    def _container(self, value: Any, name: str) -> Any:
        if id(value) in self._inside:
            raise ValueError(f"{name} holds itself, which a file cannot.")
        self._inside.append(id(value))
        try:
            if isinstance(value, list):
                return [self.encode(one, f"{name}[{i}]") for i, one in enumerate(value)]
            if isinstance(value, tuple) and not hasattr(value, "_fields"):
                return {"tuple": [self.encode(x, f"{name}[{i}]") for i, x in enumerate(value)]}
            if isinstance(value, (range, slice)):
                return {type(value).__name__: [value.start, value.stop, value.step]}
            if isinstance(value, dict):
                return {"dict": [[self.encode(key, name), self.encode(one, f"{name}[{key!r}]")]
                                 for key, one in value.items()]}  # fmt: skip
            return self._object(value, name)
        finally:
            self._inside.pop()

    def _object(self, value: Any, name: str) -> dict[str, Any]:
        kind = type(value)
        place = SPLITTERS if kind.__module__.startswith(SPLITTERS) else kind.__module__
        if find_class(place, kind.__qualname__, self.package) is not kind:
            raise ValueError(
                f"{name} is a {kind.__module__}.{kind.__qualname__}, which a file cannot hold: it "
                "holds numbers, text, arrays, scikit-learn's splitters and what neurodl's models "
                "are made of. Set it to one of these."
            )
        state = value._asdict() if hasattr(value, "_asdict") else vars(value)
        attributes = {key: self.encode(one, f"{name}.{key}") for key, one in state.items()}
        return {"class": [place, kind.__qualname__], "attributes": attributes}

    def _stored(self, tensor: torch.Tensor) -> list[Any]:
        """Return the key of a tensor, and the order of its axes in which it is stored."""
        layout = (tuple(tensor.shape), tensor.stride(), tensor.dtype, str(tensor.device))
        order = sorted(range(tensor.ndim), key=tensor.stride, reverse=True)
        known = (tensor.data_ptr(), *layout)
        if known not in self._keys:
            self._keys[known] = f"tensor{len(self.tensors):04d}"
            self._alive.append(tensor)  # its address stays its own
            self.tensors[self._keys[known]] = tensor.permute(order).cpu().contiguous().clone()
        return [self._keys[known], order]


class Decoder:
    """Puts objects together from JSON and tensors.

    Parameters
    ----------
    package : str
        See `Encoder`.
    tensors : callable
        From a key to its tensor, on the CPU.
    device : torch.device
        Where tensors go; arrays stay arrays.
    """

    def __init__(
        self, package: str, tensors: Callable[[str], torch.Tensor], device: torch.device
    ) -> None:
        self.package, self.tensors, self.device = package, tensors, device
        self._found: dict[str, torch.Tensor] = {}

    def decode(self, code: Any) -> Any:
        """Return the value that `code` stands for.

        Raises
        ------
        ValueError, KeyError, TypeError
            It stands for none, or for an object of a class that is not of the package.
        """
        if isinstance(code, list):
            return [self.decode(one) for one in code]
        if not isinstance(code, dict):
            return code
        if "class" in code:
            place, name = code["class"]
            return self._object(place, name, code["attributes"])
        (kind, content), *more = code.items()
        simple: dict[str, Callable[[Any], Any]] = {
            "float": float,
            "tensor": lambda key: self._tensor(*key).to(self.device),
            "array": lambda key: self._tensor(*key).numpy(),
            "scalar": lambda key: self._tensor(*key).numpy()[()],
            "text": lambda text: np.array(text, dtype=object if dict(more)["object"] else None),
            "dtype": lambda name: _instance(getattr(torch, name), torch.dtype),
            "device": lambda _: self.device,
            "tuple": lambda items: tuple(self.decode(items)),
            "range": lambda bounds: range(*bounds),
            "slice": lambda bounds: slice(*bounds),
            "dict": lambda items: {self.decode(key): self.decode(one) for key, one in items},
        }
        return simple[kind](content)

    def _tensor(self, key: str, order: list[int]) -> torch.Tensor:
        if key not in self._found:
            # in memory of its own: products depend on how it is aligned, in the last bit
            self._found[key] = self.tensors(key).clone()
        return self._found[key].permute(np.argsort(order).tolist())

    def _object(self, place: str, name: str, attributes: dict[str, Any]) -> Any:
        kind = find_class(place, name, self.package)
        if kind is None:
            raise ValueError(f"it holds an object of the class {place}.{name}")
        values = {str(key): self.decode(one) for key, one in attributes.items()}
        if issubclass(kind, tuple):
            return kind(**values)
        made = kind.__new__(kind)
        vars(made).update(values)
        return made


def find_class(place: str, name: str, package: str) -> type | None:
    """Return the class `name` of the module `place`, or None if a file may not hold its objects.

    It may if it was written in `package`, or is a splitter of scikit-learn.
    """
    inside = place == package or place.startswith(f"{package}.")
    if not inside and place != SPLITTERS:
        return None
    try:
        found = getattr(import_module(place), name, None)
    except ImportError:
        return None
    if not isinstance(found, type):
        return None
    if inside:
        return found if found.__module__ == place else None
    public = name in import_module(SPLITTERS).__all__
    return found if public and hasattr(found, "get_n_splits") else None


def _shared(values: np.ndarray) -> torch.Tensor:
    """Return an array as a tensor, which shares its memory if it can."""
    native = values.astype(values.dtype.newbyteorder("="), copy=False)
    shared = native.flags.writeable and all(stride >= 0 for stride in native.strides)
    return torch.from_numpy(native if shared else native.copy())


def _instance(value: Any, kind: type) -> Any:
    if not isinstance(value, kind):
        raise ValueError(f"it holds {value!r} where a {kind.__name__} was expected")
    return value
