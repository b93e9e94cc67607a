"""The vLLM backend with a stand-in for vLLM that answers with transformers: what it is given, and that answers come back the same.

Nothing here says how vLLM itself behaves: it has not been run.
"""

import importlib.metadata
import importlib.util
import json
import shutil
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from tokenizers.processors import TemplateProcessing
from transformers import AutoModelForCausalLM, AutoTokenizer

from mtkv.config.errors import ConfigError
from mtkv.config.study import load_study
from mtkv.evaluate.predictions import read_predictions
from mtkv.stages.predict import ModelSource, predict

GIVEN = {}


class SamplingParams:
    def __init__(self, **settings):
        self.settings = settings


class LLM:
    """Greedy answers and log-probabilities of prompts, one at a time, as vLLM reports them."""

    def __init__(self, **arguments):
        GIVEN["arguments"] = arguments
        self.model = AutoModelForCausalLM.from_pretrained(arguments["model"]).eval()
        self.tokenizer = AutoTokenizer.from_pretrained(arguments["model"])
        room = self.model.config.max_position_embeddings
        self.llm_engine = SimpleNamespace(model_config=SimpleNamespace(max_model_len=room))

    def generate(self, prompts, sampling_params, use_tqdm, lora_request):
        return [self.answer(*both) for both in zip(prompts, sampling_params, strict=True)]

    def answer(self, prompt, parameters):
        ids, settings = list(prompt["prompt_token_ids"]), parameters.settings
        GIVEN.setdefault("settings", []).append(settings)
        GIVEN.setdefault("prompts", []).append(ids)
        if settings.get("prompt_logprobs"):
            with torch.no_grad():
                said = self.model(torch.tensor([ids])).logits[0].float().log_softmax(-1)
            rows = [
                {int(row.argmax()): float(row.max()), token: float(row[token])}
                for row, token in zip(said, ids[1:], strict=False)
            ]
            return SimpleNamespace(prompt_logprobs=[None, *rows])
        new, text = [], ""
        while len(new) < settings["max_tokens"] and not any(stop in text for stop in settings["stop"]):
            with torch.no_grad():
                said = self.model(torch.tensor([ids + new])).logits[0, -1].float()
            new.append(int(said.argmax()))
            if new[-1] in settings["stop_token_ids"]:  # it is not part of the text
                break
            text = self.tokenizer.decode(new)
        # vLLM adds up what it says only when it is asked for log-probabilities, and those of NaN are NaN
        total = float(said.log_softmax(-1)[new].sum()) if settings.get("logprobs") else None
        return SimpleNamespace(outputs=[SimpleNamespace(text=text, cumulative_logprob=total)])


def module(name, **content):
    made = ModuleType(name)
    made.__spec__ = ModuleSpec(name, None)
    made.__path__ = []
    vars(made).update(content)
    return made


@pytest.fixture
def vllm(monkeypatch):
    """A module `vllm` with what lm-eval imports from it."""
    parts = {
        "vllm": {"LLM": LLM, "SamplingParams": SamplingParams, "TokensPrompt": dict},
        "vllm.lora": {},
        "vllm.lora.request": {"LoRARequest": object},
        "vllm.renderers": {},
        "vllm.renderers.hf": {"resolve_chat_template": lambda **arguments: None},
        "vllm.tokenizers": {"get_tokenizer": lambda name, **arguments: AutoTokenizer.from_pretrained(name)},
    }
    for name, content in parts.items():
        monkeypatch.setitem(sys.modules, name, module(name, **content))
    version = importlib.metadata.version
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "0.12.0" if name == "vllm" else version(name))
    GIVEN.clear()
    return GIVEN


def never(folder):
    raise AssertionError("transformers is not asked to load the model")


def answers(model, data_folder, settings, folder, datasets, **options):
    outputs = {name: folder / f"{name}.parquet" for name in datasets}
    facts = predict(ModelSource(model, **options), data_folder, settings, outputs)
    return facts, {name: read_predictions(path)[0] for name, path in outputs.items()}


def test_answers_come_back_the_same(vllm, tmp_path, data_folder, model_folders, study_tools):
    datasets = ["pocket_gsm8k", "pocket_gpqa"]
    model = model_folders["llama"]
    for name in ("hf", "vllm"):
        (tmp_path / name).mkdir()
    _, hf = answers(model, data_folder, study_tools.config(), tmp_path / "hf", datasets)
    settings = study_tools.config(backend="vllm")
    facts, found = answers(model, data_folder, settings, tmp_path / "vllm", datasets, load=never, dtype="bfloat16")
    assert facts["failed"] == {}
    for name in datasets:
        same = ["item", "prompt_hash", "output", "filtered", "correct"]
        assert found[name][same].equals(hf[name][same])
    for mine, theirs in zip(found["pocket_gpqa"]["loglikelihoods"], hf["pocket_gpqa"]["loglikelihoods"], strict=True):
        assert list(mine) == pytest.approx(list(theirs), abs=1e-4)
    arguments = vllm["arguments"]
    assert (arguments["model"], arguments["dtype"]) == (str(model), "bfloat16")
    assert arguments["trust_remote_code"] is False
    (said,) = {(s["max_tokens"], s["temperature"], s["repetition_penalty"]) for s in vllm["settings"] if "stop" in s}
    assert said == (20, 0.0, 1.0)


def test_nothing_is_cut_there_either(vllm, tmp_path, data_folder, model_folders, study_tools):
    settings = study_tools.config(backend="vllm", max_new_tokens=140)
    facts, _ = answers(model_folders["llama"], data_folder, settings, tmp_path, ["pocket_gsm8k"], load=never)
    assert "context of 160" in facts["failed"]["pocket_gsm8k"]


