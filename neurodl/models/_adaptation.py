"""Which parts of a core are trained: its last blocks, all of it, or low-rank additions."""

from __future__ import annotations

import fnmatch
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from neurodl.errors import UnknownNameError, listed
from neurodl.features.calibrate import has_statistics, take_statistics
from neurodl.models._network import Network

FINETUNE = (None, "readout", "last", "lora", "all")
NORMS = ("frozen", "adapt", "train")


def tunes_core(finetune: str | None) -> bool:
    """Return whether the core is trained as well as the readout."""
    return finetune in ("last", "lora", "all")


def used_parameters(network: Network, example: torch.Tensor) -> list[str]:
    """Return the names of the core's parameters that the layers' outputs depend on.

    Those after the last layer, and those of heads, are not among them.
    """
    named = {name: p for name, p in network.core.named_parameters() if p.is_floating_point()}
    for parameter in named.values():
        parameter.requires_grad_(True)
    with torch.enable_grad():
        total = torch.stack([one.float().sum() for one in network.outputs(example)]).sum()
        reached = named and total.requires_grad
        asked = list(named.values())
        found = (
            torch.autograd.grad(total, asked, allow_unused=True) if reached else [None] * len(asked)
        )
    network.core.requires_grad_(False)
    return [name for name, grad in zip(named, found, strict=True) if grad is not None]


def block_depths(blocks: Sequence[str], names: Sequence[str]) -> dict[str, int]:
    """Return how many blocks before the last of them each parameter lies; 0 is the last.

    Parameters
    ----------
    blocks : sequence of str
        Dotted names of the network's coarse steps, from input to output.
    names : sequence of str
        Of parameters, in the order of the network; one outside all blocks belongs to the block
        of the parameter before it.

    Examples
    --------
    >>> block_depths(["stem", "layer1"], ["stem.weight", "bn.bias", "layer1.0.weight"])
    {'stem.weight': 1, 'bn.bias': 1, 'layer1.0.weight': 0}
    """
    place, places = 0, {}
    for name in names:
        inside = [number for number, block in enumerate(blocks) if name.startswith(f"{block}.")]
        place = max(inside, key=lambda number: len(blocks[number])) if inside else place
        places[name] = place
    from_the_end = sorted(set(places.values()), reverse=True)
    return {name: from_the_end.index(place) for name, place in places.items()}


def choose_parameters(
    network: Network,
    finetune: str | None,
    example: torch.Tensor,
    *,
    n_blocks: int = 1,
    lora_rank: int = 8,
    lora_targets: Sequence[str] | None = None,
) -> dict[str, int]:
    """Mark what is trained of the core, and return the depth of each such parameter.

    Parameters
    ----------
    network : Network
        Its core gets low-rank additions with ``finetune="lora"``.
    finetune : {None, "readout", "last", "lora", "all"}
    example : torch.Tensor
        An input.
    n_blocks : int
        How many blocks "last" trains, counted back from the read layer.
    lora_rank, lora_targets
        See `add_lora`.

    Returns
    -------
    dict of str to int
        From the names in ``network.core.named_parameters()`` to how many blocks before the read
        layer the parameter is; empty where the core stays as it is.

    Raises
    ------
    ValueError
        The layers depend on no parameter.
    """
    if not tunes_core(finetune):
        network.core.requires_grad_(False)
        return {}
    used = used_parameters(network, example)
    if not used:
        raise ValueError(
            f"No parameter comes before {listed(network.layers)} of {network.backbone.name}, so "
            "there is nothing to tune; use finetune=None or a later layer."
        )
    blocks = network.backbone.blocks
    if finetune == "lora":
        add_lora(network.core, used, lora_rank, lora_targets, network.backbone.name)
        used = [name for name, _ in network.core.named_parameters() if ".lora_" in name]
    depths = block_depths(blocks, used)
    if finetune == "last":
        depths = {name: depth for name, depth in depths.items() if depth < n_blocks}
    for name, parameter in network.core.named_parameters():
        parameter.requires_grad_(name in depths)
    return depths


def lora_candidates(core: nn.Module, used: Sequence[str]) -> list[str]:
    """Return the modules that can have low-rank additions: linear ones, and convolutions.

    Not those with groups, whose rank is fixed by them; not those that pad by their own rule, but
    for kernels of 1 x 1; not the inside of attention, which torch computes without calling it.
    """
    inside_attention = [
        f"{name}." for name, part in core.named_modules() if isinstance(part, nn.MultiheadAttention)
    ]
    found = []
    for name, part in core.named_modules():
        plain_linear = isinstance(part, nn.Linear)
        convolution = (
            isinstance(part, nn.Conv2d)
            and part.groups == 1
            and (type(part) is nn.Conv2d or part.kernel_size == (1, 1))
        )
        hidden = any(name.startswith(prefix) for prefix in inside_attention)
        if (plain_linear or convolution) and not hidden and f"{name}.weight" in used:
            found.append(name)
    return found


