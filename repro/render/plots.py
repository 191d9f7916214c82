"""Plots drawn with matplotlib: files for a paper, and drawings for the site whose points are links.

matplotlib, because its files are what papers take (vector PDF and SVG, fonts embedded) and one drawing serves both.
An interactive library would add megabytes of scripts to a site that must work from a folder; there a point of the
drawing is a link with a text, which a few lines of script show.
"""

from __future__ import annotations

import importlib.util
import io
import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree as Xml

from repro.errors import UsageError
from repro.render.figures import Figure, Point

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Drawing

FORMATS = ("svg", "png", "pdf")
COLOURS = {
    "reported": "#c2600a",
    "measured": "#2b6cb0",
    "match": "#1a8a3c",
    "within": "#1187a8",
    "explained": "#3b6fe0",
    "outside": "#d63a2f",
    "estimated": "#7a4fc2",
}
MARKERS = {"reported": "o", "measured": "s", "match": "o", "within": "D", "explained": "^", "outside": "X"}
_INK, _SOFT = "#010203", "#040506"  # stand-ins that the site's style sheet colours
_SVG, _XLINK = "http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"


def available() -> bool:
    """Whether matplotlib is installed."""
    return importlib.util.find_spec("matplotlib") is not None


def write(figure: Figure, path: Path) -> None:
    """Draw a figure into a file; its suffix says which format. Two runs write the same bytes.

    Raises
    ------
    UsageError
        When matplotlib is not installed.
    """
    from repro.files import write_atomically

    drawing = _draw(figure, ink="#000000", soft="#bbbbbb", urls=False)
    kind = path.suffix[1:]
    stream = io.BytesIO()
    metadata: dict[str, Any] = {"svg": {"Date": None}, "pdf": {"CreationDate": None}}.get(kind, {})
    drawing.savefig(stream, format=kind, dpi=200, metadata=metadata)
    write_atomically(path, stream.getvalue())


def inline(figure: Figure, link: Callable[[Point], str]) -> str:
    """Draw a figure as SVG to stand in a page: points are links with a text, colours follow the page."""
    stream = io.BytesIO()
    _draw(figure, ink=_INK, soft=_SOFT, urls=True).savefig(stream, format="svg", metadata={"Date": None})
    Xml.register_namespace("", _SVG)
    Xml.register_namespace("xlink", _XLINK)
    root = Xml.fromstring(stream.getvalue())
    for parent in list(root.iter()):
        for child in list(parent):
            if child.tag in (f"{{{_SVG}}}metadata", f"{{{_SVG}}}style"):
                parent.remove(child)  # a style sheet inside a page would be the whole page's
    points = [point for series in figure.series for point in series.points]
    for anchor in root.iter(f"{{{_SVG}}}a"):
        point = points[int(anchor.attrib.pop(f"{{{_XLINK}}}href").partition(":")[2])]
        anchor.attrib.pop("target", None)  # a link of the site stays in its window
        anchor.set("href", link(point))
        anchor.set("data-tip", point.text)
        anchor.set("aria-label", point.text.replace("\n", ", "))
    _own_names(root, figure.name)
    for name in ("width", "height"):
        root.attrib.pop(name, None)
    root.set("role", "group")
    root.set("aria-label", figure.title)
    text = Xml.tostring(root, encoding="unicode")
    return text.replace(_INK, "currentColor").replace(_SOFT, "var(--line)")


def _own_names(root: Xml.Element, prefix: str) -> None:
    """Names that nothing refers to go; the rest are made the figure's own, as a page holds several."""
    text = Xml.tostring(root, encoding="unicode")
    used = set(re.findall(r'(?:xlink:href|href)="#([^"]+)"', text)) | set(re.findall(r"url\(#([^)]+)\)", text))
    for element in root.iter():
        if (name := element.get("id")) is not None:
            if name in used:
                element.set("id", f"{prefix}-{name}")
            else:
                del element.attrib["id"]
        for key, value in list(element.attrib.items()):
            if value.startswith("#") and value[1:] in used:
                element.set(key, f"#{prefix}-{value[1:]}")
            elif "url(#" in value:
                element.set(key, re.sub(r"url\(#([^)]+)\)", rf"url(#{prefix}-\1)", value))


