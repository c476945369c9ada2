"""Charts: a point stands where the axes say, and ticks are round numbers."""

import itertools
import math
import re
import xml.etree.ElementTree as ET

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from npgpt.inspection import charts


def svg_of(markup, size="wider"):
    """Return one of the pictures and its lines; a line is a list of strokes, a stroke a list of points (x, y)."""
    (svg,) = [svg for svg in ET.fromstring(markup).findall("svg") if svg.get("class") == f"chart {size}"]
    lines = []
    for path in svg.iter("path"):
        ways = [way for way in path.get("d").split("M") if way]
        lines.append([[tuple(map(float, point.split())) for point in way.split("L")] for way in ways])
    return svg, lines


def texts_of(svg, anchor):
    """Return the numbers along an axis with their places."""
    axis = "x" if anchor == "middle" else "y"
    return [(text.text, float(text.get(axis))) for text in svg.iter("text")
            if text.get("text-anchor") == anchor and re.fullmatch(r"-?[\d.,e-]+", text.text or "")]


def value_at(ticks, place, warp=float):
    """Return the value at a pixel, from two numbers of the axis: the inverse of drawing."""
    (a, at_a), (b, at_b) = [(warp(float(text.replace(",", ""))), at) for text, at in (ticks[0], ticks[-1])]
    return a + (b - a) * (place - at_a) / (at_b - at_a)


@pytest.mark.parametrize("size", charts.SIZES)
@pytest.mark.parametrize("log", [False, True])
@pytest.mark.parametrize("xs, ys", [
    ([0, 1, 2, 5], [3.0, 1.5, 1.25, 9.0]),
    ([100, 20000], [0.001, 4000]),
    ([0.5, 0.75], [2e-4, 3e-5]),
    ([1, 2, 3], [1e9, 1e9 + 5, 3e9]),
    ([1, 2, 3], [7, 7, 7]),
])
def test_a_point_stands_where_the_axes_say(xs, ys, log, size):
    svg, [[way]] = svg_of(charts.line_chart({"name": (xs, ys)}, x="step", y="loss", log=log), size)
    size = charts.SIZES[size]
    x_ticks, y_ticks = texts_of(svg, "middle"), texts_of(svg, "end")
    warp = math.log10 if log else float
    pixel = abs(value_at(y_ticks, 1, warp) - value_at(y_ticks, 0, warp))
    assert len(way) == len(xs)
    for (x, y), a, b in zip(way, xs, ys, strict=True):
        if len(x_ticks) > 1:
            assert value_at(x_ticks, x) == pytest.approx(a, abs=(max(xs) - min(xs)) / 1000)
        assert value_at(y_ticks, y, warp) == pytest.approx(warp(b), abs=0.2 * pixel)
        assert size.left <= x <= size.width - size.right
        assert size.top <= y <= size.height - size.bottom
    assert [text.text for text in svg.iter("text")][:2] == ["step", "loss (log scale)" if log else "loss"]
    assert [title.text for title in svg.iter("title")] == [
        f"name: {charts.number(b)} at step {charts.number(a)}" for a, b in zip(xs, ys, strict=True)]


def test_a_line_is_broken_where_there_is_no_number():
    ys = [1, 2, math.nan, 3, math.inf, 4, 5, 1e301]
    svg, [ways] = svg_of(charts.line_chart({"name": (range(8), ys)}))
    assert [len(way) for way in ways] == [2, 1, 2]
    assert len(list(svg.iter("circle"))) == 5
    _, [ways] = svg_of(charts.line_chart({"name": (range(6), [1, 2, 0, -1, 3, 5])}, log=True))
    assert [len(way) for way in ways] == [2, 2]


@pytest.mark.parametrize("series", [{}, {"a": ([], [])}, {"a": ([1], [math.nan])}])
def test_nothing_to_draw(series):
    assert charts.line_chart(series, y="loss") == '<p class="note">No loss to draw.</p>'


def test_a_single_point_has_room():
    svg, [[[(x, y)]]] = svg_of(charts.line_chart({"name": ([3], [0])}))
    assert len(list(svg.iter("circle"))) == 1
    assert len(texts_of(svg, "end")) > 1
    size = charts.SIZES["wider"]
    assert size.left < x < size.width - size.right
    assert size.top < y < size.height - size.bottom


def test_long_lines_keep_their_extremes_and_gaps():
    ys = np.sin(np.arange(50_000) / 300)
    ys[12_345], ys[23_456] = 5, -5
    ys[30_000:31_000] = np.nan
    xs = np.arange(50_000)
    for name, size in charts.SIZES.items():
        _, [ways] = svg_of(charts.line_chart({"name": (xs, ys)}), name)
        assert len(ways) == 2
        assert sum(map(len, ways)) <= size.most_points
    most = charts.SIZES["wider"].most_points
    whole_x, whole_y = charts._thinned(xs, ys, most)
    assert np.nanmax(whole_y) == 5
    assert np.nanmin(whole_y) == -5
    assert (np.diff(whole_x) > 0).all()
    assert (whole_y == ys[whole_x])[np.isfinite(whole_y)].all()
    short = np.arange(most)
    assert charts._thinned(short, short, most) == (short, short)


def labels_of(svg):
    """Return (left, right) of each number along the x axis; a letter of this size is at most 7 pixels wide."""
    return [(x - 3.5 * len(text), x + 3.5 * len(text)) for text, x in texts_of(svg, "middle")]


