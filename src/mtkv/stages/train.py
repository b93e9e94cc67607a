"""Train one arm with one seed: the stage `arms`.

In: rows, the raw student and, for KV arms, stores and maps. Out: a plain Hugging Face model folder, the training log, and
the mean routing weight of each teacher on each dataset's validation rows.
"""

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
import torch
from transformers import PreTrainedModel, TrainingArguments, set_seed

from mtkv.align.closed_form_maps import KVMap
from mtkv.data.parquet_rows import RowFile, check_files
from mtkv.data.validation import check_rows
from mtkv.distill.dataset import DistillationRows
from mtkv.distill.dataset_on_disk import StreamedRows, check_streamable
from mtkv.distill.distiller import Distiller
from mtkv.distill.kv_objective import KVObjective
from mtkv.distill.routing_table import routing_table
from mtkv.distill.teacher_kv import TeacherFiles, TeacherKV, open_logit_teacher, open_sources
from mtkv.kv.capture import check_keys
from mtkv.latent.training.arm import latent_arm, latent_student
from mtkv.latent.training.objective import LatentDistiller
from mtkv.latent.training.teacher_kv import SelfTeacherKV
from mtkv.models.adapters import add_lora, merge_lora
from mtkv.models.load import DTYPES, load_model, load_tokenizer, model_kv_heads
from mtkv.provenance.files import atomic_path, write_parquet
from mtkv.training.checkpointing import CheckpointPolicy, gather_model
from mtkv.training.data_parallel import world_size
from mtkv.training.strategies import SINGLE, splits_weights, spread_arguments, take_over
from mtkv.training.trainer import GROUPED, DistillationTrainer, training_log

if TYPE_CHECKING:
    from mtkv.config.arms import TrainingConfig
    from mtkv.config.kv import KVConfig, LogitConfig
    from mtkv.config.latent import LatentConfig
    from mtkv.config.models import ModelConfig


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
    keeping: CheckpointPolicy | None = None,
    strategy: str = SINGLE,
    latent: "LatentConfig | None" = None,
    stream: bool = False,
) -> dict[str, Any]:
    """Stage function. `teachers` are in the order of `kv.teachers`; `logit_teacher` the one that `logits` names; `latent` is given in
    the student view of that name.

    With `keeping` a training that was cut off goes on where it was saved, to the same result. In several processes (see
    `mtkv.training.launcher`) all call it, and the first writes. With `stream` rows and matches are on disk, not in memory; the results are
    the same. Returns the facts for the card.
    """
    if latent and world_size() > 1:
        raise NotImplementedError(
            "student_view latent is trained by one process for now: resources.train.strategy single"
        )
    set_seed(seed)
    where = f"{train_rows} and {validation_rows.name}"
    files = [RowFile(train_rows, training.styles), RowFile(validation_rows, training.styles, training.eval_rows)]
    frames: list[pd.DataFrame] = []
    if stream:
        check_streamable(teachers, latent)
        check_files(files, where)
    else:
        read = [of_styles(path, training.styles) for path in (train_rows, validation_rows)]
        frames = [read[0], read[1].head(training.eval_rows)]
        check_rows(pd.concat(frames), where)
    heads = (model_kv_heads(student), [model_kv_heads(teacher.config) for teacher in teachers]) if kv else (1, [])
    quantized = bool(training.lora and training.lora.quantize)
    tokenizer, model = load_tokenizer(student), trainable_student(student, training, quantized)
    if kv:
        check_keys(model)
    distiller: Distiller | LatentDistiller
    train: DistillationRows
    validation: DistillationRows
    if latent:
        latents = latent_student(model, latent)
        distiller, (train, validation) = latent_arm(
            latents, tokenizer, heads, training, latent, kv, seed, teachers, frames
        )
    else:
        fitted = [KVMap.load(teacher.map) for teacher in teachers]
        sources = open_sources(teachers, fitted, kv, pd.concat([pd.DataFrame(), *frames]), training.batch_size)
        control = kv.control if kv else "none"
        arguments = (sources, control, seed, training.max_length)
        train, validation = (
            [StreamedRows(tokenizer, file, *arguments) for file in files]
            if stream
            else [DistillationRows(tokenizer, frame, *arguments) for frame in frames]
        )
        supervision = None
        if kv:
            mapped = any(teacher.tier == "mapped" for teacher in teachers)
            supervision = KVObjective(kv, fitted, heads, mapped=mapped)
        frozen = open_logit_teacher(logits, logit_teacher, model, tokenizer) if logits and logit_teacher else None
        distiller = Distiller(model, training.ce_weight, supervision, frozen)
    with tempfile.TemporaryDirectory() as scratch:
        trainer = DistillationTrainer(
            model=distiller,
            args=training_arguments(training, seed, scratch, strategy),
            train_dataset=train,
            eval_dataset=validation,
            data_collator=train.collate,
            teachers=kv.teachers if kv else [],
            keeping=keeping or CheckpointPolicy(),
        )
        take_over(trainer, strategy, training.dtype)
        trainer.run()
    routing = routing_table(distiller, validation, kv.teachers if kv else [], training.batch_size)
    apart = quantized or splits_weights(strategy)
    trained = gather_model(trainer, apart, lambda: untrained(student, training, latent))
    if trained is not None:
        text_model = trained.student.model if latent else trained.student
        if training.lora:
            merge_lora(text_model)
        text_model.to(DTYPES[student.dtype])
        save_student(trained, tokenizer, model_folder)
        write_parquet(log_path, training_log(trainer.state.log_history))
        write_parquet(routing_path, routing)
    counted = trainer.counted()
    return {
        "seed": seed,
        "chat_date": student.chat_date,
        "steps": trainer.state.global_step,
        "rows_seen": counted.rows,
        "tokens": counted.tokens,
        "batch_size": training.batch_size * training.gradient_accumulation,
        "ce_weight": training.ce_weight,
        "train_rows": len(train),
        "train_seconds": round(trainer.counters.seconds, 3),
        "resumed_at": trainer.keeping.finish(),
        "supervised_share": supervised_share(train),
        "budget_bites": budget_bites(train, kv),
        **({"slots": distiller.student.slots} if isinstance(distiller, LatentDistiller) else {}),
    }


