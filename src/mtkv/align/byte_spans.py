"""Tokens as spans of UTF-8 bytes of the text, by which the tokens of two tokenizers are matched (method.md §2).

`synchronised_tokens` finds for each student token the teacher token that ends at the same byte: one that ends later has already read
text the student has not. `printed_spans` finds the spans of tokens given as tokenizers print them: byte-level BPE (`Ġ`, `Ċ`, … one
character per byte), SentencePiece (`▁`, `<0xE4>`), WordPiece (`##`) or plain strings. It takes the notation by which most tokens are
found, exactly or, for tokenizers that normalise, up to case, accents and compatibility forms. With a tokenizer at hand use its offsets
instead (`mtkv.models.tokenization`).
"""

import re
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
from jaxtyping import Int

NO_TOKEN = -1


@dataclass(frozen=True)
class Spans:
    """UTF-8 bytes of the text that each token covers, `[start, end)`; −1 in both for what may not be compared."""

    start: Int[np.ndarray, " time"]
    end: Int[np.ndarray, " time"]

    def comparable(self) -> Int[np.ndarray, " tokens"]:
        """Indices of the tokens that have a span, ascending."""
        return np.flatnonzero(self.end >= 0)


def synchronised_tokens(
    student_end: Int[np.ndarray, " student_time"], teacher_end: Int[np.ndarray, " teacher_time"]
) -> Int[np.ndarray, " student_time"]:
    """Index of the teacher token that ends at the same byte as each student token, or −1 where there is none.

    Byte ends of −1 (special tokens, sinks, unfinished characters) never match.
    """
    comparable = np.flatnonzero(teacher_end >= 0)
    if not len(comparable):
        return np.full(len(student_end), NO_TOKEN, dtype=np.int64)
    by_end = comparable[np.argsort(teacher_end[comparable], kind="stable")]
    last_not_later = np.searchsorted(teacher_end[by_end], student_end, side="right") - 1
    found = by_end[np.maximum(last_not_later, 0)]
    return np.where((student_end >= 0) & (teacher_end[found] == student_end), found, NO_TOKEN)


def coverage(student_end: Int[np.ndarray, " student_time"], matched: Int[np.ndarray, " student_time"]) -> float:
    """Share of the student's comparable tokens that have a teacher token in `matched` (not −1); NaN for a row without any."""
    comparable = student_end >= 0
    return float((matched[comparable] >= 0).mean()) if comparable.any() else float("nan")


SPACE = re.compile(rb"(?:[ \t-\r]|\xc2\xa0|\xe3\x80\x80)*")
BYTE_FALLBACK = re.compile(r"<0x([0-9A-Fa-f]{2})>")
Fold = Callable[[str], str]


def printed_spans(tokens: Sequence[str], text: str) -> Spans:
    """Byte span of each token in `text`; −1 for tokens that are not in it (special tokens, unknown words, a prefix `▁`).

    A piece of a multi-byte character covers its own bytes only; a space written into a token is part of its span. For example,
    `["ĠH", "i"]` in " Hi" has start [0, 2], end [2, 3].
    """
    best = Spans(*(np.full(len(tokens), NO_TOKEN) for _ in range(2)))
    for fold in (str, _fold):
        letters, start, end = _folded_bytes(text, fold)
        for notation in NOTATIONS:
            found = _locate([notation(token, fold) for token in tokens], letters, start, end)
            if len(found.comparable()) > len(best.comparable()):
                best = found
        if len(best.comparable()) == len(tokens):
            break
    return best


def _plain(token: str, fold: Fold) -> bytes:
    return fold(token).encode()


def _byte_level(token: str, fold: Fold) -> bytes:
    alphabet = byte_alphabet()
    return bytes(alphabet[letter] for letter in token) if all(letter in alphabet for letter in token) else b""


def _sentencepiece(token: str, fold: Fold) -> bytes:
    byte = BYTE_FALLBACK.fullmatch(token)
    return bytes([int(byte[1], 16)]) if byte else fold(token.replace("▁", " ")).encode()


def _wordpiece(token: str, fold: Fold) -> bytes:
    return fold(token[2:] if token.startswith("##") and len(token) > 2 else token).encode()


NOTATIONS: tuple[Callable[[str, Fold], bytes], ...] = (_plain, _byte_level, _sentencepiece, _wordpiece)


@cache
def byte_alphabet() -> dict[str, int]:
    """The printable character of byte-level BPE → the byte it stands for (Radford et al. 2019, GPT-2)."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [byte for byte in range(256) if byte not in set(printable)]
    return {chr(byte): byte for byte in printable} | {chr(256 + i): byte for i, byte in enumerate(hidden)}


def _locate(pieces: list[bytes], letters: bytes, start: np.ndarray, end: np.ndarray) -> Spans:
    spans, cursor, lost = np.full((len(pieces), 2), NO_TOKEN), 0, False
    for index, piece in enumerate(pieces):
        at, length = _next(piece, letters, cursor, lost)
        lost = at < 0
        if not lost:
            cursor = at + length
            spans[index] = start[at], end[cursor - 1]
    return Spans(spans[:, 0], spans[:, 1])


def _next(piece: bytes, letters: bytes, cursor: int, lost: bool) -> tuple[int, int]:
    """(index, length) of `piece` in `letters`: at the cursor, behind white space there, or, if the last token was lost, anywhere later."""
    body = piece[len(SPACE.match(piece)[0]) :]  # type: ignore[index]
    if piece and letters.startswith(piece, cursor):
        return cursor, len(piece)
    if not body:
        return -1, 0
    past = SPACE.match(letters, cursor).end()  # type: ignore[union-attr]
    if letters.startswith(body, past):
        return past, len(body)
    return (letters.find(body, cursor) if lost else -1), len(body)


def _fold(text: str) -> str:
    decomposed = unicodedata.normalize("NFKD", text).casefold()
    return "".join(letter for letter in decomposed if unicodedata.category(letter) != "Mn")


def _folded_bytes(text: str, fold: Fold) -> tuple[bytes, np.ndarray, np.ndarray]:
    """The folded text as bytes, and for each of them the first byte, and the byte behind the last, that it stands for in `text`."""
    folded: list[bytes] = []
    start: list[int] = []
    end: list[int] = []
    place = 0
    for character in text:
        real, letters = character.encode(), fold(character).encode()
        same = real == letters
        start += [place + i * same for i in range(len(letters))]
        end += [place + i + 1 if same else place + len(real) for i in range(len(letters))]
        folded.append(letters)
        place += len(real)
    return b"".join(folded), np.array(start, dtype=np.int64), np.array(end, dtype=np.int64)
