"""The stages teachers → maps → arms on tiny models in folders: what is saved, what is logged, and what must be equal."""

import numpy as np
import pandas as pd
import pytest
import torch
import transformers
from safetensors.torch import load_file
from tiny_study import STEPS, TRAINING, TinyStudy, kv, same, weights
from tokenizers import AddedToken
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from mtkv.config.arms import LoraConfig
from mtkv.config.kv import AlignConfig
from mtkv.config.latent import LatentConfig
from mtkv.config.models import ModelConfig
from mtkv.kv.extract import StorePlan, extract_shard
from mtkv.kv.store import KVStore
from mtkv.stages.project_targets import Storing, write_targets
from mtkv.stages.train import trainable_student
from mtkv.training.world_layout import WorldLayout


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    return TinyStudy(tmp_path_factory.mktemp("study"))


def test_every_row_is_stored_once_over_the_shards(study):
    store = KVStore(study.store("gpt2"), verify=True)
    for path in study.paths.values():
        for row in pd.read_parquet(path)["id"]:
            assert len(store.byte_end(row)) > 5


def test_the_probe_says_ridge_helps_or_not_for_every_layer_and_kind(study):
    path = study.map("qwen3", AlignConfig(map="ridge", side="teacher"))
    probe = pd.read_parquet(path.with_suffix(".probe"))
    assert study.facts[path.stem]["layer_map"] == [0, 1, 2]
    assert 0.2 < study.facts[path.stem]["coverage"] <= 1
    assert set(probe["method"]) == {"ridge", "procrustes", "mean"}
    assert len(probe) == 3 * 2 * 3
    assert (probe[probe["method"] == "mean"]["error"] == 1).all()
    assert set(probe["kind"]) == {"key", "value"}


def test_the_example_row_shows_every_token_of_both_sides_once_or_with_its_partner(study):
    example = pd.read_parquet(study.map("gpt2", AlignConfig(map="ridge", side="teacher")).with_suffix(".example"))
    first = pd.read_parquet(study.paths["val"]).iloc[0]
    for side in ("student", "teacher"):
        known = example.dropna(subset=f"{side}_token").drop_duplicates(f"{side}_token").sort_values(f"{side}_token")
        assert known[f"{side}_token"].tolist() == list(range(len(known)))
        pieces = [text for text in known[f"{side}_text"] if text != "∅"]
        assert (first["prompt"] + first["target"]).endswith("".join(pieces))
    matched = example.dropna(subset=["student_token", "teacher_token"])
    assert len(matched) > 5
    assert (matched["weight"] == 1).all()
    assert (matched["student_text"].str[-1] == matched["teacher_text"].str[-1]).all()  # they end at the same byte


def test_zero_weight_trains_to_the_very_weights_of_sft_and_kv_does_not(study):
    sft, sft_facts = study.train("sft")
    zero, zero_facts = study.train("zero", kv(control="zero_weight"))
    real, real_facts = study.train("real", kv())
    base, unmoved, other = weights(sft), weights(zero), weights(real)
    assert same(base, unmoved)
    assert not same(base, other)
    for fact in ("steps", "tokens", "rows_seen", "batch_size", "ce_weight", "train_rows"):
        assert sft_facts[fact] == zero_facts[fact] == real_facts[fact], fact
    assert sft_facts["steps"] == STEPS
    assert sft_facts["rows_seen"] == STEPS * 4


def test_a_seed_gives_the_same_weights_again_and_another_seed_others(study):
    first, again, other = (weights(study.train(f"s{i}", kv(), seed=seed)[0]) for i, seed in enumerate((1, 1, 2)))
    assert same(first, again)
    assert not same(first, other)


@pytest.mark.parametrize("stream", [False, True])
def test_an_arm_of_few_rows_is_one_whose_file_ends_after_them(study, stream):
    training = TRAINING.model_copy(update={"rows": 7})
    few, facts = study.train(f"few-{stream}", training=training, layout=WorldLayout(stream=stream))
    cut = study.folder / "cut.parquet"
    pd.read_parquet(study.paths["train"]).head(7).to_parquet(cut)
    alone, cut_facts = study.train(f"cut-{stream}", train_rows=cut)
    assert facts["train_rows"] == cut_facts["train_rows"] == 7
    assert same(weights(few), weights(alone))


def test_the_saved_student_is_a_plain_model(study):
    output, _ = study.train("plain", kv())
    model = AutoModelForCausalLM.from_pretrained(output / "model")
    tokenizer = AutoTokenizer.from_pretrained(output / "model")
    assert type(model).__module__.startswith("transformers.")
    assert model.generation_config.eos_token_id == tokenizer.eos_token_id
    assert model(**tokenizer("Question: 1", return_tensors="pt")).logits.isfinite().all()
    assert not list((output / "model").glob("*.bin"))


