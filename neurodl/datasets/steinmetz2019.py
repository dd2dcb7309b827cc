"""Steinmetz et al. 2019: Neuropixels recordings of mice that turn a wheel to a grating."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from neurodl.datasets.assemble import check_shape
from neurodl.datasets.experiment import Experiment
from neurodl.errors import FileFormatError, MissingFileError, UnknownNameError, did_you_mean
from neurodl.io.one_object import n_objects, read_one_object

PARTS = tuple(f"steinmetz_part{number}.npz" for number in range(3))
TIMES, LFP = "steinmetz_st.npz", "steinmetz_lfp.npz"
N_BINS = 250
CLOCK = 10.0  # s from one trial's start to the next, where spike times have one clock
FAST = 10  # samples from trough to peak, at most, of a fast-spiking neuron
AREAS = {
    "visual cortex": "VISa VISam VISl VISp VISpm VISrl",
    "thalamus": "CL LD LGd LH LP MD MG PO POL PT RT SPF TH VAL VPL VPM",
    "hippocampus": "CA CA1 CA2 CA3 DG SUB POST",
    "other cortex": "ACA AUD COA DP ILA MOp MOs OLF ORB ORBm PIR PL SSp SSs RSP TT",
    "midbrain": "APN IC MB MRN NB PAG RN SCs SCm SCig SCsg ZI",
    "basal ganglia": "ACB CP GPe LS LSc LSr MS OT SNr SI",
    "cortical subplate": "BLA BMA EP EPd MEA",
}
GROUPS = {area: group for group, areas in AREAS.items() for area in areas.split()}
TRIALS = (
    "contrast_left", "contrast_right", "response", "response_time", "gocue", "feedback_time",
    "feedback_type", "prev_reward",
)  # fmt: skip
TRACES = {"wheel": ("wheel",), "licks": ("licks",), "face": ("face",)}
PUPIL = ("pupil_area", "pupil_x", "pupil_y")


def load_steinmetz2019(
    root: Path,
    session: int = 11,
    roi: Sequence[str] | None = None,
    signal: str = "spikes",
    passive: bool = False,
    spike_times: bool = False,
) -> Experiment:
    """Open one of 39 sessions of Steinmetz et al. 2019; the others are not kept in memory.

    Parameters
    ----------
    root : Path
        The folder with ``steinmetz_part0.npz`` to ``steinmetz_part2.npz`` and, if asked for,
        ``steinmetz_st.npz`` and ``steinmetz_lfp.npz``.
    session : int
        0 to 38, over the three parts; 11 has visual and motor cortex.
    roi : sequence of str, optional
        Areas such as "VISp", or groups: "visual cortex", "thalamus", "hippocampus", "other
        cortex", "midbrain", "basal ganglia", "cortical subplate", "other".
    signal : {"spikes", "lfp"}
        Counts in bins of 10 ms, or the local field potential of each area.
    passive : bool
        The presentations after the task, without one.
    spike_times : bool
        Also the exact times.

    Returns
    -------
    Experiment
        Responses with dims ``(presentation, time, unit)``, float32, attr bin_width = 0.01 s, or
        ``(presentation, time, channel)`` for the LFP. Coords time (start of the bin from the
        onset of the gratings [s], from -0.5), stimulus (both contrasts); contrast_left,
        contrast_right, response (-1, 0 for none, 1; -1 is right where the contrast is higher on the
        right), feedback_type and the other
        facts of each presentation; wheel, face, licks and pupil over time; roi (the group), area
        (the acronym), fast_spiking and place (ccf_ap, ccf_dv, ccf_lr [um]) of each unit.
        With `spike_times`, spikes lie on one clock [s] on which presentation k begins at 10 k, and
        events have the onset of the gratings on it.

    Raises
    ------
    UnknownNameError, MissingFileError, FileFormatError
        There is no such session, signal or area; a file is missing or holds something else.

    References
    ----------
    Steinmetz, Zatka-Haas, Carandini & Harris (2019), Distributed coding of choice, action and
    engagement across the mouse brain, Nature 576.
    """
    if signal not in ("spikes", "lfp"):
        raise UnknownNameError(f"`signal` must be 'spikes' or 'lfp', but got {signal!r}.")
    suffix = "_passive" if passive else ""
    content = _session(root, session)
    counts = _three_dims(content, f"spks{suffix}")
    n_trials = counts.shape[1]
    bin_width = float(np.ravel(content.get("bin_size", 0.01))[0])
    onset = float(np.ravel(content.get("stim_onset", 0.5))[0])
    if signal == "lfp":
        stored = _extra(root / LFP, session)
        values, areas = _three_dims(stored, f"lfp{suffix}"), _areas(stored, "brain_area_lfp")
        targets, dim, units = _groups(areas, "channel"), "channel", "LFP"
    else:
        values, dim, units = counts, "unit", "spikes"
        targets = _groups(_areas(content, "brain_area"), "unit") | _places(content, len(counts))
    check_shape(values, (len(targets["area"][1]), n_trials, N_BINS), f"session {session}: {signal}")
    chosen = _chosen(targets, roi)
    responses = xr.DataArray(
        np.moveaxis(values[chosen], 0, 2).astype(np.float32),
        dims=("presentation", "time", dim),
        coords={
            "time": np.round(np.arange(N_BINS) * bin_width - onset, 6),
            **_trials(content, n_trials, suffix),
            **_traces(content, n_trials, suffix),
            **{name: (dim, values[chosen]) for name, (_, values) in targets.items()},
        },
        attrs={
            "units": units,
            "bin_width": bin_width,
            "subject": str(content.get("mouse_name", "")),
            "date": str(content.get("date_exp", "")),
            "recording": int(session),
        },
    )
    spikes = events = None
    if spike_times:
        times = _extra(root / TIMES, session)[f"ss{suffix}"]
        spikes, events = _on_one_clock(times, chosen, responses, onset)
    return Experiment(responses=responses, spikes=spikes, events=events, name="steinmetz2019")


def _session(root: Path, session: int) -> Mapping[str, Any]:
    """Return what is stored of one session, which lies in one of the parts."""
    first = 0
    for path in [root / part for part in PARTS]:
        if not path.is_file():
            if first <= session:
                raise MissingFileError(f"The file {path} does not exist.")
            break
        count = n_objects(path, "dat")
        if first <= session < first + count:
            return _dict(read_one_object(path, "dat", session - first), path)
        first += count
    raise UnknownNameError(f"`session` must be a number from 0 to {first - 1}, but got {session}.")


def _extra(path: Path, session: int) -> Mapping[str, Any]:
    """Return what another file, which holds all sessions, has of one."""
    if not path.is_file():
        raise MissingFileError(
            f"The file {path} does not exist; `neurodl datasets info` has links."
        )
    return _dict(read_one_object(path, "dat", session), path)


def _dict(found: Any, path: Path) -> Mapping[str, Any]:
    if not isinstance(found, dict):
        raise FileFormatError(f"{path} holds a {type(found).__name__} in place of a dict.")
    return found


def _three_dims(content: Mapping[str, Any], key: str) -> np.ndarray:
    array = content.get(key)
    check_shape(array, (None, None, N_BINS), key)
    assert isinstance(array, np.ndarray)
    return array


def _areas(content: Mapping[str, Any], key: str) -> np.ndarray:
    """Return acronyms, without the blank before one of them."""
    return np.char.strip(np.asarray(content.get(key, []), dtype=str))


def _groups(areas: np.ndarray, dim: str) -> dict[str, tuple[str, np.ndarray]]:
    groups = np.array([GROUPS.get(area, "other") for area in areas.tolist()], dtype="U17")
    return {"area": (dim, areas), "roi": (dim, groups)}


def _places(content: Mapping[str, Any], n_units: int) -> dict[str, tuple[str, np.ndarray]]:
    """Return where the units lie, and which spike fast."""
    found: dict[str, tuple[str, np.ndarray]] = {}
    width = np.ravel(content.get("trough_to_peak", []))
    if len(width) == n_units:
        found["fast_spiking"] = ("unit", width <= FAST)
    places = np.asarray(content.get("ccf", []))
    if places.shape == (n_units, 3):
        for axis, name in enumerate(("ccf_ap", "ccf_dv", "ccf_lr")):
            found[name] = ("unit", places[:, axis].astype(np.float64))
    return found


def _chosen(targets: Mapping[str, tuple[str, np.ndarray]], roi: Sequence[str] | None) -> np.ndarray:
    """Return which targets are in the areas or groups asked for."""
    areas, groups = targets["area"][1], targets["roi"][1]
    if roi is None:
        return np.arange(len(areas))
    known = sorted({*areas.tolist(), *groups.tolist()})
    unknown = [name for name in roi if name not in known]
    if unknown:
        raise UnknownNameError(
            f"The session has nothing in {unknown[0]!r}. {did_you_mean(unknown[0], known)}"
        )
    return np.flatnonzero(np.isin(areas, list(roi)) | np.isin(groups, list(roi)))


def _trials(content: Mapping[str, Any], n_trials: int, suffix: str) -> dict[str, Any]:
    """Return the facts of each presentation; the task's are missing from passive ones."""
    found: dict[str, Any] = {}
    for name in TRIALS:
        stored = content.get(f"{name}{suffix}")
        if stored is not None and np.size(stored) == n_trials:
            found[name] = ("presentation", np.ravel(stored).astype(np.float64))
    reaction = None if suffix else content.get("reaction_time")
    if reaction is not None and np.shape(reaction) == (n_trials, 2):
        times = np.asarray(reaction, dtype=np.float64)
        found["reaction_time"] = ("presentation", np.where(np.isfinite(times), times, np.nan)[:, 0])
        found["reaction_direction"] = ("presentation", times[:, 1])
    missing = [name for name in ("contrast_left", "contrast_right") if name not in found]
    if missing:
        raise FileFormatError(f"The session lacks {missing[0]}{suffix} of its presentations.")
    pairs = zip(found["contrast_left"][1], found["contrast_right"][1], strict=True)
    found["stimulus"] = ("presentation", [f"left-{a:.2f}_right-{b:.2f}" for a, b in pairs])
    return found


