"""Averaged weights: against numpy, used as any other model, and refused where there is nothing to average."""

import json

import numpy as np
import pytest
from safetensors.numpy import load_file

from mtkv.config.models import ModelConfig, TeachersConfig
from mtkv.models.load import load_model, load_tokenizer, model_folder
from mtkv.models.paths import content_digest, pocket_folder

EXPERTS = ("expert_reasoning", "expert_knowledge")


@pytest.fixture(autouse=True)
def assets(tmp_path, monkeypatch):
    monkeypatch.setenv("MTKV_ASSETS", str(tmp_path))
    return tmp_path


def merged(*names, **changes):
    parts = [ModelConfig(name=name) for name in names]
    return ModelConfig.model_validate({"source": "merged", "name": "average", "merge": parts} | changes)


def test_every_weight_is_the_mean():
    model = load_model(merged(*EXPERTS))
    files = [load_file(pocket_folder(name) / "model.safetensors") for name in EXPERTS]
    found = model.state_dict()
    assert set(files[0]) <= set(found)
    for name, one in files[0].items():
        expected = (one.astype(np.float64) + files[1][name].astype(np.float64)) / 2
        np.testing.assert_allclose(found[name].numpy(), expected, rtol=1e-6, atol=1e-7)
    assert load_tokenizer(merged(*EXPERTS)).get_vocab() == load_tokenizer(ModelConfig(name=EXPERTS[0])).get_vocab()


def test_it_is_made_once_and_anew_for_other_models(assets):
    first = model_folder(merged(*EXPERTS))
    made = (first / "model.safetensors").stat().st_mtime_ns
    assert model_folder(merged(*EXPERTS)) == first
    assert (first / "model.safetensors").stat().st_mtime_ns == made
    assert model_folder(merged("student", EXPERTS[0])) != first
    assert json.loads(first.with_name(first.name + ".json").read_text())["of"] == list(EXPERTS)
    digests = {content_digest(config) for config in (merged(*EXPERTS), merged("student", EXPERTS[0]))}
    assert len(digests) == 2


def test_other_architectures_are_refused_by_the_tensor_that_differs():
    with pytest.raises(
        ValueError, match=r"cannot merge 'student' and 'qwen2': .* merge takes models of one architecture"
    ):
        load_model(merged("student", "qwen2"))


def test_teachers_are_named_by_id_and_wrong_ids_refused():
    teachers = {"a": {"name": EXPERTS[0]}, "b": {"name": EXPERTS[1]}}
    given = {"models": teachers | {"mix": {"source": "merged", "name": "mix", "merge": ["a", "b"]}}}
    assert [part.name for part in TeachersConfig.model_validate(given).models["mix"].merge] == list(EXPERTS)
    for wrong, message in ((["a", "c"], "'c' is not"), (["a", "mix"], "'mix' is not"), (["a"], "two models or more")):
        given["models"]["mix"]["merge"] = wrong
        with pytest.raises(ValueError, match=message):
            TeachersConfig.model_validate(given)
    with pytest.raises(ValueError, match="only merged models have it"):
        ModelConfig.model_validate({"name": "student", "merge": [{"name": "qwen2"}, {"name": "gpt2"}]})
