"""What is wrong with the layout of a figure, as matplotlib's own renderer measures it."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg, RendererAgg
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.transforms import Bbox

#: Pixels by which two boxes may touch, or a text stand out: letters begin and end within their boxes.
SLACK = 1.0


def wrong(figure: Figure, widest: float, highest: float) -> list[str]:
    """List the faults: figures too large, texts outside, and texts or legends that cover one another."""
    renderer = FigureCanvasAgg(figure).get_renderer()
    figure.draw_without_rendering()
    width, height = (figure.dpi * inches for inches in figure.get_size_inches())
    faults = [f"{width:.0f} x {height:.0f} pixels"] if width > widest + SLACK or height > highest + SLACK else []
    texts = [(name, letters(text, renderer)) for name, text in drawn(figure)]
    for name, box in texts:
        if box.x0 < -SLACK or box.y0 < -SLACK or box.x1 > width + SLACK or box.y1 > height + SLACK:
            faults.append(f"{name} is outside the figure")
    legends = [(f"legend {k}", legend.get_window_extent(renderer)) for k, legend in enumerate(figure.legends)]
    for name, box in legends:
        if box.x0 < -SLACK or box.y0 < -SLACK or box.x1 > width + SLACK or box.y1 > height + SLACK:
            faults.append(f"{name} is outside the figure")
    panels = [(f"panel {k}", ax.get_window_extent(renderer)) for k, ax in enumerate(figure.axes)]
    faults += [f"{a} covers {b}" for (a, p), (b, q) in itertools.combinations(texts + legends, 2) if covers(p, q)]
    faults += [f"{a} covers {b}" for (a, p), (b, q) in itertools.product(legends, panels) if covers(p, q)]
    bars = [ax.get_label() == "<colorbar>" for ax in figure.axes]
    small = [name for (name, box), bar in zip(panels, bars, strict=True) if min(box.height, box.width) < 30 and not bar]
    return faults + [f"{name} is too small to be read" for name in small]


def letters(text: Text, renderer: RendererAgg) -> Bbox:
    """The box of a text without the empty lines that push it down."""
    box = text.get_window_extent(renderer)
    lines = text.get_text().split("\n")
    empty = next(k for k, line in enumerate(lines) if line.strip())
    return Bbox.from_extents(box.x0, box.y0, box.x1, box.y1 - box.height * empty / len(lines))


def covers(a: Bbox, b: Bbox) -> bool:
    """Whether two boxes lie over one another by more than the slack."""
    wide = min(a.x1, b.x1) - max(a.x0, b.x0)
    high = min(a.y1, b.y1) - max(a.y0, b.y0)
    return wide > SLACK and high > SLACK


def drawn(figure: Figure) -> Iterator[tuple[str, Text]]:
    """Every text of a figure that is drawn, legends aside."""
    of_figure = {"title": figure._suptitle, "caption": figure._supxlabel, "left": figure._supylabel}  # type: ignore[attr-defined]
    found = [(name, text) for name, text in of_figure.items() if text is not None]
    for k, ax in enumerate(figure.axes):
        if ax.axison:
            found += [(f"panel {k}: {name} {text.get_text()!r}", text) for name, text in of_panel(ax)]
        else:
            found += [(f"panel {k}: text {text.get_text()!r}", text) for text in ax.texts]
    yield from ((name, text) for name, text in found if text.get_visible() and text.get_text().strip())


def of_panel(ax: Axes) -> Iterator[tuple[str, Text]]:
    yield from (("title", title) for title in (ax.title, ax._left_title, ax._right_title))  # type: ignore[attr-defined]
    for name, axis in (("x", ax.xaxis), ("y", ax.yaxis)):
        yield f"{name} name", axis.label
        yield f"{name} offset", axis.get_offset_text()
        low, high = sorted(axis.get_transform().transform(axis.get_view_interval()))
        for tick in axis.get_major_ticks():
            if low - 1e-9 <= axis.get_transform().transform(tick.get_loc()) <= high + 1e-9:
                yield from ((f"{name} tick", label) for label in (tick.label1, tick.label2))
    yield from (("text", text) for text in ax.texts)
