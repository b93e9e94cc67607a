"""The packaged models: what they promise about themselves, read back through transformers alone."""

import hashlib
import json
import socket

import pandas as pd
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from mtkv.config.data import DataConfig
from mtkv.config.models import ModelConfig
from mtkv.data.build import draw_frames
from mtkv.data.pocket import TASKS
from mtkv.models.load import load_model, load_tokenizer
from mtkv.models.paths import POCKET, pocket_folder
from mtkv.models.pocket_recipe import MODELS
from mtkv.models.pocket_training import measure

NAMES = ("student", "qwen2", "gpt2")
TEACHERS = ("qwen2", "gpt2")
EXPERTS = ("expert_reasoning", "expert_knowledge")
RECIPE = json.loads((POCKET / "recipe.json").read_text())


@pytest.fixture(scope="module")
def rows() -> pd.DataFrame:
    sizes = {"train_rows": 800, "validation_rows": 100, "calibration_rows": 100, "test_items": 5}
    frames, _ = draw_frames(DataConfig.model_validate({"seed": 1} | sizes), list(TASKS))
    return pd.concat(frames.values(), ignore_index=True)


def config(name: str, **changes):
    return ModelConfig.model_validate({"source": "pocket", "name": name} | changes)


@pytest.mark.parametrize("name", [*NAMES, *EXPERTS])
def test_files_are_the_recorded_ones_and_small(name):
    files = {path.name: path for path in pocket_folder(name).iterdir()}
    assert {file: hashlib.sha256(path.read_bytes()).hexdigest() for file, path in files.items()} == RECIPE["models"][
        name
    ]["sha256"]
    assert {
        "config.json",
        "generation_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "model.safetensors",
    } <= set(files)
    assert max(path.stat().st_size for path in files.values()) <= 4 * 2**20


