"""Studies made of nothing but numbers: correctness drawn from a crossed seed × item model, in memory or as scores files."""

from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy.special import ndtri

from mtkv.config.study import load_study
from mtkv.provenance.files import write_json
from mtkv.stats.items import COLUMNS, Answers

DATASETS = [f"pocket_{name}" for name in ("gsm8k", "math500", "bbh", "gpqa", "truthfulqa", "cmmlu", "ceval")]
World = dict[str, dict[str, np.ndarray]]


def draw_world(
    rng: np.random.Generator,
    accuracies: Mapping[str, float],
    seeds: Mapping[str, int],
    datasets: list[str],
    items: int,
    seed_sd: float = 0.0,
) -> World:
    """0/1 answers [seeds, items] per arm and dataset, with the given expected accuracies.

    A probit model: an item's difficulty that all arms share, one of the arm's own, one effect per run on all its items
    (standard deviation `seed_sd`, in probits), and noise per answer.
    """
    scale = np.sqrt(1 + 0.5**2 + seed_sd**2 + 1)
    run = {arm: rng.normal(0, seed_sd, (seeds[arm], 1)) for arm in accuracies}
    world: World = {arm: {} for arm in accuracies}
    for dataset in datasets:
        difficulty = rng.normal(0, 1, items)
        for arm, accuracy in accuracies.items():
            own = rng.normal(0, 0.5, items)
            latent = ndtri(accuracy) * scale + difficulty + own + run[arm] + rng.normal(0, 1, (seeds[arm], items))
            world[arm][dataset] = (latent > 0).astype(float)
    return world


def answers_of(world: World) -> Answers:
    """The same in memory, with the seeds 42, 43, …"""
    datasets = list(next(iter(world.values())))
    seeds = {arm: [42 + i for i in range(len(next(iter(own.values()))))] for arm, own in world.items()}
    correct = {
        (arm, seed, dataset): matrix[i]
        for arm, own in world.items()
        for dataset, matrix in own.items()
        for i, seed in enumerate(seeds[arm])
    }
    return Answers(pd.DataFrame(columns=COLUMNS), seeds, datasets, correct, {})


def write_scores(folder: Path, world: World) -> list[Path]:
    """One scores file per run and dataset; the items are named after their place."""
    paths = []
    for arm, own in world.items():
        for dataset, matrix in own.items():
            for i, row in enumerate(matrix):
                ids = [f"{dataset}-{k:04d}" for k in range(len(row))]
                paths.append(folder / f"{arm}/seed{42 + i}/{dataset}.json")
                scores = {"study": "made", "arm": arm, "seed": 42 + i, "dataset": dataset, "metric": "exact_match"}
                scores |= {"status": "ok", "reason": None, "n": len(row), "accuracy": float(row.mean())}
                scores["items"] = {"id": ids, "cluster": [k[-1] for k in ids], "correct": row.tolist()}
                write_json(paths[-1], scores)
    return paths


def make_study(**changes: Any) -> Any:
    """A small valid study `made`; `changes` replace whole sections."""
    training = {"training": {"steps": 10}}
    sections: dict[str, Any] = {
        "study": "made",
        "seeds": [42, 43, 44],
        "datasets": DATASETS,
        "arms": {
            "raw": {"seeds": [42]},
            "sft": training,
            "kv": {"extends": "sft", "kv": {"teachers": ["qwen2"]}},
            "twin": {"extends": "kv", "kv": {"control": "shuffle_items"}},
            "teacher": {"model": "qwen2", "seeds": [42]},
        },
        "teachers": {"models": {"qwen2": {"source": "pocket", "name": "qwen2"}}},
        "comparison": {"resamples": 2000},
        "claims": {},
    }
    return load_study(sections | changes)


@pytest.fixture(scope="session")
def made() -> SimpleNamespace:
    """The functions above, for test modules (which cannot import this file)."""
    functions: list[Callable[..., Any]] = [draw_world, answers_of, write_scores, make_study]
    return SimpleNamespace(datasets=DATASETS, **{function.__name__: function for function in functions})
