"""Which tensors of a self-supervised checkpoint are the network, and which are around it."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from typing import Any

from torch import nn

from neurodl.errors import FileFormatError, listed

# What may stand before a network's names, in any combination. Of two networks in one file, the one
# that its authors evaluate: MoCo's query encoder (not encoder_k, momentum_encoder), DINO's teacher.
PREFIXES = (
    "module", "_orig_mod", "model", "net", "network", "backbone", "encoder", "convnet", "trunk",
    "encoder_q", "base_encoder", "online_encoder", "teacher",
)  # fmt: skip
CLASSIFIER = re.compile(r"fc|last_linear|(head|classifier)(\.fc|\.\d+)?|heads\.head")
# Heads of the training loss: projections, prototypes, predictions.
HEADS = (
    "projection_head", "projector", "prototypes", "predictor", "head", "heads", "fc", "mlp",
    "online_head", "contrastive_head",
)  # fmt: skip


def take_network(
    state: Mapping[str, Any], expected: Mapping[str, Any], classifier: str, source: str
) -> tuple[dict[str, Any], str]:
    """Return the tensors of the network by its own names, and what was left out, as text.

    Parameters
    ----------
    state : mapping of str to torch.Tensor
        The file's tensors; the network's may stand behind a prefix (``module.encoder_q.``).
    expected : mapping of str to torch.Tensor
        The network's.
    classifier : str
        Its last layer, in whose place such files have a projection, or nothing.
    source : str
        The file, for errors.

    Raises
    ------
    FileFormatError
        Several networks in the file fit equally.

    Examples
    --------
    >>> state = {"module.encoder_q.a": 1, "module.encoder_q.fc.0.b": 2, "module.queue": 3}
    >>> take_network(state, {"a": 0, "fc.b": 0}, "fc", "w.pth")
    ({'a': 1}, "its 'module.encoder_q', left out 'module.encoder_q.fc', 'module.queue'")
    """
    prefix = _prefix(state, expected, source)
    taken, left_out = {}, set()
    bare = {key for key in expected if not key.startswith(f"{classifier}.")}
    lacks_classifier = not any(
        f"{prefix}{key}" in state for key in expected if key not in bare
    ) and all(f"{prefix}{key}" in state for key in bare if not key.endswith("batches_tracked"))
    for key, value in state.items():
        inside = key.removeprefix(prefix)
        if not key.startswith(prefix):
            left_out.add(key.rpartition(".")[0].split(".")[0] or key)
        elif inside not in expected and lacks_classifier and inside.split(".")[0] in HEADS:
            left_out.add(prefix + inside.split(".")[0])
        else:
            taken[inside] = value
    if prefix:
        common = prefix.split(".")[0]
        outside = {
            ".".join(key.split(".")[:2])
            for key in state
            if not key.startswith(prefix) and key.startswith(f"{common}.")
        }
        left_out = {name for name in left_out if name != common} | outside
    said = [f"its {prefix.rstrip('.')!r}"] if left_out and prefix else []
    said += [f"left out {listed(sorted(left_out), 4)}"] if left_out else []
    return taken, ", ".join(said)


def _prefix(state: Mapping[str, Any], expected: Mapping[str, Any], source: str) -> str:
    """Return what stands before most names of the network, of the known `PREFIXES`."""
    counts: Counter[str] = Counter()
    for key in state:
        parts = key.split(".")
        for start in range(len(parts)):
            if ".".join(parts[start:]) in expected and set(parts[:start]) <= set(PREFIXES):
                counts[".".join([*parts[:start], ""])] += 1
    if not counts or counts[""] == max(counts.values()):
        return ""
    best = [prefix for prefix, count in counts.items() if count == max(counts.values())]
    if len(best) > 1:
        raise FileFormatError(
            f"{source} holds several networks that fit: {listed(sorted(best))}. Save the one that "
            "is meant to a file of its own."
        )
    return best[0]


def last_linear(module: nn.Module) -> str:
    """Return the name of the classifier, or "" if the network ends otherwise.

    That is the last module with weights, if it is linear and has the name of a classifier: the
    last layer of a block or of a pooling head is none.

    Examples
    --------
    >>> last_linear(nn.ModuleDict({"body": nn.Linear(2, 2), "fc": nn.Linear(2, 2)}))
    'fc'
    """
    own = [
        (name, part)
        for name, part in module.named_modules()
        if name and any(True for _ in part.parameters(recurse=False))
    ]
    name, part = own[-1] if own else ("", None)
    return name if isinstance(part, nn.Linear) and CLASSIFIER.fullmatch(name) else ""
