"""Pages that are a single file. They fetch nothing and need no server; light or dark follows the reader's system.

    from npgpt.inspection import html
    table = html.table(["module", "norm"], [["h.0.attn.c_attn", 1.25]])
    text = html.page("A run", html.tag("p", "Loss < 3."), html.section("Updates", table))

Text and markup are two types: a str is text and is escaped, Html is markup and stays as it is. Every function here
takes both and returns Html, so that text from a user or a file never becomes markup.

Why not Jinja2: it would be a new dependency, and the tables and tinted cells would still need functions like these.
"""

import html
import json

import numpy as np

NUMBER = int | float | np.number
MOST_DECIMALS = 6  # of the numbers in a column
COLOURS = 8  # for the lines of a chart: --s0 .. --s7 below

STYLE = """
:root { color-scheme: light dark; --page: #fdfdfc; --text: #1d1f21; --soft: #63676c; --rule: #dcdfe2; --tint: #1a73c4;
  --up: #c4401a; --down: #12805c; --s0: #0b6cad; --s1: #c9520a; --s2: #0a8a64; --s3: #b04f8c; --s4: #8a6d00;
  --s5: #3a9bd5; --s6: #6b4fc0; --s7: #555; }
@media (prefers-color-scheme: dark) { :root { --page: #16181b; --text: #e6e7e9; --soft: #9ba1a8; --rule: #33373c;
  --tint: #4499e6; --up: #e8703f; --down: #2fa97d; --s0: #5ab0ef; --s1: #ff9552; --s2: #3fcf9f; --s3: #ee9dcb;
  --s4: #e6c04a; --s5: #9cd4ff; --s6: #b8a0ff; --s7: #bbb; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1.5rem 1.2rem 4rem; max-width: 62rem; background: var(--page); color: var(--text);
  font: 15px/1.5 system-ui, sans-serif; overflow-wrap: anywhere; }
h1 { font-size: 1.6rem; line-height: 1.25; margin: 0 0 .4rem; }
h2 { font-size: 1.15rem; margin: 2.4rem 0 .5rem; }
p { max-width: 46rem; margin: .5rem 0; }
.note, figcaption, caption { color: var(--soft); font-size: .9em; }
code, .mono { font-family: ui-monospace, "DejaVu Sans Mono", Menlo, Consolas, monospace; font-size: .92em; }
figure { margin: .8rem 0; }
.wide { margin: .8rem 0; overflow-x: auto; background:
  linear-gradient(to right, var(--page) 1rem, transparent) left / 2.5rem 100% no-repeat local,
  linear-gradient(to left, var(--page) 1rem, transparent) right / 2.5rem 100% no-repeat local,
  linear-gradient(to right, var(--soft), transparent) left / .5rem 100% no-repeat scroll,
  linear-gradient(to left, var(--soft), transparent) right / .5rem 100% no-repeat scroll; }
.wide::-webkit-scrollbar { height: .5rem; }
.wide::-webkit-scrollbar-thumb { background: var(--soft); border-radius: .25rem; }
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
svg.chart { display: block; width: 100%; max-width: 60rem; height: auto; }
svg.narrow { display: none; max-width: 34rem; }
@media (max-width: 40rem) {
  svg.wider { display: none; }
  svg.narrow { display: block; }
  th, td { white-space: normal; padding-right: .5rem; }
  caption { white-space: normal; }
}
summary { color: var(--soft); font-size: .9em; cursor: pointer; }
svg text { fill: var(--soft); font: 12px system-ui, sans-serif; }
svg .grid { stroke: var(--rule); }
svg .line { fill: none; stroke-width: 1.8; stroke-linejoin: round; }
svg .dashed { stroke-dasharray: 6 4; }
""" + "".join(f"svg .s{i} {{ stroke: var(--s{i}); }} svg circle.s{i} {{ fill: var(--s{i}); }}\n"
              for i in range(COLOURS))


class Html(str):
    """Markup: it goes into a page without escaping."""

    __slots__ = ()


def escape(value):
    """Return any value as Html: markup unchanged, everything else as escaped text."""
    return value if isinstance(value, Html) else Html(html.escape(str(value)))