@pytest.mark.parametrize("xs", [[0, 125], [25, 125], [0, 1_000_000], [0.00012, 0.00014], [0, 123_456_789]])
@pytest.mark.parametrize("size", charts.SIZES)
def test_the_numbers_of_an_axis_stand_apart(xs, size):
    svg, _ = svg_of(charts.line_chart({"a": (xs, [1, 2])}), size)
    labels = labels_of(svg)
    assert 2 <= len(labels)
    assert all(left < next_left for (_, left), (next_left, _) in itertools.pairwise(labels))
    assert labels[-1][1] <= charts.SIZES[size].width


def test_letters_of_a_narrow_chart_are_of_the_size_of_the_page():
    """At 400 pixels, 364 are left for the chart; its letters of 12 pixels then have 12."""
    assert charts.SIZES["narrow"].width == pytest.approx(364, abs=10)


def rows_of(markup):
    table = ET.fromstring(markup).find("details").find("div").find("table")
    return [[cell.text or "" for cell in row] for row in table.iter("tr")]


def test_the_numbers_are_in_a_table_that_opens():
    """The keyboard and a finger reach it, and it needs no script."""
    series = {"training": (range(1, 201), [2 + 1 / step for step in range(1, 201)]),
              "held out": ([0, 77, 200], [3, 2.5, 2.25])}
    head, *rows = rows_of(charts.line_chart(series, x="step", y="loss"))
    assert head == ["step", "training", "held out"]
    assert [row for row in rows if row[2]] == [["0", "", "3.00"], ["77", "2.013", "2.50"], ["200", "2.005", "2.25"]]
    assert len(rows) <= charts.DOTS + 3
    assert rows[1] == ["1", "3.000", ""]
    assert rows_of(charts.line_chart({"a": ([1, 2], [1, math.nan])}))[1:] == [["1", "1"], ["2", ""]]


def test_lines_and_legend_share_their_looks():
    markup = charts.line_chart({f"line {i}": ([1, 2], [i, i + 1]) for i in range(10)})
    legend, svg, narrow, _ = ET.fromstring(markup)
    looks = [path.get("class") for path in svg.iter("path")]
    assert [path.get("class") for path in legend.iter("path")] == looks
    assert [path.get("class") for path in narrow.iter("path")] == looks
    assert len(set(looks)) == 10
    assert looks[8] == looks[0] + " dashed"
    assert ["".join(entry.itertext()) for entry in legend] == [f"line {i}" for i in range(10)]
    assert "<ul" not in charts.line_chart({"alone": ([1, 2], [1, 2])})


finite = st.floats(-1e300, 1e300)


@given(finite, finite, st.integers(2, 12), st.booleans())
@example(0.0, 5e-324, 3, False)  # there is no float between them
@example(0.0, 5e-324, 2, False)
def test_ticks_are_round_and_cover(a, b, count, whole):
    low, high = charts._widened(min(a, b), max(a, b))
    whole = whole and high - low >= 1
    ticks = charts.ticks(low, high, count, whole)
    steps = np.diff(ticks)
    slack = 1e-8 * max(abs(low), abs(high), steps[0])
    assert ticks[0] <= low + slack
    assert ticks[-1] >= high - slack
    assert 2 <= len(ticks) <= count + 2
    rounding = 2 * np.finfo(float).eps * max(map(abs, ticks))  # rounding of the difference of two multiples of the step
    assert np.allclose(steps, steps[0], rtol=0, atol=rounding)
    power = math.floor(math.log10(steps[0]) + 1e-6)
    assert any(abs(steps[0] - float(f"{m}e{power}")) <= max(rounding, 1e-9 * steps[0]) for m in (1, 2, 5))
    if whole:
        assert steps[0] > 0.999


@given(st.floats(1e-300, 1e300), st.floats(1e-300, 1e300))
def test_log_ticks_are_round_and_cover(a, b):
    low, high = charts._widened(min(a, b), max(a, b), log=True)
    ticks = charts.log_ticks(low, high)
    assert ticks[0] <= low * (1 + 1e-8)
    assert ticks[-1] >= high * (1 - 1e-8)
    assert 2 <= len(ticks) <= 12
    assert (np.diff(ticks) > 0).all()
    for tick in ticks:
        assert f"{tick:.3e}"[0] in "125"


@pytest.mark.parametrize("arguments, expected", [
    ((0, 10), [0, 2, 4, 6, 8, 10]), ((1, 4.9), [1, 2, 3, 4, 5]), ((0, 1), [0, 0.2, 0.4, 0.6, 0.8, 1]),
    ((0, 3, 8, True), [0, 1, 2, 3]), ((0.0, 5e-324, 3, False), [0, 5e-324]), ((0.0, 5e-324, 2, False), [0, 5e-324]),
    ((0.0, 2e-323, 2, False), [0, 2e-323]),
])
def test_ticks(arguments, expected):
    assert charts.ticks(*arguments) == pytest.approx(expected, rel=1e-12, abs=0)


@pytest.mark.parametrize("low, high, expected", [
    (2, 9, [2, 5, 10]), (1, 10, [1, 2, 5, 10]), (3, 300, [1, 10, 100, 1000]),
    (0.5, 4000, [0.1, 1, 10, 100, 1000, 10000]),
])
def test_log_ticks(low, high, expected):
    assert charts.log_ticks(low, high) == pytest.approx(expected)


@pytest.mark.parametrize("values, expected", [
    ([0, 5000, 10000], ["0", "5,000", "10,000"]), ([0, 0.5, 1], ["0.0", "0.5", "1.0"]),
    ([0, 0.05, 0.1], ["0.00", "0.05", "0.10"]), ([0, 5e-5, 1e-4], ["0", "5e-05", "0.0001"]),
    ([0, 5e11, 1e12], ["0", "500000000000", "1e+12"]), ([3], ["3"]),
])
def test_labels(values, expected):
    assert charts._labels(values) == expected
