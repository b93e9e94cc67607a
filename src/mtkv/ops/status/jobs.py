"""The jobs a study needs and the files each makes, from its config alone.

A mirror of `workflow/rules`, so that looking at a study costs milliseconds and never waits for Snakemake's lock;
`tests/status/test_jobs.py` compares it with Snakemake's own list of jobs.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from mtkv.config.study import Study


@dataclass(frozen=True)
class Job:
    """One job: its rule, its stage (as in cards), the files it writes and its log, all relative to the folder of the workflow."""

    rule: str
    stage: str
    outputs: tuple[str, ...]
    log: str
    card: str | None = None
    wildcards: dict[str, str] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """Rule and wildcards, for people: `train sft 42`."""
        return " ".join([self.rule, *self.wildcards.values()])


def jobs_of(study: Study) -> list[Job]:
    """Every job behind `snakemake all`, in the order of the stages."""
    return [job for jobs in RULES.values() for job in jobs(study)]


def _data(study: Study) -> Iterator[Job]:
    root, datasets = _root(study), study.data.datasets
    examples = [] if study.data.mixture == "pocket" else [f"{root}/data/examples/{name}.parquet" for name in datasets]
    rows = [f"{root}/data/{split}.parquet" for split in ("train", "val", "calibration")]
    tests = [f"{root}/data/test/{name}.parquet" for name in datasets]
    card = f"{root}/data/card.json"
    yield Job("data", "data", (*rows, *tests, *examples, card), f"{root}/logs/data.log", card)


def _teacher_kv(study: Study) -> Iterator[Job]:
    root = _root(study)
    for teacher in _stored_teachers(study):
        for number in range(study.teachers.shards):
            shard = f"{number:04d}"
            path = f"{root}/teachers/{teacher}/shard-{shard}"
            outputs = (f"{path}.safetensors", f"{path}.card.json")
            log = f"{root}/logs/teachers/{teacher}-{shard}.log"
            yield Job("teacher_kv", "teachers", outputs, log, outputs[1], {"teacher": teacher, "shard": shard})


def _teacher_index(study: Study) -> Iterator[Job]:
    root = _root(study)
    for teacher in _stored_teachers(study):
        folder = f"{root}/teachers/{teacher}"
        outputs = (f"{folder}/index.parquet", f"{folder}/card.json")
        log = f"{root}/logs/teachers/{teacher}.log"
        yield Job("teacher_index", "teachers", outputs, log, outputs[1], {"teacher": teacher})


def _map(study: Study) -> Iterator[Job]:
    root = _root(study)
    for name in study.maps():
        path = f"{root}/maps/{name}"
        card = f"{path}.card.json"
        outputs = (f"{path}.safetensors", f"{path}.probe.parquet", f"{path}.example.parquet", card)
        yield Job("map", "maps", outputs, f"{root}/logs/maps/{_dashed(name)}.log", card, _map_wildcards(name))


def _targets(study: Study) -> Iterator[Job]:
    root = _root(study)
    stored = study.teachers.mode == "stored" and study.teachers.tier != "raw"
    for name in study.maps() if stored else []:
        path = f"{root}/maps/{name}.targets"
        card = f"{path}.card.json"
        log = f"{root}/logs/maps/{_dashed(name)}.targets.log"
        yield Job("targets", "maps", (path, card), log, card, _map_wildcards(name))


def _train(study: Study) -> Iterator[Job]:
    root = _root(study)
    for arm, seed in study.runs():
        if study.trained(arm):
            folder = f"{root}/arms/{arm}/seed{seed}"
            files = ("model", "training.parquet", "routing.parquet", "card.json")
            outputs = tuple(f"{folder}/{name}" for name in files)
            log = f"{root}/logs/arms/{arm}-seed{seed}.log"
            yield Job("train", "arms", outputs, log, outputs[-1], {"arm": arm, "seed": str(seed)})


def _predict(study: Study) -> Iterator[Job]:
    root = _root(study)
    for wildcards, datasets, dash, dot in _answers(study):
        folder = f"{root}/predictions/{wildcards['arm']}/seed{wildcards['seed']}"
        card = f"{folder}/{dot}card.json"
        outputs = (*(f"{folder}/{name}.parquet" for name in datasets), card)
        log = f"{root}/logs/predictions/{wildcards['arm']}-seed{wildcards['seed']}{dash}.log"
        yield Job("predict", "predictions", outputs, log, card, wildcards)


def _score(study: Study) -> Iterator[Job]:
    root = _root(study)
    for wildcards, datasets, dash, _ in _answers(study):
        folder = f"{root}/scores/{wildcards['arm']}/seed{wildcards['seed']}"
        log = f"{root}/logs/scores/{wildcards['arm']}-seed{wildcards['seed']}{dash}.log"
        yield Job("score", "scores", tuple(f"{folder}/{name}.json" for name in datasets), log, None, wildcards)


def _latents(study: Study) -> Iterator[Job]:
    root = _root(study)
    for arm in study.latent_arms():
        for seed in study.seeds_of(arm):
            folder = f"{root}/latents/{arm}/seed{seed}"
            outputs = tuple(
                f"{folder}/{name}" for name in ("accuracy.parquet", "decoded.parquet", "kept.parquet", "card.json")
            )
            log = f"{root}/logs/latents/{arm}-seed{seed}.log"
            yield Job("latents", "latents", outputs, log, outputs[-1], {"arm": arm, "seed": str(seed)})


def _compare(study: Study) -> Iterator[Job]:
    folder = f"{_root(study)}/compare"
    tables = [f"{folder}/{name}.parquet" for name in ("items", "cells", "pairs", "matrix", "claims")]
    card = f"{folder}/card.json"
    yield Job("compare", "compare", (*tables, f"{folder}/study.json", card), f"{_root(study)}/logs/compare.log", card)


def _report(study: Study) -> Iterator[Job]:
    folder = f"{_root(study)}/report"
    files = ("index.html", "figures", "tables", "results.json", "comparison_report.md", "model_comparison.csv")
    card = f"{folder}/card.json"
    outputs = (*(f"{folder}/{name}" for name in files), card)
    yield Job("report", "report", outputs, f"{_root(study)}/logs/report.log", card)


RULES: dict[str, Callable[[Study], Iterator[Job]]] = {
    "data": _data,
    "teacher_kv": _teacher_kv,
    "teacher_index": _teacher_index,
    "map": _map,
    "targets": _targets,
    "train": _train,
    "predict": _predict,
    "score": _score,
    "latents": _latents,
    "compare": _compare,
    "report": _report,
}


def _answers(study: Study) -> Iterator[tuple[dict[str, str], list[str], str, str]]:
    """Per job that predicts or scores: wildcards, datasets, and how the dataset enters the names of its log and of its card."""
    for arm, seed in study.runs():
        run = {"arm": arm, "seed": str(seed)}
        if study.evaluation.jobs == "per_run":
            yield run, study.datasets, "", ""
        else:
            for dataset in study.datasets:
                yield run | {"dataset": dataset}, [dataset], f"-{dataset}", f"{dataset}."


def _stored_teachers(study: Study) -> list[str]:
    return study.teachers_used() if study.teachers.mode == "stored" else []


def _map_wildcards(name: str) -> dict[str, str]:
    teacher, _, align = name.partition("/")
    return {"teacher": teacher, "align": align}


def _dashed(name: str) -> str:
    return name.replace("/", "-")


def _root(study: Study) -> str:
    return f"results/{study.study}"
