"""Writes a made-up `results/<study>` in the formats the report reads, with numbers drawn from a seeded generator.

The statistics in it are plain normal approximations: the report must show what the files say, whatever that is.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from mtkv.config.study import Study
from mtkv.provenance.files import write_json, write_parquet
from mtkv.report.results import seed_scores

LEVEL = {
    "raw": 0.28,
    "sft": 0.6,
    "single": 0.58,
    "fixed": 0.61,
    "similarity": 0.62,
    "learnable": 0.66,
    "fixed_shuffled": 0.55,
}


def write_study_tree(
    root: Path, study: Study, items: int = 200, missing: tuple[tuple[str, str], ...] = (), extras: bool = True
) -> None:
    """Fill `root`. `missing`: (arm, dataset) without scores; `extras`: also logs, routing, maps and cards."""
    generator = np.random.default_rng(0)
    frame = _items(study, items, missing, generator)
    write_parquet(root / "compare/items.parquet", frame)
    cells = _cells(study, frame, missing)
    write_parquet(root / "compare/cells.parquet", cells)
    pairs = _pairs(study, frame)
    write_parquet(root / "compare/pairs.parquet", pairs)
    write_parquet(root / "compare/claims.parquet", _claims(study, pairs))
    write_json(root / "compare/card.json", card(study, "compare", {}, {"grade": "minimum"}))
    if extras:
        _write_extras(root, study, generator)


def card(study: Study, stage: str, wildcards: dict[str, Any], result: dict[str, Any]) -> dict[str, Any]:
    """A card with every field."""
    return {
        "study": study.study, "stage": stage, "wildcards": wildcards, "config_digest": "c0ffee", "code_digest": "abc123",
        "inputs": {"data/train.parquet": "0" * 64}, "git": {"revision": "f" * 40, "dirty": False}, "packages": {"torch": "2.13.0"},
        "hardware": {"cores": 2}, "created": "2026-01-01T00:00:00+00:00", "wall_seconds": 20.0 + len(str(wildcards)),
        "peak_memory_mb": 700.0, "peak_gpu_memory_mb": None, "tokens": result.get("tokens"),
        "seed": wildcards.get("seed"), "result": result,
    }  # fmt: skip


def _items(
    study: Study, items: int, missing: tuple[tuple[str, str], ...], generator: np.random.Generator
) -> pd.DataFrame:
    parts = []
    ease = {name: generator.normal(0, 0.12) for name in study.datasets}
    for arm, seed in study.runs():
        for name in study.datasets:
            if (arm, name) in missing:
                continue
            chance = np.clip(LEVEL.get(arm, 0.9) + ease[name] + generator.normal(0, 0.02), 0.02, 0.98)
            ids = [f"{name}-{i:06d}" for i in range(items)]
            correct = (generator.random(items) < chance).astype(float)
            parts.append(
                pd.DataFrame(
                    {"arm": arm, "seed": seed, "dataset": name, "item": ids, "cluster": ids, "correct": correct}
                )
            )
    return pd.concat(parts, ignore_index=True)


def _cells(study: Study, frame: pd.DataFrame, missing: tuple[tuple[str, str], ...]) -> pd.DataFrame:
    scores = seed_scores(frame, study.datasets)
    rows = []
    for arm in study.arms:
        for name in [*study.datasets, "macro"]:
            part = scores[(scores["arm"] == arm) & (scores["dataset"] == name)]
            if part.empty:
                gone = [d for a, d in missing if a == arm]
                reason = "3 of 3 seeds failed: <out of memory>" if name != "macro" else f"missing: {', '.join(gone)}"
                rows.append({"arm": arm, "dataset": name, "status": "missing", "reason": reason, "tied": False})
                continue
            mean, n = part["accuracy"].mean(), int(part["n"].iloc[0])
            half = 1.96 * np.sqrt(mean * (1 - mean) / n)
            rows.append({"arm": arm, "dataset": name, "mean": mean, "low": mean - half, "high": mean + half, "n_items": n,
                         "n_seeds": len(part), "sd_seeds": part["accuracy"].std(), "status": "ok", "reason": None,
                         "tied": False})  # fmt: skip
    cells = pd.DataFrame(rows)
    best = cells.groupby("dataset")["mean"].transform("max")
    return cells.assign(tied=(cells["mean"] > best - 0.02))


def _pairs(study: Study, frame: pd.DataFrame) -> pd.DataFrame:
    means = seed_scores(frame, study.datasets).groupby(["arm", "dataset"])["accuracy"].mean()
    base, rows = study.comparison.baseline, []
    for arm in study.arms:
        for name in [*study.datasets, "macro"]:
            if arm == base or (arm, name) not in means:
                continue
            delta = means[arm, name] - means[base, name]
            half = 0.05 if name != "macro" else 0.02
            p = float(np.exp(-abs(delta) / half * 2))
            rows.append({"arm": arm, "baseline": base, "dataset": name, "delta": delta, "low": delta - half, "high": delta + half, "p": p,
                         "p_holm": min(1.0, p * 3), "n_items": 200, "n_seeds": 3, "sd_seeds": 0.02, "sd_items": 0.03, "mdd": half * 1.4,
                         "family": "baseline"})  # fmt: skip
    return pd.DataFrame(rows)


def _claims(study: Study, pairs: pd.DataFrame) -> pd.DataFrame:
    rows = []
    verdicts = ("supported", "refuted", "undecided")
    for i, (key, claim) in enumerate(study.claims.items()):
        rows.append({
            "claim": key, "statement": claim.statement, "kind": claim.kind, "level": claim.level, "arm": claim.arm,
            "baseline": getattr(claim, "baseline", None), "twin": getattr(claim, "twin", None),
            "threshold": float(getattr(claim, "threshold", getattr(claim, "at_least", 0))), "delta": 3.25 + i, "low": 1.5, "high": 5.0 + i,
            "p": 0.004, "p_holm": 0.012 * (i + 1), "n": 1400, "verdict": verdicts[i % 3],
            "why": "The whole interval lies above the threshold." if i % 3 == 0 else "The interval contains the threshold.",
        })  # fmt: skip
    return pd.DataFrame(rows)


def _write_extras(root: Path, study: Study, generator: np.random.Generator) -> None:
    write_json(root / "data/card.json", card(study, "data", {}, {"rows": {"train": 4000}}))
    for teacher, covered in (("qwen2", 0.62), ("gpt2", 0.44)):
        write_json(
            root / f"teachers/{teacher}/card.json",
            card(study, "teachers", {"teacher": teacher}, {"rows": 4000, "bytes": 12_000_000}),
        )
        result = {"layer_map": [0, 2, 5], "coverage": covered, "calibration_tokens": 900}
        write_json(
            root / f"maps/{teacher}/ratio-ridge-abc123.card.json", card(study, "maps", {"teacher": teacher}, result)
        )
        write_parquet(root / f"maps/{teacher}/ratio-ridge-abc123.probe.parquet", _probe(teacher, generator))
    for arm, seed in study.runs():
        folder = f"{arm}/seed{seed}"
        write_json(
            root / f"predictions/{folder}/card.json",
            card(study, "predict", {"arm": arm, "seed": seed}, {"items": 1400}),
        )
        if study.arms[arm].training is not None:
            result = {
                "steps": 300,
                "rows_seen": 19200,
                "tokens": 900_000,
                "batch_size": 64,
                "ce_weight": 1.0,
                "train_rows": 4000,
            }
            write_json(root / f"arms/{folder}/card.json", card(study, "arms", {"arm": arm, "seed": seed}, result))
            _write_logs(root / "arms" / folder, study, arm, generator)


def _probe(teacher: str, generator: np.random.Generator) -> pd.DataFrame:
    rows = []
    for kind in ("key", "value"):
        for layer in range(3):
            for method, error in (("ridge", 0.4), ("mean", 1.0), ("identity", 2.1)):
                noise = generator.normal(0, 0.05) if method != "mean" else 0
                rows.append({"layer": layer, "teacher_layer": 2 * layer, "kind": kind, "method": method, "error": error + noise,
                             "teacher": teacher, "tokens": 900})  # fmt: skip
    return pd.DataFrame(rows)


def _write_logs(folder: Path, study: Study, arm: str, generator: np.random.Generator) -> None:
    kv = study.arms[arm].kv
    rows: list[dict[str, Any]] = []
    for step in range(10, 310, 10):
        fall = np.exp(-step / 90) * 2.4 + 0.5 + generator.normal(0, 0.02)
        terms = {
            "ce": fall,
            "loss": fall * (1.4 if kv else 1),
            "learning_rate": 2e-3 * (1 - step / 310),
            "grad_norm": 1 + fall,
        }
        if kv:
            terms |= {
                "key": fall / 4,
                "value": fall / 3,
                "cosine": fall / 9,
                "share.ce": 0.7,
                "share.kv": 0.3,
                "entropy": 0.6,
            }
            weight = 0.5 + (0.3 * step / 300 if arm == "learnable" else 0) if len(kv.teachers) > 1 else 1.0
            terms |= dict(zip((f"route.{t}" for t in kv.teachers), (weight, 1 - weight), strict=False))
        rows += [{"step": step, "split": "train", "term": term, "value": float(value)} for term, value in terms.items()]
        if step % 100 == 0:
            held = {"loss", "ce", "key", "value", "cosine"}
            rows += [
                {"step": step, "split": "val", "term": t, "value": float(v) * 1.1}
                for t, v in terms.items()
                if t in held
            ]
    write_parquet(folder / "training.parquet", pd.DataFrame(rows))
    if kv:
        shares = [
            {"dataset": name, "teacher": t, "weight": 1 / len(kv.teachers)}
            for name in study.datasets
            for t in kv.teachers
        ]
        write_parquet(folder / "routing.parquet", pd.DataFrame(shares))
