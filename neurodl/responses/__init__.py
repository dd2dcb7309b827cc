"""From raw to analysable responses: repeats, runs, spikes and single trials; arrays in and out."""

from neurodl.responses.arrange import average_repeats, select, stack_repeats, zscore_runs
from neurodl.responses.betas import single_trial_betas
from neurodl.responses.binning import bin_spikes, bin_traces
from neurodl.responses.rates import as_runs, psth, smooth, stabilize_variance, tuning_curve

__all__ = [
    "as_runs",
    "average_repeats",
    "bin_spikes",
    "bin_traces",
    "psth",
    "select",
    "single_trial_betas",
    "smooth",
    "stabilize_variance",
    "stack_repeats",
    "tuning_curve",
    "zscore_runs",
]
