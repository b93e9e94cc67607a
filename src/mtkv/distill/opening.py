"""The teachers of an arm, opened: each one's KV as the arm reads it, and the teacher of the logits."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from mtkv.align.maps import KVMap
from mtkv.distill.distiller import LogitTeacher
from mtkv.distill.logits import shared_vocabulary
from mtkv.distill.sources import MappedSource, RawSource, Source
from mtkv.kv.online import OnlineTeacher
from mtkv.kv.store import KVStore, MappedStore
from mtkv.models.load import load_model, load_tokenizer

if TYPE_CHECKING:
    from mtkv.config.kv import KVConfig, LogitConfig
    from mtkv.config.models import ModelConfig


@dataclass(frozen=True)
class TeacherFiles:
    """One teacher of a KV arm: its config, its map and its store; `store` None for a teacher that reads along."""

    config: "ModelConfig"
    map: Path
    store: Path | None = None
    tier: str = "raw"


def store_folder(path: Path) -> Path:
    """The folder of a store, given as that or as its index."""
    return path.parent if path.suffix == ".parquet" else path


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
    if teacher.tier == "mapped" and teacher.store is not None:
        return MappedSource(MappedStore(teacher.store))
    store = open_store(teacher, kv_map, rows, batch_size)
    return RawSource(store, kv_map.layer_weights[:, store.layers], kv.align.time, kv.select)


def open_store(teacher: TeacherFiles, kv_map: KVMap, rows: pd.DataFrame, batch_size: int) -> KVStore | OnlineTeacher:
    """The teacher's own KV: its store, or the teacher itself, which reads the layers that the map combines."""
    if teacher.store is not None:
        return KVStore(teacher.store)
    needed = kv_map.layer_weights.any(0).nonzero().flatten().tolist()
    return OnlineTeacher(load_model(teacher.config), load_tokenizer(teacher.config), rows, needed, batch_size)


def open_logit_teacher(
    config: "LogitConfig", teacher: "ModelConfig", student: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> LogitTeacher:
    """The frozen teacher; ValueError when its vocabulary is not the student's."""
    model = load_model(teacher)
    sizes = [each.get_output_embeddings().weight.shape[0] for each in (student, model)]
    return LogitTeacher(config, model, shared_vocabulary(tokenizer, load_tokenizer(teacher), *sizes))
