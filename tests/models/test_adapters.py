"""Adapters: the identity at first, reached by the KV loss, and gone from what is saved."""

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file
from tiny_study import TRAINING, TinyStudy, kv, weights
from transformers import AutoModelForCausalLM, AutoTokenizer

pytest.importorskip("peft", reason="the extra mtkv[lora] is not installed")

from mtkv.config.arms import LoraConfig
from mtkv.kv.capture import KVCapture
from mtkv.models.adapters import add_lora, merge_lora

IDS = torch.arange(12)[None]


@pytest.mark.parametrize("architecture", ["llama", "qwen2", "gpt2", "opt", "gpt_neox"])
def test_adapters_start_as_identity_take_gradients_from_keys_and_values_and_merge_exactly(build_model, architecture):
    model = build_model(architecture)
    before = model(IDS).logits
    names = set(model.state_dict())
    add_lora(model, LoraConfig(rank=4))
    assert torch.equal(model(IDS).logits, before)
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trained
    assert all("lora_" in name for name in trained)
    with KVCapture(model) as capture:
        model(IDS)
        (sum((part**2).sum() for part in [*capture.keys(), *capture.values()])).backward()
    reached = {name for name, parameter in trained.items() if parameter.grad is not None and parameter.grad.any()}
    assert any("layers.1" in name or "h.1" in name for name in reached)
    assert all("lora_B" in name for name in reached)  # A's gradient is B's value, 0 at first
    with torch.no_grad():
        for parameter in trained.values():
            parameter.add_(torch.randn_like(parameter) * 0.02)
    adapted = model(IDS).logits
    assert not torch.allclose(adapted, before, atol=1e-4)
    merge_lora(model)
    assert set(model.state_dict()) == names
    torch.testing.assert_close(model(IDS).logits, adapted, atol=1e-4, rtol=1e-3)


def test_the_scaled_product_is_what_is_added(build_model):
    """ΔW = alpha / rank · B·A, computed here by hand."""
    model = build_model("llama")
    add_lora(model, LoraConfig(rank=2, alpha=6, targets=["q_proj"]))
    layer = model.model.layers[1].self_attn.q_proj
    torch.nn.init.normal_(layer.lora_B["default"].weight)
    a, b = layer.lora_A["default"].weight.detach(), layer.lora_B["default"].weight.detach()
    expected = layer.get_base_layer().weight.detach() + 3 * (b @ a)
    assert "lora" not in type(model.model.layers[1].self_attn.k_proj).__module__
    merge_lora(model)
    torch.testing.assert_close(model.model.layers[1].self_attn.q_proj.weight, expected)


def test_adapters_of_a_half_precision_model_are_trained_in_float32(build_model):
    model = build_model("llama").to(torch.bfloat16)
    add_lora(model, LoraConfig(rank=2))
    assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}
    assert model(IDS).logits.dtype == torch.bfloat16


def test_unknown_targets_are_named_with_those_there_are(build_model):
    with pytest.raises(ValueError, match=r"lora\.targets: c_attn not in LlamaForCausalLM; allowed: .*q_proj"):
        add_lora(build_model("llama"), LoraConfig(targets=["q_proj", "c_attn"]))


TIED = {"llama": ("embed_tokens", "lm_head"), "gpt2": ("wte", "lm_head"), "gemma3": ("embed_tokens", "lm_head")}


