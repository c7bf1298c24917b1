"""The plot: well-formed, everything inside the picture, values where they belong."""

import re
from xml.etree import ElementTree

import pytest

from benchmarks import plot
from benchmarks.plot import Series

NAMESPACE = "{http://www.w3.org/2000/svg}"
PLACES = (10, 100, 1_000)


def picture(*series: Series) -> ElementTree.Element:
    return ElementTree.fromstring(plot.svg("Waits & <more>", "messages", "ms", series))


def points(line: ElementTree.Element) -> list[tuple[float, float]]:
    return [(float(x), float(y)) for x, y in re.findall(r"([\d.-]+),([\d.-]+)", line.attrib["points"])]


def test_a_series_is_a_solid_and_a_dashed_line_over_all_its_places() -> None:
    solid, dashed = picture(Series("one", PLACES, (1, 2, 4), (10, 20, 40))).iter(f"{NAMESPACE}polyline")
    assert len(points(solid)) == len(points(dashed)) == 3
    assert "dashed" in dashed.attrib["class"]
    assert "dashed" not in solid.attrib["class"]


def test_equal_factors_are_equal_distances_and_larger_values_are_higher() -> None:
    solid, dashed = map(points, picture(Series("one", PLACES, (1, 2, 4), (10, 20, 40))).iter(f"{NAMESPACE}polyline"))
    (x1, y1), (x2, y2), (x3, y3) = solid
    assert x2 - x1 == pytest.approx(x3 - x2, abs=0.2)
    assert y1 - y2 == pytest.approx(y2 - y3, abs=0.2)
    assert y1 > y2 > y3
    assert all(slow < fast for (_, slow), (_, fast) in zip(dashed, solid, strict=True))


def test_everything_is_inside_the_picture() -> None:
    root = picture(*(Series(f"series {number}", PLACES, (0.03, 0.5, 7), (900, 0.2, 31)) for number in range(4)))
    for line in root.iter(f"{NAMESPACE}polyline"):
        assert all(0 <= x <= plot.WIDTH and 0 <= y <= plot.HEIGHT for x, y in points(line))
    for text in root.iter(f"{NAMESPACE}text"):
        assert 0 <= float(text.attrib["x"]) <= plot.WIDTH
        assert 0 <= float(text.attrib["y"]) <= plot.HEIGHT


def test_names_are_escaped_and_shown() -> None:
    texts = [text.text for text in picture(Series("a < b", PLACES, (1, 1, 1), (1, 1, 1))).iter(f"{NAMESPACE}text")]
    assert {"Waits & <more>", "a < b", "messages", "ms", "10", "100", "1,000"} <= set(texts)


def test_it_has_colours_for_dark_pages() -> None:
    assert "prefers-color-scheme: dark" in plot.svg("t", "x", "y", [Series("one", PLACES, (1, 2, 3), (1, 2, 3))])


@pytest.mark.parametrize("count", [0, 5])
def test_what_could_not_be_told_apart_is_refused(count: int) -> None:
    with pytest.raises(ValueError, match="told apart"):
        picture(*[Series("one", PLACES, (1, 2, 3), (1, 2, 3))] * count)