def add_lora(
    core: nn.Module,
    used: Sequence[str],
    rank: int,
    targets: Sequence[str] | None,
    network_name: str,
) -> None:
    """Add low-rank matrices to the weights of a core, which start as 0.

    Parameters
    ----------
    core : torch.nn.Module
    used : sequence of str
        The parameters that what is read depends on.
    rank : int
    targets : sequence of str, optional
        Names of modules, or patterns such as ``"*.conv_pw"``; by default all `lora_candidates`.
    network_name : str
        For messages.

    Raises
    ------
    ImportError
        peft is not installed.
    UnknownNameError
        No module fits; those that could be taken are named.

    References
    ----------
    Hu et al. (2022), LoRA: low-rank adaptation of large language models, ICLR.
    """
    try:
        import peft
    except ImportError as error:
        raise ImportError("finetune='lora' needs peft: pip install 'neurodl[finetune]'.") from error
    candidates = lora_candidates(core, used)
    chosen = candidates
    if targets is not None:
        chosen = [n for n in candidates if any(fnmatch.fnmatchcase(n, one) for one in targets)]
    if not chosen:
        kinds = sorted(
            {type(part).__name__ for part in core.modules() if not len(list(part.children()))}
        )
        asked = "" if targets is None else f" fit {listed(targets)}"
        what = (
            f"Those that can are {listed(candidates, 10)}."
            if candidates
            else f"It is made of {listed(kinds, 12)}; use finetune='last' or 'all'."
        )
        raise UnknownNameError(
            f"No linear module or convolution of {network_name} before the read layer"
            f"{asked or ' can have low-rank additions'}. {what}"
        )
    ranks = {n: min(rank, min(core.get_parameter(f"{n}.weight").shape[:2])) for n in chosen}
    config = peft.LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=chosen)
    config.rank_pattern = {rf"^{n}$".replace(".", r"\."): r for n, r in ranks.items() if r < rank}
    config.alpha_pattern = {key: 2 * r for key, r in config.rank_pattern.items()}
    peft.inject_adapter_in_model(config, core)


def merge_lora(core: nn.Module) -> None:
    """Add the low-rank matrices of a core to its weights, and take their modules away."""
    wrapped = [
        (n, p) for n, p in core.named_modules() if hasattr(p, "merge") and hasattr(p, "base_layer")
    ]
    for name, part in wrapped:
        part.merge()
        parent, _, last = name.rpartition(".")
        setattr(core.get_submodule(parent), last, part.get_base_layer())


def prepare_norms(
    network: Network, policy: str, inputs: torch.Tensor, finetune: str | None
) -> list[str]:
    """Make a core's batch normalisation follow a policy, and return a remark for each surprise.

    Parameters
    ----------
    network : Network
    policy : {"frozen", "adapt", "train"}
        Statistics stay those of the checkpoint; become those of the training stimuli, once; or of
        each batch while the core is trained.
    inputs : torch.Tensor
        Of training stimuli, one batch.
    finetune : str, optional
        With "train", the core must be trained.

    Raises
    ------
    ValueError
        The policy is unknown, or does nothing for this network.
    """
    if policy not in NORMS:
        raise ValueError(f"`norm` must be one of {NORMS}, but got {policy!r}.")
    if policy == "frozen":
        return []
    norms = {name: part for name, part in network.core.named_modules() if has_statistics(part)}
    reached = _statistics(network, norms, inputs)
    if not reached:
        raise ValueError(
            f"norm={policy!r} says nothing for {network.backbone.name}, which has no batch "
            "normalisation with running statistics before the read layer; leave it out."
        )
    folded = [name for name in reached if is_folded(norms[name])]
    for name in folded:
        unfold(norms[name], *reached[name])
    if policy == "adapt":
        for name in reached:
            if name not in folded:
                handle = norms[name].register_forward_pre_hook(take_statistics)
                with torch.no_grad():
                    network.outputs(inputs)
                handle.remove()
    elif tunes_core(finetune):
        network.live_norms = list(reached)
    else:
        raise ValueError(
            "norm='train' needs a core that is trained: finetune='last', 'lora' or 'all'."
        )
    if not folded:
        return []
    return [
        f"{len(folded)} batch normalisations of {network.backbone.name} were folded into their "
        "neighbours; they were given the statistics of the training stimuli without changing what "
        "the network computes."
    ]


def is_folded(norm: Any) -> bool:
    """Return whether a batch normalisation has no statistics any more: mean 0 and variance 1."""
    return bool((norm.running_mean == 0).all() and (norm.running_var == 1).all())


def unfold(norm: Any, mean: torch.Tensor, variance: torch.Tensor) -> None:
    """Give a batch normalisation statistics, (n_channels,) each, and compute the same as before."""
    with torch.no_grad():
        slope = norm.weight / torch.sqrt(norm.running_var + norm.eps)
        offset = norm.bias - slope * norm.running_mean
        norm.running_mean.copy_(mean)
        norm.running_var.copy_(variance)
        norm.weight.copy_(slope * torch.sqrt(variance + norm.eps))
        norm.bias.copy_(offset + slope * mean)


def _statistics(
    network: Network, norms: dict[str, Any], inputs: torch.Tensor
) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """Return mean and variance (n_channels,) of the input of each norm that a pass reaches."""
    found: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}

    def keep(name: str) -> Any:
        def hook(_norm: Any, given: tuple[torch.Tensor, ...]) -> None:
            variance, mean = torch.var_mean(given[0], _places(given[0]), correction=0)
            found[name] = mean, variance

        return hook

    handles = [part.register_forward_pre_hook(keep(name)) for name, part in norms.items()]
    with torch.no_grad():
        network.outputs(inputs)
    for handle in handles:
        handle.remove()
    return found


def _places(values: torch.Tensor) -> list[int]:
    return [axis for axis in range(values.ndim) if axis != 1]
