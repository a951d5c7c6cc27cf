"""Figures as parts of the page: SVG that links its points to rows, and takes the page's colours."""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from xml.etree import ElementTree
from xml.etree.ElementTree import Element, SubElement

from kdbench.report.drawing import INK, PAPER
from kdbench.report.figures.sheet import Mark

NUMBERS = ("d", "x", "y", "width", "height", "points")
"""Attributes whose numbers are rounded to hundredths of a point."""
LONG_NUMBER = re.compile(r"-?\d+\.\d{3,}")
FONT = "DejaVuSans-"
"""Beginning of the ids of letters, which is left out: letters are a third of a page."""
REACH = 7.0
"""Radius around a marker, points, in which the pointer finds it."""


def inline_svg(svg: str, name: str, marks: Mapping[str, Mark], points: Mapping[str, Sequence[Mark]]) -> str:
    """Return a figure as an element of an HTML page.

    Args:
        svg: figure as matplotlib writes it.
        name: name that no other figure of the page has; every id begins with it.
        marks: links by the beginning of the ids of their parts.
        points: links of the points of a line by its id, in the order of its points.
    """
    root = ElementTree.fromstring(svg)
    for element in root.iter():
        element.tag = local(element.tag)
        element.attrib = {local(key): value for key, value in element.attrib.items()}
    remove_background(root)
    wrap_points(root, points)
    wrap_marks(root, marks)
    for element in root.iter():
        clean(element, name)
    width = float(root.attrib["viewBox"].split()[2])
    root.attrib = {
        "viewBox": root.attrib["viewBox"], "role": "group", "aria-labelledby": f"caption-{name.rpartition('-')[0]}",
        "style": f"max-width: {width * 4 / 3:.0f}px",
    }  # fmt: skip
    return ElementTree.tostring(root, encoding="unicode")


def local(name: str) -> str:
    """Return the name of an element or attribute without its namespace."""
    return name.rpartition("}")[2]


def remove_background(root: Element) -> None:
    """Remove metadata, styles for the whole document, and the background."""
    for parent in list(root.iter()):
        for child in list(parent):
            if child.tag in ("metadata", "style") or child.get("id") == "patch_1":
                parent.remove(child)


def wrap_marks(root: Element, marks: Mapping[str, Mark]) -> None:
    """Put the parts of each mark into a link with its text and an area that is easy to point at."""
    links: dict[str, Element] = {}
    for parent in list(root.iter()):
        for place, child in enumerate(list(parent)):
            key = child.get("id", "").partition(".")[0]
            if key not in marks:
                continue
            if key not in links:
                links[key] = anchor(marks[key])
                parent.insert(place, links[key])
            del child.attrib["id"]
            parent.remove(child)
            links[key].append(child)
    for linked in links.values():
        for holder in list(linked.iter("g")):
            holder.extend(list(areas(holder)))


def wrap_points(root: Element, points: Mapping[str, Sequence[Mark]]) -> None:
    """Put each marker of some lines into a link of its own."""
    for line in root.iter("g"):
        if line.get("id") not in points:
            continue
        own = points[line.attrib.pop("id")]
        markers = [(holder, use) for holder in list(line.iter("g")) for use in holder.findall("use")]
        assert len(markers) == len(own), f"{len(markers)} markers, {len(own)} marks"
        for (holder, use), mark in zip(markers, own, strict=True):
            place = list(holder).index(use)
            holder[place] = anchor(mark)
            holder[place].extend([use, *areas([use])])


def anchor(mark: Mark) -> Element:
    """Return a link without content but its text."""
    made = Element("a", {"class": "mark", "href": mark.href, "aria-label": mark.text})
    SubElement(made, "title").text = mark.text
    return made


def areas(children: Iterable[Element]) -> Iterator[Element]:
    """Yield an invisible area around each line and marker, wider than these."""
    for child in children:
        if child.tag == "use":
            yield Element(
                "circle", {"class": "near", "cx": child.get("x", ""), "cy": child.get("y", ""), "r": f"{REACH:g}"}
            )
        if child.tag == "path":
            near = {key: value for key, value in child.attrib.items() if key in ("d", "clip-path")}
            yield Element("path", {"class": "near", **near})


def clean(element: Element, name: str) -> None:
    """Give an element ids that are unique in the page, the page's colours, and numbers of reasonable length."""
    for key, value in element.attrib.items():
        if key == "id" or (key == "href" and element.tag == "use"):
            hash_sign = "#" if key == "href" else ""
            element.set(key, f"{hash_sign}{name}-{value.removeprefix('#').removeprefix(FONT)}")
        elif key in NUMBERS:
            element.set(key, LONG_NUMBER.sub(lambda found: f"{float(found[0]):.2f}", value))
        elif key == "clip-path":
            element.set(key, value.replace("url(#", f"url(#{name}-"))
        elif key == "style":
            element.set(key, value.replace(INK, "currentColor").replace(PAPER, "var(--canvas)"))
    if element.tail:
        element.tail = "\n"
    if element.text and not element.text.strip():
        element.text = ""
