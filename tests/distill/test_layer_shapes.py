"""Models whose layers differ in KV heads or their width (Gemma 4's form): refused by name for KV, trained and evaluated without."""

import pytest
import torch
import transformers
from lm_eval.api.instance import Instance
from tiny_study import TinyStudy, kv
from tokenizers_for_tests import byte_level_bpe

from mtkv.config.models import ModelConfig
from mtkv.evaluate.batch_size import row_bytes
from mtkv.evaluate.lm_eval_model import EvaluationModel, load_folder
from mtkv.kv import extract
from mtkv.kv.capture import KVCapture
from mtkv.kv.extract import StorePlan, extract_shard, packed_kv, packed_kv_at
from mtkv.models.device_placement import kv_shape

FORMS = {  # what five sliding layers and one of full attention have: heads of each width
    "wider": ({}, [(2, 8)] * 5 + [(2, 16)]),
    "equal product": ({"num_global_key_value_heads": 1, "attention_k_eq_v": True}, [(2, 8)] * 5 + [(1, 16)]),
}
SIZES = {"hidden_size": 32, "num_hidden_layers": 6, "num_attention_heads": 4, "intermediate_size": 48}
SIZES |= {"num_key_value_heads": 2, "head_dim": 8, "global_head_dim": 16, "max_position_embeddings": 128}
SIZES |= {"hidden_size_per_layer_input": 4, "num_kv_shared_layers": 0, "bos_token_id": None}


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    made = TinyStudy(tmp_path_factory.mktemp("study"))
    tokenizer = byte_level_bpe(300)
    ids = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    for form, (changed, _) in FORMS.items():
        torch.manual_seed(0)
        config = transformers.Gemma4TextConfig(
            vocab_size=len(tokenizer), vocab_size_per_layer_input=len(tokenizer), **SIZES, **ids, **changed
        )
        folder = made.folder / form
        transformers.AutoModelForCausalLM.from_config(config).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        made.models[form] = ModelConfig(source="path", name=str(folder))
    return made


@pytest.mark.parametrize("form", FORMS)
def test_as_a_teacher_it_is_refused_by_name_before_it_is_loaded(study, form, monkeypatch, tmp_path):
    monkeypatch.setattr(extract, "load_model", lambda *_: pytest.fail("loaded"))
    with pytest.raises(
        ValueError, match=r"Gemma4TextConfig: its layers differ in KV heads .*\(5 with 2 of 8, 1 with . of 16"
    ):
        extract_shard(
            study.models[form], [study.paths["val"]], 0, StorePlan([0, 5], 1, "float16", 8), tmp_path / "shard"
        )


@pytest.mark.parametrize("form", FORMS)
def test_kv_of_different_shapes_is_never_packed(study, form):
    model = transformers.AutoModelForCausalLM.from_pretrained(study.models[form].name).eval()
    with torch.no_grad(), KVCapture(model) as capture:
        model(torch.arange(10)[None], use_cache=False)
    shapes = [key.shape for key in capture.keys(range(6))]
    assert [(heads, width) for _, heads, _, width in shapes] == FORMS[form][1]
    place = torch.tensor([0])
    for pack in (lambda layers: packed_kv(capture, layers), lambda layers: packed_kv_at(capture, layers, place, place)):
        with pytest.raises(NotImplementedError, match="Gemma4ForCausalLM: K and V of different layers have different"):
            pack([4, 5])
        assert pack([0, 4]).shape[-3:] == (2, 2, 16)


def test_as_a_student_it_is_refused_for_kv_only(study, monkeypatch):
    arm = study.teachers(kv())
    monkeypatch.setitem(study.models, "student", study.models["wider"])
    monkeypatch.setattr(study, "teachers", lambda *_: arm)
    with pytest.raises(ValueError, match=r"Gemma4TextConfig: its layers differ in KV heads .* without KV"):
        study.train("kv", kv())
    output, _ = study.train("sft")
    model, tokenizer = load_folder(output / "model")
    evaluated = EvaluationModel(model, tokenizer, 2)
    question, answer = "Question: 1", " 42"
    ((found, _),) = evaluated.loglikelihood([Instance("loglikelihood", {}, (question, answer), 0)])
    ids = tokenizer(question + answer, return_tensors="pt")["input_ids"]
    start = len(tokenizer(question)["input_ids"])
    with torch.no_grad():
        says = model(ids).logits.log_softmax(-1)[0, :-1].gather(1, ids[0, 1:, None])[start - 1 :].sum()
    assert found == pytest.approx(float(says), abs=1e-3)
    settings = {"until": ["\n"], "max_gen_toks": 3, "do_sample": False}
    assert len(evaluated.generate_until([Instance("generate_until", {}, (question, settings), 0)])) == 1


def test_each_layer_counts_with_its_own_width():
    """A token's KV: 2 · (5 layers · 2 heads · 8 + 2 heads · 16) channels, counted twice."""
    config = transformers.Gemma4TextConfig(vocab_size=60, vocab_size_per_layer_input=60, **SIZES)
    there = transformers.AutoModelForCausalLM.from_config(config)
    config = transformers.Gemma4TextConfig(
        vocab_size=60, vocab_size_per_layer_input=60, **(SIZES | {"global_head_dim": 8})
    )
    same = transformers.AutoModelForCausalLM.from_config(config)
    assert row_bytes(there, 10, 0) - row_bytes(same, 10, 0) == 10 * 2 * 2 * 2 * 8 * 4
    assert kv_shape(same.config) == (2, 8)
