"""Students cut from a teacher: they compute what the teacher does with the other layers skipped by hand, for every architecture."""

import json
import re

import pandas as pd
import pytest
import torch
from conftest import ARCHITECTURES
from tiny_study import TinyStudy
from tokenizers_for_tests import byte_level_bpe
from transformers import AutoModelForCausalLM

from mtkv.config.errors import ConfigError
from mtkv.config.kv import AlignConfig
from mtkv.config.models import ModelConfig
from mtkv.config.study import load_study
from mtkv.models.load import load_model, load_tokenizer, model_folder
from mtkv.models.paths import content_digest
from mtkv.ops.cost_model.model_sizes import model_size

LAYERS = [1, 2, 5]  # of six: with Gemma's pattern the last attends to everything, the others to a window
WHERE = {"gpt2": "transformer.h", "opt": "model.decoder.layers", "gpt_neox": "gpt_neox.layers"}
FORMS = {
    **{name: (name, {}) for name in ARCHITECTURES},
    "qwen2, windows above": ("qwen2", {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 2}),
    "gemma3, tied": ("gemma3", {"tie_word_embeddings": True}),
    "llama, untied, bias": ("llama", {"tie_word_embeddings": False, "attention_bias": True}),
}


@pytest.fixture(autouse=True)
def assets(tmp_path, monkeypatch):
    monkeypatch.setenv("MTKV_ASSETS", str(tmp_path / "assets"))


@pytest.fixture
def teacher(build_model, tmp_path):
    """`teacher(architecture, **changes)` → config of a six-layer model in a folder, with large weights, so that every layer matters."""

    def make(name, **changes):
        tokenizer = byte_level_bpe(300)
        size = {"n_layer": 6} if name == "gpt2" else {"num_hidden_layers": 6}
        model = build_model(name, vocab_size=len(tokenizer), initializer_range=0.2, **size, **changes)
        model.save_pretrained(tmp_path / "teacher")
        tokenizer.save_pretrained(tmp_path / "teacher")
        return ModelConfig(source="path", name=str(tmp_path / "teacher"))

    return make


def cut(teacher, layers=LAYERS, **changes):
    given = {"source": "pruned", "name": "cut", "teacher": teacher, "layers": layers}
    return ModelConfig.model_validate(given | changes)


def skipped(model, path, kept, ids):
    """Logits of `model` when the layers that are not kept give what they are given."""
    hooks = []
    for number, layer in enumerate(model.get_submodule(path)):
        if number in kept:
            continue
        given = {}
        hooks.append(
            layer.register_forward_pre_hook(
                lambda _, args, kwargs, given=given: given.update(x=(*args, kwargs.get("hidden_states"))[0]),
                with_kwargs=True,
            )
        )
        hooks.append(
            layer.register_forward_hook(
                lambda _, args, out, given=given: given["x"] if torch.is_tensor(out) else (given["x"], *out[1:])
            )
        )
    with torch.no_grad():
        logits = model(ids, use_cache=False).logits
    for hook in hooks:
        hook.remove()
    return logits


@pytest.mark.parametrize("form", FORMS)
def test_it_computes_what_the_teacher_does_without_the_other_layers(form, teacher):
    name, changes = FORMS[form]
    config = teacher(name, **changes)
    whole = AutoModelForCausalLM.from_pretrained(config.name).eval()
    ids = torch.randint(3, 290, (2, 30), generator=torch.Generator().manual_seed(0))
    expected = skipped(whole, WHERE.get(name, "model.layers"), LAYERS, ids)
    assert not torch.allclose(expected, whole(ids, use_cache=False).logits, atol=1e-2)
    model = load_model(cut(config))
    with torch.no_grad():
        torch.testing.assert_close(model(ids, use_cache=False).logits, expected, rtol=1e-5, atol=1e-5)
        step_by_step = model.generate(ids[:1], max_new_tokens=8, do_sample=False, pad_token_id=0, eos_token_id=None)
        for length in range(30, 38):  # with the cache, which counts layers by their new numbers
            assert step_by_step[0, length] == model(step_by_step[:, :length], use_cache=False).logits[0, -1].argmax()
    saved = json.loads((model_folder(cut(config)) / "config.json").read_text())
    assert saved.get("num_hidden_layers", saved.get("n_layer")) == 3
    if types := getattr(whole.config, "layer_types", None):
        assert saved["layer_types"] == [types[layer] for layer in LAYERS]
    assert load_tokenizer(cut(config)).get_vocab() == load_tokenizer(config).get_vocab()
    assert model_size(cut(config)).parameters == model.num_parameters()
    assert model_size(cut(config)).layers == 3


