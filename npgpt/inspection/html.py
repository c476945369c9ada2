"""Pages that are one file: nothing is fetched, no server is asked, and light or dark follows the reader's system.

    from npgpt.inspection import html
    loss = html.line_chart({"training": (steps, losses), "held out": (val_steps, val_losses)}, x="step", y="loss")
    table = html.table(["module", "norm"], [["h.0.attn.c_attn", 1.25]])
    text = html.page("A run", html.tag("p", "Three epochs <of> it."), html.section("Loss", loss, table))

Text and markup are two types. A str is text and gets escaped where it goes into a page; Html is markup and goes in as
it is. Every function here takes both and returns Html, so nothing that a user or a file supplied can become markup.
"""

import html
import json
import math

import numpy as np

WIDTH, HEIGHT = 720, 270  # of a chart, in pixels before it is fitted to the page
LEFT, RIGHT, TOP, BOTTOM = 76, 30, 8, 44  # of which the axes and their labels take
COLOURS = 8  # of series; after them the lines are dashed
MOST_POINTS = 2 * (WIDTH - LEFT - RIGHT)  # of one line: two in every pixel column

STYLE = """
:root { color-scheme: light dark; --page: #fdfdfc; --text: #1d1f21; --soft: #63676c; --rule: #dcdfe2; --tint: #1a73c4;
  --up: #c4401a; --down: #12805c; --s0: #0b6cad; --s1: #c9520a; --s2: #0a8a64; --s3: #b04f8c; --s4: #8a6d00;
  --s5: #3a9bd5; --s6: #6b4fc0; --s7: #555; }
@media (prefers-color-scheme: dark) { :root { --page: #16181b; --text: #e6e7e9; --soft: #9ba1a8; --rule: #33373c;
  --tint: #4aa3f0; --up: #ff8c5a; --down: #45cf9f; --s0: #5ab0ef; --s1: #ff9552; --s2: #3fcf9f; --s3: #ee9dcb;
  --s4: #e6c04a; --s5: #9cd4ff; --s6: #b8a0ff; --s7: #bbb; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1.5rem 1.2rem 4rem; max-width: 62rem; background: var(--page); color: var(--text);
  font: 15px/1.5 system-ui, sans-serif; overflow-wrap: anywhere; }
h1 { font-size: 1.6rem; line-height: 1.25; margin: 0 0 .4rem; }
h2 { font-size: 1.15rem; margin: 2.4rem 0 .5rem; }
p { max-width: 46rem; margin: .5rem 0; }
.note, figcaption, caption { color: var(--soft); font-size: .9em; }
code, .mono { font-family: ui-monospace, "DejaVu Sans Mono", Menlo, Consolas, monospace; font-size: .92em; }
figure, .wide { margin: .8rem 0; overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; overflow-wrap: normal; }
th, td { padding: .22rem .7rem .22rem 0; text-align: left; vertical-align: baseline; white-space: nowrap;
  border-bottom: 1px solid var(--rule); }
th { color: var(--soft); font-weight: 600; font-size: .9em; }
caption { text-align: left; padding-bottom: .3rem; white-space: nowrap; }
.number { text-align: right; }
.tint { background: color-mix(in srgb, var(--fill, var(--tint)) var(--share), transparent); }
.legend { list-style: none; display: flex; flex-wrap: wrap; gap: .1rem 1.1rem; margin: 0 0 .2rem; padding: 0;
  font-size: .9em; }
.legend svg { width: 26px; height: 10px; margin-right: .4rem; }
svg.chart { display: block; width: 100%; min-width: 40rem; max-width: 60rem; height: auto; }
svg text { fill: var(--soft); font: 12px system-ui, sans-serif; }
svg .grid { stroke: var(--rule); }
svg .line { fill: none; stroke-width: 1.8; stroke-linejoin: round; }
svg .dashed { stroke-dasharray: 6 4; }
""" + "".join(f"svg .s{i} {{ stroke: var(--s{i}); }} svg circle.s{i} {{ fill: var(--s{i}); }}\n"
              for i in range(COLOURS))


class Html(str):
    """Markup: goes into a page as it is."""

    __slots__ = ()


def escape(value):
    """Return anything as Html: markup as it is, everything else as the text of `str`."""
    return value if isinstance(value, Html) else Html(html.escape(str(value)))


def join(parts, between=""):
    """Return Html of the parts, one after another."""
    return Html(escape(between).join(map(escape, parts)))


def tag(name, *children, **attributes):
    """Return an element: tag("td", "a < b", class_="number") is <td class="number">a &lt; b</td>.

    In an attribute's name a "_" at the end is dropped and others become "-" (class_, data_layer). A value of None or
    False leaves the attribute out.
    """
    given = {key.rstrip("_").replace("_", "-"): value for key, value in attributes.items()}
    spelled = "".join(f' {key}="{escape(str(value))}"' for key, value in given.items()
                      if value is not None and value is not False)
    return Html(f"<{name}{spelled}>{join(children)}</{name}>")


def section(heading, *children):
    """Return a part of a page under its heading."""
    return tag("section", tag("h2", heading), *children)


