"""The still pictures: shapes, colours and texts against the numbers, and a PDF that says what the SVG says."""

import functools
import re
import zlib
from xml.etree import ElementTree

import matplotlib
import numpy as np
import pytest

from mtkv.report.figures.all import all_figures
from mtkv.report.figures.figure import Figure
from mtkv.report.static_figures import fonts, picture

SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture(scope="module")
def figures(full):
    return {figure.id: figure for figure in all_figures(full)}


@pytest.fixture(scope="module")
def still(figures):
    """The picture of a figure's view, drawn once."""
    return functools.cache(lambda name, view=None: picture(figures[name], view))


def shapes(svg: str, style: str) -> list[tuple[float, float, float, float]]:
    """Left, top, width and height of every path whose style has `style`, like "fill: #0072b2"."""
    found = []
    for path in ElementTree.fromstring(svg).iter(f"{SVG}path"):
        if style.lower() in path.get("style", "") and path.get("d"):
            points = np.array(re.findall(r"-?[\d.]+", path.get("d")), dtype=float).reshape(-1, 2)
            found.append((*points.min(axis=0), *np.ptp(points, axis=0)))
    return found


def filled(svg: str, color: str) -> list[tuple[float, float, float, float]]:
    return shapes(svg, f"fill: {color}")


def texts(svg: str) -> list[str]:
    return ["".join(one.itertext()) for one in ElementTree.fromstring(svg).iter(f"{SVG}text")]


def lone_bars(figure):
    """The bars of an arm whose colour no other arm has, and which are all known."""
    every = [trace for trace in figure.traces if trace["type"] == "bar"]
    colors = [trace["marker"]["color"] for trace in every]
    return next(t for t in every if colors.count(t["marker"]["color"]) == 1 and None not in t["y"])


def test_bars_are_as_high_as_their_numbers_and_stand_on_one_line(figures, still):
    bars = lone_bars(figures["bars"])
    drawn = sorted(filled(still("bars").svg, bars["marker"]["color"]))
    in_place, in_legend = [one for one in drawn if one[3] > 10], [one for one in drawn if one[3] < 10]
    assert len(in_legend) == 1
    heights = np.array([height for *_, height in in_place])
    known = np.array([value for value in bars["y"] if value is not None])
    assert heights / heights[0] == pytest.approx(known / known[0], rel=1e-3)
    assert [top + height for _, top, _, height in in_place] == pytest.approx(
        [in_place[0][1] + heights[0]] * len(known), abs=0.02
    )


def test_whiskers_begin_and_end_at_their_numbers(figures, still):
    bars = lone_bars(figures["bars"])
    longer = [1.5 * length for length in bars["error_y"]["array"]]
    bars = bars | {"error_y": bars["error_y"] | {"array": longer}}
    svg = picture(Figure("f", "plots", "t", "", [bars], figures["bars"].layout, [], [])).svg
    drawn = sorted(filled(svg, bars["marker"]["color"]))
    point = drawn[0][3] / bars["y"][0]  # height of one point of accuracy
    lines = sorted(one for one in shapes(svg, "stroke: #22262b") if one[2] == 0 and one[3] > 0)
    low, high = (np.array(bars["error_y"][name]) for name in ("arrayminus", "array"))
    assert [height for *_, height in lines] == pytest.approx((low + high) * point, rel=1e-3)
    assert [bar[1] - line[1] for bar, line in zip(drawn, lines, strict=True)] == pytest.approx(high * point, abs=0.01)
    assert [line[0] for line in lines] == pytest.approx([bar[0] + bar[2] / 2 for bar in drawn])
    trace = next(t for t in figures["forest"].traces if "error_x" in t)
    edges, wide = trace["marker"]["line"]["color"], trace["error_x"]
    lone = [i for i, edge in enumerate(edges) if edges.count(edge) == 1]
    lines = {i: max(one[2] for one in shapes(still("forest").svg, f"stroke: {edges[i]}")) for i in lone}
    scales = [width / (wide["arrayminus"][i] + wide["array"][i]) for i, width in lines.items()]
    assert len(scales) > 1
    assert scales == pytest.approx([scales[0]] * len(scales))