def of_styles(rows: Path, styles: Sequence[str] | None) -> pd.DataFrame:
    """The rows of a file that are written in one of `styles`; None: all."""
    frame = pd.read_parquet(rows)
    return frame if styles is None else frame[frame["style"].isin(styles)].reset_index(drop=True)


def untrained(
    student: "ModelConfig", training: "TrainingConfig", latent: "LatentConfig | None"
) -> Distiller | LatentDistiller:
    """The parts of the module that are saved, as they are before training."""
    model = trainable_student(student, training, quantized=False)
    if latent is None:
        return Distiller(model, training.ce_weight)
    return LatentDistiller(latent_student(model, latent), training.ce_weight, latent)


def trainable_student(config: "ModelConfig", training: "TrainingConfig", quantized: bool) -> PreTrainedModel:
    """The raw student as it is trained: what is trained in float32, weights frozen under adapters in the config's dtype, with `quantized`
    in four bits. A step of AdamW at learning rate 2e-5 is far below bfloat16's spacing of weights (2⁻⁸ of each), so most would never move.

    Raises ValueError for a model that generates nothing.
    """
    model = load_model(config, quantized=quantized)
    if model.get_output_embeddings() is None:
        raise ValueError(
            f"student {config.name!r} is an encoder without an output head; a causal language model is needed"
        )
    model.train()
    if training.lora:
        add_lora(model, training.lora)
    else:
        model.float()
    if (
        model.config.get_text_config() is not model.config
    ):  # multimodal: what sees images is never used, and stays as it is
        read = {
            id(weight) for part in (model.get_decoder(), model.get_output_embeddings()) for weight in part.parameters()
        }
        for weight in model.parameters():
            weight.requires_grad_(weight.requires_grad and id(weight) in read)
    if training.gradient_checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    return model


def training_arguments(
    training: "TrainingConfig", seed: int, scratch: str, strategy: str = SINGLE
) -> TrainingArguments:
    """The Trainer's arguments for one run; when to save and whom to report to is `CheckpointPolicy`'s."""
    return spread_arguments(
        strategy,
        training.batch_size,
        output_dir=scratch,
        max_steps=training.steps or -1,
        num_train_epochs=training.epochs or 1,
        gradient_accumulation_steps=training.gradient_accumulation,
        learning_rate=training.learning_rate,
        lr_scheduler_type=training.scheduler,
        warmup_steps=training.warmup_ratio,
        weight_decay=training.weight_decay,
        max_grad_norm=training.max_grad_norm,
        logging_steps=training.logging_steps,
        eval_strategy="steps",
        eval_steps=training.eval_steps,
        eval_on_start=True,
        save_strategy="no",
        report_to="none",
        logging_nan_inf_filter=False,  # such a loss stops the training
        disable_tqdm=True,
        seed=seed,
        data_seed=seed,
        train_sampling_strategy=GROUPED if training.group_by_length else "random",
        remove_unused_columns=False,
        dataloader_pin_memory=torch.cuda.is_available(),
    )


def save_student(distiller: Distiller | LatentDistiller, tokenizer: Any, folder: Path) -> None:
    """Write student and tokenizer as one Hugging Face folder, atomically."""
    needed = sum(parameter.numel() * parameter.element_size() for parameter in distiller.student.parameters())
    with atomic_path(folder, needed) as temporary:
        distiller.save(temporary, tokenizer)


def supervised_share(rows: DistillationRows) -> float | None:
    """Share of the student's tokens that have a KV target; None for arms without KV."""
    if not rows.matches:
        return None
    return sum(rows.supervised) / sum(rows.lengths)


def budget_bites(rows: DistillationRows, kv: "KVConfig | None") -> float | None:
    """Share of the training rows in which selection left out a token; None where the arm selects nothing."""
    chosen = [source.bites for source in rows.sources if isinstance(source, TeacherKV | SelfTeacherKV)] if kv else []
    if kv is None or kv.select.method == "full" or not chosen:
        return None
    return max(chosen)
