"""Rows and module of an arm with latents: what `train_arm` trains in the view `latent`."""

from collections.abc import Sequence
from math import prod
from typing import TYPE_CHECKING

import pandas as pd
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from mtkv.align.maps import KVMap
from mtkv.distill.latent_distiller import LatentDistiller
from mtkv.distill.latent_rows import LatentRows
from mtkv.distill.latent_sources import ChainSource, OwnSource
from mtkv.distill.opening import TeacherFiles, open_store
from mtkv.distill.own_kv import own_map
from mtkv.distill.supervision import KVSupervision
from mtkv.models.latent import LatentStudent
from mtkv.models.placement import kv_shape

if TYPE_CHECKING:
    from mtkv.config.arms import TrainingConfig
    from mtkv.config.kv import KVConfig
    from mtkv.config.latent import LatentConfig


def latent_student(model: PreTrainedModel, latent: "LatentConfig") -> LatentStudent:
    """The raw student, with its adapters where it has any, and new latents."""
    return LatentStudent.create(model, latent.tokens, latent.iterations, latent.projection, latent.markers).train()


def latent_arm(
    student: LatentStudent,
    tokenizer: PreTrainedTokenizerBase,
    heads: tuple[int, Sequence[int]],
    training: "TrainingConfig",
    latent: "LatentConfig",
    kv: "KVConfig | None",
    seed: int,
    teachers: Sequence[TeacherFiles],
    frames: Sequence[pd.DataFrame],
) -> tuple[LatentDistiller, list[LatentRows]]:
    """The module to train and the rows of each of `frames`. `heads`: KV heads of the student and of each teacher."""
    maps = [KVMap.load(teacher.map) for teacher in teachers]
    supervision = None
    if kv and kv.own:
        config = student.model.config
        maps = [own_map(config.get_text_config().num_hidden_layers, prod(kv_shape(config)))]
        supervision = KVSupervision(kv, maps, (heads[0], [heads[0]]))
    elif kv:
        supervision = KVSupervision(kv, maps, heads)
    sources = _sources(kv, teachers, maps, heads[1], pd.concat(frames), training.batch_size) if kv else []
    rows = [LatentRows(tokenizer, frame, student, latent, kv, sources, seed, training.max_length) for frame in frames]
    return LatentDistiller(student, training.ce_weight, latent, supervision), rows


def _sources(
    kv: "KVConfig",
    teachers: Sequence[TeacherFiles],
    maps: Sequence[KVMap],
    heads: Sequence[int],
    rows: pd.DataFrame,
    batch_size: int,
) -> list[ChainSource | OwnSource]:
    if kv.own:
        return [OwnSource()]
    found: list[ChainSource | OwnSource] = []
    for teacher, kv_map, kv_heads in zip(teachers, maps, heads, strict=True):
        store = open_store(teacher, kv_map, rows, batch_size)
        weights = kv_map.layer_weights[:, store.layers]
        found.append(ChainSource(store, weights, kv.align.time, kv.select, kv_heads=kv_heads))
    return found
