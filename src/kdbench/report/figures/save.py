"""Drawing and saving of all figures."""

import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_pdf import FigureCanvasPdf
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from kdbench.report.build import Report
from kdbench.report.drawing import NARROW, WIDE, Width, style
from kdbench.report.figures.agreement import draw_agreement
from kdbench.report.figures.asymmetry import draw_asymmetry
from kdbench.report.figures.classes import draw_classes
from kdbench.report.figures.curves import draw_curves
from kdbench.report.figures.deployment import draw_deployment
from kdbench.report.figures.gains import draw_gains
from kdbench.report.figures.inline_svg import inline_svg
from kdbench.report.figures.interactions import draw_interactions
from kdbench.report.figures.matrix import draw_matrix
from kdbench.report.figures.mistakes import draw_mistakes
from kdbench.report.figures.power import draw_power
from kdbench.report.figures.scaling import draw_scaling
from kdbench.report.figures.search import draw_search
from kdbench.report.figures.sheet import Mark, Sheet, choose_looks
from kdbench.report.figures.size import draw_size
from kdbench.report.figures.transfer import draw_transfer

DEPLOYMENT = "deployment"
"""Name of the figure that only a report with compressed or measured networks has, or says that it lacks."""
SEARCH = "search"
"""Name of the figure that only a report with a search has."""
FIGURES: Mapping[str, tuple[str, Callable[[Sheet], tuple[Figure, str] | str]]] = {
    "gains": ("Gain over the baseline", draw_gains),
    "interactions": ("Gain of the smaller against the larger student", draw_interactions),
    "size": ("Accuracy against size", draw_size),
    DEPLOYMENT: ("Accuracy against the cost on a device", draw_deployment),
    SEARCH: ("Expected best of a search by number of trials", draw_search),
    "curves": ("Validation accuracy during training", draw_curves),
    "agreement": ("Agreement with the teacher against accuracy", draw_agreement),
    "transfer": ("Transfer: distance to the own teacher against a control", draw_transfer),
    "asymmetry": ("Right and wrong answers that are taken over", draw_asymmetry),
    "mistakes": ("Shared mistakes by class", draw_mistakes),
    "scaling": ("Transfer against size, temperature and alpha", draw_scaling),
    "matrix": ("Agreement of all models", draw_matrix),
    "classes": ("Gain by class", draw_classes),
    "power": ("Seeds that a gain needs", draw_power),
}
"""Title of each figure, and the function that draws it or says why there is none; in the order of the page."""
DPI = 150
"""Dots per inch of the PNG files."""
DATES: Mapping[str, dict[str, Any]] = {
    "png": {"Software": None},
    "svg": {"Date": None, "Creator": None},
    "pdf": {"CreationDate": None, "Creator": None, "Producer": None},
}
"""Metadata without date and version, so that equal figures are equal files."""


@dataclass(frozen=True, eq=False)
class Drawing:
    """Figure with what it shows."""

    name: str
    title: str
    caption: str
    figure: Figure
    marks: Mapping[str, Mark]
    points: Mapping[str, Sequence[Mark]]


@dataclass(frozen=True)
class Picture:
    """Figure in its files and as parts of the page."""

    name: str
    title: str
    caption: str
    png: Path
    inline: Mapping[str, str]
    """SVG elements by the name of their width."""


def draw_figures(report: Report, width: Width) -> tuple[list[Drawing], list[str]]:
    """Return every figure for which there is something to show, and a line for each of the others.

    To be called, and the figures saved, within `kdbench.report.drawing.style`.
    """
    looks = choose_looks(report)
    absent = {DEPLOYMENT: not report.deployment.forms, SEARCH: not report.search.arms}
    names = [name for name in FIGURES if not absent.get(name)]
    drawn = [draw_figure(name, Sheet(report, width, looks)) for name in names]
    return (
        [drawing for drawing in drawn if isinstance(drawing, Drawing)],
        [line for line in drawn if isinstance(line, str)],
    )


def draw_figure(name: str, sheet: Sheet) -> Drawing | str:
    """Return one figure, or a line that says why there is none."""
    title, draw = FIGURES[name]
    drawn = draw(sheet)
    if isinstance(drawn, str):
        return f"no figure “{title}”: {drawn}"
    figure, caption = drawn
    return Drawing(name, title, caption, figure, sheet.marks, sheet.points)


def save_figures(report: Report, folder: Path) -> tuple[list[Picture], list[str]]:
    """Write every figure as NAME.png, NAME.svg and NAME.pdf.

    Returns:
        The figures, also as parts of the page in two widths, and a line for each that has nothing to show.
    """
    folder.mkdir(parents=True, exist_ok=True)
    pictures = []
    with style():
        drawings, left_out = draw_figures(report, WIDE)
        narrow, _ = draw_figures(report, NARROW)
        for drawing, small in zip(drawings, narrow, strict=True):
            svg = save(drawing.figure, folder / drawing.name)
            inline = {
                WIDE.name: inline_svg(svg, f"{drawing.name}-{WIDE.name}", drawing.marks, drawing.points),
                NARROW.name: inline_svg(svg_of(small.figure), f"{small.name}-{NARROW.name}", small.marks, small.points),
            }
            png = folder / f"{drawing.name}.png"
            pictures.append(Picture(drawing.name, drawing.title, drawing.caption, png, inline))
    return pictures, left_out


def save(figure: Figure, path: Path) -> str:
    """Write a figure in every format beside each other; return the SVG."""
    svg = svg_of(figure)
    path.with_name(f"{path.name}.svg").write_text(svg, encoding="utf-8")
    figure.set_dpi(DPI)  # the canvas for SVG has set its own
    FigureCanvasAgg(figure).print_png(path.with_name(f"{path.name}.png"), metadata=DATES["png"])
    FigureCanvasPdf(figure).print_pdf(path.with_name(f"{path.name}.pdf"), metadata=DATES["pdf"])
    return svg


def svg_of(figure: Figure) -> str:
    """Return a figure as SVG. Its layout is computed here, once for all formats.

    The canvases are used directly because `Figure.savefig` draws everything twice.
    """
    if layout := figure.get_layout_engine():
        layout.execute(figure)
    figure.set_layout_engine("none")
    written = io.StringIO()
    FigureCanvasSVG(figure).print_svg(written, metadata=DATES["svg"])
    return written.getvalue()
