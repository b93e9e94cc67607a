"""The stages teachers → maps → arms on tiny models in folders: what is saved, what is logged, and what must be equal."""

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file
from tokenizers_for_tests import byte_level_bpe, unigram
from transformers import AutoModelForCausalLM, AutoTokenizer

from mtkv.align.calibrate import calibrate_map
from mtkv.config.arms import TrainingConfig
from mtkv.config.kv import AlignConfig, KVConfig
from mtkv.config.models import ModelConfig
from mtkv.distill.train import train_arm
from mtkv.kv.extract import extract_shard
from mtkv.kv.store import KVStore, write_index
from mtkv.provenance.files import write_parquet

STEPS = 6
TRAINING = TrainingConfig.model_validate(
    {
        "steps": STEPS,
        "batch_size": 4,
        "gradient_accumulation": 1,
        "learning_rate": 1e-3,
        "logging_steps": 2,
        "eval_steps": 3,
    }
)


def rows(split, count):
    rng = np.random.default_rng(len(split))
    numbers = rng.integers(1, 90, (count, 2))
    return pd.DataFrame(
        {
            "id": [f"{split}-{i}" for i in range(count)],
            "dataset": ["sums" if i % 2 else "apples" for i in range(count)],
            "prompt": [f"Question: Tom has {a} apples and buys {b} more. How many?\nAnswer:" for a, b in numbers],
            "target": [f" {a + b}" for a, b in numbers],
        }
    )


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """Rows, models in folders, stores and maps: everything `train_arm` reads."""
    import transformers
    from conftest import ARCHITECTURES

    folder = tmp_path_factory.mktemp("study")
    for split, count in {"train": 24, "val": 8, "calibration": 40}.items():
        write_parquet(folder / f"{split}.parquet", rows(split, count))
    models = {}
    for name, (architecture, tokenizer) in {
        "student": ("llama", byte_level_bpe(300)),
        "qwen3": ("qwen3", byte_level_bpe(340)),
        "gpt2": ("gpt2", unigram()),
    }.items():
        class_name, arguments = ARCHITECTURES[architecture]
        size = {"n_positions": 128, "n_layer": 4} if architecture == "gpt2" else {"max_position_embeddings": 128}
        torch.manual_seed(len(name))
        config = getattr(transformers, class_name)(**(arguments | size | {"vocab_size": len(tokenizer)}))
        config.eos_token_id, config.pad_token_id = tokenizer.eos_token_id, tokenizer.pad_token_id
        AutoModelForCausalLM.from_config(config).save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
        models[name] = ModelConfig(source="path", name=str(folder / name))
    paths = [folder / f"{split}.parquet" for split in ("train", "val", "calibration")]
    for name, layers in {"qwen3": [0, 1, 2], "gpt2": [0, 2, 3]}.items():
        shards = [folder / "stores" / name / f"shard-{i:04d}.safetensors" for i in range(2)]
        for i, shard in enumerate(shards):
            extract_shard(models[name], layers, paths, i, 2, "float16", 8, shard)
        write_index(shards, shards[0].parent / "index.parquet")
        facts = calibrate_map(
            models["student"],
            name,
            models[name],
            AlignConfig(),
            shards[0].parent,
            calibration=paths[2],
            validation=paths[1],
            output=folder / f"{name}.map",
            probe=folder / f"{name}.probe",
        )
        assert facts["layer_map"] == layers
        assert 0.2 < facts["coverage"] <= 1
    return folder, models


def train(study, name, kv=None, seed=42):
    folder, models = study
    output = folder / "arms" / name
    facts = train_arm(
        models["student"],
        TRAINING,
        kv,
        seed,
        folder / "train.parquet",
        folder / "val.parquet",
        stores=[folder / "stores" / teacher for teacher in (kv.teachers if kv else [])],
        maps=[folder / f"{teacher}.map" for teacher in (kv.teachers if kv else [])],
        model_folder=output / "model",
        log_path=output / "training.parquet",
        routing_path=output / "routing.parquet",
    )
    return output, facts


def kv(**changes):
    return KVConfig.model_validate({"teachers": ["qwen3", "gpt2"]} | changes)


def weights(output):
    return load_file(output / "model" / "model.safetensors")


def test_every_row_is_stored_once_over_the_shards(study):
    folder, _ = study
    store = KVStore(folder / "stores" / "gpt2", verify=True)
    for split in ("train", "val", "calibration"):
        for row in pd.read_parquet(folder / f"{split}.parquet")["id"]:
            assert len(store.byte_end(row)) > 5


def test_the_probe_says_ridge_helps_or_not_for_every_layer_and_kind(study):
    folder, _ = study
    probe = pd.read_parquet(folder / "qwen3.probe")
    assert len(probe) == 3 * 2 * 2
    assert (probe[probe["method"] == "mean"]["error"] == 1).all()
    assert set(probe["kind"]) == {"key", "value"}


def test_zero_weight_trains_to_the_very_weights_of_sft_and_kv_does_not(study):
    sft, sft_facts = train(study, "sft")
    zero, zero_facts = train(study, "zero", kv(control="zero_weight"))
    real, real_facts = train(study, "real", kv())
    base, same, other = weights(sft), weights(zero), weights(real)
    assert all(torch.equal(base[name], same[name]) for name in base)
    assert any(not torch.equal(base[name], other[name]) for name in base)
    for fact in ("steps", "tokens", "rows_seen", "batch_size", "ce_weight", "train_rows"):
        assert sft_facts[fact] == zero_facts[fact] == real_facts[fact], fact
    assert sft_facts["steps"] == STEPS
    assert sft_facts["rows_seen"] == STEPS * 4


def test_a_seed_gives_the_same_weights_again_and_another_seed_others(study):
    first, again, other = (weights(train(study, f"s{i}", kv(), seed)[0]) for i, seed in enumerate((1, 1, 2)))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)


def test_the_saved_student_is_a_plain_model(study):
    output, _ = train(study, "plain", kv())
    model = AutoModelForCausalLM.from_pretrained(output / "model")
    tokenizer = AutoTokenizer.from_pretrained(output / "model")
    assert type(model).__module__.startswith("transformers.")
    assert model.generation_config.eos_token_id == tokenizer.eos_token_id
    assert model(**tokenizer("Question: 1", return_tensors="pt")).logits.isfinite().all()
    assert not list((output / "model").glob("*.bin"))


def test_the_log_holds_every_term_for_train_and_validation(study):
    output, _ = train(study, "logged", kv(fusion={"strategy": "learnable"}))
    log = pd.read_parquet(output / "training.parquet")
    assert set(log.columns) == {"step", "split", "term", "value"}
    terms = {split: set(part["term"]) for split, part in log.groupby("split")}
    both = {"loss", "ce", "key", "value", "cosine", "entropy", "route.qwen3", "route.gpt2"}
    assert both <= terms["train"]
    assert both <= terms["val"]
    assert {"learning_rate", "grad_norm", "share.ce", "share.kv"} <= terms["train"]
    assert log["value"].notna().all()
    routing = pd.read_parquet(output / "routing.parquet")
    totals = routing.groupby("dataset")["weight"].sum()
    assert set(totals.index) == {"sums", "apples"}
    np.testing.assert_allclose(totals, 1, rtol=1e-5)


def test_every_control_trains(study):
    for control in ("shuffle_items", "shuffle_time", "gaussian"):
        _, facts = train(study, control, kv(control=control))
        assert facts["steps"] == STEPS
