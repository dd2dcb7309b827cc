"""The auditor: what could make a cross-validated score wrong, looked for before anything is fitted.

Each check returns findings, or a sentence on why it could not be made.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import pandas as pd
import xarray as xr

from neurodl.errors import (
    AuditError,
    NeurodlWarning,
    SchemaError,
    UnknownNameError,
    did_you_mean,
    listed,
)
from neurodl.responses import average_repeats
from neurodl.schema import check_features, check_responses
from neurodl.scores import _audit_fits, _audit_rows
from neurodl.scores._audit_case import SEVERE, WARNING, Case, Finding
from neurodl.scores.pairing import paired, stimulus_rows, takes_stimuli
from neurodl.scores.splits import make_splits
from neurodl.stimuli import Stimuli

CHECKS: dict[str, Callable[[Case], list[Finding] | str]] = {
    "copies": _audit_rows.copies,
    "repeats": _audit_rows.repeats,
    "time": _audit_rows.shared_time,
    "order": _audit_rows.order,
    "fitted": _audit_fits.fitted_outside,
    "selection": _audit_fits.selected_on_test,
    "weights": _audit_fits.untrained,
    "transform": _audit_fits.other_transform,
}
TITLES = {
    "copies": "Copies of a stimulus in training and test rows",
    "repeats": "Presentations of a stimulus in training and test rows",
    "time": "Training and test rows that share time",
    "order": "Rows paired by something else than their id",
    "fitted": "Something fitted to test rows",
    "selection": "Something chosen by the scores of test rows",
    "weights": "Untrained weights",
    "transform": "Another transform than the weights' own",
}


@dataclass(frozen=True)
class Audit:
    """What was looked for, and what was found; made by `audit`.

    Parameters
    ----------
    findings : tuple of Finding
        Each with its check, severity ("severe", "warning" or "note"), message, remedy, the rows
        concerned, and whether it was allowed.
    clean : tuple of str
        The checks that found nothing.
    skipped : mapping of str to str
        Why other checks could not be made.
    """

    findings: tuple[Finding, ...] = ()
    clean: tuple[str, ...] = ()
    skipped: Mapping[str, str] = field(default_factory=dict)

    @property
    def table(self) -> pd.DataFrame:
        """One row per finding: check, severity, allowed, message, remedy, n_rows and rows."""
        rows = [
            {**asdict(one), "n_rows": one.n_rows or len(one.rows), "rows": listed(one.rows)}
            for one in self.findings
        ]
        columns = ["check", "severity", "allowed", "message", "remedy", "n_rows", "rows"]
        return pd.DataFrame(rows, columns=columns)

    @property
    def stops(self) -> list[Finding]:
        """The severe findings that were not allowed."""
        return [one for one in self.findings if one.severity == SEVERE and not one.allowed]

    def enforce(self) -> Audit:
        """Stop at severe findings that were not allowed, and warn of what else is wrong.

        Raises
        ------
        AuditError
            There are such findings; the message has each with its remedy.
        """
        if self.stops:
            said = "\n".join(f"  - {one.message} {one.remedy}" for one in self.stops)
            names = sorted({one.check for one in self.stops})
            raise AuditError(
                f"The scores would not be what they seem:\n{said}\nTo go on all the same, and have "
                f"it printed in the report: allow={names}."
            )
        for one in self.findings:
            if one.severity == WARNING and not one.allowed:
                warnings.warn(f"{one.message} {one.remedy}", NeurodlWarning, stacklevel=4)
        return self

    def to_text(self) -> str:
        """Return the audit as JSON, for the attrs of scores."""
        return json.dumps(
            {
                "findings": [asdict(one.shortened()) for one in self.findings],
                "clean": self.clean,
                "skipped": dict(self.skipped),
            }
        )

    @classmethod
    def of(cls, scores: xr.Dataset) -> Audit | None:
        """Return the audit that scores were made under; None if they hold none."""
        text = scores.attrs.get("audit")
        if not isinstance(text, str):
            return None
        known = json.loads(text)
        findings = tuple(
            Finding(**{**one, "rows": tuple(one["rows"])}) for one in known["findings"]
        )
        return cls(findings, tuple(known["clean"]), known["skipped"])

    def __repr__(self) -> str:
        """Return all of it as lines of text."""
        lines = [f"<Audit: {self._counts()}>"]
        for one in self.findings:
            allowed = ", allowed" if one.allowed else ""
            lines.append(f"[{one.severity}{allowed}] {one.check}: {one.message} {one.remedy}")
        lines += [f"[clean] {name}: {TITLES[name]}: none." for name in self.clean]
        lines += [f"[not checked] {name}: {why}" for name, why in self.skipped.items()]
        return "\n".join(lines)

    def _counts(self) -> str:
        numbers = {
            severity: sum(one.severity == severity for one in self.findings)
            for severity in ("severe", "warning", "note")
        }
        said = [f"{n} {name}" for name, n in numbers.items() if n]
        return ", ".join(said) if said else f"{len(self.clean)} checks found nothing"


def audit(
    experiment: Any = None,
    features: Any = None,
    cv: Any = 5,
    model: Any = None,
    *,
    responses: xr.DataArray | None = None,
    groups: Any = None,
    seed: int = 0,
    earlier: xr.Dataset | Sequence[xr.Dataset] = (),
    unpaired: str = "error",
    allow: Sequence[str] = (),
) -> Audit:
    """Look for what would make the scores of an encoding model wrong.

    `cross_validate` does the same by itself, but for what it is not given: the pixels of stimuli
    whose features were not made here, their labels, and earlier scores.

    Parameters
    ----------
    experiment : Experiment, optional
        Its stimuli are decoded where the features do not tell copies; its responses are taken
        unless others are given.
    features : xarray.DataArray, mapping of layer to xarray.DataArray, or Stimuli, optional
    cv, groups, seed
        See `make_splits`.
    model : object with fit and predict, optional
    responses : xarray.DataArray, optional
        Those that will be scored, if they are a part of the experiment's.
    earlier : xarray.Dataset or sequence of them
        Scores by which something may have been chosen since.
    unpaired
        See `cross_validate`.
    allow : sequence of str
        Checks whose findings are known and accepted.

    Returns
    -------
    Audit

    Raises
    ------
    SchemaError, PairingError, ValueError
        Features, responses or folds are not usable.

    Examples
    --------
    >>> import numpy as np
    >>> rng = np.random.default_rng(0)
    >>> X = rng.standard_normal((40, 50)).astype("float32")
    >>> X[39] = X[0]
    >>> ids = [f"image{i}" for i in range(40)]
    >>> X = xr.DataArray(X, dims=("stimulus", "feature"), coords={"stimulus": ids})
    >>> Y = xr.DataArray(X.values[:, :2], dims=("stimulus", "unit"),
    ...                  coords={"stimulus": ids}, attrs={"units": "a.u."})
    >>> audit(features=X, responses=Y, cv=4).table[["check", "severity", "rows"]].values.tolist()
    [['copies', 'warning', "'image0', 'image39'"]]
    """
    if responses is None:
        responses = getattr(experiment, "responses", None)
    if responses is None:
        raise SchemaError("audit needs responses: give an experiment that has some, or responses.")
    check_responses(responses)
    if "repeat" in responses.dims:
        responses = average_repeats(responses)
    stimuli = getattr(experiment, "stimuli", None)
    given: dict[str, xr.DataArray] = {}
    if isinstance(features, Stimuli):
        stimuli = features
        if model is not None and takes_stimuli(model):
            given = stimulus_rows(model, features)
    elif features is not None:
        given = check_features(features)
    layers, rows = given, responses
    if given:
        layers, rows = paired(given, responses, unpaired)
    splits, _, _ = make_splits(rows, cv, groups, seed)
    scores = (earlier,) if isinstance(earlier, xr.Dataset) else tuple(earlier)
    return audited(Case(rows, layers, given, splits, model, stimuli, scores), allow)


def audited(case: Case, allow: Sequence[str] = ()) -> Audit:
    """Return what the checks find in a case.

    Raises
    ------
    UnknownNameError
        `allow` names no check.
    """
    allowed = [allow] if isinstance(allow, str) else list(allow)
    for name in allowed:
        if name not in CHECKS:
            raise UnknownNameError(
                f"`allow` names the check {name!r}, which there is not. "
                f"{did_you_mean(str(name), CHECKS)}"
            )
    findings, clean, skipped = [], [], {}
    for name, check in CHECKS.items():
        found = check(case)
        if isinstance(found, str):
            skipped[name] = found
        elif found:
            findings += [replace(one, check=name, allowed=name in allowed) for one in found]
        else:
            clean.append(name)
    return Audit(tuple(_by_severity(findings)), tuple(clean), skipped)


def _by_severity(findings: Iterable[Finding]) -> list[Finding]:
    order = ("severe", "warning", "note")
    return sorted(findings, key=lambda one: order.index(one.severity))


def copy_groups(stimuli: Any) -> pd.Series:
    """Return one label per stimulus, the same for copies of a picture or video: for `groups`.

    Copies are stimuli of the same bytes, and pictures that differ in hardly more than how they
    were stored.

    Parameters
    ----------
    stimuli : Stimuli, or features of `extract_features`

    Returns
    -------
    pandas.Series of str, indexed by stimulus id
        The id of the first copy.

    Raises
    ------
    SchemaError
        The features were not made from stimuli here.

    Examples
    --------
    >>> import numpy as np
    >>> pictures = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), np.uint8)
    >>> pictures[2] = pictures[0]
    >>> copy_groups(Stimuli.from_arrays(pictures, ids=["a", "b", "c"])).tolist()
    ['a', 'b', 'a']
    """
    if isinstance(stimuli, Stimuli):
        return _audit_rows.grouped(stimuli.ids, stimuli.hashes(), stimuli.fingerprints())
    first = next(iter(check_features(stimuli).values()))
    if "fingerprint" not in first.coords:
        raise SchemaError(
            "These features do not tell copies of stimuli: give the stimuli, or features of "
            "extract_features."
        )
    known = (first[name].values.tolist() for name in ("stimulus_sha256", "fingerprint"))
    return _audit_rows.grouped(first["stimulus"].values.tolist(), *known)
