"""Let one model answer datasets: a model comes in, one predictions file per dataset goes out.

Greedy generation and choice log-likelihoods are lm-eval's (`HFLM` and its evaluator, on our task files or its own). The model is
loaded once for all datasets. A dataset that the same model answered before, by the same code with the same settings, is
copied from a cache of files named by the digest of all that: Snakemake deletes the outputs of a job that it runs again.

What runs the model, from the folder its training left or the one the config names, is transformers (`evaluation.backend: hf`, everywhere)
or vLLM (`vllm`, an extra, on a GPU).
"""

import hashlib
import importlib.util
import io
import json
import logging
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any, Self

from lm_eval.evaluator import evaluate
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from mtkv.checkpointing.store import Checkpoint
from mtkv.config.evaluation import EvaluationConfig
from mtkv.config.models import ModelConfig
from mtkv.data.testsets import own_path
from mtkv.evaluate.answer_rows import answer_row, rules_of
from mtkv.evaluate.journal import Resume
from mtkv.evaluate.lm_eval_model import EvaluationModel, load_folder
from mtkv.evaluate.lm_eval_tasks import (
    StudyTask,
    UnanswerableError,
    examples_file,
    is_benchmark,
    load_benchmark,
    load_tasks,
    questions_file,
    task_file,
    train_file,
)
from mtkv.evaluate.predictions import write_failure, write_predictions
from mtkv.inject.lm_eval_model import InjectedEvaluationModel
from mtkv.latent.evaluation.lm_eval_model import LatentEvaluationModel
from mtkv.latent.model.student import LatentStudent
from mtkv.models.load import load_model, load_tokenizer, model_folder
from mtkv.models.paths import content_digest, is_injected, is_latent
from mtkv.models.tokenization import dated_template
from mtkv.provenance.digest import file_digest
from mtkv.provenance.files import atomic_path

MODEL_FILES = (".safetensors", ".bin", ".json", ".model", ".txt", ".jinja")  # weights, configs, tokenizer


@dataclass(frozen=True)
class ModelSource:
    """The model of a run and how it is asked. `folder` identifies the weights; `load` turns it into model and tokenizer, `dtype` names the
    number format it converts the weights to (None: as saved). `chat`: questions are asked in the chat template of the model's tokenizer,
    which is told this day (YYYY-MM-DD); None: as plain text. `teachers`: those whose KV the model reads, by id."""

    folder: Path
    load: Callable[[Path], tuple[PreTrainedModel | LatentStudent, PreTrainedTokenizerBase]] = load_folder
    dtype: str | None = None
    chat: str | None = None
    teachers: Mapping[str, ModelConfig] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        trained: Sequence[str],
        given: ModelConfig | None,
        chat: str | None = None,
        teachers: Mapping[str, ModelConfig] | None = None,
    ) -> Self:
        """`trained` holds the trained folder, or nothing where `given` is evaluated as it comes."""
        if given is None:
            return cls(Path(trained[0]), chat=chat, teachers=teachers or {})
        return cls(model_folder(given), lambda _: (load_model(given), load_tokenizer(given)), given.dtype, chat)


def evaluation_model(source: ModelSource, config: EvaluationConfig) -> Any:
    """The model in lm-eval's interface. Raises ValueError for a latent or an injected student in vLLM, for an injected one in a chat
    template or without one of its teachers."""
    injected = is_injected(source.folder)
    if config.backend == "vllm":
        if is_latent(source.folder) or injected:
            what = "injected student" if injected else "latent student"
            reads = "a corrected cache" if injected else "embeddings between question and answer"
            raise ValueError(
                f"evaluation.backend: 'vllm' cannot run the {what} in {source.folder} (it reads {reads}); write backend: hf"
            )
        from mtkv.evaluate.vllm_model import VllmModel  # imports vllm

        return VllmModel(source.folder, source.dtype, bool(source.chat))
    if injected and source.chat:
        raise ValueError(
            f"{source.folder}: a student that reads its teachers' KV is asked in plain text, not in a chat template"
        )
    model, tokenizer = source.load(source.folder)
    if injected:
        return InjectedEvaluationModel.load(source.folder, model, tokenizer, config.batch_size, source.teachers)
    if isinstance(model, LatentStudent) and model.slots:
        return LatentEvaluationModel(model, tokenizer, config.batch_size, chat=bool(source.chat))
    plain = model.model if isinstance(model, LatentStudent) else model
    return EvaluationModel(plain, tokenizer, config.batch_size, chat=bool(source.chat))


