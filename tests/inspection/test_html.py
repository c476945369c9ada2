"""Pages: text stays text, every tag is closed, and nothing is fetched."""

import json
import math
import re
import xml.etree.ElementTree as ET

import numpy as np
import pytest

from npgpt.inspection import charts
from npgpt.inspection import html as page

NASTY = "</script><script>alert(1)</script> \"quoted\" 'too' & <b>\n\t\u2028"


@pytest.mark.parametrize("make", [
    lambda text: page.escape(text),
    lambda text: page.tag("p", text),
    lambda text: page.tag("p", "a", page.tag("b", text), page.tag("i", "c")),
    lambda text: page.tag("p", "a", title=text),
    lambda text: page.section(text, "body"),
    lambda text: page.section("heading", text),
    lambda text: page.join([text, "b"], ", "),
    lambda text: page.join(["a", "b"], text),
    lambda text: page.table([text, "b"], [["c", 1]]),
    lambda text: page.table(["a", "b"], [[text, 1]], caption="c"),
    lambda text: page.table(["a", "b"], [["c", 1]], caption=text),
    lambda text: page.tinted(text, 0.5),
    lambda text: charts.line_chart({text: ([1, 2], [3, 4]), "b": ([1], [2])}),
    lambda text: charts.line_chart({"a": ([1, 2], [3, 4])}, x=text),
    lambda text: charts.line_chart({"a": ([1, 2], [3, 4])}, y=text),
    lambda text: page.page(text),
    lambda text: page.page("title", text),
])
def test_text_is_never_markup(read_html, make):
    harmless, nasty = read_html(make("harmless")), read_html(make(NASTY))
    assert [tag for tag, _ in nasty.tags] == [tag for tag, _ in harmless.tags]
    assert [attributes.keys() for _, attributes in nasty.tags] == [attributes.keys() for _, attributes in harmless.tags]
    assert NASTY in nasty.text + "".join(str(value) for _, attributes in nasty.tags for value in attributes.values())


def test_markup_goes_in_as_it_is():
    bold = page.tag("b", "1 < 2")
    assert bold == "<b>1 &lt; 2</b>"
    assert page.tag("p", bold, " & ", 3) == "<p><b>1 &lt; 2</b> &amp; 3</p>"
    assert page.escape(bold) is bold
    assert page.tag("p", bold + "<") == "<p>&lt;b&gt;1 &amp;lt; 2&lt;/b&gt;&lt;</p>"  # Html + str is a str


def test_attributes():
    assert page.tag("a", class_="x y", data_layer=0, hidden=False, title=None, id=page.Html("<>")) == (
        '<a class="x y" data-layer="0" id="&lt;&gt;"></a>')


def test_data_for_a_script(read_html):
    value = {"text": NASTY, "numbers": [1, 2.5]}
    reader = read_html(page.data("name", value))
    assert reader.tags == [("script", {"type": "application/json", "id": "name"})]
    assert json.loads(reader.text) == value


@pytest.mark.parametrize("script, allowed", [("", "'none'"), ("let a = 1;", "'unsafe-inline'")])
def test_a_page_is_whole_and_may_fetch_nothing(read_html, script, allowed):
    markup = page.page("A title", "text", page.tag("p", "more"), style="p { margin: 0 }", script=script)
    reader = read_html(markup)
    assert markup.startswith("<!DOCTYPE html>\n")
    assert ("meta", {"charset": "utf-8"}) in reader.tags
    policy = next(a["content"] for tag, a in reader.tags if a.get("http-equiv") == "Content-Security-Policy")
    assert policy == f"default-src 'none'; style-src 'unsafe-inline'; script-src {allowed}"
    assert not any({"src", "href"} & attributes.keys() for _, attributes in reader.tags)
    assert not re.search(r"https?:|url\(|@import", markup)
    assert "prefers-color-scheme: dark" in markup
    assert "p { margin: 0 }</style>" in markup
    assert ("<script>let a = 1;</script>" in markup) == ("<script" in markup) == bool(script)
    assert markup.index("<h1>A title</h1>") < markup.index("\ntext\n") < markup.index("<p>more</p>")


