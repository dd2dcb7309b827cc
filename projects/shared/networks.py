"""Networks trained here: the same architecture, another diet."""

from __future__ import annotations

from pathlib import Path

import neurodl as ndl
import numpy as np
import torch
from safetensors.torch import save_file
from torchvision.transforms import v2


def train(
    backbone: ndl.Backbone,
    stimuli: ndl.Stimuli,
    path: Path,
    *,
    blur: float = 0.0,
    epochs: int = 15,
    lr: float = 2e-3,
    batch_size: int = 16,
    seed: int = 0,
) -> Path:
    """Train a network to tell the labels of stimuli apart, and write its weights.

    Parameters
    ----------
    backbone : Backbone
        Where it starts from; it is changed.
    stimuli : Stimuli
        With the class of each in the column label.
    path : Path
        Where the weights go. If they are there already, nothing is trained.
    blur : float
        Standard deviation of the Gaussian [pixels of the input] that the images are seen through.
    epochs, lr, batch_size, seed
        Of AdamW; each image is mirrored or not at random.
    """
    if path.is_file():
        return path
    torch.manual_seed(seed)
    names = sorted(set(stimuli.table["label"]))
    labels = torch.tensor([names.index(name) for name in stimuli.table["label"]])
    inputs = torch.stack([backbone.transform(stimuli[row]) for row in range(len(stimuli))])
    if blur:
        width = 2 * int(np.ceil(2 * blur)) + 1
        inputs = v2.functional.gaussian_blur(inputs, [width, width], [blur, blur])
    module = backbone.module.train()
    optimizer = torch.optim.AdamW(module.parameters(), lr=lr, weight_decay=0.01)
    for _ in range(epochs):
        for rows in torch.randperm(len(inputs)).split(batch_size):
            if len(rows) < 2:
                continue
            shown = inputs[rows]
            if torch.rand(()) < 0.5:
                shown = shown.flip(-1)
            loss = torch.nn.functional.cross_entropy(module(shown)[:, : len(names)], labels[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    module.eval()
    with torch.no_grad():
        right = module(inputs)[:, : len(names)].argmax(1) == labels
    print(f"{path.stem}: {right.float().mean():.0%} of its training images named")
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({key: value.contiguous() for key, value in module.state_dict().items()}, path)
    return path
