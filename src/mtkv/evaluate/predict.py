"""Let one model answer datasets: a model comes in, one predictions file per dataset goes out.

Greedy generation and choice log-likelihoods are lm-eval's (`HFLM` and its evaluator on our task files). The model is
loaded once for all datasets. A dataset that the same model answered before, by the same code with the same settings, is
copied from a cache of files named by the digest of all that: Snakemake deletes the outputs of a job that it runs again.
"""

import hashlib
import io
import json
import logging
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from lm_eval.evaluator import evaluate
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from mtkv.evaluate.model import EvaluationModel, UnanswerableError, load_folder
from mtkv.evaluate.predictions import write_failure, write_predictions
from mtkv.evaluate.tasks import StudyTask, load_tasks, questions_file, task_file, train_file
from mtkv.provenance.digest import file_digest
from mtkv.provenance.files import atomic_path

if TYPE_CHECKING:
    from mtkv.config.evaluation import EvaluationConfig

Loader = Callable[[Path], tuple[PreTrainedModel, PreTrainedTokenizerBase]]
MODEL_FILES = (".safetensors", ".bin", ".json", ".model", ".txt", ".jinja")  # weights, configs, tokenizer


def predict(
    model_folder: Path,
    datasets: Sequence[str],
    data_folder: Path,
    config: "EvaluationConfig",
    outputs: dict[str, Path],
    cache: Path | None = None,
    *,
    code: str = "",
    load: Loader = load_folder,
    dtype: str | None = None,
) -> dict[str, Any]:
    """Answer `datasets` with the model in `model_folder` and write `outputs[dataset]` for each.

    `load` turns the folder into model and tokenizer; `dtype` names the number format it converts the weights to (None:
    as saved). `code` is the digest of the code that predicts. With `cache`, a folder, known answers are copied from it
    and new ones kept there. A dataset the model can't answer (a prompt longer than its context) leaves a failure file,
    is not cached and is named in the facts. Returns facts: what was reused, what failed, and each new dataset's seconds,
    items and generated tokens. Raises ValueError for an unknown dataset, an unusable model or few-shot settings that
    can't be met.
    """
    digests = {name: _digest(model_folder, dtype, name, data_folder, config, code) for name in datasets}
    kept = {name: Path(cache) / f"{digests[name]}.parquet" for name in datasets} if cache is not None else {}
    reused = [name for name in datasets if name in kept and kept[name].is_file()]
    for name in reused:
        _copy(kept[name], outputs[name])
    facts: dict[str, Any] = {"digests": digests, "reused": reused, "failed": {}, "datasets": {}, "tokens": 0}
    new = [name for name in datasets if name not in reused]
    if not new:
        return facts
    tasks = load_tasks(new, data_folder, config.num_fewshot, config.limit)
    start = time.perf_counter()
    with _quiet():
        language_model = EvaluationModel(*load(Path(model_folder)), config.batch_size)
    facts["load_seconds"] = round(time.perf_counter() - start, 3)
    for name, task in tasks.items():
        if task.OUTPUT_TYPE == "generate_until":
            task.set_config("generation_kwargs", {"max_gen_toks": config.max_new_tokens}, update=True)
        try:
            rows, facts["datasets"][name] = _answer(language_model, name, task)
        except UnanswerableError as failure:
            facts["failed"][name] = str(failure)
            write_failure(outputs[name], str(failure))
            continue
        write_predictions(outputs[name], rows)
        if name in kept:
            _copy(Path(outputs[name]), kept[name])
    facts["tokens"] = language_model.generated_tokens
    return facts


def _answer(model: EvaluationModel, name: str, task: StudyTask) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Rows of the predictions file, and what they cost."""
    start, passes, tokens = time.perf_counter(), model.forward_passes, model.generated_tokens
    rows = [ROW_MAKERS[task.OUTPUT_TYPE](sample) for sample in _samples(model, name, task)]
    seconds = time.perf_counter() - start
    return rows, {
        "items": len(rows),
        "seconds": round(seconds, 3),
        "items_per_second": round(len(rows) / seconds, 1),
        "generated_tokens": model.generated_tokens - tokens,
        "forward_passes": model.forward_passes - passes,
    }


def _samples(model: EvaluationModel, name: str, task: StudyTask) -> list[dict[str, Any]]:
    """lm-eval's log of every question: prompt, raw responses, filtered responses and metrics."""
    with _quiet():
        results = evaluate(model, {"tasks": {name: task}}, bootstrap_iters=0, log_samples=True)
    return results["samples"][name]


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


def _generation_row(sample: dict[str, Any]) -> dict[str, Any]:
    return _common(sample) | {
        "output": sample["resps"][0][0],
        "loglikelihoods": None,
        "filtered": sample["filtered_resps"][0],
        "gold": str(sample["target"]),
        "correct": float(sample["exact_match"]),
    }


def _choice_row(sample: dict[str, Any]) -> dict[str, Any]:
    loglikelihoods = [responses[0][0] for responses in sample["resps"]]
    if not np.isfinite(loglikelihoods).all():
        raise UnanswerableError(f"log-likelihoods of item {sample['doc']['id']} are not finite: {loglikelihoods}")
    choices = sample["doc"]["choices"]
    return _common(sample) | {
        "output": None,
        "loglikelihoods": loglikelihoods,
        "filtered": choices[int(np.argmax(loglikelihoods))],
        "gold": choices[sample["target"]],
        "correct": float(sample["acc"]),
    }


def _common(sample: dict[str, Any]) -> dict[str, Any]:
    return {"item": sample["doc"]["id"], "cluster": sample["doc"]["cluster"], "prompt_hash": sample["prompt_hash"]}


ROW_MAKERS = {"generate_until": _generation_row, "multiple_choice": _choice_row}


def _digest(
    folder: Path, dtype: str | None, name: str, data_folder: Path, config: "EvaluationConfig", code: str
) -> str:
    """sha256 of all that decides a dataset's predictions."""
    parts: dict[str, Any] = {
        "code": code,
        "model": {path.name: file_digest(path) for path in _model_files(Path(folder))},
        "dtype": dtype,
        "questions": file_digest(questions_file(data_folder, name)),
        "task": file_digest(task_file(name)),
        "config": config.model_dump(mode="json", exclude={"jobs"}),
    }
    if config.num_fewshot:
        parts["examples"] = file_digest(train_file(data_folder))
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _model_files(folder: Path) -> list[Path]:
    """Weights, configs and tokenizer of a Hugging Face folder, sorted. Raises ValueError when it holds no weights."""
    files = sorted(path for path in folder.iterdir() if path.suffix in MODEL_FILES and path.name != "training_args.bin")
    if not any(path.suffix in (".safetensors", ".bin") for path in files):
        raise ValueError(f"{folder}: holds no model weights")
    return files


def _copy(source: Path, target: Path) -> None:
    with atomic_path(target) as temporary:
        shutil.copyfile(source, temporary)