def predict(
    source: ModelSource,
    data_folder: Path,
    config: EvaluationConfig,
    outputs: Mapping[str, Path],
    cache: Path | None = None,
    checkpoint: Checkpoint | None = None,
    code: str = "",
) -> dict[str, Any]:
    """Answer each dataset of `outputs` with the model and write the file named there.

    `code` is the digest of the code that predicts. With `cache`, a folder, known answers are copied from it and new ones kept there; with
    `checkpoint` the answers of a dataset that is not done yet outlive the process, and the next attempt finds the others. A dataset that
    cannot be answered (it could not be loaded, a prompt is longer than the model's context) leaves a failure file, is not cached and is
    named in the facts. Returns facts: what was reused, what failed, and each new dataset's seconds, items and generated tokens.
    Raises ValueError for an unknown dataset, an unusable model or few-shot settings that can't be met, ImportError, before anything is
    loaded, when the package of `config.backend` is not installed, SavedExit when asked to leave (USR1).
    """
    if config.backend == "vllm" and importlib.util.find_spec("vllm") is None:
        raise ImportError(
            "evaluation.backend: 'vllm' needs the package vllm, which is not installed; pip install 'mtkv[vllm]' on a machine with a "
            "GPU, or write backend: hf"
        )
    digests = {name: predictions_digest(source, name, data_folder, config, code) for name in outputs}
    kept = {name: Path(cache) / f"{digest}.parquet" for name, digest in digests.items()} if cache is not None else {}
    reused = [name for name, path in kept.items() if path.is_file()]
    for name in reused:
        _copy(kept[name], outputs[name])
    facts: dict[str, Any] = {"digests": digests, "reused": reused, "failed": {}, "datasets": {}, "tokens": 0}
    facts |= {"chat_date": source.chat, "resumed_at": []}
    tasks: dict[str, list[StudyTask]] = {}
    for name in [name for name in outputs if name not in reused]:
        with _failing(name, outputs, facts), _quiet():
            tasks[name] = study_tasks(name, data_folder, config)
    if tasks:
        start = time.perf_counter()
        with _quiet():
            model = evaluation_model(source, config)
        if source.chat:
            model.tokenizer.chat_template = dated_template(model.tokenizer, source.chat)
        facts["load_seconds"] = round(time.perf_counter() - start, 3)
        questions = {name: sum(len(task.questions) for task in parts) for name, parts in tasks.items()}
        with Resume(checkpoint, questions, digests) as resume:
            for name, parts in tasks.items():
                with _failing(name, outputs, facts), resume.journal(name) as model.journal:
                    rows, facts["datasets"][name] = answer_tasks(model, parts, config.max_new_tokens, source.chat)
                    rules = {task.part: rules_of(task) for task in parts}
                    write_predictions(outputs[name], rows, parts[0].metric, rules)
                    if name in kept:
                        _copy(outputs[name], kept[name])
        facts["tokens"] = model.generated_tokens
        facts |= {"injection": model.cost} if isinstance(model, InjectedEvaluationModel) else {}
    if checkpoint is not None:
        facts["resumed_at"] = checkpoint.resumed_at
        checkpoint.finish()
    return facts


def study_tasks(name: str, data_folder: Path, config: EvaluationConfig) -> list[StudyTask]:
    """The lm-eval tasks that make up a dataset: one, or one for each part of a benchmark of several.

    Raises UnanswerableError for a benchmark that cannot be asked, ValueError for an unknown dataset.
    """
    if is_benchmark(questions_file(data_folder, name)):
        return load_benchmark(config.task_of(name), name, data_folder, config)
    return list(load_tasks([name], data_folder, config.num_fewshot, config.limit, config.style).values())


@contextmanager
def _failing(name: str, outputs: Mapping[str, Path], facts: dict[str, Any]) -> Iterator[None]:
    """A dataset that cannot be answered leaves its reason, in its file and in the facts; the others go on."""
    try:
        yield
    except UnanswerableError as failure:
        facts["failed"][name] = str(failure)
        write_failure(outputs[name], str(failure))