def test_every_colour_has_a_dark_one():
    light, dark = page.STYLE.split("@media (prefers-color-scheme: dark)")
    names = re.findall(r"(--\w+):", light)
    assert len(names) > 8
    assert set(re.findall(r"(--\w+):", dark)) == set(names)
    assert set(re.findall(r"var\((--\w+)\)", page.STYLE)) <= {*names, "--share", "--fill"}


def test_table():
    markup = page.table(["name", "count", "loss"], [["a", 294912, 1.23456], ["b", np.int64(3), np.float32(0.5)]], "All")
    table = ET.fromstring(markup).find("table")
    assert table.find("caption").text == "All"
    cells = [[(cell.text, cell.get("class")) for cell in row] for row in table.iter("tr")]
    assert cells == [
        [("name", None), ("count", "number"), ("loss", "number")],
        [("a", None), ("294,912", "number"), ("1.235", "number")],
        [("b", None), ("3", "number"), ("0.500", "number")],
    ]
    assert page.table(["a", "b"], []).count("<tr>") == 1


@pytest.mark.parametrize("value, expected", [
    (0, "0"), (-3.0, "-3"), (1234567, "1,234,567"), (0.1, "0.1"), (1.23456, "1.235"), (1234.56, "1235"),
    (123456.7, "123,457"), (1e-7, "1e-07"), (1e20, "1e+20"), (math.nan, "nan"), (-math.inf, "-inf"),
])
def test_number(value, expected):
    assert page.number(value) == expected


@pytest.mark.parametrize("values, expected", [
    ([5.2, 5.214], ["5.200", "5.214"]), ([1, 2], ["1", "2"]), ([2, 0.5], ["2.0", "0.5"]), ([], []),
    ([1e-7, 1.5], ["1e-07", "1.5"]), ([math.nan, 1.5], ["nan", "1.5"]), ([1234.56, 0.25], ["1,234.56", "0.25"]),
    ([0.00012345, 12.5], ["0.0001234", "12.5"]),
])
def test_numbers_of_a_column_have_as_many_decimals(values, expected):
    assert page.numbers(values) == expected


def colours(scheme):
    """Return the colours of a scheme: dict name -> (3,) from 0 to 1."""
    found = re.findall(r"--(\w+): #(\w+);", scheme)
    return {name: np.array([int(digits[i:i + 2], 16) / 255 for i in (0, 2, 4)])
            for name, digits in ((name, "".join(2 * d for d in digits) if len(digits) == 3 else digits)
                                 for name, digits in found)}


def contrast(one, two):
    """Source: Web Content Accessibility Guidelines 2.2, contrast ratio and relative luminance."""
    lights = [np.dot([0.2126, 0.7152, 0.0722], np.where(c <= 0.04045, c / 12.92, ((c + 0.055) / 1.055) ** 2.4))
              for c in (one, two)]
    return (max(lights) + 0.05) / (min(lights) + 0.05)


def test_contrast():
    """It is the value that the guidelines give for black on white and for the grey that just passes."""
    assert contrast(np.zeros(3), np.ones(3)) == pytest.approx(21)
    assert contrast(np.full(3, 0x76 / 255), np.ones(3)) == pytest.approx(4.54, abs=0.005)


@pytest.mark.parametrize("which", [0, 1], ids=["light", "dark"])
def test_text_is_readable(which):
    """Text has a contrast of at least 4.5 to its background, on the strongest tint too, and lines of at least 3."""
    found = colours(page.STYLE.split("@media (prefers-color-scheme: dark)")[which].split("}")[0])
    assert {"page", "text", "soft", "tint", "up", "down", "s0", "s7"} <= found.keys()
    for name in ("text", "soft"):
        assert contrast(found[name], found["page"]) >= 4.5
    strongest = int(re.search(r"--share: (\d+)%", page.tinted("", 1))[1]) / 100
    for fill in ("tint", "up", "down"):
        assert contrast(found["text"], strongest * found[fill] + (1 - strongest) * found["page"]) >= 4.5, fill
    for i in range(page.COLOURS):
        assert contrast(found[f"s{i}"], found["page"]) >= 3


def test_tinted():
    assert page.tinted("a", 0.255) == '<td class="tint" style="--share: 15%">a</td>'
    assert page.tinted("a", 7, "span", "up", title="b") == (
        '<span class="tint" style="--share: 60%; --fill: var(--up)" title="b">a</span>')
    assert "--share: 0%" in page.tinted("a", -1)
