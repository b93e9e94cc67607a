"""A drawing as a PDF of one page with its font inside (a subset of TrueType, as journals ask for; text can be searched and copied).

After ISO 32000-1: content operators (annex A), Type 0 fonts (9.7). The same drawing and font give the same bytes.
"""

import math
import zlib
from collections.abc import Callable, Iterable
from hashlib import sha256
from typing import Any

from mtkv.report.drawing import Circle, Drawing, Label, Shape
from mtkv.report.fonts import FAMILY, Font

ROUND = 0.5523  # control points of a quarter circle
PAGE, CONTENT, FONT = 3, 4, 5


def as_pdf(drawing: Drawing, font: Font) -> bytes:
    """The whole file."""
    states = sorted({part.opacity for part in drawing.parts if isinstance(part, Shape)})
    graphics = " ".join(f"/A{i} << /ca {opacity:g} >>" for i, opacity in enumerate(states))
    content = "\n".join(
        line for part in drawing.parts for line in WRITERS[type(part)](part, drawing.height, font, states)
    )
    resources = f"<< /Font << /F {FONT} 0 R >> /ExtGState << {graphics} >> >>"
    return _file([
        b"<< /Type /Catalog /Pages 2 0 R >>",
        b"<< /Type /Pages /Count 1 /Kids [3 0 R] >>",
        f"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 {drawing.width:.2f} {drawing.height:.2f}] "
        f"/Resources {resources} /Contents {CONTENT} 0 R >>".encode(),
        _stream(content.encode()),
        *_font_objects(font, {letter for part in drawing.parts if isinstance(part, Label) for letter in part.text}),
        f"<< /Creator (mtkv) /Title <{_utf16(chr(0xFEFF) + drawing.title)}> >>".encode(),
    ])  # fmt: skip


def _file(objects: list[bytes]) -> bytes:
    """Numbered objects, the first the catalogue and the last the document's facts, with the table of their places."""
    out, places = bytearray(b"%PDF-1.5\n%\xe2\xe3\xcf\xd3\n"), []
    for number, body in enumerate(objects, start=1):
        places.append(len(out))
        out += b"%d 0 obj\n%b\nendobj\n" % (number, body)
    table = len(out)
    out += b"xref\n0 %d\n0000000000 65535 f \n" % (len(objects) + 1)
    out += b"".join(b"%010d 00000 n \n" % place for place in places)
    out += b"trailer\n<< /Size %d /Root 1 0 R /Info %d 0 R >>\n" % (len(objects) + 1, len(objects))
    return bytes(out + b"startxref\n%d\n%%%%EOF\n" % table)


def _stream(data: bytes, facts: str = "") -> bytes:
    packed = zlib.compress(data)
    return f"<< /Length {len(packed)} /Filter /FlateDecode{facts} >>\nstream\n".encode() + packed + b"\nendstream"


def _font_objects(font: Font, letters: Iterable[str]) -> list[bytes]:
    """The five objects of a Type 0 font whose codes are the numbers of its glyphs."""
    name = f"{_tag(font)}+{FAMILY.replace(' ', '')}"
    used = sorted((font.glyphs[letter], letter) for letter in letters if letter in font.glyphs)
    units = "\n".join(f"<{glyph:04X}> <{_utf16(letter)}>" for glyph, letter in used)
    unicode = (
        "/CIDInit /ProcSet findresource begin 12 dict begin begincmap /CMapName /mtkv def /CMapType 2 def\n"
        "1 begincodespacerange <0000> <FFFF> endcodespacerange\n"
        + "\n".join(_blocks(units.split("\n") if units else []))
        + "\nendcmap CMapName currentdict /CMap defineresource pop end end"
    )
    bounds, widths = (" ".join(map(str, numbers)) for numbers in (font.bounds, font.advances))
    return [
        f"<< /Type /Font /Subtype /Type0 /BaseFont /{name} /Encoding /Identity-H /DescendantFonts [6 0 R] /ToUnicode 9 0 R >>".encode(),
        f"<< /Type /Font /Subtype /CIDFontType2 /BaseFont /{name} /CIDToGIDMap /Identity /FontDescriptor 7 0 R "
        f"/CIDSystemInfo << /Registry (Adobe) /Ordering (Identity) /Supplement 0 >> /W [0 [{widths}]] >>".encode(),
        f"<< /Type /FontDescriptor /FontName /{name} /Flags 4 /FontBBox [{bounds}] /ItalicAngle 0 /Ascent {font.ascent} "
        f"/Descent {font.descent} /CapHeight {font.ascent} /StemV 80 /FontFile2 8 0 R >>".encode(),
        _stream(font.file, f" /Length1 {len(font.file)}"),
        _stream(unicode.encode()),
    ]  # fmt: skip