def test_it_is_made_once_and_anew_for_other_layers_and_formats(teacher):
    config = teacher("llama")
    first = model_folder(cut(config))
    made = (first / "model.safetensors").stat().st_mtime_ns
    assert model_folder(cut(config, name="other name")) == first
    assert (first / "model.safetensors").stat().st_mtime_ns == made
    assert len({content_digest(each) for each in (config, cut(config), cut(config, [0, 5]))}) == 3
    assert len({first, model_folder(cut(config, [0, 5])), model_folder(cut(config, dtype="bfloat16"))}) == 3
    assert load_model(cut(config, dtype="bfloat16")).dtype == torch.bfloat16


def test_what_cannot_be_cut_is_refused_by_name(teacher, tmp_path):
    with pytest.raises(ValueError, match="LlamaForCausalLM has no layer 6; it has 0 to 5"):
        load_model(cut(teacher("llama"), [0, 6]))
    depends = teacher("gpt2", scale_attn_by_inverse_layer_idx=True)
    with pytest.raises(ValueError, match=r"GPT2LMHeadModel: layer 1 computes something else .* depends on its place"):
        load_model(cut(depends))
    load_model(cut(depends, [0, 1]))  # which stay where they are
    bert = TinyStudy(tmp_path).models["bert"]
    with pytest.raises(ValueError, match="BertModel has no output head"):
        load_model(cut(bert, [0, 2]))


def test_a_map_by_origin_reads_the_layers_that_it_was_cut_from(tmp_path):
    study = TinyStudy(tmp_path)
    study.models["student"] = cut(study.models["qwen3"], [0, 2])
    errors = {}
    for layers in ("origin", "last_aligned"):
        align = AlignConfig(layers=layers, map="identity")
        path = study.map("qwen3", align)
        errors[layers] = study.facts[path.stem]
    assert errors["origin"]["layer_map"] == [0, 2]
    assert errors["last_aligned"]["layer_map"] == [1, 2]
    probe = pd.read_parquet(study.map("qwen3", AlignConfig(layers="origin", map="identity")).with_suffix(".probe"))
    identity = probe[probe["method"] == "identity"].groupby("layer")["error"].max()
    assert identity[0] < 1e-5  # K and V of the first layer depend on the token alone, whatever lies above
    assert identity[1] > 1e-3


STUDENT = {"source": "pruned", "name": "cut", "teacher": "qwen2", "layers": [0, 4]}
ORIGIN = {"training": {"steps": 1}, "kv": {"teachers": ["qwen2"], "align": {"layers": "origin", "map": "identity"}}}


def problems(student=STUDENT, teachers=None, arm=ORIGIN):
    models = {"qwen2": {"name": "qwen2"}, "gpt2": {"name": "gpt2"}} | (teachers or {})
    config = {"study": "s", "student": student, "teachers": {"models": models}, "arms": {"a": arm}}
    try:
        load_study(config | {"comparison": {"baseline": "a"}})
    except ConfigError as error:
        return str(error)
    return ""


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({}, ""),
        ({"student": STUDENT | {"teacher": "qwen"}}, "student.teacher: 'qwen' is not a teacher id; .*mean 'qwen2'"),
        ({"student": STUDENT | {"layers": []}}, "student.layers: not given, but source pruned needs it"),
        ({"student": STUDENT | {"layers": [4, 0]}}, r"student.layers: \[4, 0\] is not in the teacher's order"),
        (
            {"student": STUDENT | {"layers": [0, 5]}},
            r"student.layers\[1\]: 5 is not a layer of 'qwen2'; allowed: 0 to 4",
        ),
        ({"student": STUDENT | {"layers": [0, 0]}}, "student.layers: 0 given more than once"),
        ({"student": STUDENT | {"source": "path"}}, "student.teacher: given, but source is path; only pruned has it"),
        (
            {"student": STUDENT | {"teacher": "gpt2"}},
            "arms.a.kv.align.layers: 'origin' needs a student cut from teacher 'qwen2'",
        ),
        ({"student": {"name": "student"}}, "arms.a.kv.align.layers: 'origin' needs a student cut from teacher 'qwen2'"),
        ({"teachers": {"half": STUDENT}}, "teachers.models.half.source: 'pruned' is for the student"),
        (
            {
                "student": STUDENT | {"teacher": "m"},
                "teachers": {"m": {"source": "merged", "name": "m", "merge": ["qwen2", "gpt2"]}},
            },
            "student.teacher: 'm' is merged; allowed: a teacher of another source",
        ),
    ],
)
def test_mistakes_are_said_before_anything_runs(changes, message):
    found = problems(**changes)
    assert re.search(f"^{message}", found, re.MULTILINE) if message else found == ""
