"""Real pretrained models: coverage of shared token boundaries, the probe, and a short distillation against SFT.

python benchmarks/real_models.py --student DIR --teacher gemma=DIR --teacher qwen=DIR --questions gsm8k/train.jsonl --output DIR

Models are Hugging Face folders, `questions` GSM8K's training file (question, answer with `<<calc>>` and `#### N`). Everything goes through
the stage functions of a study; what is already in `output` is not made again. Prints the probe and the held-out losses as markdown.
"""

import json
import re
from pathlib import Path
from typing import Annotated

import pandas as pd
import typer

from mtkv.align.layers import stored_layers
from mtkv.config.arms import TrainingConfig
from mtkv.config.kv import AlignConfig, KVConfig
from mtkv.config.models import ModelConfig
from mtkv.distill.teacher_kv import TeacherFiles
from mtkv.kv.extract import StorePlan, extract_shard
from mtkv.kv.store import write_index
from mtkv.models.load import model_layers
from mtkv.provenance.files import read_json, write_json, write_parquet
from mtkv.stages.fit_map import MapFiles, calibrate_map
from mtkv.stages.train import TrainingRun, train_arm

COUNTS = {"train": 200, "val": 24, "calibration": 48}
LONGEST = 700  # characters; longer rows are left out
SEED = 42
KV_ARMS: dict[str, tuple[dict[str, float], str]] = {
    "kv": ({}, "none"),
    "shuffled": ({}, "shuffle_items"),
    "kv_third": ({"lambda_k": 0.3, "lambda_v": 0.3, "beta": 0.03}, "none"),
    "kv_tenth": ({"lambda_k": 0.1, "lambda_v": 0.1, "beta": 0.01}, "none"),
}


def rows(questions: Path) -> dict[str, pd.DataFrame]:
    """Rows of each split, in the words of the pocket rows; no question is in two splits."""
    found = []
    for line in questions.read_text(encoding="utf-8").splitlines():
        item = json.loads(line)
        reasoning, answer = re.sub(r"<<.*?>>", "", item["answer"]).split("####")
        prompt = f"Question: {item['question']}\nReason:"
        reason = " " + " ".join(reasoning.split())
        if len(prompt + reason) <= LONGEST:
            found.append((prompt, reason, f"\nAnswer: {answer.strip()}"))
    frames, start = {}, 0
    for split, count in COUNTS.items():
        part = found[start : start + count]
        start += count
        frames[split] = pd.DataFrame(
            {
                "id": [f"{split}-{i}" for i in range(count)],
                "dataset": "gsm8k",
                "prompt": [prompt for prompt, _, _ in part],
                "target": [reason + answer for _, reason, answer in part],
                "prompt_end": [len(prompt.encode()) for prompt, _, _ in part],
                "reasoning_end": [len((prompt + reason).encode()) for prompt, reason, _ in part],
            }
        )
    return frames


def main(
    student: Annotated[Path, typer.Option(help="Model folder.")],
    questions: Annotated[Path, typer.Option(help="GSM8K's train.jsonl.")],
    output: Annotated[Path, typer.Option(help="Folder for rows, stores, maps and arms.")],
    teacher: Annotated[list[str], typer.Option(help="NAME=FOLDER; may be repeated.")],
    arm: Annotated[list[str], typer.Option(help="sft, kv, shuffled, kv_third or kv_tenth; may be repeated.")],
    steps: int = 50,
    batch_size: int = 4,
    learning_rate: float = 2e-5,
    dtype: Annotated[
        str, typer.Option(help="Of the teachers: float32, or bfloat16 where the machine is fast at it.")
    ] = "float32",
) -> None:
    """Run what is missing and print the tables."""
    paths = {split: output / f"{split}.parquet" for split in COUNTS}
    for split, frame in rows(questions).items():
        if not paths[split].exists():
            write_parquet(paths[split], frame)
    base = ModelConfig(source="path", name=str(student))
    folders = dict(entry.split("=", 1) for entry in teacher)
    models = {name: ModelConfig(source="path", name=folder, dtype=dtype) for name, folder in folders.items()}
    files, probes = [], []
    for name, model in models.items():
        store, kv_map = output / name, output / f"{name}.map.safetensors"
        shard = store / "shard-0000.safetensors"
        layers = stored_layers(["ratio"], model_layers(model), model_layers(base))
        if not shard.exists():
            print(
                name,
                extract_shard(model, list(paths.values()), 0, StorePlan(layers, 1, "float16", 8), shard),
            )
        if not (store / "index.parquet").exists():
            write_index([shard], store / "index.parquet")
        if not kv_map.exists():
            facts = calibrate_map(
                base,
                name,
                model,
                AlignConfig(),
                store,
                output,
                MapFiles(kv_map, output / f"{name}.probe"),
            )
            write_json(output / f"{name}.json", facts)
        probes.append(probe_row(name, pd.read_parquet(output / f"{name}.probe"), read_json(output / f"{name}.json")))
        files.append(TeacherFiles(model, kv_map, store))
    print(pd.DataFrame(probes).to_markdown(index=False, floatfmt=".3f"))
    training = TrainingConfig(
        steps=steps,
        batch_size=batch_size,
        gradient_accumulation=1,
        learning_rate=learning_rate,
        scheduler="linear",
        logging_steps=5,
        eval_steps=max(1, steps // 2),
        eval_rows=COUNTS["val"],
    )
    kvs = {"sft": None} | {
        name: KVConfig.model_validate({"teachers": list(models), "loss": {"gamma": 0} | loss, "control": control})
        for name, (loss, control) in KV_ARMS.items()
    }
    for name in arm:
        folder = output / "arms" / name
        if not (folder / "training.parquet").exists():
            run = TrainingRun(
                student=base,
                training=training,
                kv=kvs[name],
                seed=SEED,
                train_rows=paths["train"],
                validation_rows=paths["val"],
                teachers=files if kvs[name] else [],
                model_folder=folder / "model",
                log_path=folder / "training.parquet",
                routing_path=folder / "routing.parquet",
            )
            train_arm(run)
        log = pd.read_parquet(folder / "training.parquet")
        held = (
            log[log["split"] == "val"]
            .drop_duplicates(["step", "term"])
            .pivot(index="step", columns="term", values="value")
        )
        shown = held[[term for term in ("ce", "key", "value", "cosine") if term in held]]
        print(f"\n{name}, held-out rows\n\n{shown.to_markdown(floatfmt='.4f')}")


def probe_row(name: str, probe: pd.DataFrame, facts: dict) -> dict[str, float | str]:
    """Coverage and mean held-out error of each method over layers, keys and values apart."""
    errors = probe.groupby(["kind", "method"])["error"].mean()
    named = {f"{kind}, {method}": value for (kind, method), value in errors.items() if method != "mean"}
    return {"teacher": name, "coverage": facts["coverage"], "calibration tokens": facts["calibration_tokens"]} | named


if __name__ == "__main__":
    typer.run(main)
