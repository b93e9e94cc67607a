"""The training set of one arm that does not fit in memory: the very batches of `DistillationRows`, with rows and matches on disk.

Rows are read, tokenised and matched piece by piece. Some forty bytes of each row stay in memory: where it lies, its length, how many
of its tokens are supervised, its dataset and for `shuffle_items` its partner.
"""

from array import array
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from mtkv.data.pieces import RowFile
from mtkv.data.rows import segment_ends
from mtkv.distill.opening import TeacherFiles
from mtkv.distill.rows import (
    CONTROLS,
    DistillationRows,
    Match,
    check_matched,
    in_permuted_time,
    partners,
    with_tokens_of,
)
from mtkv.distill.sources import Source
from mtkv.distill.spool import Spool, Spooled, array_text, text_array
from mtkv.models.encode import EncodedRow, encode_rows

if TYPE_CHECKING:
    from mtkv.config.latent import LatentConfig

# What a control does to a row as it is written, and whose tokens a row reads; `CONTROLS` has the same in memory.
CHANGES: dict[str, Callable[[Match, np.random.Generator], Match]] = {"shuffle_time": in_permuted_time}
PARTNERS: dict[str, Callable[[Sequence[int], np.random.Generator], np.ndarray]] = {"shuffle_items": partners}


class StreamedRows(DistillationRows):
    """As `DistillationRows`, of the rows of a file. Raises what that raises, OSError when the disk for temporary files is full."""

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        rows: RowFile,
        teachers: Sequence[Source],
        control: str,
        seed: int,
        max_length: int | None,
    ) -> None:
        if control in CONTROLS.keys() - CHANGES.keys() - PARTNERS.keys():
            raise NotImplementedError(f"control {control!r} needs all rows in memory: resources.train.stream false")
        self.teachers = list(teachers)
        self.pad_token_id = tokenizer.pad_token_id
        self._lengths, self._supervised, codes = array("i"), array("i"), array("i")
        names: dict[str, int] = {}
        texts, matches = Spool(), Spool()
        rng = np.random.default_rng(seed)
        change = CHANGES.get(control, _unchanged)
        for piece in rows.pieces():
            encoded = _encoded(tokenizer, piece, max_length, rows, len(texts))
            columns = (piece["id"], piece["dataset"], encoded, segment_ends(piece))
            for row, dataset, item, ends in zip(*columns, strict=True):
                texts.append({"id": text_array(row)} | vars(item))
                self._lengths.append(len(item.input_ids))
                codes.append(names.setdefault(dataset, len(names)))
                if teachers:
                    match = change(self._match(row, item, ends), rng)
                    matches.append(_packed(match))
                    self._supervised.append(len(match.position))
        self.encoded = Spooled(texts, _encoded_row)
        self.ids = Spooled(texts, lambda stored: array_text(stored["id"]))
        self.datasets = Coded(codes, list(names))
        self.matches: Sequence[Match] = []
        if teachers:
            check_matched(self._supervised)
            partner = PARTNERS[control](self._supervised, rng) if control in PARTNERS else None
            self.matches = StreamedMatches(matches, partner)

    @property
    def lengths(self) -> Sequence[int]:
        """Tokens of each row."""
        return self._lengths

    @property
    def supervised(self) -> Sequence[int]:
        """Supervised tokens of each row; empty for arms without KV."""
        return self._supervised


class StreamedMatches(Spooled[Match]):
    """Matches on disk. `partner [rows]`: whose tokens supervise each row; None: its own."""

    def __init__(self, spool: Spool, partner: np.ndarray | None) -> None:
        super().__init__(spool, _match)
        self.partner = partner

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return super().__getitem__(index)
        match, place = super().__getitem__(index), range(len(self))[index]
        if self.partner is None or self.partner[place] == place:
            return match
        return with_tokens_of(match, super().__getitem__(self.partner[place]))


class Coded(Sequence[str]):
    """Texts of which few differ: `names[codes[i]]`."""

    def __init__(self, codes: Sequence[int], names: Sequence[str]) -> None:
        self.codes, self.names = codes, names

    def __len__(self) -> int:
        return len(self.codes)

    def __getitem__(self, index: Any) -> Any:
        return (
            [self.names[code] for code in self.codes[index]]
            if isinstance(index, slice)
            else self.names[self.codes[index]]
        )


def check_streamable(teachers: Sequence[TeacherFiles], latent: "LatentConfig | None") -> None:
    """Raises NotImplementedError for an arm whose rows are all in memory anyway."""
    online = any(teacher.store is None for teacher in teachers)
    if latent or online:
        what = "student_view latent" if latent else "a teacher of teachers.mode online"
        raise NotImplementedError(f"{what} keeps all rows in memory for now: resources.train.stream false")


def _unchanged(match: Match, rng: np.random.Generator) -> Match:
    return match


def _encoded(
    tokenizer: PreTrainedTokenizerBase, piece: Any, max_length: int | None, rows: RowFile, first: int
) -> list[EncodedRow]:
    try:
        return encode_rows(tokenizer, list(piece["prompt"]), list(piece["target"]), max_length)
    except ValueError as error:
        error.add_note(f"rows are counted from number {first} of {rows.path}, whose id is {piece['id'].iloc[0]!r}")
        raise


def _encoded_row(stored: dict[str, np.ndarray]) -> EncodedRow:
    return EncodedRow(**{name: value for name, value in stored.items() if name != "id"})


def _packed(match: Match) -> dict[str, np.ndarray]:
    teachers = {f"{name}.{i}": part for name in ("tokens", "weight") for i, part in enumerate(getattr(match, name))}
    return {"row": text_array(match.row), "position": match.position} | teachers


def _match(stored: dict[str, np.ndarray]) -> Match:
    tokens, weight = ([stored[f"{name}.{i}"] for i in range((len(stored) - 2) // 2)] for name in ("tokens", "weight"))
    return Match(array_text(stored["row"]), stored["position"], tokens, weight)