def _traces(content: Mapping[str, Any], n_trials: int, suffix: str) -> dict[str, Any]:
    """Return what was measured of the mouse over time."""
    found: dict[str, Any] = {}
    for key, names in {**TRACES, "pupil": PUPIL}.items():
        stored = np.asarray(content.get(f"{key}{suffix}", []), dtype=np.float32)
        if stored.shape == (len(names), n_trials, N_BINS):
            for row, name in zip(stored, names, strict=True):
                found[name] = (("presentation", "time"), row)
    return found


def _on_one_clock(
    times: Any, chosen: np.ndarray, responses: xr.DataArray, onset: float
) -> tuple[dict[str, np.ndarray], pd.DataFrame]:
    """Return each unit's spikes on one clock, and when the gratings appear on it."""
    n_trials = responses.sizes["presentation"]
    if len(times) <= chosen.max(initial=-1) or any(len(row) != n_trials for row in times):
        raise FileFormatError(f"{TIMES} has {np.shape(times)} units and presentations.")
    starts = np.arange(n_trials) * CLOCK
    spikes = {}
    for unit in chosen.tolist():
        parts = [np.ravel(times[unit][trial]).astype(float) for trial in range(n_trials)]
        moved = [part + start for part, start in zip(parts, starts, strict=True)]
        spikes[str(unit)] = np.sort(np.concatenate(moved))
    events = pd.DataFrame(
        {
            "onset": starts + onset,
            "duration": N_BINS * responses.attrs["bin_width"] - onset,
            "stimulus": responses["stimulus"].values,
        }
    )
    return spikes, events
