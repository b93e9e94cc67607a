"""Train one arm with one seed: the stage `arms`.

In: rows, the raw student and, for KV arms, stores and maps. Out: a plain Hugging Face model folder, the training log, and
the mean routing weight of each teacher on each dataset's validation rows.
"""

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainingArguments, set_seed

from mtkv.align.maps import KVMap
from mtkv.data.checks import check_rows
from mtkv.distill.distiller import Distiller, LogitTeacher
from mtkv.distill.logits import shared_vocabulary
from mtkv.distill.rows import DistillationRows
from mtkv.distill.sources import MappedSource, RawSource, Source
from mtkv.distill.supervision import KVSupervision
from mtkv.distill.trainer import DistillationTrainer, training_log
from mtkv.kv.online import OnlineTeacher
from mtkv.kv.store import KVStore, MappedStore
from mtkv.models.load import load_model, load_tokenizer, model_kv_heads
from mtkv.models.lora import add_lora, merge_lora
from mtkv.provenance.files import atomic_path, write_parquet

if TYPE_CHECKING:
    from mtkv.config.arms import TrainingConfig
    from mtkv.config.kv import KVConfig, LogitConfig
    from mtkv.config.models import ModelConfig


@dataclass(frozen=True)
class TeacherFiles:
    """One teacher of a KV arm: its config, its map and its store; `store` None for a teacher that reads along."""

    config: "ModelConfig"
    map: Path
    store: Path | None = None
    tier: str = "raw"


def train_arm(
    student: "ModelConfig",
    training: "TrainingConfig",
    kv: "KVConfig | None",
    seed: int,
    train_rows: Path,
    validation_rows: Path,
    teachers: list[TeacherFiles],
    model_folder: Path,
    log_path: Path,
    routing_path: Path,
    logits: "LogitConfig | None" = None,
    logit_teacher: "ModelConfig | None" = None,
) -> dict[str, Any]:
    """Stage function. `teachers` are in the order of `kv.teachers`; `logit_teacher` the one that `logits` names.

    Returns the facts for the card.
    """
    set_seed(seed)
    frames = [pd.read_parquet(train_rows), pd.read_parquet(validation_rows).head(training.eval_rows)]
    check_rows(pd.concat(frames), f"{train_rows} and {validation_rows.name}")
    tokenizer, model = load_tokenizer(student), load_model(student)
    if model.get_output_embeddings() is None:
        raise ValueError(
            f"student {student.name!r} is an encoder without an output head; a causal language model is needed"
        )
    model.train()
    if training.lora:
        add_lora(model, training.lora)
    if training.gradient_checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    fitted = [KVMap.load(teacher.map) for teacher in teachers]
    sources = open_sources(teachers, fitted, kv, pd.concat(frames), training.batch_size)
    control = kv.control if kv else "none"
    train, validation = (
        DistillationRows(tokenizer, frame, sources, control, seed, training.max_length) for frame in frames
    )
    supervision = None
    if kv:
        heads = (model_kv_heads(student), [model_kv_heads(teacher.config) for teacher in teachers])
        supervision = KVSupervision(kv, fitted, heads, mapped=any(teacher.tier == "mapped" for teacher in teachers))
    frozen = open_logit_teacher(logits, logit_teacher, model, tokenizer) if logits and logit_teacher else None
    distiller = Distiller(model, training.ce_weight, supervision, frozen)
    with tempfile.TemporaryDirectory() as scratch:
        trainer = DistillationTrainer(
            model=distiller,
            args=training_arguments(training, seed, scratch),
            train_dataset=train,
            eval_dataset=validation,
            data_collator=train.collate,
            teachers=kv.teachers if kv else [],
        )
        # Validation rows have their own matches, so their batches are built by their own collate.
        trainer.get_eval_dataloader = lambda *_: trainer.accelerator.prepare(  # type: ignore[method-assign]
            torch.utils.data.DataLoader(validation, batch_size=training.batch_size, collate_fn=validation.collate)
        )
        trainer.train()
    if training.lora:
        merge_lora(model)
    save_student(distiller, tokenizer, model_folder)
    write_parquet(log_path, training_log(trainer.state.log_history))
    write_parquet(routing_path, routing_table(distiller, validation, kv.teachers if kv else [], training.batch_size))
    return {
        "seed": seed,
        "steps": trainer.state.global_step,
        "rows_seen": trainer.rows_seen,
        "tokens": trainer.tokens_seen,
        "batch_size": training.batch_size * training.gradient_accumulation,
        "ce_weight": training.ce_weight,
        "train_rows": len(train),
        "train_seconds": trainer.state.log_history[-1].get("train_runtime"),
        "supervised_share": supervised_share(train),
        "budget_bites": budget_bites(train, kv),
    }


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
    store: KVStore | OnlineTeacher
    if teacher.store is None:
        needed = kv_map.layer_weights.any(0).nonzero().flatten().tolist()
        store = OnlineTeacher(load_model(teacher.config), load_tokenizer(teacher.config), rows, needed, batch_size)
    else:
        store = KVStore(teacher.store)
    return RawSource(store, kv_map.layer_weights[:, store.layers], kv.align.time, kv.select)


