"""What a report says of the audit that its scores were made under."""

from __future__ import annotations

from typing import Any

import xarray as xr

from neurodl.errors import listed
from neurodl.scores.auditing import TITLES, Audit

SHOWN = 5  # ids of rows


def audit_context(scores: xr.Dataset) -> dict[str, Any] | None:
    """Return the findings and what was looked for, for the template; None without an audit."""
    found = Audit.of(scores)
    if found is None:
        return None
    rows = [
        {
            "severity": one.severity,
            "allowed": one.allowed,
            "message": one.message,
            "remedy": one.remedy,
            "rows": f"{listed(one.rows[:SHOWN])}{_more(one.n_rows)}" if one.rows else "",
        }
        for one in found.findings
    ]
    return {
        "summary": _summary(found),
        "rows": rows,
        "clean": "; ".join(_lower(TITLES.get(name, name)) for name in found.clean),
        "skipped": "; ".join(
            f"{_lower(TITLES.get(name, name))} ({why})" for name, why in found.skipped.items()
        ),
    }


def overrides(scores: xr.Dataset) -> list[str]:
    """Return a sentence for each severe finding that was allowed, for the top of the page."""
    found = Audit.of(scores)
    severe = [] if found is None else [one for one in found.findings if one.severity == "severe"]
    return [f"Scored in spite of the audit: {one.message}" for one in severe]


def _summary(found: Audit) -> str:
    serious = [one for one in found.findings if one.severity != "note"]
    n_checks = len(found.clean) + len({one.check for one in found.findings})
    if not serious:
        return f"{n_checks} checks found nothing that makes the scores doubtful."
    severe = sum(one.severity == "severe" for one in serious)
    others = len(serious) - severe
    said = [f"{severe} severe"] * bool(severe) + [f"{others} to be careful about"] * bool(others)
    return f"{n_checks} checks were made. Findings: {', '.join(said)}."


def _more(n_rows: int) -> str:
    return f" and {n_rows - SHOWN} more" if n_rows > SHOWN else ""


def _lower(text: str) -> str:
    return text[:1].lower() + text[1:]
