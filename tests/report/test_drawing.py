"""The still pictures: shapes against the numbers, ticks against matplotlib's, and a PDF that says what the SVG says."""

import re
import zlib
from xml.etree import ElementTree

import numpy as np
import pytest
from fontTools.ttLib import TTFont
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.colors import LinearSegmentedColormap, to_rgb
from matplotlib.ticker import MaxNLocator

from mtkv.report.axes import Scale, limits, multiples, round_step
from mtkv.report.drawing import Drawing
from mtkv.report.drawing_pdf import as_pdf
from mtkv.report.drawing_svg import as_svg
from mtkv.report.figure import Figure
from mtkv.report.figures import all_figures
from mtkv.report.fonts import _font_file, font_of
from mtkv.report.palette import DIVERGING, SEQUENTIAL
from mtkv.report.svg import letters, picture
from mtkv.report.traces import shade

SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture(scope="module")
def figures(full):
    return {figure.id: figure for figure in all_figures(full)}


@pytest.fixture(scope="module")
def font(figures):
    return font_of(letters(figures.values()))


def shapes(svg: str, fill: str) -> list[tuple[float, float, float, float]]:
    """Left, top, width and height of every filled path of a colour."""
    found = []
    for path in ElementTree.fromstring(svg).iter(f"{SVG}path"):
        if path.get("fill") == fill:
            points = np.array(re.findall(r"-?[\d.]+", path.get("d")), dtype=float).reshape(-1, 2)
            found.append((*points.min(axis=0), *np.ptp(points, axis=0)))
    return found


def texts(svg: str) -> list[str]:
    return ["".join(one.itertext()) for one in ElementTree.fromstring(svg).iter(f"{SVG}text")]


def test_bars_are_as_high_as_their_numbers_and_stand_on_one_line(figures, font):
    every = [trace for trace in figures["bars"].traces if trace["type"] == "bar"]
    colors = [trace["marker"]["color"] for trace in every]
    bars = next(trace for trace in every if colors.count(trace["marker"]["color"]) == 1 and None not in trace["y"])
    drawn = sorted(shapes(picture(figures["bars"], font=font).svg, bars["marker"]["color"]))
    in_place, in_legend = [one for one in drawn if one[3] > 10], [one for one in drawn if one[3] < 10]
    assert len(in_legend) == 1
    heights = np.array([height for *_, height in in_place])
    known = np.array([value for value in bars["y"] if value is not None])
    assert heights / heights[0] == pytest.approx(known / known[0], rel=1e-3)
    assert [top + height for _, top, _, height in in_place] == pytest.approx(
        [in_place[0][1] + heights[0]] * len(known), abs=0.02
    )


def test_horizontal_bars_heat_cells_and_waterfalls_have_the_sizes_of_their_numbers(figures, font):
    trace = figures["coverage"].traces[0]
    sizes = [shapes(picture(figures["coverage"], font=font).svg, color)[0] for color in trace["marker"]["color"]]
    assert sizes[0][2] / sizes[1][2] == pytest.approx(trace["x"][0] / trace["x"][1], rel=1e-3)
    steps = figures["waterfall"].traces[0]
    known = [value for value in steps["y"] if value is not None]
    svg = picture(figures["waterfall"], font=font).svg
    up = shapes(svg, steps["increasing"]["marker"]["color"]) + shapes(svg, steps["decreasing"]["marker"]["color"])
    whole = shapes(svg, steps["totals"]["marker"]["color"])[0]
    assert sorted(one[3] / whole[3] for one in up) == pytest.approx(
        sorted(abs(v / sum(known)) for v in known), abs=2e-3
    )
    assert {f"{value:+.2f}" for value in known} <= set(texts(svg))
    grid = figures["heatmap"].traces[0]
    cells = [value for line in grid["z"] for value in line if value is not None]
    assert texts(picture(figures["heatmap"], "score", font).svg)[: len(cells)] == [f"{value:.1f}" for value in cells]


def test_every_name_and_label_of_a_view_is_in_its_picture(figures, font):
    for figure in figures.values():
        view = figure.views[0][0] if figure.views else None
        said = {text for line in texts(picture(figure, font=font).svg) for text in [line, line.rstrip("_")]}
        for trace in figure.traces:
            if trace["meta"].get("view", view) != view or trace.get("mode") == "text":
                continue
            words = [word for axis in "xy" for word in trace.get(axis, []) if isinstance(word, str)]
            words += [trace["name"]] if trace["type"] in ("bar", "scatterpolar") and "orientation" not in trace else []
            shown = "".join(said)
            for word in words:
                plain = word.replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&")
                assert all(part in shown for part in plain.split("<br>")), (figure.id, word)