def open_logit_teacher(
    config: "LogitConfig", teacher: "ModelConfig", student: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> LogitTeacher:
    """The frozen teacher; ValueError when its vocabulary is not the student's."""
    model = load_model(teacher)
    sizes = [each.get_output_embeddings().weight.shape[0] for each in (student, model)]
    return LogitTeacher(config, model, shared_vocabulary(tokenizer, load_tokenizer(teacher), *sizes))


def training_arguments(training: "TrainingConfig", seed: int, scratch: str) -> TrainingArguments:
    """The Trainer's arguments for one run; nothing is saved by the Trainer itself."""
    return TrainingArguments(
        output_dir=scratch,
        max_steps=training.steps or -1,
        num_train_epochs=training.epochs or 1,
        per_device_train_batch_size=training.batch_size,
        per_device_eval_batch_size=training.batch_size,
        gradient_accumulation_steps=training.gradient_accumulation,
        learning_rate=training.learning_rate,
        lr_scheduler_type=training.scheduler,
        warmup_steps=training.warmup_ratio,
        weight_decay=training.weight_decay,
        max_grad_norm=training.max_grad_norm,
        bf16=training.dtype == "bfloat16",
        logging_steps=training.logging_steps,
        eval_strategy="steps",
        eval_steps=training.eval_steps,
        eval_on_start=True,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        seed=seed,
        data_seed=seed,
        remove_unused_columns=False,
        dataloader_pin_memory=torch.cuda.is_available(),
    )


def save_student(distiller: Distiller, tokenizer: Any, folder: Path) -> None:
    """Write student and tokenizer as one Hugging Face folder, atomically."""
    needed = sum(parameter.numel() * parameter.element_size() for parameter in distiller.student.parameters())
    with atomic_path(folder, needed) as temporary:
        distiller.student.save_pretrained(temporary)
        tokenizer.save_pretrained(temporary)


def supervised_share(rows: DistillationRows) -> float | None:
    """Share of the student's tokens that have a KV target; None for arms without KV."""
    if not rows.matches:
        return None
    return sum(len(match.position) for match in rows.matches) / sum(len(row.input_ids) for row in rows.encoded)


def budget_bites(rows: DistillationRows, kv: "KVConfig | None") -> float | None:
    """Share of the training rows in which selection left out a token; None where the arm selects nothing."""
    chosen = [source.bites for source in rows.teachers if isinstance(source, RawSource)] if kv else []
    if kv is None or kv.select.method == "full" or not chosen:
        return None
    return max(chosen)


@torch.no_grad()
def routing_table(distiller: Distiller, rows: DistillationRows, teachers: list[str], batch_size: int) -> pd.DataFrame:
    """Mean routing weight per dataset and teacher over `rows`, and per student layer for a router that weighs each layer apart.

    Columns dataset, teacher, weight and, for such a router, layer; empty for arms without KV.
    """
    columns = ["dataset", "teacher", "weight"]
    if not teachers:
        return pd.DataFrame(columns=columns)
    distiller.eval()
    device = distiller.student.device
    weights = []
    for start in range(0, len(rows), batch_size):
        batch = rows.collate(range(start, min(start + batch_size, len(rows))))
        batch["teacher_kv"] = [kv.to(device) for kv in batch["teacher_kv"]]
        moved = {name: value.to(device) if hasattr(value, "to") else value for name, value in batch.items()}
        weights.append(distiller(**moved)["weights"].cpu())
    table = torch.cat(weights).numpy()  # [rows, teachers, *layers]
    own = table if table.ndim == 3 else table[..., None]
    parts = [
        pd.DataFrame({"dataset": rows.datasets, "teacher": teacher, "layer": layer, "weight": own[:, i, layer]})
        for i, teacher in enumerate(teachers)
        for layer in range(own.shape[2])
    ]
    means = pd.concat(parts).groupby(["dataset", "teacher", "layer"])["weight"].mean().reset_index()
    return means if table.ndim == 3 else means[columns]