def _draw(figure: Figure, *, ink: str, soft: str, urls: bool) -> Drawing:
    if not available():
        raise UsageError("plots need matplotlib: install the extra 'plots'")
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure as Drawing

    style = {
        "text.color": ink,
        "axes.labelcolor": ink,
        "axes.edgecolor": ink,
        "xtick.color": ink,
        "ytick.color": ink,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "grid.color": soft,
        "font.size": 9,
        "svg.hashsalt": figure.name,
        "svg.fonttype": "none" if urls else "path",
        "pdf.fonttype": 42,
        "text.parse_math": False,  # a model's name is text, dollars and all
    }
    with matplotlib.rc_context(style):
        drawing = Drawing(figsize=(7, 4.4), facecolor="none" if urls else "white")
        FigureCanvasAgg(drawing)
        axes = drawing.add_axes((0.11, 0.12, 0.86, 0.8), facecolor="none")
        axes.grid(visible=True, linewidth=0.5)
        axes.set_axisbelow(True)
        _lines(axes, figure, ink, soft)
        number = 0
        for series in figure.series:
            colour, marker = COLOURS.get(series.name, ink), MARKERS.get(series.name, "o")
            if len(series.front) > 1:
                line = [point.x for point in series.front], [point.y for point in series.front]
                axes.plot(*line, color=colour, linewidth=1.2, alpha=0.7)
            for index, point in enumerate(series.points):
                (drawn,) = axes.plot(
                    [point.x], [point.y], marker, color=colour, markersize=5, markeredgewidth=0, alpha=0.85,
                    label=series.name if index == 0 else "_",
                )  # fmt: skip
                if urls:
                    drawn.set_url(f"point:{number}")
                number += 1
            for point in series.front:
                axes.annotate(
                    point.model, (point.x, point.y), xytext=(-3, 4), textcoords="offset points", fontsize=6.5,
                    ha="right",
                )  # fmt: skip
        axes.set_xlabel(figure.x_label)
        axes.set_ylabel(figure.y_label)
        _scales(axes, figure)
        if figure.categories:
            axes.set_xticks(range(len(figure.categories)), figure.categories)
        axes.legend(frameon=False, loc="best", fontsize=8, labelcolor=ink)
        if not urls:  # a page says it above the drawing
            drawing.text(0.11, 0.955, figure.title, fontsize=10, fontweight="bold")
    return _Styled(drawing, style)  # type: ignore[return-value]


class _Styled:
    """A drawing that is saved under the style that it was made in: what texts become is decided at saving."""

    def __init__(self, drawing: Drawing, style: dict[str, Any]) -> None:
        self.drawing, self.style = drawing, style

    def savefig(self, *args: Any, **settings: Any) -> None:
        import matplotlib

        with matplotlib.rc_context(self.style), warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Glyph .* missing")  # a font without a name's letters
            self.drawing.savefig(*args, **settings)


def _scales(axes: Any, figure: Figure) -> None:
    """Logarithmic axes where asked, with plain numbers at their ticks."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    if figure.logarithmic_x:
        axes.set_xscale("log")
    if figure.logarithmic_y:
        axes.set_yscale("log")
    for axis, logarithmic in ((axes.xaxis, figure.logarithmic_x), (axes.yaxis, figure.logarithmic_y)):
        if logarithmic:
            axis.set_major_locator(LogLocator(base=10, subs=(1, 2, 5)))
            axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
            axis.set_minor_formatter(NullFormatter())
    if figure.zero:  # most cells lie near zero, and some far off
        axes.set_yscale("symlog", linthresh=5)
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:+g}" if value else "0"))
    if any(series.front for series in figure.series):
        axes.margins(x=0.14)


def _lines(axes: Any, figure: Figure, ink: str, soft: str) -> None:
    points = [point for series in figure.series for point in series.points]
    if figure.zero:
        axes.axhline(0, color=ink, linewidth=0.8)
    if not figure.diagonal:
        return
    low = min(min(point.x, point.y) for point in points)
    high = max(max(point.x, point.y) for point in points)
    steps = [low + (high - low) * step / 100 for step in range(101)]
    if figure.logarithmic_y:
        steps = [low * (high / low) ** (step / 100) for step in range(101)]
    axes.plot(steps, steps, color=ink, linewidth=0.8)
    if figure.band is not None and figure.band.value:
        width = float(figure.band.value)
        reach = [step * width / 100 if figure.band.relative else width for step in steps]
        floor = low / 2 if figure.logarithmic_y else float("-inf")
        under = [max(step - by, floor) for step, by in zip(steps, reach, strict=True)]
        over = [step + by for step, by in zip(steps, reach, strict=True)]
        axes.fill_between(steps, under, over, color=soft, alpha=0.6)
