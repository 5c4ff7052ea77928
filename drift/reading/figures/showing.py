"""Figures as PNG, and into notebooks."""

from __future__ import annotations

import io

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from drift.reading.figures.finishing import take_as_text
from drift.reading.figures.style import DPI

__all__ = ["described", "png", "show"]


# ---------------------------------------------------------------------------------------------- output
def png(figure: Figure, colours: int = 192) -> bytes:
    """Render a figure as a small PNG (a palette of `colours`; the eye sees no difference, the file is a third)."""
    from PIL import Image

    take_as_text(figure)
    figure.set_dpi(DPI)
    figure.set_facecolor("white")
    canvas = FigureCanvasAgg(figure)
    canvas.draw()  # once: `savefig` lays everything out in a first drawing that it throws away
    image = Image.fromarray(np.asarray(canvas.buffer_rgba()))
    small = image.convert("RGB").quantize(colours, dither=Image.Dither.NONE)
    out = io.BytesIO()
    small.save(out, format="png", optimize=True)
    return out.getvalue()


def described(figure: Figure) -> str:
    """Title and caption of a figure, for those who cannot see it."""
    return " ".join(f"{figure.get_suptitle()}. {figure.get_supxlabel()}".split())


def show(figure: Figure | None, name: str) -> None:
    """Show a figure in a notebook, with a name for its file and its title and caption for those who cannot see it."""
    if figure is None:
        return
    import base64

    from IPython.display import display

    alt = described(figure)
    display(
        {"image/png": base64.b64encode(png(figure)).decode(), "text/plain": alt},
        raw=True,
        metadata={"image/png": {"alt": alt, "name": name}},
    )
