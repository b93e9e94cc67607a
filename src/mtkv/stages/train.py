"""Train one arm with one seed: the stage `arms`.

In: rows, the raw student and, for KV arms, stores and maps. Out: a plain Hugging Face model folder, the training log, and
the mean routing weight of each teacher on each dataset's validation rows. A training is a value, `TrainingRun`: what `train_arm` is given,
and, as JSON, what the processes of a training on several are.
"""

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import pandas as pd
import torch
from pydantic import BaseModel, ConfigDict
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainingArguments, set_seed

from mtkv.align.closed_form_maps import KVMap
from mtkv.config.arms import TrainingConfig
from mtkv.config.fusion import LogitConfig
from mtkv.config.kv import KVConfig
from mtkv.config.latent import LatentConfig
from mtkv.config.models import ModelConfig
from mtkv.data.rows import RowFile, check_files, check_rows, chosen
from mtkv.distill.dataset import DistillationRows, check_streamable
from mtkv.distill.distiller import Distiller
from mtkv.distill.kv_objective import KVObjective
from mtkv.distill.logit_kd import open_logit_teachers
from mtkv.distill.routing_table import routing_table
from mtkv.distill.teacher_kv import TeacherFiles, TeacherKV, open_sources, teacher_files
from mtkv.inject.fuser import KVFuser
from mtkv.inject.rows import InjectionRows
from mtkv.inject.training import InjectionDistiller
from mtkv.kv.capture import check_keys
from mtkv.latent.training.arm import latent_arm, latent_student
from mtkv.latent.training.dataset import LatentArm
from mtkv.latent.training.objective import LatentDistiller
from mtkv.latent.training.teacher_kv import SelfTeacherKV
from mtkv.models.adapters import add_lora, merge_lora
from mtkv.models.load import DTYPES, load_model, load_tokenizer, model_kv_heads
from mtkv.provenance.files import atomic_path, write_parquet
from mtkv.training.checkpointing import CheckpointPolicy, SavedJob, gather_model
from mtkv.training.data_parallel import world_size
from mtkv.training.strategies import SINGLE, splits_weights, spread_arguments, take_over
from mtkv.training.trainer import GROUPED, DistillationTrainer, training_log
from mtkv.training.world_layout import WorldLayout


