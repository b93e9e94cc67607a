"""Rows of an injection arm, in training and where it is asked: its teachers speak at the prompt alone."""

from collections.abc import Sequence
from typing import Any

from mtkv.distill.dataset import DistillationRows
from mtkv.distill.row_match import RowMatch
from mtkv.models.tokenization import EncodedRow


class InjectionRows(DistillationRows):
    """Rows matched with their teachers at the prompt's tokens, the last one left out: it is read behind the corrected cache."""

    def _match(self, row: str, encoded: EncodedRow, segments: tuple[int, int] | None) -> RowMatch:
        match = super()._match(row, encoded, segments)
        kept = match.position < encoded.is_target.argmax() - 1
        tokens, weight = ([part[kept] for part in parts] for parts in (match.tokens, match.weight))
        return RowMatch(match.row, match.position[kept], tokens, weight)

    def teacher_batch(self, indices: Sequence[int]) -> dict[str, Any]:
        """What `collate` gives of the teachers and for the router alone."""
        return self._teacher_batch(indices) | self._task(indices)