@pytest.mark.parametrize("end", [0, 1, slice(2)])
@pytest.mark.parametrize("architecture", TIED)
def test_adapters_on_one_end_of_a_tied_model_leave_the_other_as_it_is(build_model, tmp_path, architecture, end):
    model = build_model(architecture, tie_word_embeddings=True)
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    start = model.get_input_embeddings().weight.detach().clone()
    before = model(IDS).logits
    targets = TIED[architecture][end]
    add_lora(model, LoraConfig(rank=4, targets=[targets] if isinstance(targets, str) else list(targets)))
    assert torch.equal(model(IDS).logits, before)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    adapted = model(IDS).logits
    assert not torch.allclose(adapted, before, atol=1e-3)
    merge_lora(model)
    model.save_pretrained(tmp_path)
    saved = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert not saved.config.tie_word_embeddings
    torch.testing.assert_close(saved(IDS).logits, adapted, atol=1e-4, rtol=1e-3)
    kept = [torch.equal(part.weight, start) for part in (saved.get_input_embeddings(), saved.get_output_embeddings())]
    assert kept == {0: [False, True], 1: [True, False]}.get(end if isinstance(end, int) else 2, [False, False])


def test_a_tied_model_without_adapters_on_its_ends_stays_tied(build_model, tmp_path):
    model = build_model("llama", tie_word_embeddings=True)
    add_lora(model, LoraConfig(rank=2, targets=["q_proj"]))
    merge_lora(model)
    model.save_pretrained(tmp_path)
    assert "lm_head.weight" not in load_file(tmp_path / "model.safetensors")


def test_the_saved_model_has_the_loss_that_the_log_says(tmp_path):
    """Validation cross-entropy by plain transformers from the saved folder, where the head of a tied student was trained."""
    study = TinyStudy(tmp_path)
    folder = study.folder / "student"
    tied = AutoModelForCausalLM.from_pretrained(folder, tie_word_embeddings=True)
    tied.get_output_embeddings().weight = tied.get_input_embeddings().weight
    tied.save_pretrained(folder)
    assert "lm_head.weight" not in load_file(folder / "model.safetensors")
    lora = LoraConfig(rank=4, targets=["lm_head", "embed_tokens"])
    training = TRAINING.model_copy(update={"lora": lora, "learning_rate": 0.05})
    output, _ = study.train("tied", training=training)
    log = pd.read_parquet(output / "training.parquet")
    said = log[(log["split"] == "val") & (log["term"] == "ce")].set_index("step")["value"]
    assert said.iloc[-1] < said.iloc[0] - 0.1
    model, tokenizer = (auto.from_pretrained(output / "model") for auto in (AutoModelForCausalLM, AutoTokenizer))
    total = count = 0
    for row in pd.read_parquet(study.paths["val"]).itertuples():
        prompt = tokenizer(row.prompt)["input_ids"]
        ids = torch.tensor([[*tokenizer(row.prompt + row.target)["input_ids"], tokenizer.eos_token_id]])
        logits = model(ids).logits[0, len(prompt) - 1 : -1]
        total += torch.nn.functional.cross_entropy(logits, ids[0, len(prompt) :], reduction="sum").item()
        count += ids.shape[1] - len(prompt)
    assert total / count == pytest.approx(said.iloc[-1], abs=0.02)


def test_an_arm_trains_adapters_by_kv_and_saves_a_plain_model(tmp_path):
    study = TinyStudy(tmp_path)
    lora = TRAINING.model_copy(update={"lora": LoraConfig(rank=4), "ce_weight": 0.0})
    output, _ = study.train("lora", kv(), training=lora)
    start = load_file(study.folder / "student" / "model.safetensors")
    saved = weights(output)
    assert set(saved) == set(start)
    moved = {name for name in start if not torch.equal(saved[name], start[name])}
    assert any("k_proj" in name for name in moved)
    assert all("_proj" in name for name in moved)  # neither embeddings nor norms nor the head
    delta = saved["model.layers.1.self_attn.k_proj.weight"] - start["model.layers.1.self_attn.k_proj.weight"]
    assert torch.linalg.matrix_rank(delta.float(), rtol=1e-3) <= 4
    assert type(AutoModelForCausalLM.from_pretrained(output / "model")).__name__ == "LlamaForCausalLM"
    assert not list((output / "model").glob("adapter*"))
    assert pd.read_parquet(output / "training.parquet")["value"].notna().all()
