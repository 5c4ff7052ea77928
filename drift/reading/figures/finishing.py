"""What stands around the panels of every figure: title, caption and legends, measured so that none covers another."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.artist import Artist
from matplotlib.backends.backend_agg import FigureCanvasAgg, RendererAgg
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.legend import Legend
from matplotlib.lines import Line2D
from matplotlib.text import Text

__all__ = ["Legends", "finish_figure", "take_as_text", "wrap_words"]

Legends = Sequence[tuple[str, Sequence[Any]]]
#: Sizes of the title, of legends and of the caption, in points.
_TITLE, _LEGEND, _CAPTION = 11.5, 8.5, 8.0
_POWER = "$\\mathdefault{"  # how matplotlib writes a power of ten at a tick
_EDGE = 0.01  # of the figure's width, left free on either side of words


def finish_figure(
    figure: Figure, title: str, caption: str, legends: Legends = (), *, strip: bool = False, scale: float = 1.0
) -> Figure:
    """Set title above, caption below, and legends beside the panels.

    Parameters
    ----------
    figure : Figure
    title, caption : str
        Broken into lines of the width that there is.
    legends : sequence of (str, sequence of handles)
        Heading and entries; an entry that looks like nothing in the figure is left out.
    strip : bool
        Whether legends stand in a line under the title, where they cost no width.
    scale : float
        Of the letters, as of :func:`set_style`.
    """
    renderer = FigureCanvasAgg(figure).get_renderer()
    width = figure.get_figwidth() * figure.dpi
    shown = [(name, [line for line in lines if _is_drawn(figure, line)]) for name, lines in legends]
    shown = [(name, lines) for name, lines in shown if lines]
    room = width * (1 - 2 * _EDGE)
    above, below = FontProperties(size=_TITLE * scale, weight="bold"), FontProperties(size=_CAPTION * scale)
    words = wrap_words(caption, room, below, renderer)
    if shown and not strip:
        room -= _legend_beside(figure, shown).get_window_extent(renderer).width  # it stands to the right of the title
    head = figure.suptitle(wrap_words(title, room, above, renderer), x=_EDGE, ha="left", fontproperties=above)
    take_as_text(head)
    figure.supxlabel(words, x=_EDGE, ha="left", fontproperties=below, color="0.35")
    if shown and strip:
        _legends_under_title(figure, shown, renderer, head.get_window_extent(renderer).height, _LEGEND * scale)
    figure.align_ylabels()
    return figure


def take_as_text(artist: Artist) -> None:
    """Have no text of an artist read as a formula: names come from files. Powers of ten at ticks stay what they are."""
    for text in artist.findobj(Text):
        if isinstance(text, Text) and "$" in text.get_text() and not text.get_text().startswith(_POWER):
            text.set_parse_math(False)


def wrap_words(text: str, room: float, font: FontProperties, renderer: RendererAgg) -> str:
    """Break a text into lines of at most `room` pixels, as the renderer measures them."""

    def wide(line: str) -> float:
        return float(renderer.get_text_width_height_descent(line, font, False)[0])

    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".lstrip()
        if lines[-1] and wide(longer) > room:
            lines.append(word)
        else:
            lines[-1] = longer
    return "\n".join(lines)


def _is_drawn(figure: Figure, entry: Any) -> bool:
    """Whether any line of the panels looks like an entry of a legend; a grey one stands for all colours."""
    if not isinstance(entry, Line2D):
        return True
    colour, marker, style = entry.get_color(), entry.get_marker(), _dashes(entry)
    grey = isinstance(colour, str) and colour.startswith("0.")
    hollow = entry.get_markerfacecolor() == "white"
    bare = marker in (None, "None", "none", "")
    if grey and bare and style is None:
        return True
    return any(
        (grey or to_rgb(line.get_color()) == to_rgb(colour))
        and (bare or (grey and hollow) or line.get_marker() == marker)
        and (not hollow or line.get_markerfacecolor() == "white")
        and (style is None or _dashes(line) == style)
        for ax in figure.axes
        for line in ax.lines
        if np.size(line.get_xdata()) and _is_somewhere(line)
    )


def _is_somewhere(line: Line2D) -> bool:
    with np.errstate(invalid="ignore"):
        return bool(np.isfinite(np.asarray(line.get_ydata(), dtype=float)).any())


def _dashes(line: Line2D) -> tuple[float, ...] | None:
    """Pattern of a broken line; None of one that is not broken, or not there."""
    pattern = line._unscaled_dash_pattern[1]  # type: ignore[attr-defined]
    return tuple(pattern) if pattern else None


def _legend_beside(figure: Figure, shown: Legends) -> Legend:
    handles = [h for name, lines in shown for h in (Line2D([], [], linestyle="none", label=name), *lines)]
    legend = figure.legend(
        handles=handles, loc="outside right upper", frameon=False, fontsize=_LEGEND, handlelength=3.0, alignment="left"
    )
    headings = {name for name, _ in shown}
    for text in legend.get_texts():
        if text.get_text() in headings:
            text.set_fontweight("bold")
            text.set_x(-38)
    take_as_text(legend)
    return legend


def _legends_under_title(figure: Figure, shown: Legends, renderer: RendererAgg, head: float, size: float) -> None:
    """Set legends from left to right under the title, and take their height from the panels."""
    width, height = figure.get_figwidth() * figure.dpi, figure.get_figheight() * figure.dpi
    top = height - head - 0.1 * figure.dpi
    x, lowest, row = _EDGE * width, top, 0.0
    for name, lines in shown:
        heading = name if len(shown) > 1 else None
        legend = figure.legend(
            handles=list(lines), title=heading, ncols=len(lines), frameon=False, fontsize=size, handlelength=2.6,
            title_fontproperties={"size": size, "weight": "bold"}, loc="upper left", borderaxespad=0, borderpad=0.2,
            columnspacing=1.2, alignment="left",
        )  # fmt: skip
        take_as_text(legend)
        box = legend.get_window_extent(renderer)
        if x + box.width > width and x > _EDGE * width:
            x, lowest, row = _EDGE * width, lowest - row, 0.0
        legend.set_bbox_to_anchor((x / width, lowest / height), figure.transFigure)
        x, row = x + box.width + 0.25 * figure.dpi, max(row, box.height)
    figure.set_layout_engine(ConstrainedLayoutEngine(rect=(0, 0, 1, 1 - (top - lowest + row) / height)))
