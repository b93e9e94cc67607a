"""The training set of one arm that does not fit in memory: the very batches of `DistillationRows`, with rows and matches on disk.

In: a file of rows, read, tokenised and matched piece by piece. Out: two files without a name in the folder for temporary files
(TMPDIR), a record of arrays for each row, gone when the process ends, however it ends. In memory stay some forty bytes of each row: where
its records lie, its length, how many of its tokens are supervised, its dataset and for `shuffle_items` its partner.
"""

import os
import tempfile
from array import array
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar, overload

import numpy as np
from safetensors.numpy import load, save
from transformers import PreTrainedTokenizerBase

from mtkv.data.parquet_rows import RowFile
from mtkv.data.rows import segment_ends
from mtkv.distill.controls import CONTROLS, check_matched, in_permuted_time, partners, with_tokens_of
from mtkv.distill.dataset import DistillationRows
from mtkv.distill.row_match import RowMatch
from mtkv.distill.teacher_kv import Source, TeacherFiles
from mtkv.models.tokenization import EncodedRow, encode_rows

if TYPE_CHECKING:
    from mtkv.config.latent import LatentConfig


Item = TypeVar("Item")


class Spool:
    """A file of named arrays, one record for each row, appended once and read in any order: same shapes, formats and bits."""

    def __init__(self) -> None:
        self._file = tempfile.TemporaryFile(prefix="mtkv-rows-")  # noqa: SIM115  # open as long as the rows are
        self._ends = array("q", [0])
        self._flushed = True

    def __len__(self) -> int:
        return len(self._ends) - 1

    def append(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Add a row. Raises OSError when the disk is full."""
        # safetensors writes the memory below an array, whatever its strides are.
        record = save({name: np.ascontiguousarray(value) for name, value in arrays.items()})
        self._file.write(record)
        self._ends.append(self._ends[-1] + len(record))
        self._flushed = False

    def read(self, row: int) -> dict[str, np.ndarray]:
        """The arrays of row number `row`, from 0. Read at an offset (`pread`), so that forked processes do not disturb each other."""
        if not self._flushed:
            self._file.flush()
            self._flushed = True
        start, end = self._ends[row], self._ends[row + 1]
        record = os.pread(self._file.fileno(), end - start, start)
        if len(record) != end - start:
            raise OSError(f"row number {row}: the file of rows in {tempfile.gettempdir()} is cut off")
        return load(record)


class Spooled(Sequence[Item]):
    """The rows of a spool as objects, each made by `make` when it is asked for."""

    def __init__(self, spool: Spool, make: Callable[[dict[str, np.ndarray]], Item]) -> None:
        self.spool, self.make = spool, make

    def __len__(self) -> int:
        return len(self.spool)

    @overload
    def __getitem__(self, index: int) -> Item: ...
    @overload
    def __getitem__(self, index: slice) -> list[Item]: ...
    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[each] for each in range(*index.indices(len(self)))]
        return self.make(self.spool.read(range(len(self))[index]))


def text_array(text: str) -> np.ndarray:
    """A text as an array of its UTF-8 bytes `[n]`."""
    return np.frombuffer(text.encode(), dtype=np.uint8)


def array_text(stored: np.ndarray) -> str:
    """The text that `text_array` made into `stored`."""
    return stored.tobytes().decode()


# `CONTROLS` for rows on disk: what changes a row's match as it is written, or which row's tokens each row reads.
CHANGES: dict[str, Callable[[RowMatch, np.random.Generator], RowMatch]] = {"shuffle_time": in_permuted_time}
PARTNERS: dict[str, Callable[[Sequence[int], np.random.Generator], np.ndarray]] = {"shuffle_items": partners}


class StreamedRows(DistillationRows):
    """`DistillationRows` of the rows of a file. Raises what that raises, OSError when the disk for temporary files is full, and
    NotImplementedError for a control that needs all rows at once."""

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
        self.matches: Sequence[RowMatch] = []
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


class StreamedMatches(Spooled[RowMatch]):
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
    """A text for each row, of few different ones: text i is `names[codes[i]]`."""

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


def _unchanged(match: RowMatch, rng: np.random.Generator) -> RowMatch:
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


def _packed(match: RowMatch) -> dict[str, np.ndarray]:
    teachers = {f"{name}.{i}": part for name in ("tokens", "weight") for i, part in enumerate(getattr(match, name))}
    return {"row": text_array(match.row), "position": match.position} | teachers


def _match(stored: dict[str, np.ndarray]) -> RowMatch:
    tokens, weight = ([stored[f"{name}.{i}"] for i in range((len(stored) - 2) // 2)] for name in ("tokens", "weight"))
    return RowMatch(array_text(stored["row"]), stored["position"], tokens, weight)
