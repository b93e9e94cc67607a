"""The font of the still pictures: how wide a text is, and a small TrueType file of just the letters a report uses, made once for all PDFs.

In: the letters. The font is DejaVu Sans as it comes with matplotlib, of which nothing else is used (matplotlib itself is not imported).
"""

import io
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from fontTools import subset
from fontTools.ttLib import TTFont

FAMILY = "DejaVu Sans"
DROPPED = ("GSUB", "GPOS", "GDEF", "FFTM", "kern", "name", "OS/2")  # PDF needs none of them


@dataclass(frozen=True)
class Font:
    """`glyphs`: letter → number of its glyph; `advances` and what follows `file` (TrueType): thousandths of the font's size."""

    glyphs: dict[str, int]
    advances: list[int]
    file: bytes
    ascent: int
    descent: int
    bounds: tuple[int, int, int, int]

    def width(self, text: str, size: float) -> float:
        """Points that one line of text takes."""
        return sum(self.advances[self.glyphs.get(letter, 0)] for letter in text) * size / 1000


def font_of(letters: str) -> Font:
    """A font of `letters` and ASCII; a letter that DejaVu lacks has glyph 0, an empty box, and in SVG is drawn by the reader's fonts."""
    wanted = sorted({*letters, *map(chr, range(32, 127))})
    options = subset.Options(
        drop_tables=[*subset.Options().drop_tables, *DROPPED], notdef_outline=True, glyph_names=False
    )
    with subset.load_font(str(_font_file()), options, dontLoadGlyphNames=True) as font:
        chosen = subset.Subsetter(options)
        chosen.populate(text="".join(wanted))
        chosen.subset(font)
        buffer = io.BytesIO()
        font.save(buffer)
        return _facts(font, buffer.getvalue())


def _facts(font: TTFont, file: bytes) -> Font:
    scale = 1000 / font["head"].unitsPerEm
    head, names = font["head"], font.getReverseGlyphMap()
    return Font(
        glyphs={chr(code): names[name] for code, name in font.getBestCmap().items()},
        advances=[round(font["hmtx"][name][0] * scale) for name in font.getGlyphOrder()],
        file=file,
        ascent=round(font["hhea"].ascent * scale),
        descent=round(font["hhea"].descent * scale),
        bounds=(
            round(head.xMin * scale),
            round(head.yMin * scale),
            round(head.xMax * scale),
            round(head.yMax * scale),
        ),
    )


def _font_file() -> Path:
    """DejaVuSans.ttf in the folder of matplotlib, which is found but not loaded."""
    found = find_spec("matplotlib")
    if found is None or not found.submodule_search_locations:
        raise ModuleNotFoundError("the pictures of a report need the font that comes with matplotlib")
    return Path(found.submodule_search_locations[0]) / "mpl-data/fonts/ttf/DejaVuSans.ttf"