def data(name, value):
    """Return `value` as JSON that a page's script reads by JSON.parse(document.getElementById(name).textContent)."""
    text = json.dumps(value, separators=(",", ":")).replace("<", "\\u003c")  # "</script>" would end it
    return Html(f'<script type="application/json" id="{escape(name)}">{text}</script>')


def page(title, *body, style="", script=""):
    """Return a whole page, to be written as UTF-8.

    title   its title and first heading
    body    what it shows
    style   CSS of its own, after that of all pages, whose colours are var(--text), --soft, --rule, --tint, --up, --down
    script  JavaScript, run when the page is there; where there is none the page may run none

    The page carries a policy by which a browser refuses to fetch anything for it.
    """
    scripts = "'unsafe-inline'" if script else "'none'"
    policy = f"default-src 'none'; style-src 'unsafe-inline'; script-src {scripts}"
    script = f"<script>{script}</script>\n" if script else ""
    body = join(body, Html("\n"))
    return Html(f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<title>{escape(title)}</title>
<style>{STYLE}{style}</style>
</head>
<body>
<h1>{escape(title)}</h1>
{body}
{script}</body>
</html>
""")


def table(head, rows, caption=None):
    """Return a table that scrolls sideways where the page is narrow.

    head     a heading for each column
    rows     lists of cells: int and float are aligned right and written by `number`, a td made by `tag` or `tinted` is
             taken as it is, all else goes into a td
    caption  a line above it
    """
    def cell(value):
        if isinstance(value, int | float | np.number):
            return tag("td", number(value), class_="number")
        return value if isinstance(value, Html) and value.startswith("<td") else tag("td", value)

    cells = [list(map(cell, row)) for row in rows]
    first = cells[0] if cells else [""] * len(head)
    titles = [tag("th", name, class_="number" if cell.startswith('<td class="number"') else None)
              for name, cell in zip(head, first, strict=True)]
    body = [tag("tr", *row) for row in cells]
    above = tag("caption", caption) if caption else ""
    return tag("div", tag("table", above, tag("thead", tag("tr", *titles)), tag("tbody", *body)), class_="wide")


def number(value):
    """Return a number for the eye: whole numbers in full, others to four significant digits."""
    if float(value).is_integer() and abs(value) < 1e15:
        return f"{int(value):,}"
    return f"{value:,.0f}" if 1e4 <= abs(value) < 1e15 else f"{value:.4g}"


def tinted(value, share, name="td", colour=None, **attributes):
    """Return an element whose background shows `share`, from 0 to 1, by its strength.

    name        what element: a table cell, or another
    colour      "up" or "down", the colours of what rises and falls; None: the one of amounts
    attributes  as of `tag`
    """
    strength = f"--share: {60 * min(max(share, 0), 1):.0f}%"  # more, and the text on it would be hard to read
    return tag(name, value, class_="tint", style=strength + (f"; --fill: var(--{colour})" if colour else ""),
               **attributes)


def line_chart(series, x="", y="", log=False):
    """Return a picture of lines over common axes, with its legend.

    series  dict name -> (xs, ys), each of any length; where y is not a finite number the line is broken
    x, y    what the axes show
    log     whether y is drawn by its logarithm; values below 1e-300 then break the line

    A line of more points than pixels is drawn by the lowest and the highest of each run of neighbours; one of at most
    40 has dots as well, which tell their values when pointed at.
    """
    lines = {}
    for name, (xs, ys) in series.items():
        xs, ys = np.asarray(xs, np.float64), np.array(ys, np.float64)
        ys[~(np.abs(ys) < 1e300) | (log & (ys < 1e-300))] = np.nan
        lines[name] = xs, ys
    if not any(np.isfinite(ys).any() for _, ys in lines.values()):
        return tag("p", f"No {y or 'values'} to draw.", class_="note")
    all_x = np.concatenate([xs for xs, _ in lines.values()])
    all_y = np.concatenate([ys[np.isfinite(ys)] for _, ys in lines.values()])
    low, high = _widened(all_x.min(), all_x.max())
    x_ticks = [tick for tick in ticks(low, high, 8, whole=(all_x % 1 == 0).all()) if low <= tick <= high]
    y_ticks = (log_ticks if log else ticks)(*_widened(all_y.min(), all_y.max(), log))
    at_x = _scale(low, high, LEFT, WIDTH - RIGHT)
    at_y = _scale(y_ticks[0], y_ticks[-1], HEIGHT - BOTTOM, TOP, log)
    parts = _axes(x, y, x_ticks, y_ticks, at_x, at_y, log)
    for i, (name, (xs, ys)) in enumerate(lines.items()):
        parts.append(tag("path", d=_path(*_thinned(xs, ys), at_x, at_y), class_=_look(i)))
        if len(xs) <= 40:
            parts += [tag("circle", tag("title", f"{name}: {number(b)} at {x} {number(a)}"), cx=at_x(a), cy=at_y(b),
                          r=2.6, class_=f"s{i % COLOURS}") for a, b in zip(xs, ys, strict=True) if np.isfinite(b)]
    picture = tag("svg", *parts, class_="chart", viewBox=f"0 0 {WIDTH} {HEIGHT}", role="img",
                  aria_label=f"{y} by {x}: {', '.join(map(str, lines))}")
    return tag("figure", _legend(lines) if len(lines) > 1 else "", picture)


def _scale(low, high, start, stop, log=False):
    """Return the function that takes a value from low .. high to its pixel from start .. stop."""
    warp = math.log10 if log else float
    low, high = warp(low), warp(high)
    return lambda value: round(start + (stop - start) * (warp(value) - low) / (high - low), 1)


def _axes(x, y, x_ticks, y_ticks, at_x, at_y, log):
    """Return the elements that are there before a line is drawn: the ticks, their numbers, and what the axes show."""
    right, bottom, middle = WIDTH - RIGHT, HEIGHT - BOTTOM, (HEIGHT - BOTTOM + TOP) / 2
    parts = [tag("text", x, x=(LEFT + right) / 2, y=HEIGHT - 6, text_anchor="middle"),
             tag("text", y, x=14, y=middle, text_anchor="middle", transform=f"rotate(-90 14 {middle})")]
    for tick, label in zip(y_ticks, map(number, y_ticks) if log else _labels(y_ticks), strict=True):
        place = at_y(tick)
        parts += [tag("line", x1=LEFT, x2=right, y1=place, y2=place, class_="grid"),
                  tag("text", label, x=LEFT - 7, y=place, text_anchor="end", dominant_baseline="middle")]
    for tick, label in zip(x_ticks, _labels(x_ticks), strict=True):
        place = at_x(tick)
        parts += [tag("line", x1=place, x2=place, y1=bottom, y2=bottom + 4, class_="grid"),
                  tag("text", label, x=place, y=bottom + 17, text_anchor="middle")]
    return parts


def _path(xs, ys, at_x, at_y):
    """Return the way of a pen along the points, lifted where y is not a number."""
    way, command = [], "M"
    for a, b in zip(xs, ys, strict=True):
        if np.isnan(b):
            command = "M"
        else:
            way.append(f"{command}{at_x(a)} {at_y(b)}")
            command = "L"
    return "".join(way)


def _look(i):
    """The classes of line i: a colour, dashed from the second round of colours on."""
    return f"line s{i % COLOURS}" + " dashed" * (i >= COLOURS)


def _legend(names):
    marks = (tag("svg", tag("path", d="M1 5H25", class_=_look(i)), viewBox="0 0 26 10") for i in range(len(names)))
    return tag("ul", *(tag("li", mark, name) for mark, name in zip(marks, names, strict=True)), class_="legend")


def _widened(low, high, log=False):
    """Return a range that is not empty, from one that may be a single value."""
    low, high = float(low), float(high)
    if high - low > 1e-12 * max(abs(low), abs(high)):
        return low, high
    return (low / 2, high * 2) if log else (low - (abs(low) / 2 or 0.5), high + (abs(high) / 2 or 0.5))


def ticks(low, high, count=6, whole=False):
    """Return about `count` multiples of 1, 2 or 5 times a power of ten: from the last at or below `low` < `high` to the
    first at or above `high`. whole: only whole numbers."""
    rough = max((high - low) / (count - 1), 1.0 if whole else math.ulp(0.0))  # no step is smaller than any float
    power = math.floor(math.log10(rough))
    steps = (float(f"{m}e{power}") for m in (1, 2, 5, 10))
    step = next(step for step in steps if step >= rough * (1 - 1e-9))
    return [i * step for i in range(math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9) + 1)]


def log_ticks(low, high):
    """Return 1, 2 and 5 times powers of ten, or powers of ten alone where they span three decades: from the last at or
    below `low` > 0 to the first at or above `high`."""
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    every = 1 + (last - first) // 8  # decades
    marks = (1, 2, 5) if last - first < 3 else (1,)
    found = [m * 10.0 ** k for k in range(first, last + every, every) for m in marks]
    start = max(i for i, tick in enumerate(found) if tick <= low * (1 + 1e-9))
    stop = min(i for i, tick in enumerate(found) if tick >= high * (1 - 1e-9))
    return found[start:stop + 1]


def _labels(values):
    """Return equally spaced numbers as text: all with the decimals that the finest needs, or, where that is long, each
    as short as can be."""
    largest, step = max(map(abs, values)), values[1] - values[0] if len(values) > 1 else 1
    decimals = max(0, -math.floor(math.log10(step) + 1e-9))
    if decimals > 4 or largest >= 1e12:
        return [f"{value:.12g}" for value in values]
    return [f"{value:,.{decimals}f}" for value in values]


def _thinned(xs, ys):
    """Return at most MOST_POINTS of a line's points: of each run of neighbours the lowest and the highest."""
    run = math.ceil(2 * len(xs) / MOST_POINTS)
    if len(xs) <= MOST_POINTS:
        return xs, ys
    kept = []
    for start in range(0, len(xs), run):
        part = ys[start:start + run]
        if np.isfinite(part).all():
            kept += sorted({start + int(part.argmin()), start + int(part.argmax())})
        else:
            kept.append(start + int(np.isnan(part).argmax()))  # the gap
    return xs[kept], ys[kept]
