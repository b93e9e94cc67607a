"""Rows and module of an arm with latents: what `train_arm` trains in the student view `latent`."""

from collections.abc import Sequence
from math import prod
from typing import TYPE_CHECKING

import pandas as pd
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from mtkv.align.closed_form_maps import KVMap
from mtkv.distill.kv_objective import KVObjective
from mtkv.distill.teacher_kv import TeacherFiles, open_store
from mtkv.latent.model.student import LatentStudent
from mtkv.latent.training.dataset import LatentArm, LatentRows
from mtkv.latent.training.objective import LatentDistiller
from mtkv.latent.training.self_teacher import own_map
from mtkv.latent.training.teacher_kv import ChainTeacherKV, SelfTeacherKV
from mtkv.models.device_placement import kv_shape

if TYPE_CHECKING:
    from mtkv.config.kv import KVConfig
    from mtkv.config.latent import LatentConfig


def latent_student(model: PreTrainedModel, latent: "LatentConfig") -> LatentStudent:
    """The raw student, with its adapters where it has any, and new latents."""
    return LatentStudent.create(model, latent.tokens, latent.iterations, latent.projection, latent.markers).train()


def latent_arm(
    student: LatentStudent,
    tokenizer: PreTrainedTokenizerBase,
    heads: tuple[int, Sequence[int]],
    arm: LatentArm,
    teachers: Sequence[TeacherFiles],
    frames: Sequence[pd.DataFrame],
) -> tuple[LatentDistiller, list[LatentRows]]:
    """The module to train, and a set of rows for each of `frames`. `heads`: KV heads of the student and of each teacher."""
    kv = arm.kv
    maps = [KVMap.load(teacher.map) for teacher in teachers]
    supervision = None
    if kv and kv.own:
        config = student.model.config
        maps = [own_map(config.get_text_config().num_hidden_layers, prod(kv_shape(config)))]
        supervision = KVObjective(kv, maps, (heads[0], [heads[0]]))
    elif kv:
        supervision = KVObjective(kv, maps, heads)
    sources = _sources(kv, teachers, maps, heads[1], pd.concat(frames), arm.training.batch_size) if kv else []
    rows = [LatentRows(tokenizer, frame, student, arm, sources) for frame in frames]
    return LatentDistiller(student, arm.training.ce_weight, arm.latent, supervision), rows


def _sources(
    kv: "KVConfig",
    teachers: Sequence[TeacherFiles],
    maps: Sequence[KVMap],
    heads: Sequence[int],
    rows: pd.DataFrame,
    batch_size: int,
) -> list[ChainTeacherKV | SelfTeacherKV]:
    if kv.own:
        return [SelfTeacherKV()]
    found: list[ChainTeacherKV | SelfTeacherKV] = []
    for teacher, kv_map, kv_heads in zip(teachers, maps, heads, strict=True):
        store = open_store(teacher, kv_map, rows, batch_size, kv.fusion.row_statistics)
        weights = kv_map.layer_weights[:, store.layers]
        found.append(ChainTeacherKV(store, weights, kv.align.time, kv.select, kv_heads=kv_heads))
    return found