class ArmInputs(BaseModel):
    """One arm with one seed: who is trained, how, on which rows, taught by whom.

    `teachers` are in the order of `kv.teachers`; `logit_teachers` in that of `logits.teachers`; `latent` is given in the student view of
    that name. Paths are read as they stand: relative ones from the working directory.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    student: ModelConfig
    training: TrainingConfig
    seed: int
    train_rows: Path
    validation_rows: Path
    kv: KVConfig | None = None
    teachers: list[TeacherFiles] = []
    logits: LogitConfig | None = None
    logit_teachers: list[ModelConfig] = []
    latent: LatentConfig | None = None

    @classmethod
    def for_job(cls, job: Any, **more: Any) -> Self:
        """Of a Snakemake job (the script's `snakemake` object) whose params have `student` and `arm`; `more`: the other fields."""
        arm = job.params.arm
        given: dict[str, Any] = {name: arm.get(name) or None for name in ("training", "kv", "latent", "logits")}
        given |= {
            "student": job.params.student["config"],
            "train_rows": job.input.train,
            "validation_rows": job.input.val,
            "logit_teachers": [teacher["config"] for teacher in arm["logit_teachers"]],
        }
        return cls(**given | more, teachers=teacher_files(job))


class TrainingRun(ArmInputs):
    """One arm with one seed, and where the results go."""

    model_folder: Path
    log_path: Path
    routing_path: Path


class WorkerRequest(BaseModel):
    """A `TrainingRun` for the processes of `layout`: the first keeps the checkpoints of `job` and writes the card's facts to `result`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    run: TrainingRun
    job: SavedJob
    layout: WorldLayout
    result: Path


def train_arm(
    run: TrainingRun, policy: CheckpointPolicy | None = None, layout: WorldLayout | None = None
) -> dict[str, Any]:
    """Stage function: train `run`, write its model, log and routing weights, and return the facts for the card.

    With `policy` a training that was cut off goes on where it was saved, to the same result. With a `layout` of several processes (see
    `mtkv.stages.train_worker`) all call this, and the first writes; where it asks for `stream`, rows and matches are on disk, not in
    memory, for the same results. None: one process that keeps nothing.
    """
    layout, training, kv = layout or WorldLayout(), run.training, run.kv
    injected = bool(kv and kv.injected)
    if (run.latent or injected) and world_size() > 1:
        what = "kv.transfer inject" if injected else "student_view latent"
        raise NotImplementedError(f"{what} is trained by one process for now: resources.train.strategy single")
    set_seed(run.seed)
    distiller, tokenizer, (train, validation) = arm_parts(run, layout.stream)
    with tempfile.TemporaryDirectory() as scratch:
        trainer = DistillationTrainer(
            model=distiller,
            args=training_arguments(training, run.seed, scratch, layout.strategy),
            train_dataset=train,
            eval_dataset=validation,
            data_collator=train.collate,
            teachers=kv.teachers if kv else [],
            phases=training.phases,
            policy=policy or CheckpointPolicy(),
        )
        take_over(trainer, layout.strategy, training.dtype)
        trainer.run()
    routing = routing_table(distiller, validation, kv.teachers if kv else [], training.batch_size)
    apart = quantized(training) or splits_weights(layout.strategy)
    trained = gather_model(trainer, apart, lambda: untrained(run.student, training, run.latent))
    if trained is not None:
        text_model = trained.student.model if run.latent else trained.student
        if training.lora:
            merge_lora(text_model)
        text_model.to(DTYPES[run.student.dtype])
        save_student(trained, tokenizer, run.model_folder)
        write_parquet(run.log_path, training_log(trainer.state.log_history))
        write_parquet(run.routing_path, routing)
    counted = trainer.counted()
    return {
        "seed": run.seed,
        "chat_date": run.student.chat_date,
        "steps": trainer.state.global_step,
        "rows_seen": counted.rows,
        "tokens": counted.tokens,
        "batch_size": training.batch_size * training.gradient_accumulation,
        "ce_weight": training.ce_weight,
        "train_rows": len(train),
        "train_seconds": round(trainer.counters.seconds, 3),
        "resumed_at": trainer.policy.finish(),
        "supervised_share": supervised_share(train),
        "budget_bites": budget_bites(train, kv),
        **({"slots": distiller.student.slots} if isinstance(distiller, LatentDistiller) else {}),
    }


def arm_parts(
    run: ArmInputs, stream: bool = False
) -> tuple[Distiller | LatentDistiller | InjectionDistiller, PreTrainedTokenizerBase, list[DistillationRows]]:
    """Module, tokenizer and rows (training, validation) of an arm, as they are before its first step; `stream` as in `training_rows`."""
    training, kv = run.training, run.kv
    files, frames = training_rows(run, stream)
    heads = (model_kv_heads(run.student), [model_kv_heads(t.config) for t in run.teachers]) if kv else (1, [])
    frozen = bool(kv and kv.injected and not training.lora)
    tokenizer = load_tokenizer(run.student)
    model = trainable_student(run.student, training, quantized(training), frozen)
    if kv:
        check_keys(model)
    if not run.latent:
        distiller, rows = text_arm(run, model, tokenizer, heads, frames or files)
        return distiller, tokenizer, rows
    arm = LatentArm(training, run.latent, kv, run.seed)
    latents, latent_rows = latent_arm(latent_student(model, run.latent), tokenizer, heads, arm, run.teachers, frames)
    return latents, tokenizer, list(latent_rows)


def quantized(training: TrainingConfig) -> bool:
    """Whether the frozen weights under the adapters are in four bits."""
    return bool(training.lora and training.lora.quantize)


def training_rows(run: ArmInputs, stream: bool) -> tuple[list[RowFile], list[pd.DataFrame]]:
    """Training and validation rows of the arm's sources and styles: as files and, unless they are to stay there (`stream`), in memory.

    Raises ValueError for rows that cannot be trained on, NotImplementedError for an arm whose rows must be in memory.
    """
    training = run.training
    limits = (run.train_rows, training.rows), (run.validation_rows, training.eval_rows)
    where = f"{run.train_rows} and {run.validation_rows.name}"
    files = [RowFile(path, training.styles, most, sources=training.sources) for path, most in limits]
    if stream:
        check_streamable(run.teachers, run.latent)
        check_files(files, where)
        return files, []
    frames = [rows_of(file.path, training).iloc[: file.limit] for file in files]
    check_rows(pd.concat(frames), where)
    if frames[0].empty:
        raise ValueError(f"{run.train_rows}: none of the rows is of training.sources and training.styles")
    return files, frames


def text_arm(
    run: ArmInputs,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    heads: tuple[int, list[int]],
    rows: Sequence[RowFile | pd.DataFrame],
) -> tuple[Distiller | InjectionDistiller, list[DistillationRows]]:
    """Module and rows (training, validation) of an arm whose student reads the row's own text.

    `heads`: KV heads of the student and of each teacher.
    """
    training, kv = run.training, run.kv
    maps = [KVMap.load(teacher.map) for teacher in run.teachers]
    frames = [frame for frame in rows if isinstance(frame, pd.DataFrame)]
    sources = open_sources(run.teachers, maps, kv, pd.concat([pd.DataFrame(), *frames]), training.batch_size)
    shared = (sources, kv.control if kv else "none", run.seed, training.max_length)
    kind = InjectionRows if kv and kv.injected else DistillationRows
    datasets: list[DistillationRows] = [kind(tokenizer, part, *shared) for part in rows]
    if kv and kv.injected:
        fuser = KVFuser(kv, maps, [teacher.config for teacher in run.teachers])
        return InjectionDistiller(model, fuser, training.ce_weight), datasets
    objective = None
    if kv:
        mapped = any(teacher.tier == "mapped" for teacher in run.teachers)
        objective = KVObjective(kv, maps, heads, mapped=mapped)
    apart = any(phase.logits is not None for phase in training.phases)
    logits = open_logit_teachers(run.logits, run.logit_teachers, model, tokenizer, apart) if run.logits else None
    return Distiller(model, training.ce_weight, objective, logits), datasets


def rows_of(rows: Path, training: TrainingConfig) -> pd.DataFrame:
    """The rows of a file from the sources and in the styles of a training."""
    return chosen(pd.read_parquet(rows), training.styles, training.sources).reset_index(drop=True)


def untrained(
    student: ModelConfig, training: TrainingConfig, latent: LatentConfig | None
) -> Distiller | LatentDistiller:
    """A module of those parts that are saved (no KV objective, no teacher), as it is before training."""
    model = trainable_student(student, training, quantized=False)
    if latent is None:
        return Distiller(model, training.ce_weight)
    return LatentDistiller(latent_student(model, latent), training.ce_weight, latent)


def trainable_student(
    config: ModelConfig, training: TrainingConfig, quantized: bool, frozen: bool = False
) -> PreTrainedModel:
    """The raw student as it is trained: what is trained in float32, weights `frozen` or under adapters in the config's dtype, with
    `quantized` in four bits. A step of AdamW at learning rate 2e-5 is far below bfloat16's spacing of weights (2⁻⁸ of each), so most would
    never move.

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
    elif frozen:
        model.requires_grad_(False)
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


def training_arguments(training: TrainingConfig, seed: int, scratch: str, strategy: str = SINGLE) -> TrainingArguments:
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


def save_student(distiller: Distiller | LatentDistiller | InjectionDistiller, tokenizer: Any, folder: Path) -> None:
    """Write student and tokenizer as one Hugging Face folder, atomically."""
    needed = sum(parameter.numel() * parameter.element_size() for parameter in distiller.student.parameters())
    with atomic_path(folder, needed) as temporary:
        distiller.save(temporary, tokenizer)


def supervised_share(rows: DistillationRows) -> float | None:
    """Share of the student's tokens that have a KV target; None for arms without KV."""
    if not rows.matches:
        return None
    return sum(rows.supervised) / sum(rows.lengths)


def budget_bites(rows: DistillationRows, kv: KVConfig | None) -> float | None:
    """Share of the training rows in which the budget binds, of the teacher with the largest; None where the arm selects nothing."""
    chosen = [source.bites for source in rows.sources if isinstance(source, TeacherKV | SelfTeacherKV)] if kv else []
    if kv is None or kv.select.method == "full" or not chosen:
        return None
    return max(chosen)