def _blocks(lines: list[str]) -> Iterable[str]:
    """A table of letters in parts of at most 100, which is all a reader must take."""
    for i in range(0, len(lines), 100):
        part = lines[i : i + 100]
        yield f"{len(part)} beginbfchar\n" + "\n".join(part) + "\nendbfchar"


def _tag(font: Font) -> str:
    """Six letters that tell this subset from others."""
    return "".join(chr(65 + byte % 26) for byte in sha256(font.file).digest()[:6])


def _utf16(text: str) -> str:
    return text.encode("utf-16-be").hex().upper()


def _color(color: str) -> str:
    return " ".join(f"{int(color[i : i + 2], 16) / 255:.3g}" for i in (1, 3, 5))


def _paint(part: Shape | Circle) -> tuple[list[str], str]:
    """What sets the colours, and the operator that paints."""
    colors = [f"{_color(part.fill)} rg"] if part.fill else []
    if part.stroke:
        colors.append(f"{_color(part.stroke)} RG {part.width:.2f} w")
    return colors, {(True, True): "B", (True, False): "f", (False, True): "S"}.get(
        (bool(part.fill), bool(part.stroke)), "n"
    )


def _shape(part: Shape, height: float, font: Font, states: list[float]) -> list[str]:
    colors, operator = _paint(part)
    path = " ".join(f"{x:.2f} {height - y:.2f} {'l' if i else 'm'}" for i, (x, y) in enumerate(part.points))
    dash = f"[{' '.join(f'{length:g}' for length in part.dash)}] 0 d"
    return [*colors, f"/A{states.index(part.opacity)} gs {dash}", f"{path}{' h' if part.closed else ''} {operator}"]


def _circle(part: Circle, height: float, font: Font, states: list[float]) -> list[str]:
    colors, operator = _paint(part)
    x, y, r, k = part.x, height - part.y, part.radius, part.radius * ROUND
    corners = [(r, k, k, r, 0, r), (-k, r, -r, k, -r, 0), (-r, -k, -k, -r, 0, -r), (k, -r, r, -k, r, 0)]
    curves = " ".join(" ".join(f"{v + (x, y)[i % 2]:.2f}" for i, v in enumerate(corner)) + " c" for corner in corners)
    opaque = [f"/A{states.index(1.0)} gs"] if 1.0 in states else []
    return [*colors, *opaque, "[] 0 d", f"{x + r:.2f} {y:.2f} m {curves} h {operator}"]


def _label(part: Label, height: float, font: Font, states: list[float]) -> list[str]:
    turn = math.radians(part.angle)
    cos, sin = math.cos(turn), math.sin(turn)
    back = part.anchor * font.width(part.text, part.size)
    x, y = part.x - back * cos, height - part.y - back * sin
    codes = "".join(f"{font.glyphs.get(letter, 0):04X}" for letter in part.text)
    opaque = [f"/A{states.index(1.0)} gs"] if 1.0 in states else []
    place = f"{cos:.5f} {sin:.5f} {-sin:.5f} {cos:.5f} {x:.2f} {y:.2f} Tm"
    return [*opaque, f"{_color(part.color)} rg BT /F {part.size:g} Tf {place} <{codes}> Tj ET"]


WRITERS: dict[type, Callable[[Any, float, Font, list[float]], list[str]]] = {
    Shape: _shape,
    Circle: _circle,
    Label: _label,
}
