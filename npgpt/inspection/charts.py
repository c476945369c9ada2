"""Charts of lines, drawn as SVG.

    from npgpt.inspection import charts
    loss = charts.line_chart({"training": (steps, losses), "held out": (val_steps, val_losses)}, x="step", y="loss")

Why not a library: matplotlib is a download of 10 MB that npgpt otherwise does without, and charting libraries in
JavaScript would add megabytes to every page.
"""

import math
from typing import NamedTuple

import numpy as np

from npgpt.inspection.html import COLOURS, number, table, tag


class Size(NamedTuple):
    """The size of a picture in pixels, before it is fitted to the page, with margins for the axes and their labels."""

    width: int
    height: int
    left: int
    right: int
    top: int
    bottom: int

    @property
    def most_points(self):
        """The largest number of points of one line: two in each column of pixels."""
        return 2 * (self.width - self.left - self.right)


# Every chart is drawn twice, and the page shows the picture that fits its width. A wide picture that is made smaller
# would have letters too small to read.
SIZES = {"wider": Size(720, 270, 76, 36, 8, 44), "narrow": Size(360, 250, 74, 36, 8, 44)}
DOTS = 40  # a line of at most so many points has dots


def line_chart(series, x="", y="", log=False):
    """Return a picture of lines over common axes, with its legend.

    series  dict name -> (xs, ys), each of any length; a y that is not a finite number leaves a gap in the line
    x, y    labels of the axes
    log     use a logarithmic scale for y; values below 1e-300 then leave a gap too

    Of a line with more points than pixels, only the lowest and the highest point of each run of neighbours are drawn.
    A line of at most DOTS points also gets dots, which show their values under the pointer. The numbers follow in a
    table that opens.
    """
    lines = {name: _with_gaps(xs, ys, log) for name, (xs, ys) in series.items()}
    if not any(np.isfinite(ys).any() for _, ys in lines.values()):
        return tag("p", f"No {y or 'values'} to draw.", class_="note")
    pictures = [_picture(lines, x, y + " (log scale)" * log, log, name, size) for name, size in SIZES.items()]
    return tag("figure", _legend(lines) if len(lines) > 1 else "", *pictures, _numbers(lines, x, y))


