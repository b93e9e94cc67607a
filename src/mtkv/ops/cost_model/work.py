"""The FLOPs and bytes of one job, from its params: the stated model behind every estimate that is not a measurement.

A forward pass costs 2·N FLOPs per token for N parameters, forward and backward 6·N (Kaplan et al., 2020, arXiv 2001.08361; attention
scores are left out), with activations recomputed 8·N, with adapters instead of weights trained 4·N; an arm that measures a step of
several passes before training on it (`mtkv.training.step_statistics`) 2·N more. KV takes layers · 2 · width · tokens · bytes of its
format. One function per rule in `WORK`. How much a study reads (`Amounts`: rows, tokens, questions) is counted where possible.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import ceil
from pathlib import Path
from statistics import mean
from typing import TYPE_CHECKING, Any

from mtkv.config.kv import OWN_TEACHER, AlignConfig
from mtkv.config.models import ModelConfig
from mtkv.ops.cost_model.model_sizes import ModelSize, model_size
from mtkv.ops.planned_jobs import PlannedJob

if TYPE_CHECKING:
    from mtkv.config.study import Study


# Sizes of the whole benchmarks, for a study that sets no limit and has not made its data yet.
QUESTIONS = {
    "gsm8k": 1319, "math500": 500, "bbh": 6511, "gpqa": 448, "truthfulqa": 817, "cmmlu": 11582, "ceval": 1346
}  # fmt: skip
# A question with its reasoning, where no card has a count: 38 were counted in the pocket study, 160 are assumed for real sources.
TOKENS_PER_ROW = {"pocket": 40, "multi_reasoning_cot_direct": 160}
STUDENT = "student"


@dataclass(frozen=True)
class Amounts:
    """Rows per split and questions per dataset. `tokens_per_row`: by teacher id and "student", those in `measured` counted by past runs;
    `student`: the params of a job that runs the student.
    """

    train: int
    validation: int
    calibration: int
    questions: dict[str, int]
    tokens_per_row: dict[str, float]
    measured: frozenset[str]
    student: dict[str, Any]

    @property
    def read(self) -> int:
        """Rows that a teacher reads in all."""
        return self.train + self.validation + self.calibration

    def rows_of(self, training: Mapping[str, Any]) -> int:
        """Training rows of an arm's section `training`."""
        return min(training.get("rows") or self.train, self.train)

    def tokens(self, model: str) -> float:
        """Tokens per row of a model."""
        return self.tokens_per_row.get(model) or self.tokens_per_row[STUDENT]


def amounts_of(study: "Study", cards: Sequence[dict[str, Any]], root: Path, data_stays: bool) -> Amounts:
    """The amounts of a study, with tokens from the `cards` of past runs. `data_stays`: the rows below `root` will not be made anew, so
    they are counted instead of taken from the config.
    """
    data = study.data
    wanted = {"train": data.train_rows, "val": data.validation_rows, "calibration": data.calibration_rows}
    rows = {split: _counted(root / f"data/{split}.parquet", data_stays) or count for split, count in wanted.items()}
    questions = {name: _questions(study, name, root, data_stays) for name in study.datasets}
    measured = _measured(cards)
    default = mean(measured.values()) if measured else float(TOKENS_PER_ROW[data.mixture])
    names = [STUDENT, *study.teachers.models]
    per_row = {name: measured.get(name, default) for name in names}
    student = {"config": study.student.model_dump(mode="json")}
    return Amounts(rows["train"], rows["val"], rows["calibration"], questions, per_row, frozenset(measured), student)