@pytest.mark.parametrize("name", NAMES)
def test_loads_offline_with_transformers_alone_and_stops_at_its_own_end(name, monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("the network was asked")

    monkeypatch.setattr(socket, "create_connection", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    model = AutoModelForCausalLM.from_pretrained(pocket_folder(name))
    tokenizer = AutoTokenizer.from_pretrained(pocket_folder(name))
    assert tokenizer.is_fast
    assert model.config.vocab_size == len(tokenizer)
    assert tokenizer.pad_token_id not in (None, tokenizer.eos_token_id)
    for settings in (model.generation_config, model.config):
        assert (settings.eos_token_id, settings.pad_token_id) == (tokenizer.eos_token_id, tokenizer.pad_token_id)
    assert tokenizer("x")["input_ids"] == tokenizer("x", add_special_tokens=False)["input_ids"]


@pytest.mark.parametrize("name", NAMES)
def test_tokenizer_gives_back_every_row_and_splits_numbers(name, rows):
    tokenizer = AutoTokenizer.from_pretrained(pocket_folder(name))
    texts = [*(rows["prompt"] + rows["target"]), "unseen: 🙂 é ǆ\t\n\n  鱻"]
    for text, ids in zip(texts, tokenizer(texts)["input_ids"], strict=True):
        assert tokenizer.decode(ids) == text
    assert tokenizer.tokenize("1234") == ["1", "2", "3", "4"]


@pytest.mark.parametrize("name", NAMES)
def test_offsets_cover_the_text_and_rows_are_short(name, rows):
    tokenizer = AutoTokenizer.from_pretrained(pocket_folder(name))
    lengths = []
    for text in rows["prompt"] + rows["target"]:
        encoded = tokenizer(text, return_offsets_mapping=True)
        covered = {index for start, end in encoded["offset_mapping"] for index in range(start, end)}
        assert covered == set(range(len(text)))
        lengths.append(len(encoded["input_ids"]))
    assert max(lengths) <= 96
    assert sum(lengths) / len(lengths) <= 48


@pytest.mark.parametrize("name", NAMES)
def test_rows_end_where_an_option_may_begin(rows, name):
    """Log-likelihood scoring encodes prompt + option together: the prompt must be a prefix of that in tokens."""
    tokenizer = AutoTokenizer.from_pretrained(pocket_folder(name))
    for row in rows[rows["style"] == "direct"].itertuples():
        prompt = tokenizer(row.prompt)["input_ids"]
        assert tokenizer(row.prompt + row.target)["input_ids"][: len(prompt)] == prompt


def test_the_three_differ_where_alignment_has_to_work():
    configs = {name: AutoConfig.from_pretrained(pocket_folder(name)) for name in NAMES}
    shapes = {
        name: (c.model_type, c.num_hidden_layers, getattr(c, "num_key_value_heads", None) or c.num_attention_heads)
        for name, c in configs.items()
    }
    widths = {getattr(c, "head_dim", None) or c.hidden_size // c.num_attention_heads for c in configs.values()}
    for values in zip(*shapes.values(), strict=True):
        assert len(set(values)) == 3
    assert len(widths) == 3
    assert configs["student"].num_key_value_heads < configs["student"].num_attention_heads
    thetas = {name: configs[name].rope_parameters["rope_theta"] for name in ("student", "qwen2")}
    assert len(set(thetas.values())) == 2
    assert not hasattr(configs["gpt2"], "rope_parameters")
    sizes = {name: RECIPE["models"][name]["parameters"] for name in NAMES}
    assert 1e5 <= sizes["student"] <= 3e5
    assert all(8e5 <= sizes[name] <= 1.5e6 for name in TEACHERS)
    kinds = {json.loads((pocket_folder(name) / "tokenizer.json").read_text())["model"]["type"] for name in NAMES}
    assert kinds == {"BPE", "Unigram"}


def test_recorded_accuracies_keep_the_promise():
    macro = {name: RECIPE["models"][name]["accuracy"]["macro"] for name in NAMES}
    assert all(macro[name] >= 0.85 for name in TEACHERS)
    assert macro["student"] <= 0.35


def test_experts_are_complementary_and_of_the_students_origin():
    """Each is far better than the student on its own tasks, and no better than it on the other's; shape and tokenizer are the student's."""
    accuracy = {name: RECIPE["models"][name]["accuracy"] for name in ("student", *EXPERTS)}
    tasks = {name: MODELS[name].tasks for name in EXPERTS}
    assert set.union(*(set(own) for own in tasks.values())) == set(TASKS)
    assert not set.intersection(*(set(own) for own in tasks.values()))
    for name in EXPERTS:
        for task in TASKS:
            gain = accuracy[name][task] - accuracy["student"][task]
            assert gain > 0.2 if task in tasks[name] else gain < 0.05, (name, task)
        assert RECIPE["models"][name]["parameters"] == RECIPE["models"]["student"]["parameters"]
        files = [pocket_folder(one) / "tokenizer.json" for one in (name, "student")]
        assert files[0].read_bytes() == files[1].read_bytes()
        assert sum(path.stat().st_size for path in pocket_folder(name).iterdir()) < 420_000


@pytest.mark.parametrize("name", ["student", "qwen2", *EXPERTS])
def test_recorded_accuracies_can_be_measured_again(name):
    torch.set_num_threads(1)
    accuracy = measure(load_model(config(name)), load_tokenizer(config(name)))
    assert accuracy["macro"] == pytest.approx(RECIPE["models"][name]["accuracy"]["macro"], abs=0.01)


def test_load_model_takes_the_dtype_and_paths():
    model = load_model(config("student", dtype="float16"))
    assert model.dtype == torch.float16
    assert not model.training
    same = load_model(config(str(pocket_folder("student")), source="path", dtype="float16"))
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), same.state_dict().values(), strict=True))
    with pytest.raises(FileNotFoundError, match=r"config\.json"):
        load_model(config("/nowhere", source="path"))
