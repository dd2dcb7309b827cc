"""Drawings: figures as inline SVG that takes the page's font and ink, and as slides.

Drawn on `matplotlib.figure.Figure` objects: no pyplot, no global figure, no backend chosen.
"""

from __future__ import annotations

import hashlib
import io
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from neurodl.io.store import atomic_path
from neurodl.reports.tables import ALL

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's colours, without the yellow and black that vanish on one of the two backgrounds.
PALETTE = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8c6bb1", "#8a7f5c")
# Shapes tell ROIs apart where colours do not; each with the sign that stands for it in the legend.
MARKERS = {
    "s": "\u25a0",
    "D": "\u25c6",
    "^": "\u25b2",
    "v": "\u25bc",
    "P": "\u271a",
    "X": "\u2716",
    "h": "\u2b22",
    "o": "\u25cf",
}
INK, RULE = "#10203f", "#a0b0cf"
# What the page writes instead, so that a figure follows it to light or dark.
COLOURS = {INK: "currentColor", RULE: "var(--rule)"} | {
    colour: f"var(--roi-{index})" for index, colour in enumerate(PALETTE)
}
STYLE: dict[str, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "neurodl",
    "font.size": 9,
    "text.usetex": False,
    "text.parse_math": False,
    "axes.unicode_minus": True,
    "font.family": "sans-serif",
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": RULE,
    "xtick.color": RULE,
    "ytick.color": RULE,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "grid.color": RULE,
    "grid.linewidth": 0.5,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "axes.spines.bottom": False,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "savefig.facecolor": "none",
    "lines.linewidth": 1.6,
    "lines.markersize": 4.5,
}


# 16:9; with fonts of 9 points, a title is as large as on a slide of twice this width.
SLIDE_SIZE, SLIDE_DPI = (6.4, 3.6), 300


@dataclass(frozen=True)
class Look:
    """How a ROI is drawn: its colour, its marker and the marker's sign for the legend."""

    colour: str
    marker: str

    @property
    def css(self) -> str:
        """The colour as the page writes it."""
        return COLOURS[self.colour]

    @property
    def sign(self) -> str:
        """The marker as a character."""
        return MARKERS[self.marker]


def roi_looks(rois: Sequence[str]) -> dict[str, Look]:
    """Return one look per ROI, the same in every figure; "all" has the ink's colour.

    Examples
    --------
    >>> roi_looks(["all", "V1"])["V1"]
    Look(colour='#0072b2', marker='s')
    """
    signs = list(MARKERS)
    looks = {ALL: Look(INK, "o")} if ALL in rois else {}
    for index, roi in enumerate(roi for roi in rois if roi != ALL):
        # The second time round the palette, colours meet other shapes.
        shape = signs[(index + index // len(PALETTE)) % len(signs)]
        looks[roi] = Look(PALETTE[index % len(PALETTE)], shape)
    return looks


@dataclass(frozen=True, eq=False)
class Drawing:
    """A figure of a report: how it is drawn, and the numbers in it.

    Attributes
    ----------
    title, note : str
        Stand above the figure.
    draw : callable
        Returns the matplotlib figure.
    data : pandas.DataFrame
        What is drawn.
    legend : dict
        Colour by name, of lines that the page names beside the figure; slides name them below.
    """

    title: str
    note: str
    draw: Callable[[], Figure]
    data: pd.DataFrame
    legend: Mapping[str, str] = field(default_factory=dict)

    @cached_property
    def svg(self) -> str:
        """The figure as an SVG element for the page, whatever the user's rcParams."""
        from matplotlib import style

        with style.context(["default", STYLE]):
            return to_svg(self.draw())

    @property
    def tsv(self) -> str:
        """The numbers as tab-separated text."""
        return self.data.to_csv(sep="\t", index=False, na_rep="n/a", float_format="%.6g")

    def save_slide(self, path: str | Path, heading: str = "") -> None:
        """Write the figure as a PNG of 1920 x 1080 pixels on white.

        Parameters
        ----------
        path : str or Path
        heading : str
            What the figure shows; the title follows it.
        """
        from matplotlib import style
        from matplotlib.patches import Patch

        with style.context(["default", STYLE]):
            figure = self.draw()
            figure.set_size_inches(*SLIDE_SIZE)
            parts = [part for part in (heading, self.title, self.note) if part]
            figure.suptitle(": ".join(parts[:2]), fontsize=11, color=INK)
            if self.legend:
                figure.legend(
                    handles=[
                        Patch(color=colour, label=name) for name, colour in self.legend.items()
                    ],
                    loc="outside lower center",
                    ncols=min(len(self.legend), 6),
                    frameon=False,
                    fontsize=8,
                )
            with atomic_path(path) as temporary:
                figure.savefig(temporary, format="png", dpi=SLIDE_DPI, facecolor="white")


def to_svg(figure: Figure) -> str:
    """Return a figure as an SVG element for the page: its ids are its own, its ink the page's."""
    buffer = io.StringIO()
    no_metadata = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    figure.savefig(buffer, format="svg", metadata=no_metadata)
    svg = buffer.getvalue()
    svg = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>", "", svg, flags=re.DOTALL)
    svg = svg[svg.index("<svg") :]
    width = f'style="max-width:{round(figure.get_figwidth() * 96)}px"'
    own = "f" + hashlib.sha256(svg.encode()).hexdigest()[:8] + "-"
    # Tags alone are changed: what stands between them are names from files.
    svg = re.sub(r"<[^>]*>", lambda tag: _adapted(tag[0], own), svg)
    return svg.replace("<svg", f"<svg {width}", 1)


def _adapted(tag: str, own: str) -> str:
    """Return a tag with the page's colours and font, and ids that begin with `own`."""
    if tag.startswith("<svg"):
        tag = re.sub(r' (?:width|height|version|xmlns(?::\w+)?)="[^"]*"', "", tag)
    for colour, ours in COLOURS.items():
        tag = tag.replace(colour, ours)
    tag = re.sub(r'font-family: [^;"]*;? ?', "", tag)
    tag = re.sub(r'font: ([^;"]*?)(\d[\d.]*px)[^;"]*', _without_family, tag)
    tag = re.sub(r'(\bid="|url\(#)', rf"\g<1>{own}", tag)
    return re.sub(r'(?:xlink:)?href="#', f'href="#{own}', tag)


def _without_family(font: re.Match[str]) -> str:
    """Return what older matplotlib writes as one `font` property, without the family."""
    italic = "font-style: italic; " if "italic" in font[1] else ""
    return f"{italic}font-size: {font[2]}"


def new_figure(width: float, height: float) -> tuple[Figure, Axes]:
    """Return a figure of this size [inch] with one axes."""
    from matplotlib.figure import Figure

    figure = Figure((width, height), layout="constrained")
    return figure, figure.add_subplot()