def test_horizontal_bars_heat_cells_and_waterfalls_have_the_sizes_of_their_numbers(figures, still):
    trace = figures["coverage"].traces[0]
    sizes = [filled(still("coverage").svg, color)[0] for color in trace["marker"]["color"]]
    assert sizes[0][2] / sizes[1][2] == pytest.approx(trace["x"][0] / trace["x"][1], rel=1e-3)
    steps = figures["waterfall"].traces[0]
    known = [value for value in steps["y"] if value is not None]
    svg = still("waterfall").svg
    up = filled(svg, steps["increasing"]["marker"]["color"]) + filled(svg, steps["decreasing"]["marker"]["color"])
    whole = filled(svg, steps["totals"]["marker"]["color"])[0]
    assert sorted(one[3] / whole[3] for one in up) == pytest.approx(
        sorted(abs(v / sum(known)) for v in known), abs=2e-3
    )
    assert {f"{value:+.2f}" for value in known} <= set(texts(svg))
    grid = figures["heatmap"].traces[0]
    cells = [value for line in grid["z"] for value in line if value is not None]
    shown = texts(still("heatmap", "score").svg)
    assert [text for text in shown if re.fullmatch(r"[\d.]+", text)] == [f"{value:.1f}" for value in cells]


def test_colours_of_cells_lie_between_the_stops_of_their_scale(figures, still):
    for view in ("score", "delta", "p"):
        (trace,) = (t for t in figures["heatmap"].traces if t["meta"]["view"] == view)
        places, stops = zip(*trace["colorscale"], strict=True)
        channels = np.array([[int(stop[i : i + 2], 16) for i in (1, 3, 5)] for stop in stops])
        values = np.array([value for line in trace["z"] for value in line if value is not None])
        shares = (values - trace["zmin"]) / (trace["zmax"] - trace["zmin"])
        expected = np.stack([np.interp(shares, places, channel) for channel in channels.T], axis=1)
        paths = ElementTree.fromstring(still("heatmap", view).svg).iter(f"{SVG}path")
        found = [re.match(r"fill: #(\w{6}); stroke: #ffffff", path.get("style", "")) for path in paths]
        drawn = [[int(one[1][i : i + 2], 16) for i in (0, 2, 4)] for one in found if one]
        assert np.array(drawn) == pytest.approx(expected, abs=1.5)


def test_every_name_and_label_of_a_view_is_in_its_picture(figures, still):
    for figure in figures.values():
        view = figure.views[0][0] if figure.views else None
        said = {text for line in texts(still(figure.id).svg) for text in [line, line.rstrip("_")]}
        for trace in figure.traces:
            if trace["meta"].get("view", view) != view or trace.get("mode") == "text":
                continue
            words = [word for axis in "xy" for word in trace.get(axis, []) if isinstance(word, str)]
            words += [trace["name"]] if trace["type"] in ("bar", "scatterpolar") and "orientation" not in trace else []
            shown = "".join(said)
            for word in words:
                plain = word.replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&")
                assert all(part in shown for part in plain.split("<br>")), (figure.id, word)


def streams(pdf: bytes) -> list[bytes]:
    """Every stream that is compressed, unpacked."""
    packed = re.findall(rb"/FlateDecode >>\nstream\n(.*?)\nendstream", pdf, re.DOTALL)
    return [zlib.decompress(one) for one in packed]


def unescaped(text: bytes) -> bytes:
    letters = {b"n": b"\n", b"r": b"\r", b"t": b"\t", b"b": b"\b", b"f": b"\f"}
    return re.sub(rb"\\(.)", lambda one: letters.get(one[1], one[1]), text, flags=re.DOTALL)


