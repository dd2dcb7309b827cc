"""From raw to analysable responses: repeats, runs, spikes and single trials; arrays in and out."""

from neurodl.responses.arrange import average_repeats, select, stack_repeats, zscore_runs
from neurodl.responses.betas import single_trial_betas
from neurodl.responses.spikes import bin_spikes

__all__ = [
    "average_repeats",
    "bin_spikes",
    "select",
    "single_trial_betas",
    "stack_repeats",
    "zscore_runs",
]
