"""Writes a made-up `results/<study>` in the formats the report reads, with numbers drawn from a seeded generator.

The statistics in it are plain normal approximations: the report must show what the files say, whatever that is.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from mtkv.config.study import Study, load_study, read_study
from mtkv.evaluate.predictions import SCHEMA
from mtkv.provenance.files import write_json, write_parquet
from mtkv.report.results import seed_scores
from mtkv.stats.translatable import Sentence, listed, no_result, packed, tell

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
    root: Path,
    study: Study,
    items: int = 200,
    missing: tuple[tuple[str, str], ...] = (),
    extras: bool = True,
    failed: tuple[tuple[str, int, str], ...] = (),
    answers: bool = False,
    log_every: int = 10,
    chars: int = 0,
) -> None:
    """Fill `root`. `missing`: (arm, dataset) without scores; `failed`: single runs (arm, seed, dataset) without;
    `extras`: also logs, routing, maps and cards; `answers`: also questions and predictions, `chars`
    letters longer than they must be."""
    generator = np.random.default_rng(0)
    gone = {(arm, seed, name) for arm, seed in study.runs() for name in study.datasets if (arm, name) in missing} | set(
        failed
    )
    frame = _items(study, items, gone, generator)
    write_parquet(root / "compare/items.parquet", frame)
    partial = tuple(dict.fromkeys((arm, name) for arm, _, name in sorted(failed)))
    cells = _cells(study, frame, missing, partial)
    write_parquet(root / "compare/cells.parquet", cells)
    whole = frame[~pd.MultiIndex.from_frame(frame[["arm", "dataset"]]).isin([*partial])] if partial else frame
    pairs = _pairs(study, whole)
    write_parquet(root / "compare/pairs.parquet", pairs)
    write_parquet(root / "compare/matrix.parquet", _matrix(study, whole))
    write_parquet(root / "compare/claims.parquet", _claims(study, pairs))
    reasons = {f"{arm}/seed{seed}/{name}": "failed: <out of memory>" for arm, seed, name in sorted(gone)}
    write_json(root / "compare/card.json", card(study, "compare", {}, {"grade": "minimum", "missing": reasons}))
    if extras:
        _write_extras(root, study, generator, log_every)
    if answers:
        _write_answers(root, study, frame, chars)


def large_study(config: Path, arms: int = 40, seeds: int = 5) -> Study:
    """The study in `config` with more arms and seeds, every arm with all seeds."""
    values = read_study(config).model_dump(mode="json")
    values["seeds"] = list(range(seeds))
    for arm in values["arms"].values():
        arm["seeds"] = None
    for number in range(arms - len(values["arms"])):
        parent = ("sft", "single", "fixed")[number % 3]
        values["arms"][f"ablation_{number:02d}"] = {**values["arms"]["fixed"], "extends": parent}
    return load_study(values)


def card(study: Study, stage: str, wildcards: dict[str, Any], result: dict[str, Any]) -> dict[str, Any]:
    """A card with every field."""
    return {
        "study": study.study, "stage": stage, "wildcards": wildcards, "config_digest": "c0ffee", "code_digest": "abc123",
        "inputs": {"data/train.parquet": "0" * 64}, "git": {"revision": "f" * 40, "dirty": False}, "packages": {"torch": "2.13.0"},
        "hardware": {"cores": 2}, "created": "2026-01-01T00:00:00+00:00", "wall_seconds": 20.0 + len(str(wildcards)),
        "peak_memory_mb": 700.0, "peak_gpu_memory_mb": None, "tokens": result.get("tokens"),
        "seed": wildcards.get("seed"), "result": result,
    }  # fmt: skip


def _items(study: Study, items: int, gone: set[tuple[str, int, str]], generator: np.random.Generator) -> pd.DataFrame:
    parts = []
    ease = {name: generator.normal(0, 0.12) for name in study.datasets}
    for arm, seed in study.runs():
        for name in study.datasets:
            if (arm, seed, name) in gone:
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


def _cells(
    study: Study, frame: pd.DataFrame, missing: tuple[tuple[str, str], ...], partial: tuple[tuple[str, str], ...]
) -> pd.DataFrame:
    scores = seed_scores(frame, study.datasets)
    rows = []
    for arm in study.arms:
        for name in [*study.datasets, "macro"]:
            part = scores[(scores["arm"] == arm) & (scores["dataset"] == name)]
            if part.empty or (arm, name) in partial or (name == "macro" and arm in {a for a, _ in partial}):
                gone = [d for a, d in (*missing, *partial) if a == arm]
                reason = "3 of 3 seeds failed: <out of memory>" if name != "macro" else _gap(gone)
                rows.append(
                    {
                        "arm": arm,
                        "dataset": name,
                        "status": "missing",
                        "reason": reason,
                        "reason_parts": packed(reason),
                        "tied": False,
                    }
                )
                continue
            mean, n = part["accuracy"].mean(), int(part["n"].iloc[0])
            half = 1.96 * np.sqrt(mean * (1 - mean) / n)
            rows.append({"arm": arm, "dataset": name, "mean": mean, "low": mean - half, "high": mean + half, "n_items": n,
                         "n_seeds": len(part), "sd_seeds": part["accuracy"].std(), "status": "ok", "reason": None,
                         "tied": False})  # fmt: skip
    cells = pd.DataFrame(rows)
    best = cells.groupby("dataset")["mean"].transform("max")
    return cells.assign(tied=(cells["mean"] > best - 0.02))


def _gap(datasets: list[str]) -> str:
    """Why the macro average is missing, as `mtkv.stats.items` says it."""
    reason = tell("no scores file")
    return listed([tell("{dataset}, seed {seed}: {reason}", dataset=name, seed=42, reason=reason) for name in datasets])


def _pairs(study: Study, frame: pd.DataFrame) -> pd.DataFrame:
    """Every arm against the baseline and against the arm it extends; without numbers where one side has none."""
    means = seed_scores(frame, study.datasets).groupby(["arm", "dataset"])["accuracy"].mean()
    base, rows = study.comparison.baseline, []
    named = {(arm, base): "baseline" for arm in study.arms if arm != base}
    for name, arm in study.arms.items():
        if arm.extends is not None:
            named.setdefault((name, arm.extends), "extends")
    for (arm, other), family in named.items():
        for name in [*study.datasets, "macro"]:
            row = {"arm": arm, "baseline": other, "dataset": name, "family": family}
            if (arm, name) not in means or (other, name) not in means:
                rows.append(row | {"n_items": 0, "n_seeds": 0, "outcome": "missing"})
                continue
            delta = means[arm, name] - means[other, name]
            half = 0.05 if name != "macro" else 0.02
            p = float(np.exp(-abs(delta) / half * 2))
            clear = min(1.0, p * 3) < 0.05 and abs(delta) > half
            word = "undecided" if not clear else "better" if delta > 0 else "worse"
            rows.append(row | {"delta": delta, "low": delta - half, "high": delta + half, "p": p,
                         "p_holm": min(1.0, p * 3), "n_items": 200, "n_seeds": 3, "sd_seeds": 0.02, "sd_items": 0.03, "mdd": half * 1.4,
                         "p_tost": 0.5, "outcome": word})  # fmt: skip
    return pd.DataFrame(rows)


def _matrix(study: Study, frame: pd.DataFrame) -> pd.DataFrame:
    means = seed_scores(frame, study.datasets).groupby(["arm", "dataset"])["accuracy"].mean().to_dict()
    rows = []
    for name in [*study.datasets, "macro"]:
        for arm in study.arms:
            for other in study.arms:
                if arm == other or (arm, name) not in means or (other, name) not in means:
                    continue
                delta = means[arm, name] - means[other, name]
                word = "tie" if abs(delta) < 0.05 else "win" if delta > 0 else "loss"
                rows.append({"arm": arm, "other": other, "dataset": name, "delta": delta, "low": delta - 0.05, "high": delta + 0.05,
                             "p": 0.5, "p_holm": 1.0, "n_items": 200, "n_seeds": 3, "outcome": word})  # fmt: skip
    return pd.DataFrame(rows)


def _write_answers(root: Path, study: Study, frame: pd.DataFrame, chars: int) -> None:
    """Questions and predictions that agree with the items: every second dataset is multiple choice."""
    more = " and so on" * (chars // 10)
    for (arm, seed, name), part in frame.groupby(["arm", "seed", "dataset"], sort=False):
        choice = list(study.datasets).index(name) % 2 == 1
        items, right = part["item"].tolist(), part["correct"].to_numpy()
        filtered = np.where(right == 1, "yes", "no").tolist()
        said = zip(items, filtered, strict=True)
        columns: dict[str, Any] = {
            "item": items,
            "cluster": items,
            "prompt_hash": ["0" * 64] * len(items),
            "output": [None if choice else f"{arm} {seed} says of {item}: {word} <b>&{more}" for item, word in said],
            "loglikelihoods": [[-1.0, -2.0] if choice else None] * len(items),
            "filtered": filtered,
            "gold": ["yes"] * len(items),
            "correct": right,
        }
        path = root / f"predictions/{arm}/seed{seed}/{name}.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.table(columns, schema=SCHEMA), path)
        path = root / f"data/test/{name}.parquet"
        if not path.is_file():
            gold, choices = (0, ["yes", "no"]) if choice else (-1, [])
            asked = [f"What of {item}? <img src=x onerror=alert(3)>{more}" for item in part["item"]]
            write_parquet(path, pd.DataFrame({
                "id": part["item"], "question": asked, "choices": [choices] * len(part), "gold": gold, "answer": "yes",
                "cluster": part["item"], "question_hash": "0",
            }))  # fmt: skip


def _claims(study: Study, pairs: pd.DataFrame) -> pd.DataFrame:
    rows = []
    verdicts = ("supported", "refuted", "undecided")
    for i, (key, claim) in enumerate(study.claims.items()):
        rows.append({
            "claim": key, "statement": claim.statement, "kind": claim.kind, "level": claim.level, "arm": claim.arm,
            "baseline": getattr(claim, "baseline", None), "twin": getattr(claim, "twin", None),
            "threshold": float(getattr(claim, "threshold", getattr(claim, "at_least", 0))), "delta": 3.25 + i, "low": 1.5, "high": 5.0 + i,
            "p": 0.004, "p_holm": 0.012 * (i + 1), "n": 1400, "verdict": verdicts[i % 3],
            "why": (why := _why(claim.arm, i)), "why_parts": packed(why),
        })  # fmt: skip
    return pd.DataFrame(rows)


def _why(arm: str, i: int) -> Sentence:
    """A sentence of the kind that `mtkv.stats.claims.verdicts` makes; every fourth one is about data that are missing."""
    if i % 4 == 3:
        gap = tell("{dataset}, seed {seed}: {reason}", dataset="pocket_bbh", seed=42, reason=tell("no scores file"))
        return tell("Data are missing: {missing}.", missing=listed([no_result(arm, gap), no_result("sft", gap)]))
    place = tell("the whole interval is above the threshold {value}", value=i)
    return tell("{finding}: {reason}.", finding=tell("{finding}, Holm p {p}", finding=arm, p="= 0.012"), reason=place)


def _write_extras(root: Path, study: Study, generator: np.random.Generator, log_every: int) -> None:
    write_json(root / "data/card.json", card(study, "data", {}, {"rows": {"train": 4000}}))
    for teacher, covered in (("qwen2", 0.62), ("gpt2", 0.44)):
        write_json(
            root / f"teachers/{teacher}/card.json",
            card(study, "teachers", {"teacher": teacher}, {"rows": 4000, "bytes": 12_000_000}),
        )
        result = {"layer_map": [0, 2, 5], "coverage": covered, "calibration_tokens": 900}
        for align in study.aligns(teacher):
            made = root / f"maps/{teacher}/{align.slug}"
            write_json(Path(f"{made}.card.json"), card(study, "maps", {"teacher": teacher}, result))
            write_parquet(Path(f"{made}.probe.parquet"), _probe(teacher, generator))
            write_parquet(Path(f"{made}.example.parquet"), example())
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
            _write_logs(root / "arms" / folder, study, arm, generator, log_every)


def example() -> pd.DataFrame:
    """Student "1 | 2 | +" beside teacher "12 | +" and a last teacher token that nothing is compared with."""
    rows = [
        (0, "1", None, None, 0.0),
        (1, "2\n", 0, "12", 1.0),
        (2, "+", 0, "12", 0.25),
        (2, "+", 1, "+", 0.75),
        (None, None, 2, "+", 0.0),
    ]
    frame = pd.DataFrame(rows, columns=["student_token", "student_text", "teacher_token", "teacher_text", "weight"])
    return frame.astype({"student_token": "Int64", "teacher_token": "Int64"}).assign(row="pocket_gsm8k-000001-cot")


def _probe(teacher: str, generator: np.random.Generator) -> pd.DataFrame:
    rows = []
    for kind in ("key", "value"):
        for layer in range(3):
            for method, error in (("ridge", 0.4), ("mean", 1.0), ("identity", 2.1)):
                noise = generator.normal(0, 0.05) if method != "mean" else 0
                rows.append({"layer": layer, "teacher_layer": 2 * layer, "kind": kind, "method": method, "error": error + noise,
                             "teacher": teacher, "tokens": 900})  # fmt: skip
    return pd.DataFrame(rows)


def _write_logs(folder: Path, study: Study, arm: str, generator: np.random.Generator, every: int) -> None:
    kv = study.arms[arm].kv
    rows: list[dict[str, Any]] = []
    for step in range(every, 310, every):
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
                "cos.key": 0.2 - step / 1000,
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
    if kv and not kv.fusion.per_layer:
        shares = [
            {"dataset": name, "teacher": t, "weight": 1 / len(kv.teachers)}
            for name in study.datasets
            for t in kv.teachers
        ]
        write_parquet(folder / "routing.parquet", pd.DataFrame(shares))
    elif kv:
        shares = [
            {"dataset": name, "teacher": t, "layer": layer, "weight": (1 + layer) / 4 if i == 0 else (3 - layer) / 4}
            for name in study.datasets
            for i, t in enumerate(kv.teachers)
            for layer in range(3)
        ]
        write_parquet(folder / "routing.parquet", pd.DataFrame(shares))
