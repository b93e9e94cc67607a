"""The default study, its defaults, what the DAG asks of it, digests, and that reading a config stays light."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel, ValidationError

from mtkv.config.arms import Arm, TrainingConfig
from mtkv.config.claims import ComparisonConfig
from mtkv.config.data import DataConfig
from mtkv.config.errors import ConfigError
from mtkv.config.evaluation import EvaluationConfig
from mtkv.config.fusion import FusionConfig
from mtkv.config.kv import AlignConfig, KVConfig, KVLossConfig
from mtkv.config.models import ModelConfig, TeachersConfig
from mtkv.config.study import Study, load_study, read_study
from mtkv.models.pocket_recipe import MODELS
from mtkv.provenance.digest import digest_of

DATASETS = [f"pocket_{name}" for name in ["gsm8k", "math500", "bbh", "gpqa", "truthfulqa", "cmmlu", "ceval"]]
OF_THE_DESIGN: list[tuple[BaseModel, dict[str, Any]]] = [
    (
        TrainingConfig(steps=1),
        {
            "epochs": None,
            "batch_size": 4,
            "gradient_accumulation": 8,
            "learning_rate": 2e-5,
            "warmup_ratio": 0.1,
            "weight_decay": 0.0,
        }
        | {
            "max_grad_norm": 1.0,
            "max_length": 512,
            "ce_weight": 1.0,
            "logging_steps": 10,
            "eval_steps": 100,
            "eval_rows": 128,
        }
        | {"gradient_checkpointing": False, "dtype": "float32"},
    ),
    (AlignConfig(), {"time": "sync", "layers": "ratio", "map": "linear", "side": "student", "ridge": 1e-3}),
    (KVLossConfig(), {"distance": "smooth_l1", "unit": "channel", "lambda_k": 1, "lambda_v": 1, "beta": 0, "gamma": 0}),
    (
        KVConfig(teachers=["a"]),
        {"control": "none", "align": AlignConfig().model_dump(), "loss": KVLossConfig().model_dump()}
        | {"select": {"method": "full", "budget": 1.0, "rate": 0.1}, "fusion": FusionConfig().model_dump()},
    ),
    (
        FusionConfig(),
        {"strategy": "fixed", "weights": None, "temperature": 1.0, "similarity": "cosine", "prototypes": "mean"}
        | {"router": "mlp", "hidden": 32, "per_layer": False, "objective": "kv"}
        | {"entropy": {"target": "specialized", "strength": 0.01}},
    ),
    (Arm(), {"model": "student", "student_view": "text", "training": None, "kv": None, "seeds": None, "extends": None}),
    (
        DataConfig(),
        {
            "mixture": "pocket",
            "seed": 0,
            "train_rows": 4000,
            "validation_rows": 400,
            "calibration_rows": 400,
            "test_items": 200,
        }
        | {"styles": ["cot", "direct"]},
    ),
    (
        ModelConfig(name="student"),
        {"source": "pocket", "revision": None, "dtype": "float32", "trust_remote_code": False},
    ),
    (TeachersConfig(), {"mode": "stored", "shards": 2, "dtype": "float16", "batch_size": 64, "models": {}}),
    (EvaluationConfig(), {"jobs": "per_run", "batch_size": 64, "max_new_tokens": 48, "num_fewshot": 0, "limit": None}),
    (ComparisonConfig(), {"baseline": "sft", "confidence": 0.95, "resamples": 5000, "seed": 0, "tolerance": 0.01}),
    (
        Study(study="x", arms={"a": Arm()}),
        {"seeds": [42, 43, 44], "datasets": DATASETS, "data": DataConfig().model_dump(), "claims": {}},
    ),
]


@pytest.fixture
def study(config_folder: Path) -> Study:
    return read_study(config_folder / "config.yaml")


@pytest.mark.parametrize(("model", "expected"), OF_THE_DESIGN, ids=lambda value: type(value).__name__)
def test_defaults_are_those_of_the_design(model: BaseModel, expected: dict[str, Any]) -> None:
    assert {key: value for key, value in model.model_dump().items() if key in expected} == expected


def test_the_default_study(study: Study) -> None:
    arms = [
        "raw",
        "sft",
        "single",
        "fixed",
        "similarity",
        "learnable",
        "teacher_ce",
        "oracle",
        "oracle_shuffled",
        "logits_routed",
        "merged",
        "merged_kv",
        "merged_kv_shuffled",
        "foreign",
        "foreign_shuffled",
        "teacher_reasoning",
        "teacher_knowledge",
        "teacher_merged",
        "teacher_qwen2",
    ]
    assert study.study == "pocket"
    assert list(study.arms) == arms
    assert study.datasets == DATASETS
    trained = [name for name in arms if study.trained(name)]
    assert trained == arms[1:15]
    (training,) = {study.arm(name).training.model_dump_json(exclude_none=True) for name in trained}  # the same for all
    assert (
        '"steps":150,"batch_size":32,"gradient_accumulation":1,"learning_rate":0.004,"scheduler":"cosine"' in training
    )
    kv = {name: arm.kv for name, arm in study.arms.items() if arm.kv}
    experts = ["reasoning", "knowledge"]
    assert {name: (c.teachers, c.fusion.strategy, c.control) for name, c in kv.items()} == {
        "single": (["reasoning"], "fixed", "none"),
        "fixed": (experts, "fixed", "none"),
        "similarity": (experts, "similarity", "none"),
        "learnable": (experts, "learnable", "none"),
        "teacher_ce": (experts, "teacher_ce", "none"),
        "oracle": (experts, "task", "none"),
        "oracle_shuffled": (experts, "task", "shuffle_items"),
        "merged_kv": (experts, "task", "none"),
        "merged_kv_shuffled": (experts, "task", "shuffle_items"),
        "foreign": (["qwen2"], "fixed", "none"),
        "foreign_shuffled": (["qwen2"], "fixed", "shuffle_items"),
    }
    of_origin = {name for name, c in kv.items() if c.align.map == "identity"}
    assert of_origin == {name for name, c in kv.items() if c.teachers != ["qwen2"]}
    assert {(kv[name].align.map, kv[name].align.side) for name in kv.keys() - of_origin} == {("linear", "student")}
    right = study.arm("oracle").kv.fusion.by_task
    assert {task: experts[weights.index(1)] for task, weights in right.items()} == {
        task: expert for expert in experts for task in MODELS[f"expert_{expert}"].tasks
    }
    levels = [(claim.kind, claim.level) for claim in study.claims.values()]
    assert len(levels) == 19
    assert {level: sum(at == level for _, at in levels) for _, level in levels} == {
        None: 10,
        "minimum": 3,
        "ideal": 4,
        "stretch": 2,
    }


def test_keys_only_and_values_only(config_folder: Path) -> None:
    study = read_study(config_folder / "config.yaml", config_folder / "studies" / "pocket-kv-only.yaml")
    assert study.study == "pocket-kv-only"
    losses = {name: study.arm(name).kv.loss for name in ("keys_only", "values_only")}
    assert {name: (loss.lambda_k, loss.lambda_v, loss.beta) for name, loss in losses.items()} == {
        "keys_only": (10, 0, 0),
        "values_only": (0, 10, 0),
    }


def test_runs(study: Study) -> None:
    runs = study.runs()
    assert len(runs) == len(set(runs)) == 5 * 1 + 14 * 5
    assert runs[:4] == [("raw", 42), ("sft", 42), ("sft", 43), ("sft", 44)]
    assert study.seeds_of("teacher_qwen2") == [42]
    assert study.seeds_of("learnable") == [42, 43, 44, 45, 46]


def test_teachers_and_aligns_that_arms_use(raw: dict[str, Any]) -> None:
    raw["arms"]["stiff"] = {"extends": "foreign", "kv": {"align": {"ridge": 1}}}
    raw["arms"]["two"] = {"extends": "foreign", "kv": {"teachers": ["qwen2", "gpt2"]}}
    study = load_study(raw)
    assert study.teachers_used() == ["reasoning", "knowledge", "qwen2", "gpt2"]
    assert [align.ridge for align in study.aligns("qwen2")] == [1e-3, 1.0]
    assert [align.ridge for align in study.aligns("gpt2")] == [1e-3]
    slugs = [align.slug for align in study.aligns("qwen2")]
    assert len(set(slugs)) == 2
    assert all(slug.startswith("ratio-linear-") and len(slug) == 19 for slug in slugs)
    models = raw["teachers"]["models"]
    raw["teachers"]["models"] = {"gpt2": models.pop("gpt2"), "idle": {"name": "gpt2"}} | models
    assert load_study(raw).teachers_used() == ["gpt2", "reasoning", "knowledge", "qwen2"]


def test_what_a_store_notes_of_rows_is_what_some_arms_router_reads(config_folder: Path) -> None:
    """What `teacher_kv` is told, so that an arm more or less makes a store anew only where it reads something else."""
    study = read_study(config_folder / "config.yaml")
    assert {name: study.row_statistics(name) for name in study.teachers_used()} == {
        "reasoning": ["likelihood"],
        "knowledge": ["likelihood"],
        "qwen2": [],
    }
    routers = read_study(config_folder / "config.yaml", config_folder / "studies/where/routers.yaml")
    assert routers.row_statistics("knowledge") == ["entropy", "likelihood"]
    assert (routers.row_statistics("qwen2"), study.arms["oracle"]) == ([], routers.arms["oracle"])


def test_a_router_of_ones_own_may_need_only_what_a_teacher_gives(raw, tmp_path, monkeypatch) -> None:
    (tmp_path / "surest.py").write_text(
        "from mtkv.registry import needs\n\n\n"
        '@needs("entropy", "likelihood")\ndef by_both(*given):\n    """A router."""\n\n\n'
        '@needs("entropi")\ndef misspelt(*given):\n    """A router."""\n'
    )
    monkeypatch.setenv("MTKV_PLUGINS", str(tmp_path))
    raw["arms"]["fixed"]["kv"]["fusion"] = {"strategy": "surest:by_both"}
    assert load_study(raw).row_statistics("reasoning") == ["entropy", "likelihood"]
    raw["arms"]["fixed"]["kv"]["fusion"] = {"strategy": "surest:misspelt"}
    message = r"arms.fixed.kv.fusion.strategy: 'surest:misspelt' needs 'entropi', which no teacher gives; .*: likelihood, entropy"
    with pytest.raises(ConfigError, match=message):
        load_study(raw)


def test_a_model_folder(raw: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    raw["student"] = {"source": "path", "name": str(tmp_path)}
    assert load_study(raw).student.name == str(tmp_path)


def test_digest_depends_on_values_only(raw: dict[str, Any]) -> None:
    before = load_study(raw)
    raw["arms"]["sft"]["training"] = dict(reversed(raw["arms"]["sft"]["training"].items())) | {"weight_decay": 0}
    after = load_study(raw)
    assert digest_of(after) == digest_of(before)
    assert digest_of({"b": 1, "a": [after]}) == digest_of({"a": [before.model_dump(mode="json")], "b": 1})
    raw["arms"]["sft"]["training"]["weight_decay"] = 0.1
    changed = load_study(raw)
    assert digest_of(changed.arm("fixed").training) != digest_of(before.arm("fixed").training)
    assert digest_of(changed.arm("fixed").kv) == digest_of(before.arm("fixed").kv)
    # sha256 of '{"a":1.5,"b":"é"}' in UTF-8, computed with coreutils' sha256sum
    assert digest_of({"b": "é", "a": 1.5}) == "6173df492ea2cc3f"
    with pytest.raises(TypeError):
        digest_of({"x": object()})


def test_a_study_is_frozen_and_does_not_share_defaults(study: Study) -> None:
    with pytest.raises(ValidationError):
        study.study = "other"  # type: ignore[misc]
    DataConfig().styles.clear()
    study.seeds_of("sft").clear()
    assert DataConfig().styles == ["cot", "direct"]
    assert study.seeds_of("sft") == [42, 43, 44, 45, 46]


def test_reading_a_config_loads_no_heavy_package(config_folder: Path) -> None:
    code = (
        "import sys; from mtkv.config.study import read_study; import mtkv.config.schema;"
        f"read_study({str(config_folder / 'config.yaml')!r}); mtkv.config.schema.study_schema();"
        "print(sorted({name.split('.')[0] for name in sys.modules}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = done.stdout
    assert "'mtkv'" in loaded
    assert "'pydantic'" in loaded
    assert not [
        name for name in ("torch", "transformers", "pandas", "numpy", "pyarrow", "snakemake") if f"'{name}'" in loaded
    ]