@given(share=st.floats(-3, 3), size=st.floats(1e-2, 1e4), most=st.integers(1, 9))
def test_marks_are_all_multiples_of_the_smallest_round_step_that_fits(share, size, most):
    low, high = share * size, share * size + size
    steps = sorted(digit * 10.0**power for power in range(-6, 6) for digit in (1, 2, 2.5, 5))
    step = next(step for step in steps if step >= (high - low) / most * (1 - 1e-9))
    assert round_step(low, high, most) == pytest.approx(step)
    found = multiples(step, low, high)
    counts = [round(value / step) for value, _ in found]
    assert [value for value, _ in found] == pytest.approx([count * step for count in counts])
    assert counts == list(range(counts[0], counts[0] + len(counts))) if counts else high - low < step * 1.001
    inside = sum(low < count * step < high for count in range(int(low / step) - 2, int(high / step) + 3))
    assert inside <= len(found) <= inside + 2
    for value, text in found:
        assert float(text.replace("\u2212", "-")) == pytest.approx(value, abs=step * 1e-3)


@pytest.mark.parametrize(
    ("low", "high"), [(0, 100), (-37.2, 33.1), (0.355, 0.397), (0.55, 2.7), (-8.4, 7.2), (90, 310)]
)
def test_marks_stand_where_matplotlib_puts_them(low, high):
    ticks = MaxNLocator(9, steps=[1, 2, 2.5, 5, 10]).tick_values(low, high)
    ours = [value for value, _ in multiples(round_step(low, high, 9), low, high)]
    assert ours == pytest.approx([value for value in ticks if low <= value <= high])


def test_marks_of_an_axis_are_few_where_there_is_little_room():
    assert [text for _, text in Scale(0, 100, 0, 300).marks()] == ["0", "20", "40", "60", "80", "100"]
    assert [text for _, text in Scale(0, 100, 30, 0).marks()] == ["0", "100"]
    assert Scale(0, 10, 100, 0)(2.5) == 75
    assert Scale(-0.5, 1.5, 0, 100, ("a", "b")).marks() == [(25.0, "a"), (75.0, "b")]
    assert [text for _, text in Scale(0, 3, 0, 300, step=1).marks()] == ["0", "1", "2", "3"]


def test_limits_leave_a_margin_but_not_below_bars():
    assert limits([1.0, None, 3.0], False, None) == pytest.approx((0.9, 3.1))
    assert limits([1.0, 3.0], True, None) == pytest.approx((0.0, 3.15))
    assert limits([-1.0, 3.0], True, None) == pytest.approx((-1.2, 3.2))
    assert limits([], False, None)[1] > limits([], False, None)[0]
    assert limits([0.0, 0.0], True, None) == (0.0, 0.5)  # bars of no height
    assert limits([5.0], False, [0, 100]) == (0, 100)


@given(st.floats(-0.5, 1.5), st.sampled_from([DIVERGING, SEQUENTIAL]))
def test_colours_between_two_stops_are_those_of_matplotlib(share, scale):
    theirs = LinearSegmentedColormap.from_list("scale", [tuple(stop) for stop in scale], N=4096)(share)[:3]
    assert to_rgb(shade(scale, share)) == pytest.approx(theirs, abs=2.5 / 255)


def test_the_small_font_has_the_advances_of_the_whole_one():
    small, whole = font_of("Δ−é"), TTFont(_font_file())
    widths, units = whole["hmtx"], whole["head"].unitsPerEm
    for letter in "AΔ−é ~0":
        name = whole.getBestCmap()[ord(letter)]
        assert small.width(letter, 10) == pytest.approx(widths[name][0] / units * 10, abs=0.006)
    assert small.width("AA", 9) == pytest.approx(2 * small.width("A", 9))
    assert "ж" not in small.glyphs
    assert len(small.file) < 60_000