def in_chat(study, name="student"):
    """Let a base model read rows in a chat template; returns the number of its eos and of the template's end."""
    folder = study.folder / name
    model, tokenizer = (auto.from_pretrained(folder) for auto in (AutoModelForCausalLM, AutoTokenizer))
    tokenizer.add_tokens([AddedToken("<turn>", special=True), AddedToken("<end>", special=True)])
    tokenizer.chat_template = (
        "{% for m in messages %}{{ '<turn>' + m['role'] + '\n' + m['content'] + '<end>\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<turn>assistant\n' }}{% endif %}"
    )
    model.resize_token_embeddings(len(tokenizer))
    for part in (model, tokenizer):
        part.save_pretrained(folder)
    study.models[name] = study.models[name].model_copy(update={"prompt": "chat", "date": "2025-01-31"})
    return [model.generation_config.eos_token_id, tokenizer.convert_tokens_to_ids("<end>")]


def test_the_cards_of_all_that_reads_rows_name_the_day_that_templates_are_told(tmp_path):
    study = TinyStudy(tmp_path)
    in_chat(study)
    align = AlignConfig(map="ridge", side="teacher")
    facts = study.facts[study.map("gpt2", align).stem]
    assert (facts["chat_date"], facts["teacher_chat_date"]) == ("2025-01-31", None)
    _, trained = study.train("chat")
    store = study.store("gpt2")
    files = [study.map("gpt2", align), align.time, [study.paths["val"]], Storing("mapped", "float32", None)]
    projected = write_targets(study.models["student"], store, *files, tmp_path / "targets")
    plan = StorePlan([0], 1, "float16", 8)
    stored = extract_shard(study.models["student"], [study.paths["val"]], 0, plan, tmp_path / "shard.safetensors")
    assert {each["chat_date"] for each in (trained, projected, stored)} == {"2025-01-31"}


@pytest.mark.parametrize("view", [{}, {"latent": LatentConfig(tokens=2, iterations=1)}], ids=["text", "latent"])
def test_the_saved_student_knows_what_ends_its_answers(tmp_path, view):
    """A base model in a chat template: rows end in the template's token, which the model's own generation config does not know."""
    study = TinyStudy(tmp_path)
    ends = in_chat(study)
    output, _ = study.train("chat", **view)
    own = GenerationConfig.from_pretrained(output / "model")
    assert own.eos_token_id == ends


def test_the_log_holds_every_term_for_train_and_validation(study):
    output, _ = study.train("logged", kv(fusion={"strategy": "learnable"}))
    log = pd.read_parquet(output / "training.parquet")
    assert set(log.columns) == {"step", "split", "term", "value"}
    assert not log.duplicated(["step", "split", "term"]).any()
    assert sorted(log.loc[log["split"] == "val", "step"].unique()) == [0, 3, STEPS]
    terms = {split: set(part["term"]) for split, part in log.groupby("split")}
    both = {"loss", "ce", "key", "value", "cosine", "entropy", "route.qwen3", "route.gpt2"}
    assert both <= terms["train"]
    assert both <= terms["val"]
    assert {"learning_rate", "grad_norm", "share.ce", "share.key", "share.value", "share.cosine"} <= terms["train"]
    assert {"cos.key", "cos.value", "cos.cosine", "cos.attention"} == {
        t for t in terms["train"] if t.startswith("cos.")
    }
    assert log.loc[log["term"].str.startswith("cos."), "value"].between(-1, 1).all()
    assert log["value"].notna().all()
    routing = pd.read_parquet(output / "routing.parquet")
    totals = routing.groupby("dataset")["weight"].sum()
    assert set(totals.index) == {"sums", "apples"}
    np.testing.assert_allclose(totals, 1, rtol=1e-5)


def test_a_router_per_layer_says_its_weights_of_each_layer(study):
    fusion = {"strategy": "learnable", "per_layer": True}
    output, _ = study.train("layered", kv(fusion=fusion))
    routing = pd.read_parquet(output / "routing.parquet")
    assert set(routing["layer"]) == {0, 1, 2}
    totals = routing.groupby(["dataset", "layer"])["weight"].sum()
    np.testing.assert_allclose(totals, 1, rtol=1e-5)
    assert routing.groupby("teacher")["weight"].std().max() > 0  # layers differ
    # The log's mean over layers is the table's, each dataset counted by its validation rows.
    log = pd.read_parquet(output / "training.parquet")
    logged = log[(log["split"] == "val") & (log["step"] == STEPS)].set_index("term")["value"]
    sizes = pd.read_parquet(study.paths["val"])["dataset"].value_counts(normalize=True)
    for teacher, part in routing.groupby("teacher"):
        means = part.groupby("dataset")["weight"].mean()
        assert logged[f"route.{teacher}"] == pytest.approx((means * sizes[means.index]).sum(), rel=0.05)


