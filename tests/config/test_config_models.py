"""Where models come from and what LoRA asks: what the config refuses, and in which words."""

import pytest

from mtkv.config.arms import TrainingConfig
from mtkv.config.errors import ConfigError
from mtkv.config.models import ModelConfig
from mtkv.config.study import load_study


def problems(raw, **student):
    raw["student"] = student
    with pytest.raises(ConfigError) as caught:
        load_study(raw)
    return [str(problem) for problem in caught.value.problems]


@pytest.mark.parametrize(
    ("student", "wanted"),
    [
        (
            {"source": "hub", "name": "/data/model"},
            "student.name: '/data/model' is not an id of the hub; allowed: owner/name",
        ),
        ({"source": "hub", "name": "a/b/c"}, "student.name: 'a/b/c' is not an id of the hub; allowed: owner/name"),
        (
            {"name": "student", "revision": "v1"},
            "student.revision: given, but source is pocket; only hub models have one",
        ),
        (
            {"source": "hub", "name": "a/b", "gguf_file": "x.gguf"},
            "student.gguf_file: given, but source is hub; only gguf models have one",
        ),
        (
            {"source": "gguf", "name": "folder"},
            "student.name: 'folder' is not a .gguf file; with a folder, name the file in gguf_file",
        ),
        (
            {"name": "student", "prompt": "chat"},
            "student.prompt: 'chat' needs a chat template, which pocket models have not; allowed: plain",
        ),
        (
            {"name": "student", "prompt": "chats"},
            "student.prompt: 'chats' is not one of plain, chat (did you mean 'chat'?)",
        ),
        (
            {"name": "student", "date": "26 Jul 2024"},
            "student.date: '26 Jul 2024' is no day; allowed: YYYY-MM-DD, as in '2024-07-26'",
        ),
        (
            {"name": "student", "date": "20240726"},
            "student.date: '20240726' is no day; allowed: YYYY-MM-DD, as in '2024-07-26'",
        ),
        (
            {"source": "gguf", "name": "no/such.gguf"},
            "student.name: 'no/such.gguf' is not a file; source gguf needs an existing GGUF file",
        ),
        (
            {"source": "gguf", "name": ".", "gguf_file": "none.gguf"},
            "student.gguf_file: 'none.gguf' is not a file; source gguf needs an existing GGUF file",
        ),
    ],
)
def test_a_models_source_and_fields_must_fit(raw, student, wanted):
    assert problems(raw, **student) == [wanted]


@pytest.mark.parametrize("name", ["gpt2", "HuggingFaceTB/SmolLM2-135M-Instruct", "Qwen/Qwen2.5-1.5B"])
def test_hub_ids_of_the_studies_are_accepted(raw, name):
    raw["student"] = {"source": "hub", "name": name, "revision": "main", "prompt": "chat"}
    assert load_study(raw).student == ModelConfig(source="hub", name=name, revision="main", prompt="chat")


def test_a_gguf_file_in_a_folder_is_found(raw, tmp_path):
    (tmp_path / "m.gguf").touch()
    for student in ({"name": str(tmp_path / "m.gguf")}, {"name": str(tmp_path), "gguf_file": "m.gguf"}):
        raw["student"] = {"source": "gguf"} | student
        assert load_study(raw).student.source == "gguf"


def test_lora_is_off_by_default_and_checked(raw):
    assert TrainingConfig(steps=1).lora is None
    raw["arms"]["sft"]["training"]["lora"] = {"rank": 0, "dropout": 1.0, "targets": ["q_proj", "q_proj"], "alfa": 2}
    with pytest.raises(ConfigError) as caught:
        load_study(raw)
    assert sorted(str(problem) for problem in caught.value.problems) == [
        "arms.sft.training.lora.alfa: unknown key; allowed: rank, alpha, dropout, targets, quantize (did you mean 'alpha'?)",
        "arms.sft.training.lora.dropout: 1.0 is not allowed; allowed: less than 1",
        "arms.sft.training.lora.rank: 0 is not allowed; allowed: at least 1",
        "arms.sft.training.lora.targets: 'q_proj' given more than once; each entry once",
    ]


def test_an_ablation_switches_lora_on_by_its_rank_alone(raw):
    raw["arms"]["small"] = {"extends": "sft", "training": {"lora": {"rank": 8}}}
    lora = load_study(raw).arms["small"].training.lora
    assert (lora.rank, lora.alpha, lora.dropout, lora.targets) == (8, 32, 0.0, None)