def join(parts, between=""):
    """Return the parts one after another, as Html."""
    return Html(escape(between).join(map(escape, parts)))


def tag(name, *children, **attributes):
    """Return an element: tag("td", "a < b", class_="number") is <td class="number">a &lt; b</td>.

    In the name of an attribute, a "_" at the end is dropped, and any other "_" becomes "-" (class_, data_layer). An
    attribute with the value None or False is left out.
    """
    given = {key.rstrip("_").replace("_", "-"): value for key, value in attributes.items()}
    spelled = "".join(f' {key}="{escape(str(value))}"' for key, value in given.items()
                      if value is not None and value is not False)
    return Html(f"<{name}{spelled}>{join(children)}</{name}>")


def section(heading, *children):
    """Return a part of a page with its heading."""
    return tag("section", tag("h2", heading), *children)


def data(name, value):
    """Return `value` as JSON. A script reads it by JSON.parse(document.getElementById(name).textContent)."""
    text = json.dumps(value, separators=(",", ":")).replace("<", "\\u003c")  # "</script>" would end the JSON
    return Html(f'<script type="application/json" id="{escape(name)}">{text}</script>')


def page(title, *body, style="", script=""):
    """Return a whole page. Write it as UTF-8.

    title   title and first heading
    body    contents
    style   CSS that is added to STYLE; the colours are var(--text), --soft, --rule, --tint, --up, --down
    script  JavaScript that runs at the end of the page; a page without a script cannot run any

    The page has a security policy: a browser fetches nothing for it.
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
    """Return a table. If it is wider than the page, it scrolls sideways, and its edge has a shadow.

    head     a heading for each column
    rows     lists of cells: `numbers` writes the int and float of a column, aligned right; a td from `tag` or `tinted`
             stays as it is; anything else goes into a td
    caption  a line above the table
    """
    def column(values):
        spelled = iter(numbers([value for value in values if isinstance(value, NUMBER)]))
        for value in values:
            if isinstance(value, NUMBER):
                yield tag("td", next(spelled), class_="number")
            else:
                yield value if isinstance(value, Html) and value.startswith("<td") else tag("td", value)

    cells = list(zip(*map(column, zip(*rows, strict=True)), strict=True))
    first = cells[0] if cells else [""] * len(head)
    titles = [tag("th", name, class_="number" if cell.startswith('<td class="number"') else None)
              for name, cell in zip(head, first, strict=True)]
    body = [tag("tr", *row) for row in cells]
    above = tag("caption", caption) if caption else ""
    return tag("div", tag("table", above, tag("thead", tag("tr", *titles)), tag("tbody", *body)), class_="wide",
               tabindex=0, role="region", aria_label=caption or "table")  # the keyboard can scroll what has the focus


def number(value):
    """Return a number as text: whole numbers in full, others to four significant digits."""
    if float(value).is_integer() and abs(value) < 1e15:
        return f"{int(value):,}"
    return f"{value:,.0f}" if 1e4 <= abs(value) < 1e15 else f"{value:.4g}"


def numbers(values):
    """Return the numbers of a column as text, all with as many decimals as the one that needs most, if that is few."""
    texts = [number(value) for value in values]
    decimals = max((len(text.partition(".")[2]) for text in texts), default=0)
    if not 0 < decimals <= MOST_DECIMALS or not all(text.strip("-,.0123456789") == "" for text in texts):
        return texts
    return [f"{value:,.{decimals}f}" for value in values]


def tinted(value, share, name="td", colour=None, **attributes):
    """Return an element with a coloured background: the larger `share`, from 0 to 1, the stronger the colour.

    name        element: a table cell by default
    colour      "up" or "down" for values that rise or fall; None: the colour for amounts
    attributes  as for `tag`
    """
    strength = f"--share: {60 * min(max(share, 0), 1):.0f}%"  # above 60 % the text would be hard to read
    return tag(name, value, class_="tint", style=strength + (f"; --fill: var(--{colour})" if colour else ""),
               **attributes)