def page(pdf: bytes) -> bytes:
    return next(one for one in streams(pdf) if b"DeviceRGB" in one)


def written(pdf: bytes) -> list[str]:
    """Every text of the page. Codes of the font are those of Unicode, as its own table of letters says."""
    for first, last, letters in re.findall(rb"<(\w{4})> <(\w{4})> \[([^]]*)\]", b"".join(streams(pdf))):
        codes = [int(code, 16) for code in re.findall(rb"<(\w{4})>", letters)]
        assert codes == list(range(int(first, 16), int(last, 16) + 1))
    lines = re.findall(rb"\[((?:\((?:\\.|[^\\)])*\)|[^]])*)\]\s*TJ", page(pdf), re.DOTALL)
    parts = [b"".join(re.findall(rb"\(((?:\\.|[^\\)])*)\)", line, re.DOTALL)) for line in lines]
    return [unescaped(part).decode("utf-16-be") for part in parts]


def test_the_pdf_says_what_the_svg_says_with_its_font_inside(figures, still):
    for figure in figures.values():
        one = still(figure.id)
        assert written(one.pdf) == [text for text in texts(one.svg) if text], figure.id
        assert one.pdf.count(b"/Subtype /CIDFontType2") == one.pdf.count(b"/FontFile2") == 1
        assert b"/Type3" not in one.pdf
        assert len(re.findall(rb"\d e-?\d|nan|inf", page(one.pdf))) == 0
        title = unescaped(re.search(rb"/Title \(((?:\\.|[^\\)])*)\)", one.pdf, re.DOTALL)[1])
        assert title in (figure.title.encode(), b"\xfe\xff" + figure.title.encode("utf-16-be"))


def test_pictures_are_the_same_bytes_every_time_whatever_matplotlib_is_set_to(figures):
    for name in ("bars", "radar", "curves"):
        one = picture(figures[name])
        with matplotlib.rc_context({"font.size": 20, "axes.grid": True, "svg.fonttype": "path"}):
            assert picture(figures[name]) == one
            assert matplotlib.rcParams["font.size"] == 20
        assert not re.search(rb"Date|\d{4}-\d\d-\d\d", one.svg.encode() + re.sub(rb"stream.*?endstream", b"", one.pdf))


def labelled(name):
    trace = {
        "type": "bar",
        "name": "a",
        "x": [name],
        "y": [1.0],
        "offsetgroup": "a",
        "marker": {"color": "#0072B2"},
        "meta": {},
    }
    return Figure("f", "plots", "</title><script>", "", [trace], {}, [], [])


def test_markup_in_names_stays_text_and_unknown_letters_stay_in_the_svg():
    one = picture(labelled("&lt;b&gt; & 中"))
    assert "<b> & 中" in texts(one.svg)
    assert "<script>" not in one.svg
    assert any(text.startswith("<b> & ") for text in written(picture(labelled("&lt;b&gt; & $x$")).pdf))


@pytest.mark.skipif(len(fonts()) == 2, reason="this machine has no font with Chinese letters")
def test_chinese_letters_are_in_the_pdf():
    plain, chinese = (picture(labelled(name)).pdf for name in ("fixed", "固定权重"))
    assert all(f"<{letter.encode('utf-16-be').hex()}>".encode() in b"".join(streams(chinese)) for letter in "固定权重")
    embedded = [{name.split(b"+")[1] for name in re.findall(rb"/FontName /(\S+)", pdf)} for pdf in (plain, chinese)]
    assert embedded[0] == {b"DejaVuSans"}
    assert embedded[1] - {b"DejaVuSans"}
    assert not any(b"LastResort" in name for name in embedded[1])  # matplotlib's boxes for letters that no font has


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
        assert page(one.pdf)
    assert "<svg" in picture(Figure("f", "plots", "t", "", [], {}, [], [])).svg