def _picture(lines, x, y, log, name, size):
    all_x = np.concatenate([xs for xs, _ in lines.values()])
    all_y = np.concatenate([ys[np.isfinite(ys)] for _, ys in lines.values()])
    low, high = _widened(all_x.min(), all_x.max())
    x_ticks = [tick for tick in ticks(low, high, size.width // 90, whole=(all_x % 1 == 0).all()) if low <= tick <= high]
    y_ticks = (log_ticks if log else ticks)(*_widened(all_y.min(), all_y.max(), log))
    at_x = _scale(low, high, size.left, size.width - size.right)
    at_y = _scale(y_ticks[0], y_ticks[-1], size.height - size.bottom, size.top, log)
    parts = _axes(x, y, x_ticks, y_ticks, at_x, at_y, log, size)
    for i, (line, (xs, ys)) in enumerate(lines.items()):
        parts.append(tag("path", d=_path(*_thinned(xs, ys, size.most_points), at_x, at_y), class_=_look(i)))
        if len(xs) <= DOTS:
            parts += [tag("circle", tag("title", f"{line}: {number(b)} at {x} {number(a)}"), cx=at_x(a), cy=at_y(b),
                          r=2.6, class_=f"s{i % COLOURS}") for a, b in zip(xs, ys, strict=True) if np.isfinite(b)]
    return tag("svg", *parts, class_=f"chart {name}", viewBox=f"0 0 {size.width} {size.height}", role="img",
               aria_label=f"{y} against {x}: {', '.join(map(str, lines))}")


def _numbers(lines, x, y):
    """Return a table of the points that opens: all points of short lines, and about DOTS points of longer ones."""
    chosen, values = set(), []
    for xs, ys in lines.values():
        chosen |= {*xs[::max(1, math.ceil(len(xs) / DOTS))].tolist(), *xs[-1:].tolist()}
        values.append({a: b for a, b in zip(xs.tolist(), ys.tolist(), strict=True) if math.isfinite(b)})
    rows = [[a, *(each.get(a, "") for each in values)] for a in sorted(chosen)]
    return tag("details", tag("summary", f"Numbers: {y} by {x}"), table([x, *lines], rows))


def _with_gaps(xs, ys, log):
    """Return xs and ys in float64, with NaN for each y that cannot be drawn."""
    xs, ys = np.asarray(xs, np.float64), np.array(ys, np.float64)
    ys[~(np.abs(ys) < 1e300) | (log & (ys < 1e-300))] = np.nan
    return xs, ys


def _scale(low, high, start, stop, log=False):
    """Return a function that maps a value in low .. high to a pixel in start .. stop."""
    warp = math.log10 if log else float
    low, high = warp(low), warp(high)
    return lambda value: round(start + (stop - start) * (warp(value) - low) / (high - low), 1)


def _axes(x, y, x_ticks, y_ticks, at_x, at_y, log, size):
    """Return the elements behind the lines: the ticks, their numbers, and the labels of the axes."""
    right, bottom = size.width - size.right, size.height - size.bottom
    middle = (bottom + size.top) / 2
    parts = [tag("text", x, x=(size.left + right) / 2, y=size.height - 6, text_anchor="middle"),
             tag("text", y, x=14, y=middle, text_anchor="middle", transform=f"rotate(-90 14 {middle})")]
    for tick, label in zip(y_ticks, map(number, y_ticks) if log else _labels(y_ticks), strict=True):
        place = at_y(tick)
        parts += [tag("line", x1=size.left, x2=right, y1=place, y2=place, class_="grid"),
                  tag("text", label, x=size.left - 7, y=place, text_anchor="end", dominant_baseline="middle")]
    for tick, label in zip(x_ticks, _labels(x_ticks), strict=True):
        place = at_x(tick)
        parts += [tag("line", x1=place, x2=place, y1=bottom, y2=bottom + 4, class_="grid"),
                  tag("text", label, x=place, y=bottom + 17, text_anchor="middle")]
    return parts


def _path(xs, ys, at_x, at_y):
    """Return the SVG path through the points, with a gap at each y that is NaN."""
    way, command = [], "M"
    for a, b in zip(xs, ys, strict=True):
        if np.isnan(b):
            command = "M"
        else:
            way.append(f"{command}{at_x(a)} {at_y(b)}")
            command = "L"
    return "".join(way)


def _look(i):
    """Return the classes of line i: its colour, and "dashed" when all colours are used up."""
    return f"line s{i % COLOURS}" + " dashed" * (i >= COLOURS)


def _legend(names):
    marks = (tag("svg", tag("path", d="M1 5H25", class_=_look(i)), viewBox="0 0 26 10") for i in range(len(names)))
    return tag("ul", *(tag("li", mark, name) for mark, name in zip(marks, names, strict=True)), class_="legend")


def _widened(low, high, log=False):
    """Return the range low .. high, made wider if it is a single value."""
    low, high = float(low), float(high)
    if high - low > 1e-12 * max(abs(low), abs(high)):
        return low, high
    return (low / 2, high * 2) if log else (low - (abs(low) / 2 or 0.5), high + (abs(high) / 2 or 0.5))


def ticks(low, high, count=6, whole=False):
    """Return about `count` multiples of a step that is 1, 2 or 5 times a power of ten.

    The first is at or below `low` < `high`, the last at or above `high`. whole: return only whole numbers.
    """
    rough = max((high - low) / (count - 1), 1.0 if whole else math.ulp(0.0))  # ulp(0) is the smallest float
    power = math.floor(math.log10(rough))
    steps = (float(f"{m}e{power}") for m in (1, 2, 5, 10))
    step = next(step for step in steps if step >= rough * (1 - 1e-9))
    return [i * step for i in range(math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9) + 1)]


def log_ticks(low, high):
    """Return 1, 2 and 5 times powers of ten, or only powers of ten if the range spans three decades or more.

    The first is at or below `low` > 0, the last at or above `high`.
    """
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    every = 1 + (last - first) // 8  # decades
    marks = (1, 2, 5) if last - first < 3 else (1,)
    found = [m * 10.0 ** k for k in range(first, last + every, every) for m in marks]
    start = max(i for i, tick in enumerate(found) if tick <= low * (1 + 1e-9))
    stop = min(i for i, tick in enumerate(found) if tick >= high * (1 - 1e-9))
    return found[start:stop + 1]


def _labels(values):
    """Return equally spaced numbers as text, with as many decimals as the step needs, or each as short as possible if
    that is too long."""
    largest, step = max(map(abs, values)), values[1] - values[0] if len(values) > 1 else 1
    decimals = max(0, -math.floor(math.log10(step) + 1e-9))
    if decimals > 4 or largest >= 1e12:
        return [f"{value:.12g}" for value in values]
    return [f"{value:,.{decimals}f}" for value in values]


def _thinned(xs, ys, most):
    """Return at most `most` of a line's points: the lowest and the highest of each run of neighbours."""
    if len(xs) <= most:
        return xs, ys
    run, kept = math.ceil(2 * len(xs) / most), []
    for start in range(0, len(xs), run):
        part = ys[start:start + run]
        if np.isfinite(part).all():
            kept += sorted({start + int(part.argmin()), start + int(part.argmax())})
        else:
            kept.append(start + int(np.isnan(part).argmax()))  # keep the gap
    return xs[kept], ys[kept]
