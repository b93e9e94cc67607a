"""A teacher as an arm with latents reads it: the tokens of the chain, and at each slot the KV that its layers and heads select."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from mtkv.align.closed_form_maps import combine_layers
from mtkv.distill.teacher_kv import TeacherKV, row_seed
from mtkv.kv.store import KVStore
from mtkv.latent.training.selection import gather_slots, select_slots
from mtkv.models.tokenization import EncodedRow


class ChainReader(Protocol):
    """A teacher as `LatentRows` asks it, another model or the student itself."""

    def __contains__(self, row: str) -> bool: ...

    def chain(self, row: str, start: int, end: int) -> Int[np.ndarray, " chain"]: ...

    def keep(self, row: str, tokens: Int[np.ndarray, " chain"], count: int) -> None: ...


def chain_tokens(byte_end: Int[np.ndarray, " time"], start: int, end: int) -> Int[np.ndarray, " chain"]:
    """Tokens that end inside the chain, the bytes [start, end) of the row."""
    return np.flatnonzero((byte_end > start) & (byte_end <= end))


@dataclass(frozen=True)
class ChainTeacherKV(TeacherKV):
    """Another model's KV, from a store or an online teacher. `kv_heads`: the teacher's; `kept`: each row's chain tokens
    and how many of them are selected."""

    kv_heads: int = 1
    kept: "dict[str, tuple[np.ndarray, int]]" = field(default_factory=dict)

    def chain(self, row: str, start: int, end: int) -> Int[np.ndarray, " chain"]:
        """The teacher's tokens of the row's bytes [start, end)."""
        return chain_tokens(self.store.byte_end(row), start, end)

    def keep(self, row: str, tokens: Int[np.ndarray, " chain"], count: int) -> None:
        """Select `count` of the row's chain tokens whenever it is read."""
        self.kept[row] = (tokens, count)

    @property
    def bites(self) -> float:
        """Share of the rows in which the budget binds: their chain has more tokens than are selected."""
        return sum(count < len(tokens) for tokens, count in self.kept.values()) / max(1, len(self.kept))

    def read(
        self, rows: Sequence[str], tokens: Sequence[Int[np.ndarray, "n 1"]], weights: Sequence[Float[np.ndarray, "n 1"]]
    ) -> Float[Tensor, "tokens student_layers 2 width"]:
        """KV of all rows' slots one after the other, weighted over layers; `tokens` count each row's selected tokens."""
        kv, index = self.selected(rows)
        sample = torch.from_numpy(np.repeat(np.arange(len(rows)), [len(part) for part in tokens])).to(kv.device)
        ordinal = torch.from_numpy(np.concatenate([part[:, 0] for part in tokens])).to(kv.device)
        return combine_layers(gather_slots(kv, index, sample, ordinal), self.layer_weights.to(kv.device))

    def selected(
        self, rows: Sequence[str]
    ) -> tuple[Float[Tensor, "batch chain layers 2 width"], Int[Tensor, "batch slots layers kv_heads"]]:
        """KV of the rows' chains, padded, and the places in the chain that each stored layer and head selects."""
        assert self.select is not None
        chains = [self.kept[row][0] for row in rows]
        kv = self.store.read_batch(rows, chains).float()
        padded = pad_sequence(list(kv.split([len(chain) for chain in chains])), batch_first=True)
        lengths = torch.tensor([len(chain) for chain in chains], device=kv.device)
        return padded, select_slots(
            self.select,
            padded,
            self.kv_heads,
            torch.arange(padded.shape[1], device=kv.device) < lengths[:, None],
            torch.tensor([self.kept[row][1] for row in rows], device=kv.device),
            self._importance(rows, chains) if self.select.needs_attention else None,
            torch.tensor([row_seed(row) for row in rows], device=kv.device),
        )

    def _importance(
        self, rows: Sequence[str], chains: Sequence[np.ndarray]
    ) -> Float[Tensor, "batch layers kv_heads chain"]:
        """Attention from the rows' answers, as the store keeps it."""
        if not isinstance(self.store, KVStore):
            raise ValueError(
                f"selection {self.select and self.select.method!r} needs attention, which only a store keeps"
            )
        found = [
            torch.as_tensor(self.store.importance(row)[chain]).float() for row, chain in zip(rows, chains, strict=True)
        ]
        return pad_sequence(found, batch_first=True).permute(0, 2, 3, 1)


@dataclass(frozen=True)
class SelfTeacherKV:
    """The student itself: `rows` are what it reads with the chain. Its KV arises while it trains, so there is nothing to read here."""

    rows: "dict[str, EncodedRow]" = field(default_factory=dict)
    kept: "dict[str, tuple[np.ndarray, int]]" = field(default_factory=dict)

    @property
    def bites(self) -> float:
        """Share of the rows in which the budget binds: their chain has more tokens than are selected."""
        return sum(count < len(tokens) for tokens, count in self.kept.values()) / max(1, len(self.kept))

    def __contains__(self, row: str) -> bool:
        return row in self.rows

    def chain(self, row: str, start: int, end: int) -> Int[np.ndarray, " chain"]:
        """The student's tokens of the row's bytes [start, end)."""
        return chain_tokens(self.rows[row].byte_end, start, end)

    def keep(self, row: str, tokens: Int[np.ndarray, " chain"], count: int) -> None:
        """Remember the row's chain tokens and how many of them are selected."""
        self.kept[row] = (tokens, count)
