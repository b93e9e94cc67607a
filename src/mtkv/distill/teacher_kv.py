"""One teacher as an arm reads it: which tokens of a row it supervises, and its KV there.

Three kinds with one interface (`Source`): a store of the teacher's own KV and an online teacher, which computes them when asked (both
`TeacherKV`), and a store of targets that are already in the student's space and time (`ProjectedTeacherKV`). `open_sources` makes
an arm's teachers from their config and files.
"""

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor

from mtkv.align.closed_form_maps import KVMap, combine_layers
from mtkv.align.components import Components
from mtkv.align.token_alignment import Segments, TimeMatch, match_row
from mtkv.config.models import ModelConfig  # pydantic reads the annotations of TeacherFiles
from mtkv.kv.online_teacher import OnlineTeacher
from mtkv.kv.select import select_tokens
from mtkv.kv.shards import KEY
from mtkv.kv.store import KVStore, MappedStore
from mtkv.models.load import load_model, load_tokenizer
from mtkv.models.tokenization import EncodedRow

if TYPE_CHECKING:
    from mtkv.config.kv import KVConfig, SelectConfig


@dataclass(frozen=True)
class TeacherKV:
    """The teacher's own KV. `layer_weights`: how its stored layers make up the target of each student layer.

    `seen`: how many of the rows matched so far lost a token to the budget (True), and how many none (False).
    """

    store: KVStore | OnlineTeacher
    layer_weights: Float[Tensor, "student_layers stored"]
    time: str = "sync"
    select: "SelectConfig | None" = None
    seen: "Counter[bool]" = field(default_factory=Counter)

    @property
    def bites(self) -> float:
        """Share of the rows matched so far in which the budget binds, that is leaves out a token."""
        return self.seen[True] / max(1, self.seen.total())

    def __contains__(self, row: str) -> bool:
        return row in self.store

    def statistics(self, row: str) -> Mapping[str, float]:
        """What the arm's router asks of the teacher's whole row, by name."""
        return self.store.statistics(row)

    def match(self, row: str, encoded: EncodedRow, segments: Segments) -> TimeMatch:
        """Teacher tokens for each supervised student token, after selection."""
        match = match_row(self.time, row, encoded, self.store, segments)
        if self.select is None or self.select.method == "full" or not len(match.position):
            return match
        kept = _restricted(match, self._selected(row, match, len(self.store.byte_end(row))))
        self.seen[len(kept.position) < len(match.position)] += 1
        return kept

    def read(
        self, rows: Sequence[str], tokens: Sequence[Int[np.ndarray, "n k"]], weights: Sequence[Float[np.ndarray, "n k"]]
    ) -> Float[Tensor, "tokens student_layers 2 width"]:
        """KV of all rows' supervised tokens one after the other, summed over the k `tokens` of each by `weights`, then over layers."""
        kv = self.store.read_batch(rows, [part.ravel() for part in tokens])
        if any(part.shape[1] != 1 for part in tokens):
            counts = np.concatenate([np.full(len(part), part.shape[1]) for part in tokens])
            owner = torch.from_numpy(np.repeat(np.arange(len(counts)), counts))
            weight = torch.from_numpy(np.concatenate([part.ravel() for part in weights])).float()
            weighted = kv.float() * weight[:, None, None, None].to(kv.device)
            kv = weighted.new_zeros(len(counts), *kv.shape[1:]).index_add_(0, owner.to(kv.device), weighted)
        if self.layer_weights.count_nonzero() == len(self.layer_weights):  # one teacher layer for each student layer
            return kv[:, self.layer_weights.argmax(-1)]
        return combine_layers(kv.float(), self.layer_weights.to(kv.device))

    def _selected(self, row: str, match: TimeMatch, time: int) -> np.ndarray:
        assert self.select is not None
        used = np.zeros(time, dtype=bool)
        used[match.tokens[match.weight > 0]] = True
        keys = self.store.read(row, np.arange(time))[:, :, KEY].float()
        importance = None
        if self.select.needs_attention:
            if not isinstance(self.store, KVStore):
                raise ValueError(f"selection {self.select.method!r} needs attention, which only a store keeps")
            importance = self.store.importance(row)
        layers = range(keys.shape[1])
        picked = select_tokens(
            self.select.method,
            [keys[None, None, :, layer] for layer in layers],
            self.select.budget,
            torch.from_numpy(used)[None],
            importance=None
            if importance is None
            else [torch.as_tensor(importance[:, layer]).float().mean(-1)[None, None] for layer in layers],
            rate=self.select.rate,
            seeds=torch.tensor([row_seed(row)]),
        )
        kept = np.zeros(time, dtype=bool)
        kept[picked.index[picked.mask].numpy()] = True
        return kept