def test_its_prompts_are_those_of_rows_and_the_template_ends_an_answer(
    vllm, tmp_path, data_folder, model_folders, study_tools
):
    """A tokenizer that puts eos behind texts, and a template whose end is a token that the model often says."""
    folder = Path(shutil.copytree(model_folders["llama"], tmp_path / "model"))
    tokenizer = AutoTokenizer.from_pretrained(folder)
    end = tokenizer.convert_ids_to_tokens(tokenizer("=")["input_ids"])[0]
    tokenizer.add_special_tokens({"additional_special_tokens": [end]})
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m['content'] }}{% if m['role'] == 'assistant' %}={% endif %}{% endfor %}"
    )
    tokenizer.save_pretrained(folder)
    stated = Tokenizer.from_file(str(folder / "tokenizer.json"))
    stated.post_processor = TemplateProcessing(single="$0 <eos>", special_tokens=[("<eos>", 1)])
    stated.save(str(folder / "tokenizer.json"))
    found = {}
    for backend in ("hf", "vllm"):
        (tmp_path / backend).mkdir()
        settings = study_tools.config(backend=backend)
        _, found[backend] = answers(
            folder, data_folder, settings, tmp_path / backend, ["pocket_gsm8k"], chat="2024-07-26"
        )
    assert found["vllm"]["pocket_gsm8k"]["output"].equals(found["hf"]["pocket_gsm8k"]["output"])
    assert {tuple(s["stop_token_ids"]) for s in vllm["settings"]} == {(tokenizer.convert_tokens_to_ids(end),)}
    assert 1 not in {ids[-1] for ids in vllm["prompts"]}


def test_a_tokenizer_that_vllm_builds_by_its_class_is_refused(vllm, tmp_path, data_folder, model_folders, study_tools):
    folder = Path(shutil.copytree(model_folders["merging"], tmp_path / "model"))
    file = folder / "tokenizer_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"tokenizer_class": "GPT2Tokenizer"}))
    with pytest.raises(ValueError, match=r"GPT2Tokenizer reads .* tokens that are not the \d+ of tokenizer\.json"):
        answers(folder, data_folder, study_tools.config(backend="vllm"), tmp_path, ["pocket_gpqa"], load=never)


@pytest.mark.parametrize("fault", ["an adapter", "missing", "surplus"])
def test_a_folder_that_transformers_would_refuse_never_reaches_vllm(
    fault, vllm, tmp_path, data_folder, model_folders, study_tools
):
    folder = Path(shutil.copytree(model_folders["llama"], tmp_path / "model"))
    weights = load_file(folder / "model.safetensors")
    name = "model.layers.0.self_attn.q_proj.weight"
    if fault == "an adapter":
        (folder / "adapter_config.json").write_text("{}")
    elif fault == "missing":
        del weights[name]
    else:
        weights[f"base_model.model.{name}"] = weights[name].clone()
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    said = {"an adapter": "holds an adapter", "missing": "1 weights are missing", "surplus": "base_model"}[fault]
    with pytest.raises(ValueError, match=said):
        answers(folder, data_folder, study_tools.config(backend="vllm"), tmp_path, ["pocket_gpqa"], load=never)
    assert "arguments" not in vllm


def test_a_model_of_nan_says_nothing_there_either(vllm, tmp_path, data_folder, model_folders, study_tools):
    folder = Path(shutil.copytree(model_folders["llama"], tmp_path / "model"))
    weights = load_file(folder / "model.safetensors")
    weights["model.norm.weight"] = torch.full_like(weights["model.norm.weight"], float("nan"))
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    settings = study_tools.config(backend="vllm")
    facts, _ = answers(folder, data_folder, settings, tmp_path, ["pocket_gsm8k"], load=never)
    assert "the model's logits are not finite (nan)" in facts["failed"]["pocket_gsm8k"]


def test_a_scaling_that_vllm_would_not_see_is_refused():
    raw = yaml.safe_load((Path(__file__).parents[2] / "config/config.yaml").read_text(encoding="utf-8"))
    untrained = {arm["model"] for arm in raw["arms"].values() if "model" in arm and arm.get("training") is None}
    name = sorted(untrained & raw["teachers"]["models"].keys())[0]
    scaling = {"method": "ntk", "factor": 2}
    raw["teachers"]["models"][name]["rope_scaling"] = scaling
    load_study(raw)
    raw["evaluation"]["backend"] = "vllm"
    with pytest.raises(ConfigError, match=rf"teachers\.models\.{name}\.rope_scaling: given, but arm .* as it comes"):
        load_study(raw)
    raw["teachers"]["models"][name]["rope_scaling"] = None
    load_study(raw)


def test_without_the_package_nothing_is_loaded(tmp_path, data_folder, model_folders, study_tools, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(
        ImportError, match=r"evaluation\.backend: 'vllm' needs .*pip install 'mtkv\[vllm\]'.* backend: hf"
    ):
        answers(
            model_folders["llama"],
            data_folder,
            study_tools.config(backend="vllm"),
            tmp_path,
            ["pocket_gpqa"],
            load=never,
        )


def test_the_config_knows_two_backends():
    raw = yaml.safe_load((Path(__file__).parents[2] / "config/config.yaml").read_text(encoding="utf-8"))
    assert load_study(raw).evaluation.backend == "hf"
    raw["evaluation"]["backend"] = "vllm"
    assert load_study(raw).evaluation.backend == "vllm"
    raw["evaluation"]["backend"] = "vlm"
    with pytest.raises(
        ConfigError, match=r"evaluation\.backend: 'vlm' is not one of hf, vllm \(did you mean 'vllm'\?\)"
    ):
        load_study(raw)
