"""The stage `latents`: what the latent tokens of one trained run are worth, what they say and what they were taught.

In: a latent student, the study's questions, and for KV arms the teachers and validation rows with their chain. Out: `accuracy.parquet`
(every question under every condition), `decoded.parquet` and `kept.parquet`. It looks at a finished run; no claim rests on it.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from mtkv.config.evaluation import EvaluationConfig
from mtkv.evaluate.lm_eval_tasks import StudyTask, UnanswerableError
from mtkv.latent.evaluation.decoded import decoded_tokens
from mtkv.latent.evaluation.lm_eval_model import LatentEvaluationModel
from mtkv.latent.evaluation.selected_positions import LatentTeaching, kept_places
from mtkv.latent.model.interventions import Condition, Swapped, conditions
from mtkv.latent.model.student import LatentStudent
from mtkv.models.tokenization import dated_template
from mtkv.provenance.files import write_parquet
from mtkv.stages.predict import ModelSource, answer_tasks, study_tasks
from mtkv.stages.train import rows_of

QUESTIONS = 100  # of each dataset, the first ones: each is asked five times
TOP = 5
EXAMPLES = 3  # questions of each dataset whose latents are shown
ACCURACY = {"dataset": str, "condition": str, "kept": int, "item": str, "cluster": str, "correct": float}


def diagnose_latents(
    source: ModelSource,
    taught: LatentTeaching,
    datasets: Sequence[str],
    data_folder: Path,
    evaluation: EvaluationConfig,
    output: Path,
    seed: int,
) -> dict[str, Any]:
    """Stage function: write the three tables into the folder `output`.

    Returns facts for the card: items and forward passes per question of each dataset, which dataset failed and why, and where no
    intervention is possible. Raises ValueError for a folder without latents.
    """
    chat, (student, tokenizer) = source.chat, source.load(source.folder)
    if not isinstance(student, LatentStudent) or not student.latent.tokens:
        raise ValueError(f"{source.folder}: not a latent student with latent tokens; there is nothing to diagnose")
    if chat:
        tokenizer.chat_template = dated_template(tokenizer, chat)
    model = LatentEvaluationModel(student, tokenizer, evaluation.batch_size, chat=bool(chat))
    asked = evaluation.model_copy(update={"limit": min(evaluation.limit or QUESTIONS, QUESTIONS)})
    facts: dict[str, Any] = {
        "seed": seed,
        "chat_date": chat,
        "items": {},
        "passes_per_question": {},
        "failed": {},
        "no_interventions": {},
    }
    accuracy, decoded = [], []
    for name in datasets:
        try:
            tasks = study_tasks(name, data_folder, asked)
            rows = asked_under_conditions(model, tasks, asked.max_new_tokens, chat, name, facts)
            said = decoded_tokens(model, *_texts(tasks), TOP, EXAMPLES)
        except UnanswerableError as failure:
            facts["failed"][name] = str(failure)
            continue
        accuracy.append(rows.assign(dataset=name))
        decoded.append(said.assign(dataset=name))
    frame = rows_of(data_folder / "val.parquet", taught.training)
    kept = kept_places(student, tokenizer, taught, frame.head(taught.training.eval_rows))
    empty = pd.DataFrame({name: pd.Series(dtype=kind) for name, kind in ACCURACY.items()})
    write_parquet(output / "accuracy.parquet", pd.concat(accuracy)[list(ACCURACY)] if accuracy else empty)
    write_parquet(output / "decoded.parquet", pd.concat(decoded) if decoded else pd.DataFrame({"dataset": []}))
    write_parquet(output / "kept.parquet", kept)
    return facts | {"tokens": model.generated_tokens}


def asked_under_conditions(
    model: LatentEvaluationModel,
    tasks: Sequence[StudyTask],
    max_new_tokens: int,
    chat: str | None,
    name: str,
    facts: dict[str, Any],
) -> pd.DataFrame:
    """The dataset's rows under every condition, with the columns of `ACCURACY` but the dataset.

    Fills `facts`. Where the model cannot be interfered with, only the unchanged rows.
    """
    found: list[pd.DataFrame] = []
    for condition in conditions(model.student.latent.tokens):
        if isinstance(condition.intervention, Swapped) and len(found[0]) < 2:
            continue
        model.intervene = condition.intervention
        try:
            rows, cost = answer_tasks(model, tasks, max_new_tokens, chat)
        except NotImplementedError as reason:
            facts["no_interventions"][name] = str(reason)
            model.intervene = None
            rows, cost = answer_tasks(model, tasks, max_new_tokens, chat)
        found.append(_rows(rows, condition))
        if condition.name == "none":
            facts["items"][name] = len(rows)
            facts["passes_per_question"][name] = cost["passes_per_question"]
        if name in facts["no_interventions"]:
            break
    model.intervene = None
    return pd.concat(found, ignore_index=True)


def _texts(tasks: Sequence[StudyTask]) -> tuple[dict[str, str], dict[str, str]]:
    """What was asked of each item, as a whole and the question alone."""
    asked = [(task.questions[request.doc_id], request.args[0]) for task in tasks for request in task.instances]
    return {item["id"]: text for item, text in asked}, {item["id"]: item["question"] for item, _ in asked}


def _rows(rows: list[dict[str, Any]], condition: Condition) -> pd.DataFrame:
    frame = pd.DataFrame(rows)[["item", "cluster", "correct"]]
    return frame.assign(condition=condition.name, kept=condition.kept)