def objects(pdf: bytes) -> dict[int, bytes]:
    """Number → body, by the table of places at the end."""
    table = int(re.search(rb"startxref\n(\d+)", pdf)[1])
    places = [int(line.split()[0]) for line in pdf[table:].split(b"\n")[3:] if line.endswith(b" n ")]
    found = {}
    for number, place in enumerate(places, start=1):
        assert pdf[place:].startswith(b"%d 0 obj\n" % number)
        found[number] = pdf[place : pdf.index(b"\nendobj", place)].split(b"\n", 1)[1]
    return found


def unpacked(body: bytes) -> bytes:
    length = int(re.search(rb"/Length (\d+)", body)[1])
    start = body.index(b"stream\n") + 7
    assert body[start + length :] == b"\nendstream"
    return zlib.decompress(body[start : start + length])


def written(pdf: bytes) -> list[str]:
    """Every text of the page, read by the font's own table of letters."""
    parts = objects(pdf)
    lines = re.findall(rb"<([0-9A-F]{4})> <([0-9A-F]+)>", unpacked(parts[9]))
    table = {code: bytes.fromhex(text.decode()).decode("utf-16-be") for code, text in lines}
    shown = re.findall(rb"<([0-9A-F]*)> Tj", unpacked(parts[4]))
    return ["".join(table.get(code[i : i + 4], "") for i in range(0, len(code), 4)) for code in shown]


def test_the_pdf_says_what_the_svg_says_with_its_font_inside(figures, font):
    for figure in figures.values():
        one = picture(figure, font=font)
        known = ["".join(letter for letter in text if letter in font.glyphs) for text in texts(one.svg)]
        assert written(one.pdf) == known, figure.id
        parts = objects(one.pdf)
        assert unpacked(parts[8]) == font.file
        assert b"/FontFile2 8 0 R" in parts[7]
        assert len(re.findall(rb"\d e-?\d|nan|inf", unpacked(parts[4]))) == 0
        assert figure.title.encode("utf-16-be").hex().upper().encode() in parts[len(parts)]


def test_pictures_are_the_same_bytes_every_time(figures, font):
    for name in ("bars", "radar", "curves"):
        assert (
            picture(figures[name], font=font)
            == picture(figures[name], font=font)
            == picture(figures[name], font=font_of(letters(figures.values())))
        )


def test_markup_in_names_stays_text_and_unknown_letters_stay_in_the_svg():
    trace = {
        "type": "bar",
        "name": "a",
        "x": ["&lt;b&gt; & 中"],
        "y": [1.0],
        "offsetgroup": "a",
        "marker": {"color": "#0072B2"},
        "meta": {},
    }
    figure = Figure("f", "plots", "</title><script>", "", [trace], {}, [], [])
    one = picture(figure)
    assert "<b> & 中" in texts(one.svg)
    assert "<script>" not in one.svg
    assert any(text.startswith("<b> & ") for text in written(one.pdf))


def test_empty_and_constant_data_are_drawn():
    base = {
        "type": "scatter",
        "mode": "lines+markers",
        "name": "a",
        "line": {"color": "#0072B2"},
        "marker": {"symbol": "star"},
        "meta": {},
    }
    for x, y in (([], []), ([1], [None]), ([1, 2], [3.0, 3.0]), ([5], [0.0])):
        one = picture(Figure("f", "plots", "t", "", [base | {"x": x, "y": y}], {}, [], []))
        assert "nan" not in one.svg
        assert objects(one.pdf)
    assert picture(Figure("f", "plots", "t", "", [], {}, [], [])).svg.startswith("<svg")


def test_turned_and_anchored_text_has_the_same_place_in_both():
    drawing = Drawing(100, 50, "t")
    drawing.text(60, 20, "AB", anchor=1.0)
    drawing.text(10, 40, "AB", anchor=0.5, angle=90)
    font = font_of("")
    width = font.width("AB", 9)
    first, second = re.findall(
        rb"([-\d.]+) ([-\d.]+) ([-\d.]+) ([-\d.]+) ([-\d.]+) ([-\d.]+) Tm", unpacked(objects(as_pdf(drawing, font))[4])
    )
    assert [float(v) for v in first] == pytest.approx([1, 0, 0, 1, 60 - width, 30], abs=0.01)
    assert [float(v) for v in second] == pytest.approx([0, 1, -1, 0, 10, 10 - width / 2], abs=0.01)
    assert 'text-anchor="end"' in as_svg(drawing, "x")
    assert 'transform="rotate(-90 10 40)"' in as_svg(drawing, "x")