def _measured(cards: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Teacher id or "student" → tokens per row that past runs counted."""
    found: dict[str, float] = {}
    for card in cards:
        result, tokens = card.get("result") or {}, card.get("tokens")
        rows = result.get("rows_seen") if card["stage"] == "arms" else result.get("rows")
        if not tokens or not isinstance(rows, int) or not rows:
            continue
        if card["stage"] in ("arms", "teachers"):
            found[card["wildcards"].get("teacher", STUDENT)] = tokens / rows
    return found


def _questions(study: "Study", dataset: str, root: Path, data_stays: bool) -> int:
    data, limit = study.data, study.evaluation.limit
    wanted = data.subsets.get(dataset) or data.test_items or QUESTIONS.get(dataset, 1000)
    count = _counted(root / f"data/test/{dataset}.parquet", data_stays) or wanted
    return min(count, limit) if limit else count


def _counted(path: Path, data_stays: bool) -> int:
    if not data_stays or not path.is_file():
        return 0
    import pyarrow.parquet as pq

    try:
        return int(pq.read_metadata(path).num_rows)
    except (OSError, ValueError):  # not a table: made by another tool, or half-copied
        return 0


BYTES = {"float32": 4.0, "float16": 2.0, "bfloat16": 2.0, "int8": 1.0, "float8_e4m3fn": 1.0, "int4": 0.5}
GENERATED = frozenset({"gsm8k", "math500", "bbh"})  # the others are multiple choice: each of CHOICES answers is read
CHOICES = 4
CHECKPOINTS_KEPT = 3  # two, and the one being written
ADAM_NUMBERS = 3  # weights and two moments, 4 bytes each
PREDICTION_BYTES = 600  # per question
DIAGNOSED = 100  # = `mtkv.stages.diagnose_latents.QUESTIONS`; that module imports torch


@dataclass(frozen=True)
class Work:
    """`flops` in `dtype`; `steps` of decoding, each reading `step_bytes`; bytes `written` for good, and `transient` ones while it runs."""

    flops: float = 0.0
    dtype: str = "float32"
    steps: int = 0
    step_bytes: float = 0.0
    written: float = 0.0
    transient: float = 0.0


class UnknownSizeError(ValueError):
    """The size of a model is unknown; the message is the model's name."""


def work_of(
    rule: str, params: Mapping[str, Any], amounts: Amounts, outputs: tuple[str, ...], teacher: str = ""
) -> Work:
    """The work of a job of `rule` with these params; none for light rules. Raises UnknownSizeError for a model of unknown size."""
    return WORK[rule](params, amounts, outputs, teacher) if rule in WORK else Work()


def job_work(job: PlannedJob, amounts: Amounts) -> Work:
    """The work of a planned job; see `work_of`."""
    return work_of(job.rule, job.params, amounts, job.outputs, job.wildcards.get("teacher", ""))


def _teacher_kv(params: Mapping[str, Any], amounts: Amounts, outputs: tuple[str, ...], teacher: str) -> Work:
    reader, student = _size(params["teacher"], amounts), _size(params["student"], amounts)
    tokens = amounts.read / params["shards"] * amounts.tokens(teacher)
    from mtkv.align.layers import stored_layers  # numpy, which `mtkv status` does without

    origin = params["student"]["config"].get("layers", ())
    layers = len(stored_layers(params["layers"], reader.layers, student.layers, origin))
    importance = layers * 2 * reader.kv_heads if params["importance"] else 0
    written = tokens * (layers * 2 * reader.kv_width * BYTES[params["dtype"]] + importance)
    return Work(2 * reader.parameters * tokens, params["teacher"]["config"]["dtype"], written=written)


def _map(params: Mapping[str, Any], amounts: Amounts, outputs: tuple[str, ...], teacher: str) -> Work:
    reader, student = _size(params["teacher"], amounts), _size(params["student"], amounts)
    rows = amounts.calibration + amounts.validation
    tokens = rows * amounts.tokens(STUDENT)
    fit = 4 * tokens * reader.kv_width * (reader.kv_width + student.kv_width) * student.layers
    written = 2 * student.layers * reader.kv_width * student.kv_width * 4
    return Work(2 * (reader.parameters + student.parameters) * tokens + fit, "float32", written=written)


def _targets(params: Mapping[str, Any], amounts: Amounts, outputs: tuple[str, ...], teacher: str) -> Work:
    student = _size(params["student"], amounts)
    tokens = (amounts.train + amounts.validation) * amounts.tokens(STUDENT)
    values = tokens * student.layers * 2 * student.kv_width
    return Work(values * 2 * student.kv_width, "float32", written=values * BYTES[params["dtype"]])


def _train(params: Mapping[str, Any], amounts: Amounts, outputs: tuple[str, ...], teacher: str) -> Work:
    arm, student = params["arm"], _size(params["student"], amounts)
    training, kv = arm["training"], arm["kv"]
    per_row = min(amounts.tokens(STUDENT), training["max_length"])
    rows = training["batch_size"] * training["gradient_accumulation"]
    steps = training["steps"] or ceil(amounts.rows_of(training) * training["epochs"] / rows)
    tokens = rows * steps * per_row
    factor = 4 if training["lora"] else 6
    factor += 2 if training["gradient_checkpointing"] else 0
    if kv and kv["fusion"]["objective"] == "injected_ce":
        factor *= 2
    latent = arm.get("latent")
    if latent:  # a second pass over the row with its chain, and the latent tokens once per iteration
        chain = bool(latent["chain_weight"] or latent["codi_weight"] or kv)
        tokens = tokens * (1 + chain) + rows * steps * latent["tokens"] * latent["iterations"]
    measured = bool(latent and latent["codi_weight"]) or bool(
        kv and (kv["teachers"] == [OWN_TEACHER] or AlignConfig.model_validate(kv["align"]).measured)
    )
    looked = rows * steps * per_row if measured and training["gradient_accumulation"] > 1 else 0
    checked = (steps // training["eval_steps"] + 1) * min(training["eval_rows"], amounts.validation) * per_row
    readers = arm["teachers"] if kv and arm["tier"] == "online" else []
    readers = [*readers, *arm["logit_teachers"]]
    along = 2 * sum(_size(reader, amounts).parameters for reader in readers) * (tokens + checked)
    state = ADAM_NUMBERS * 4 * student.parameters * CHECKPOINTS_KEPT
    written = student.parameters * BYTES[params["student"]["config"]["dtype"]]
    flops = student.parameters * (factor * tokens + 2 * (checked + looked)) + along
    return Work(flops, training["dtype"], written=written, transient=state)


def _predict(params: Mapping[str, Any], amounts: Amounts, outputs: tuple[str, ...], teacher: str) -> Work:
    evaluation = params["evaluation"]
    asked = params["model"] or {}
    given = asked if "config" in asked else amounts.student
    along = sum(
        _size(reader, amounts).parameters for reader in asked.get("teachers", {}).values()
    )  # read each question once
    size, dtype = _size(given, amounts), given["config"]["dtype"]
    datasets = [path.stem for path in map(Path, outputs) if path.suffix == ".parquet"]
    shots = 1 + (evaluation["num_fewshot"] or 0)
    tokens, steps, written = 0.0, 0, 0.0
    for dataset in datasets:
        items = amounts.questions.get(dataset, 0)
        written += items * PREDICTION_BYTES
        if dataset.removeprefix("pocket_") in GENERATED:
            steps += ceil(items / evaluation["batch_size"]) * evaluation["max_new_tokens"]
            tokens += items * (amounts.tokens(STUDENT) * shots + evaluation["max_new_tokens"])
        else:
            tokens += items * CHOICES * amounts.tokens(STUDENT) * shots
    return Work(2 * (size.parameters + along) * tokens, dtype, steps, size.parameters * BYTES[dtype], written)


def _latents(params: Mapping[str, Any], amounts: Amounts, outputs: tuple[str, ...], teacher: str) -> Work:
    """As a prediction of the first `DIAGNOSED` questions of each dataset, times the conditions, plus the iterations of the latents."""
    latent = params["arm"]["latent"]
    # As many as `mtkv.latent.model.interventions` has; that module imports torch.
    times = 5 if latent["tokens"] > 1 else 4
    asked = {name: min(count, DIAGNOSED) for name, count in amounts.questions.items()}
    files = tuple(f"{name}.parquet" for name in asked)
    one = _predict({**params, "model": None}, replace(amounts, questions=asked), files, teacher)
    refined = (
        2 * _size(amounts.student, amounts).parameters * sum(asked.values()) * latent["tokens"] * latent["iterations"]
    )
    return replace(one, flops=times * (one.flops + refined), steps=times * one.steps, written=times * one.written)


WORK: dict[str, Callable[[Mapping[str, Any], Amounts, tuple[str, ...], str], Work]] = {
    "teacher_kv": _teacher_kv,
    "map": _map,
    "targets": _targets,
    "train": _train,
    "predict": _predict,
    "latents": _latents,
}


def _size(model: Mapping[str, Any], amounts: Amounts) -> ModelSize:
    """The size of a model; of a run that is not trained yet, or what is made of one, that of the student, which it starts from."""
    config = ModelConfig.model_validate(model["config"])
    size = model_size(config)
    if size is None and config.runs:
        size = model_size(ModelConfig.model_validate(amounts.student["config"]))
    if size is None:
        raise UnknownSizeError(config.name)
    return size