def answer_tasks(
    model: EvaluationModel, tasks: Sequence[StudyTask], max_new_tokens: int, chat: str | None
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Rows of a dataset's predictions file, and what they cost. Raises UnanswerableError."""
    for task in tasks:
        if task.OUTPUT_TYPE == "generate_until":
            task.set_config("generation_kwargs", {"max_gen_toks": max_new_tokens}, update=True)
    start, passes, tokens = time.perf_counter(), model.forward_passes, model.generated_tokens
    each = model.question_passes
    with _quiet():
        samples = _samples(model, tasks, chat)
    rows = [answer_row(task, sample) for task, sample in samples]
    seconds = time.perf_counter() - start
    return rows, {
        "items": len(rows),
        "seconds": round(seconds, 3),
        "items_per_second": round(len(rows) / seconds, 1),
        "generated_tokens": model.generated_tokens - tokens,
        "forward_passes": model.forward_passes - passes,
        "passes_per_question": round((model.question_passes - each) / len(rows), 3),
        **own_examples(tasks),
    }


def own_examples(tasks: Sequence[StudyTask]) -> dict[str, int]:
    """How many solved examples lm-eval itself brings, and how many of them are test questions; empty where it brings none."""
    counts = [task.own_examples for task in tasks if task.own_examples]
    names = ("lm_eval_examples", "lm_eval_examples_asked")
    return dict(zip(names, map(sum, zip(*counts, strict=True)), strict=False))


def _samples(
    model: EvaluationModel, tasks: Sequence[StudyTask], chat: str | None
) -> list[tuple[StudyTask, dict[str, Any]]]:
    """lm-eval's log of every question (prompt, responses, metrics) for the filter that counts, with its task."""
    named = {str(task.config.task): task for task in tasks}
    # Examples as turns of a conversation is what lm-eval's command line does with a chat template.
    results = evaluate(
        model,
        {"tasks": named},
        bootstrap_iters=0,
        log_samples=True,
        apply_chat_template=bool(chat),
        fewshot_as_multiturn=bool(chat),
    )
    return [
        (task, sample)
        for name, task in named.items()
        for sample in results["samples"][name]
        if sample["filter"] == task.filter
    ]


@contextmanager
def _quiet() -> Iterator[None]:
    """No progress bars (lm-eval's and transformers' have no common switch) and no advice; errors are exceptions."""
    loggers = [logging.getLogger(name) for name in ("lm_eval", "transformers")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with redirect_stderr(io.StringIO()):
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _copy(source: Path, target: Path) -> None:
    with atomic_path(target) as temporary:
        shutil.copyfile(source, temporary)


def predictions_digest(source: ModelSource, name: str, data_folder: Path, config: EvaluationConfig, code: str) -> str:
    """sha256 of all that decides a dataset's predictions: the name under which they are kept for another run."""
    questions = questions_file(data_folder, name)
    parts: dict[str, Any] = {
        "code": code,
        "model": {path.name: file_digest(path) for path in model_files(source.folder)},
        "dtype": source.dtype,
        "questions": file_digest(questions),
        "config": config.model_dump(mode="json", exclude={"jobs"}),
        "chat": source.chat,
    }
    if source.teachers:
        parts["teachers"] = {name: content_digest(teacher) for name, teacher in source.teachers.items()}
    if is_benchmark(questions):
        parts |= {"task": f"lm-eval {version('lm-eval')}", "examples": file_digest(examples_file(data_folder, name))}
    else:
        own = own_path(questions)  # whose source is in `code`
        parts["task"] = own or file_digest(task_file(name))
        if config.num_fewshot:
            parts["examples"] = file_digest(train_file(data_folder))
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def model_files(folder: Path) -> list[Path]:
    """Weights, configs and tokenizer of a Hugging Face folder, sorted. Raises ValueError when it holds no weights."""
    files = sorted(path for path in folder.iterdir() if path.suffix in MODEL_FILES and path.name != "training_args.bin")
    if not any(path.suffix in (".safetensors", ".bin") for path in files):
        raise ValueError(f"{folder}: holds no model weights")
    return files
