"""Answers are computed once: the same model, questions, settings and code are copied, anything else is computed again."""

import shutil

import pandas as pd
import pytest

from mtkv.evaluate.lm_eval_model import load_folder
from mtkv.stages.predict import ModelSource, predict

FIRST, SECOND = "pocket_gpqa", "pocket_ceval"


class ModelIsLoadedError(Exception):
    pass


def refuse(_folder):
    raise ModelIsLoadedError


@pytest.fixture
def study(tmp_path, data_folder, model_folders, study_tools):
    """`study(datasets, **changes)` runs predict in a private copy of data and model, with one cache."""
    shutil.copytree(data_folder, tmp_path / "data")
    shutil.copytree(model_folders["llama"], tmp_path / "model")

    def run(datasets, *, load=refuse, code="a", dtype=None, **config):
        outputs = {dataset: tmp_path / "predictions" / f"{dataset}.parquet" for dataset in datasets}
        for path in outputs.values():
            path.unlink(missing_ok=True)  # as Snakemake does
        settings = study_tools.config(limit=4) if not config else study_tools.config(**({"limit": 4} | config))
        facts = predict(
            ModelSource(tmp_path / "model", load, dtype),
            tmp_path / "data",
            settings,
            outputs,
            tmp_path / "cache",
            code=code,
        )
        return facts, {dataset: path.read_bytes() for dataset, path in outputs.items()}

    run.folder = tmp_path
    return run


def test_known_answers_need_no_model(study):
    first, bytes_before = study([FIRST, SECOND], load=load_folder)
    assert first["reused"] == []
    second, bytes_after = study([FIRST, SECOND])
    assert second["reused"] == [FIRST, SECOND]
    assert second["datasets"] == {}
    assert bytes_after == bytes_before


def test_a_new_dataset_is_the_only_one_answered(study):
    study([FIRST], load=load_folder)
    facts, _ = study([FIRST, SECOND], load=load_folder)
    assert (facts["reused"], list(facts["datasets"])) == ([FIRST], [SECOND])


def test_the_way_jobs_are_cut_does_not_matter(study):
    study([FIRST], load=load_folder, jobs="per_run")
    assert study([FIRST], jobs="per_dataset")[0]["reused"] == [FIRST]


@pytest.mark.parametrize(
    "change",
    [{"code": "b"}, {"max_new_tokens": 21}, {"limit": 5}, {"num_fewshot": 1}, {"batch_size": 6}, {"dtype": "bfloat16"}],
)
def test_other_settings_are_other_answers(study, change):
    study([FIRST], load=load_folder)
    with pytest.raises(ModelIsLoadedError):
        study([FIRST], **change)


@pytest.mark.parametrize(
    "file",
    ["model/model.safetensors", "model/tokenizer.json", "model/generation_config.json", f"data/test/{FIRST}.parquet"],
)
def test_other_files_are_other_answers(study, file):
    study([FIRST, SECOND], load=load_folder)
    path = study.folder / file
    if path.suffix == ".parquet":
        pd.read_parquet(path).iloc[::-1].to_parquet(path)
        assert study([SECOND])[0]["reused"] == [SECOND], "the other dataset's questions are the same"
    else:
        path.write_bytes(path.read_bytes() + b" ")
    with pytest.raises(ModelIsLoadedError):
        study([FIRST])


def test_changed_training_rows_matter_only_to_solved_examples(study):
    study([FIRST], load=load_folder)
    study([FIRST], load=load_folder, num_fewshot=1)
    path = study.folder / "data" / "train.parquet"
    pd.read_parquet(path).iloc[1:].to_parquet(path)
    assert study([FIRST])[0]["reused"] == [FIRST]
    with pytest.raises(ModelIsLoadedError):
        study([FIRST], num_fewshot=1)
