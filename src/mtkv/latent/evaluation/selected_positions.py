"""Which tokens of the chain a selector keeps for which latent: where in the chain they stand, counted over rows, layers and heads.

Selected as in training (`mtkv.latent.training.teacher_kv`, `self_teacher`); where the student teaches itself, by the student as it is
now. Of a control arm
that moves KV between rows or tokens, these are the tokens before they are moved.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from jaxtyping import Int
from pydantic import BaseModel, ConfigDict
from transformers import PreTrainedTokenizerBase

from mtkv.config.arms import TrainingConfig
from mtkv.config.kv import KVConfig
from mtkv.config.latent import LatentConfig
from mtkv.distill.teacher_kv import TeacherFiles
from mtkv.latent.model.student import LatentStudent
from mtkv.latent.training.arm import latent_arm
from mtkv.latent.training.chain_of_thought import chain_rows
from mtkv.latent.training.dataset import LatentArm, LatentRows
from mtkv.latent.training.self_teacher import SelfTeacherReading
from mtkv.latent.training.teacher_kv import ChainTeacherKV, SelfTeacherKV
from mtkv.models.device_placement import kv_heads
from mtkv.models.load import model_kv_heads

TENTHS = 10
COLUMNS = {"teacher": str, "layer": int, "slot": int, "tenth": int, "count": int, "place": float}
COLUMNS |= {"rows": int, "heads": int, "chain_tokens": float, "short": float}


@dataclass(frozen=True)
class Picked:
    """What one teacher's layers (by their numbers) and heads select of a batch of rows.

    `rank`: of each slot's token among the `length` tokens of its row's chain; slots from `count` on have none.
    """

    layers: Sequence[int]
    rank: Int[np.ndarray, "batch slots layers kv_heads"]
    count: Int[np.ndarray, " batch"]
    length: Int[np.ndarray, " batch"]


class LatentTeaching(BaseModel):
    """How the latents of a run were taught: sections of its arm, and its teachers' files in their order."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    training: TrainingConfig
    latent: LatentConfig
    kv: KVConfig | None
    teachers: list[TeacherFiles]


def kept_places(
    student: LatentStudent, tokenizer: PreTrainedTokenizerBase, taught: LatentTeaching, frame: pd.DataFrame
) -> pd.DataFrame:
    """One row per teacher, layer, slot (from 1) and tenth of the chain (from 0), with the `COLUMNS`; empty for an arm without KV.

    `count`: selected tokens there, over `rows` × `heads`; `place`: their mean place in the chain, 0 its beginning and 1 its end;
    `chain_tokens`: mean length of a chain; `short`: share of the rows whose chain has fewer tokens than there are latents.
    """
    training, latent, kv, teachers = taught.training, taught.latent, taught.kv, taught.teachers
    parts = chain_rows(frame, latent.keep_last_step)
    chained = frame[[bool(part.chain.strip()) for part in parts]].reset_index(drop=True)
    if kv is None or chained.empty:
        return pd.DataFrame({name: pd.Series(dtype=kind) for name, kind in COLUMNS.items()})
    heads = (kv_heads(student.model), [model_kv_heads(teacher.config) for teacher in teachers])
    _, (rows,) = latent_arm(student, tokenizer, heads, LatentArm(training, latent, kv, 0), teachers, [chained])
    batches = [
        range(start, min(start + training.batch_size, len(rows))) for start in range(0, len(rows), training.batch_size)
    ]
    tables = [
        _table(name, [_picked(student, kv, rows, reader, batch) for batch in batches], latent.tokens, len(frame))
        for name, reader in zip(kv.teachers, rows.readers, strict=True)
    ]
    return pd.concat(tables, ignore_index=True).astype(COLUMNS)


@torch.no_grad()
def _picked(
    student: LatentStudent,
    kv: KVConfig,
    rows: LatentRows,
    reader: ChainTeacherKV | SelfTeacherKV,
    batch: Sequence[int],
) -> Picked:
    if isinstance(reader, SelfTeacherKV):
        return _own_picked(student, kv, rows, batch)
    return _chain_picked(reader, [rows.ids[index] for index in batch])


def _chain_picked(source: ChainTeacherKV, ids: Sequence[str]) -> Picked:
    _, index = source.selected(ids)
    length = np.array([len(source.kept[row][0]) for row in ids])
    count = np.array([source.kept[row][1] for row in ids])
    return Picked(source.store.layers, index.cpu().numpy(), count, length)


def _own_picked(student: LatentStudent, kv: KVConfig, rows: LatentRows, batch: Sequence[int]) -> Picked:
    given = {name: part.to(student.device) for name, part in rows.collate(batch).items() if name.startswith("own_")}
    chain, count = given["own_chain"], given["own_count"]
    reading = SelfTeacherReading(student.model, kv.select, chain, given["own_answer"])
    with reading:
        student.model.base_model(input_ids=given["own_input_ids"], use_cache=False)
    _, index = reading.selected(count, given["own_seed"])
    order = chain.long().cumsum(1) - 1
    row = torch.arange(len(order), device=order.device)[:, None, None, None]
    return Picked(
        range(len(reading.capture.layers)),
        order[row, index].cpu().numpy(),
        count.cpu().numpy(),
        chain.sum(1).cpu().numpy(),
    )


def _table(teacher: str, picked: Sequence[Picked], latents: int, rows: int) -> pd.DataFrame:
    """`rows`: all of them, also those without a chain."""
    entries = pd.concat([_entries(part) for part in picked], ignore_index=True)
    entries["tenth"] = (entries["place"] * TENTHS).astype(int).clip(upper=TENTHS - 1)
    table = entries.groupby(["layer", "slot", "tenth"])["place"].agg(count="size", place="mean").reset_index()
    lengths = np.concatenate([part.length for part in picked])
    long = int((lengths >= latents).sum())
    return table.assign(
        teacher=teacher,
        rows=rows,
        heads=picked[0].rank.shape[3],
        chain_tokens=float(lengths.sum()) / rows,
        short=1 - long / rows,
    )[list(COLUMNS)]


def _entries(picked: Picked) -> pd.DataFrame:
    """One row per selected token: layer, slot and place, that of the token's middle."""
    filled = np.arange(picked.rank.shape[1]) < picked.count[:, None]
    row, slot, layer, head = np.nonzero(np.broadcast_to(filled[:, :, None, None], picked.rank.shape))
    place = (picked.rank[row, slot, layer, head] + 0.5) / picked.length[row]
    return pd.DataFrame({"layer": np.asarray(list(picked.layers))[layer], "slot": slot + 1, "place": place})
