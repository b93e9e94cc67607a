"""Train one arm with one seed: the stage `arms`.

In: rows, the raw student and, for KV arms, stores and maps. Out: a plain Hugging Face model folder, the training log, and
the mean routing weight of each teacher on each dataset's validation rows.
"""

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
import torch
from transformers import TrainingArguments, set_seed

from mtkv.align.maps import KVMap
from mtkv.distill.distiller import Distiller, TeacherSupervision
from mtkv.distill.rows import DistillationRows, TeacherKV
from mtkv.distill.trainer import DistillationTrainer, training_log
from mtkv.kv.store import KVStore
from mtkv.models.load import load_model, load_tokenizer
from mtkv.provenance.files import atomic_path, write_parquet

if TYPE_CHECKING:
    from mtkv.config.arms import TrainingConfig
    from mtkv.config.kv import KVConfig
    from mtkv.config.models import ModelConfig


def train_arm(
    student: "ModelConfig",
    training: "TrainingConfig",
    kv: "KVConfig | None",
    seed: int,
    train_rows: Path,
    validation_rows: Path,
    stores: list[Path],
    maps: list[Path],
    model_folder: Path,
    log_path: Path,
    routing_path: Path,
) -> dict[str, Any]:
    """Stage function. `stores` and `maps` are in the order of `kv.teachers`. Returns the facts for the card."""
    set_seed(seed)
    tokenizer, model = load_tokenizer(student), load_model(student)
    model.train()
    if training.gradient_checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    fitted = [KVMap.load(path) for path in maps]
    teachers = [open_teacher(store, kv_map) for store, kv_map in zip(stores, fitted, strict=True)]
    control = kv.control if kv else "none"
    frames = [pd.read_parquet(train_rows), pd.read_parquet(validation_rows).head(training.eval_rows)]
    train, validation = (
        DistillationRows(tokenizer, frame, teachers, control, seed, training.max_length) for frame in frames
    )
    distiller = Distiller(model, training.ce_weight, TeacherSupervision(kv, fitted) if kv else None)
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
    }


def open_teacher(folder: Path, kv_map: KVMap) -> TeacherKV:
    """Open a store and find the mapped layers in it."""
    store = KVStore(folder)
    return TeacherKV(store, [store.layers.index(layer) for layer in kv_map.teacher_layers.tolist()])


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
    with atomic_path(folder) as temporary:
        distiller.student.save_pretrained(temporary)
        tokenizer.save_pretrained(temporary)


def supervised_share(rows: DistillationRows) -> float | None:
    """Share of the student's tokens that have a KV target; None for arms without KV."""
    if not rows.matches:
        return None
    return sum(len(match.position) for match in rows.matches) / sum(len(row.input_ids) for row in rows.encoded)


@torch.no_grad()
def routing_table(distiller: Distiller, rows: DistillationRows, teachers: list[str], batch_size: int) -> pd.DataFrame:
    """Mean routing weight per dataset and teacher over `rows`; empty for arms without KV."""
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
    frame = pd.DataFrame(torch.cat(weights).numpy(), columns=teachers).assign(dataset=rows.datasets)
    long = frame.melt("dataset", var_name="teacher", value_name="weight")
    return long.groupby(["dataset", "teacher"])["weight"].mean().reset_index()[columns]