def test_every_control_trains(study):
    for control in ("shuffle_items", "shuffle_time", "gaussian"):
        _, facts = study.train(control, kv(control=control))
        assert facts["steps"] == STEPS


def test_a_bfloat16_student_is_trained_as_a_float32_one_and_saved_in_bfloat16(study, monkeypatch):
    """At learning rate 2e-5 a step is far below bfloat16's spacing: what was trained must be that of float32, rounded once, at the end."""
    model = AutoModelForCausalLM.from_pretrained(study.models["student"].name, dtype="bfloat16")
    folder = study.folder / "rounded"
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(study.models["student"].name).save_pretrained(folder)
    training = TRAINING.model_copy(update={"learning_rate": 2e-5, "steps": 20})
    found = {}
    for dtype in ("float32", "bfloat16"):
        student = study.models["student"].model_copy(update={"name": str(folder), "dtype": dtype})
        monkeypatch.setitem(study.models, "student", student)
        found[dtype] = weights(study.train(f"in-{dtype}", training=training)[0])
    before = load_file(folder / "model.safetensors")
    for name, trained in found["float32"].items():
        assert trained.dtype == torch.float32
        assert found["bfloat16"][name].dtype == torch.bfloat16, name
        assert torch.equal(found["bfloat16"][name], trained.bfloat16()), name
        moved = (trained != before[name].float()).float().mean()
        assert moved > (0.1 if "embed" in name else 0.9), name  # embeddings of absent tokens stand still


def test_bfloat16_is_autocast_over_float32_weights_in_one_process_too(study):
    training = TRAINING.model_copy(update={"dtype": "bfloat16"})
    exact, half = (weights(study.train(name, training=t)[0]) for name, t in (("exact", TRAINING), ("half", training)))
    assert not same(exact, half)
    distance = {name: (half[name] - exact[name]).abs().max() for name in exact}
    assert all(weight.dtype == torch.float32 for weight in half.values())
    assert max(distance.values()) < 2 * STEPS * TRAINING.learning_rate  # a step of AdamW is the rate at most


def test_adapters_leave_the_frozen_weights_in_their_own_format(study):
    config = study.models["student"].model_copy(update={"dtype": "bfloat16"})
    training = TRAINING.model_copy(update={"lora": LoraConfig(rank=2)})
    formats = {p.requires_grad: p.dtype for p in trainable_student(config, training, quantized=False).parameters()}
    assert formats == {True: torch.float32, False: torch.bfloat16}
    assert {p.dtype for p in trainable_student(config, TRAINING, quantized=False).parameters()} == {torch.float32}


@pytest.mark.parametrize(
    ("changes", "loss", "message"),
    [
        ({"learning_rate": 1e30, "warmup_ratio": 0.0}, None, "step 2: loss term ce is nan"),
        ({"ce_weight": 3e37}, None, "step 1: gradient norm is inf, of ce 5"),
        ({}, {"lambda_v": 1e39}, "validation after step 0: loss term value is inf"),
    ],
)
def test_a_training_that_diverges_stops_and_says_where(study, changes, loss, message):
    training = TRAINING.model_copy(update=changes)
    with pytest.raises(FloatingPointError, match=message):
        study.train("diverged", kv(loss=loss) if loss else None, training=training)
    assert not (study.folder / "arms/diverged").exists()


def test_a_student_whose_keys_are_changed_behind_rope_is_trained_without_kv_only(study, monkeypatch):
    """Also where the student's own KV are the target, which no map is fitted for before."""
    shape = {"vocab_size": 300, "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "head_dim": 8}
    config = transformers.HunYuanDenseV1Config(**shape, num_key_value_heads=2, intermediate_size=48, eos_token_id=1)
    model = transformers.AutoModelForCausalLM.from_config(config)
    for layer in model.model.layers:
        layer.self_attn.key_layernorm.weight.data = torch.linspace(0.2, 2, 8)
    tokenizer = AutoTokenizer.from_pretrained(study.models["student"].name)
    for part in (model, tokenizer):
        part.save_pretrained(study.folder / "hunyuan")
    teachers = study.teachers(kv())
    monkeypatch.setitem(study.models, "student", ModelConfig(source="path", name=str(study.folder / "hunyuan")))
    monkeypatch.setattr(study, "teachers", lambda *_: teachers)
    with pytest.raises(NotImplementedError, match="HunYuanDenseV1ForCausalLM: in layer 0 the keys"):
        study.train("hunyuan", kv())
    assert study.train("hunyuan-sft")[1]["steps"] == STEPS
