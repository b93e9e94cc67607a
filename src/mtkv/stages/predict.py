"""Let one model answer datasets: a model comes in, one predictions file per dataset goes out.

Greedy generation and choice log-likelihoods are lm-eval's (`HFLM` and its evaluator, on our task files or its own). The model is
loaded once for all datasets. A dataset that the same model answered before, by the same code with the same settings, is
copied from a cache of files named by the digest of all that: Snakemake deletes the outputs of a job that it runs again.
"""

import io
import logging
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lm_eval.evaluator import evaluate

from mtkv.evaluate.answer_rows import answer_row, rules_of
from mtkv.evaluate.cache_key import predictions_digest
from mtkv.evaluate.journal import Resume
from mtkv.evaluate.lm_eval_model import EvaluationModel, load_folder
from mtkv.evaluate.lm_eval_tasks import (
    StudyTask,
    UnanswerableError,
    is_benchmark,
    load_benchmark,
    load_tasks,
    questions_file,
)
from mtkv.evaluate.predictions import write_failure, write_predictions
from mtkv.models.chat_template import dated_template
from mtkv.provenance.files import atomic_path
from mtkv.stages.evaluation_model import Loader, check_backend, evaluation_model

if TYPE_CHECKING:
    from mtkv.checkpointing.store import Checkpoint
    from mtkv.config.evaluation import EvaluationConfig


def predict(
    model_folder: Path,
    datasets: Sequence[str],
    data_folder: Path,
    config: "EvaluationConfig",
    outputs: dict[str, Path],
    cache: Path | None = None,
    *,
    checkpoint: "Checkpoint | None" = None,
    code: str = "",
    load: Loader = load_folder,
    dtype: str | None = None,
    chat: str | None = None,
) -> dict[str, Any]:
    """Answer `datasets` with the model in `model_folder` and write `outputs[dataset]` for each.

    `load` turns the folder into model and tokenizer; `dtype` names the number format it converts the weights to (None: as saved). `chat`:
    questions are asked in the chat template of the model's tokenizer, which is told this day (YYYY-MM-DD); None: as plain text. `code`
    is the digest of the code that predicts. With `cache`, a folder, known answers are copied from it and new ones kept there; with
    `checkpoint` the answers of a dataset that is not done yet outlive the process, and the next attempt finds the others. A dataset that
    cannot be answered (it could not be loaded, a prompt is longer than the model's context) leaves a failure file, is not cached and is
    named in the facts. Returns facts: what was reused, what failed, and each new dataset's seconds, items and generated tokens.
    Raises ValueError for an unknown dataset, an unusable model or few-shot settings that can't be met, ImportError when the
    package of `config.backend` is not installed, SavedExit when asked to leave (USR1).
    """
    check_backend(config)
    digests = {
        name: predictions_digest(model_folder, dtype, name, data_folder, config, code, chat) for name in datasets
    }
    kept = {name: Path(cache) / f"{digests[name]}.parquet" for name in datasets} if cache is not None else {}
    reused = [name for name in datasets if name in kept and kept[name].is_file()]
    for name in reused:
        _copy(kept[name], outputs[name])
    facts: dict[str, Any] = {"digests": digests, "reused": reused, "failed": {}, "datasets": {}, "tokens": 0}
    facts |= {"chat_date": chat, "resumed_at": []}
    new = [name for name in datasets if name not in reused]
    tasks: dict[str, list[StudyTask]] = {}
    for name in new:
        with _failing(name, outputs, facts), _quiet():
            tasks[name] = study_tasks(name, data_folder, config)
    if tasks:
        start = time.perf_counter()
        with _quiet():
            language_model = evaluation_model(Path(model_folder), load, dtype, config, bool(chat))
        if chat:
            language_model.tokenizer.chat_template = dated_template(language_model.tokenizer, chat)
        facts["load_seconds"] = round(time.perf_counter() - start, 3)
        questions = {name: sum(len(task.questions) for task in parts) for name, parts in tasks.items()}
        with Resume(checkpoint, questions, digests) as resume:
            for name, parts in tasks.items():
                with _failing(name, outputs, facts), resume.journal(name) as language_model.journal:
                    rows, facts["datasets"][name] = answer_tasks(language_model, parts, config.max_new_tokens, chat)
                    write_predictions(
                        outputs[name], rows, parts[0].metric, {task.part: rules_of(task) for task in parts}
                    )
                    if name in kept:
                        _copy(Path(outputs[name]), kept[name])
        facts["tokens"] = language_model.generated_tokens
    if checkpoint is not None:
        facts["resumed_at"] = checkpoint.resumed_at
        checkpoint.finish()
    return facts


def study_tasks(name: str, data_folder: Path, config: "EvaluationConfig") -> list[StudyTask]:
    """The lm-eval tasks that make up a dataset: one, or one for each part of a benchmark of several.

    Raises UnanswerableError for a benchmark that cannot be asked, ValueError for an unknown dataset.
    """
    if is_benchmark(questions_file(data_folder, name)):
        return load_benchmark(config.task_of(name), name, data_folder, config)
    return list(load_tasks([name], data_folder, config.num_fewshot, config.limit, config.style).values())


@contextmanager
def _failing(name: str, outputs: dict[str, Path], facts: dict[str, Any]) -> Iterator[None]:
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
    }


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