@dataclass(frozen=True)
class ProjectedTeacherKV:
    """Targets in the student's time: in its space, read as they are, or `components` of the teacher's own channels, which are decoded."""

    store: MappedStore
    components: Components | None = None

    def __contains__(self, row: str) -> bool:
        return row in self.store

    def statistics(self, row: str) -> Mapping[str, float]:
        """None: these tiers keep no statistics of rows."""
        return {}

    def match(self, row: str, encoded: EncodedRow, segments: Segments) -> TimeMatch:
        """The stored positions; `tokens` are the numbers 0, 1, … of the row's stored targets, with weight 1."""
        position = self.store.position(row)
        place = np.arange(len(position))[:, None]
        return TimeMatch(position.astype(np.int64), place, np.ones_like(place, dtype=np.float32))

    def read(
        self, rows: Sequence[str], tokens: Sequence[Int[np.ndarray, "n 1"]], weights: Sequence[Float[np.ndarray, "n 1"]]
    ) -> Float[Tensor, "tokens student_layers 2 width"]:
        """Targets of all rows' supervised tokens one after the other."""
        kv = torch.cat(
            [self.store.read(row)[torch.from_numpy(part[:, 0])] for row, part in zip(rows, tokens, strict=True)]
        )
        return self.components.decode(kv) if self.components else kv


Source = TeacherKV | ProjectedTeacherKV


def row_seed(row: str) -> int:
    """A seed from the row's id, for draws that must not depend on the row's place in a batch."""
    return int.from_bytes(hashlib.sha256(row.encode()).digest()[:7], "big")


def _restricted(match: TimeMatch, kept: np.ndarray) -> TimeMatch:
    """Only the student tokens whose heaviest teacher token is kept."""
    heaviest = match.tokens[np.arange(len(match.tokens)), match.weight.argmax(1)]
    chosen = kept[heaviest]
    return replace(match, position=match.position[chosen], tokens=match.tokens[chosen], weight=match.weight[chosen])


@dataclass(frozen=True)
class TeacherFiles:
    """One teacher of a KV arm: its config, its map and its store; `store` None for an online teacher."""

    config: ModelConfig
    map: Path
    store: Path | None = None
    tier: str = "raw"


def teacher_files(job: Any) -> list[TeacherFiles]:
    """The teachers of the arm of a Snakemake job (the script's `snakemake` object); a store is given as its folder or as its index."""
    arm = job.params.arm
    models = [ModelConfig.model_validate(teacher["config"]) for teacher in arm["teachers"]]
    stores = [path.parent if path.suffix == ".parquet" else path for path in map(Path, job.input.get("stores", []))]
    files = zip_longest(models, map(Path, job.input.get("maps", [])), stores)
    return [TeacherFiles(*each, arm["tier"]) for each in files]


def open_sources(
    teachers: list[TeacherFiles], maps: list[KVMap], kv: "KVConfig | None", rows: pd.DataFrame, batch_size: int
) -> list[Source]:
    """Each teacher's KV as this arm reads it."""
    return (
        [open_source(teacher, kv_map, kv, rows, batch_size) for teacher, kv_map in zip(teachers, maps, strict=True)]
        if kv
        else []
    )


def open_source(teacher: TeacherFiles, kv_map: KVMap, kv: "KVConfig", rows: pd.DataFrame, batch_size: int) -> Source:
    """A store of the right tier, or the teacher itself, with the layers that the map combines."""
    if teacher.tier in ("mapped", "components") and teacher.store is not None:
        components = Components.load(teacher.store) if teacher.tier == "components" else None
        return ProjectedTeacherKV(MappedStore(teacher.store), components)
    store = open_store(teacher, kv_map, rows, batch_size, kv.fusion.row_statistics)
    return TeacherKV(store, kv_map.layer_weights[:, store.layers], kv.align.time, kv.select)


def open_store(
    teacher: TeacherFiles, kv_map: KVMap, rows: pd.DataFrame, batch_size: int, statistics: Sequence[str]
) -> KVStore | OnlineTeacher:
    """The teacher's own KV with these row statistics: its store, or the teacher itself, which reads the layers that the map combines."""
    if teacher.store is not None:
        return KVStore(teacher.store, statistics=statistics)
    needed = kv_map.layer_weights.any(0).nonzero().flatten().tolist()
    model, tokenizer = load_model(teacher.config), load_tokenizer(teacher.config)
    return OnlineTeacher(model, tokenizer, rows, needed, batch_size, statistics)
