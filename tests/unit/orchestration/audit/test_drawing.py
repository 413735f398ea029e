"""Graphs as lines, in Mermaid and as SVG."""

import re
from xml.etree import ElementTree

from pipeline.orchestration.audit.drawing import Box, mermaid, svg, terminal_lines

BOXES = [Box("d", "data", kind="file"), Box("p", "prepare", "dataset", href="#p"),
         Box("i", "import"), Box("f", "finetune"), Box("m", "merge", kind="gone"),
         Box("v", "version 3", kind="version")]  # fmt: skip
EDGES = [("d", "p"), ("p", "f"), ("i", "f"), ("i", "m"), ("f", "m"), ("m", "v"), ("x", "v")]


def test_lanes_lead_to_the_last_user() -> None:
    lines = {box.id: line for line, box in terminal_lines(BOXES, EDGES)}
    assert lines == {
        "d": "●",
        "p": "╰─●",
        "i": "  │ ●",
        "f": "  ╰─┼─●",
        "m": "    ╰─┴─●",
        "v": "        ╰─●",
    }


def test_a_lane_that_is_not_read_is_passed_behind() -> None:
    boxes = [Box(name, name) for name in "abcd"]
    lines = [line for line, _ in terminal_lines(boxes, [("a", "c"), ("b", "d"), ("a", "d")])]
    assert lines == ["●", "│ ●", "├─│─●", "╰─┴───●"]


def test_mermaid_escapes_what_is_not_plain() -> None:
    boxes = [Box("1", 'a "b" <c>|', kind="file"), Box("2", "x", "y; z")]
    text = mermaid(boxes, [("1", "2"), ("2", "nowhere")])
    assert text.splitlines() == [
        "flowchart LR",
        '  n0[("a #34;b#34; #60;c#62;#124;")]',
        '  n1["x<br/>y#59; z"]',
        "  n0 --> n1",
    ]


def test_svg_has_each_box_and_arrow_and_no_markup_of_a_name() -> None:
    boxes = [*BOXES, Box("h", "<script>alert(1)</script>", 'a"b', href='x"><b>', hint="<i>")]
    text = svg(boxes, [*EDGES, ("v", "h"), ("v", "h")], label="<all>", alone=True)
    root = ElementTree.fromstring(text)
    space = "{http://www.w3.org/2000/svg}"
    assert len(root.findall(f".//{space}rect")) == len(boxes)
    arrows = [p for p in root.findall(f".//{space}path") if "marker-end" in p.attrib]
    assert len(arrows) == len(EDGES)  # the one from nowhere is left out, the double one is one
    assert "<script" not in text
    assert "<b>" not in text
    xs = {box.attrib["x"] for box in root.findall(f".//{space}rect")}
    assert len(xs) == 6  # layers
    wide = float(re.findall(r'viewBox="0 0 (\d+) ', text)[0])
    assert all(float(box.attrib["x"]) + float(box.attrib["width"]) <= wide
               for box in root.findall(f".//{space}rect"))  # fmt: skip


def test_nothing_and_a_circle_are_drawn_too() -> None:
    ElementTree.fromstring(svg([], [], label="", alone=True))
    boxes = [Box("a", "a"), Box("b", "b")]
    ElementTree.fromstring(svg(boxes, [("a", "b"), ("b", "a")], label="", alone=True))
    assert len(terminal_lines(boxes, [("a", "b"), ("b", "a")])) == 2
