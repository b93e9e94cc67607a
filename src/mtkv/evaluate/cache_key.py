"""What decides a dataset's predictions, as one digest: the name under which they are kept for another run."""

import hashlib
import json
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mtkv.data.testsets import own_path
from mtkv.evaluate.lm_eval_tasks import examples_file, is_benchmark, questions_file, task_file, train_file
from mtkv.provenance.digest import file_digest

if TYPE_CHECKING:
    from mtkv.config.evaluation import EvaluationConfig

MODEL_FILES = (".safetensors", ".bin", ".json", ".model", ".txt", ".jinja")  # weights, configs, tokenizer


def predictions_digest(
    folder: Path,
    dtype: str | None,
    name: str,
    data_folder: Path,
    config: "EvaluationConfig",
    code: str,
    chat: str | None = None,
) -> str:
    """sha256 of all that decides a dataset's predictions."""
    questions = questions_file(data_folder, name)
    parts: dict[str, Any] = {
        "code": code,
        "model": {path.name: file_digest(path) for path in model_files(Path(folder))},
        "dtype": dtype,
        "questions": file_digest(questions),
        "config": config.model_dump(mode="json", exclude={"jobs"}),
        "chat": chat,
    }
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
