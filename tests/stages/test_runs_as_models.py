"""A trained run as a teacher and as a part of a merged model, and training on the rows of some sources, on tiny models."""

import random

import numpy as np
import pandas as pd
import pytest
import tiny_study
import torch
from safetensors.numpy import load_file
from tiny_study import TRAINING, TinyStudy, kv, same, weights
from transformers import AutoModelForCausalLM, AutoTokenizer

from mtkv.config.models import ModelConfig
from mtkv.data.rows import RowFile
from mtkv.kv.store import KVStore
from mtkv.models.load import load_model
from mtkv.models.paths import content_digest
from mtkv.ops.cost_model.model_sizes import model_size
from mtkv.stages.train import training_rows

SOURCES = {"apples": ["apples"], "sums": ["sums"]}
RUNS = {name: ModelConfig(source="run", study="tiny", arm=name, seed=42) for name in SOURCES}


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """A study below the working directory, with a run for each source."""
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("study")
        patch.chdir(folder)
        patch.setenv("MTKV_ASSETS", str(folder / "assets"))
        made = TinyStudy(folder)
        for name, config in RUNS.items():
            assert content_digest(config) == "missing"
            patch.setitem(tiny_study.MODELS, name, tiny_study.MODELS["student"])
            training = TRAINING.model_copy(update={"sources": SOURCES[name], "learning_rate": 1e-2})
            made.facts[name] = tiny_study.train_arm(made.run(config.run_folder.absolute(), training=training))
        made.models |= RUNS
        yield made


def test_each_run_saw_the_rows_of_its_sources_alone(study):
    rows = pd.read_parquet(study.paths["train"])
    assert [study.facts[name]["train_rows"] for name in RUNS] == [(rows["dataset"] == name).sum() for name in RUNS]
    one, other = (weights(config.run_folder) for config in RUNS.values())
    assert not same(one, other)


def test_a_runs_values_in_the_store_are_those_of_transformers_own_cache(study):
    store = KVStore(study.store("sums"), verify=True)
    folder = RUNS["sums"].run_folder / "model"
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    row = pd.read_parquet(study.paths["train"]).iloc[3]
    ids = tokenizer(row["prompt"] + row["target"], return_tensors="pt").input_ids
    with torch.no_grad():
        cache = model(ids, use_cache=True).past_key_values
    places = np.arange(ids.shape[1])
    stored = store.read(row["id"], places)[:, :, 1].float()
    for layer in range(3):
        expected = cache.layers[layer].values[0].transpose(0, 1).flatten(1)
        torch.testing.assert_close(stored[:, layer], expected, rtol=2e-3, atol=2e-3)


def test_a_student_is_taught_by_a_run(study):
    taught, facts = study.train("taught", kv(teachers=["sums"], align={"map": "identity"}, loss={"lambda_k": 10}))
    plain, _ = study.train("plain")
    assert facts["supervised_share"] > 0.5
    assert not same(weights(taught), weights(plain))


def test_the_average_of_runs_is_that_of_their_files(study):
    mix = ModelConfig(source="merged", name="mix", merge=list(RUNS.values()))
    files = [load_file(config.run_folder / "model/model.safetensors") for config in RUNS.values()]
    for name, weight in load_model(mix).state_dict().items():
        if name in files[0]:
            mean = (files[0][name].astype(np.float64) + files[1][name]) / 2
            np.testing.assert_allclose(weight.numpy(), mean, rtol=1e-6, atol=1e-7)


def test_the_digest_is_of_the_trained_files_but_where_a_job_has_them_as_input(study):
    mix = ModelConfig(source="merged", name="mix", merge=list(RUNS.values()))
    sums, folder = RUNS["sums"], RUNS["sums"].run_folder / "model"
    path = ModelConfig(source="path", name=str(folder))
    assert content_digest(sums) == content_digest(sums, "other") == content_digest(path, "tiny")
    before = [content_digest(config, study) for study in (None, "tiny") for config in (sums, mix)]
    assert before[2] == "input"
    assert len(set(before)) == 4
    file = folder / "model.safetensors"
    kept = file.read_bytes()
    file.write_bytes(kept[:-1] + bytes([kept[-1] ^ 1]))
    after = [content_digest(config, study) for study in (None, "tiny") for config in (sums, mix)]
    file.write_bytes(kept)
    assert [one == other for one, other in zip(before, after, strict=True)] == [False, False, True, True]
    assert model_size(sums) == model_size(mix) == model_size(study.models["student"])


def test_sources_then_styles_then_the_first_rows(study, tmp_path):
    """Against a loop over the rows, in memory and in pieces from the file."""
    rng = random.Random(0)
    frame = pd.concat([tiny_study.rows("train", 60)] * 2, ignore_index=True)
    frame["id"] = [f"row-{number}" for number in range(len(frame))]
    frame["dataset"] = [rng.choice("abc") for _ in range(len(frame))]
    frame["style"] = [rng.choice(["cot", "direct"]) for _ in range(len(frame))]
    frame.to_parquet(tmp_path / "rows.parquet")
    frame.assign(id="val-" + frame["id"]).to_parquet(tmp_path / "val.parquet")
    for sources, styles, limit in (
        (["b"], None, 7),
        (["c", "a"], ["cot"], 5),
        (None, ["direct"], None),
        (["a"], ["cot"], 99),
    ):
        expected = []
        for row in frame.to_dict("records"):
            if (sources is None or row["dataset"] in sources) and (styles is None or row["style"] in styles):
                expected.append(row["id"])
        expected = expected[:limit]
        pieces = RowFile(tmp_path / "rows.parquet", styles, limit, piece=11, sources=sources).pieces()
        assert [name for piece in pieces for name in piece["id"]] == expected
        training = TRAINING.model_copy(update={"sources": sources, "styles": styles, "rows": limit})
        paths = {"train_rows": tmp_path / "rows.parquet", "validation_rows": tmp_path / "val.parquet"}
        run = study.run(tmp_path, training=training, **paths)
        _, (train, checked) = training_rows(run, stream=False)
        assert train["id"].tolist() == expected
        assert set(checked["dataset"]) <= set(sources or "abc")
    training = TRAINING.model_copy(update={"sources": ["none"]})
    with pytest.raises(ValueError, match=r"none of the rows is of training\.sources"):
        training_rows(study.run(tmp_path, training=training), stream=False)
