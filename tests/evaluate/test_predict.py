"""Predictions against one-by-one references (no padding, no lm-eval), against lm-eval's own front end, and their reuse."""

import re

import pandas as pd
import pytest
import torch
import yaml
from lm_eval.evaluator import simple_evaluate
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from transformers import AutoModelForCausalLM, AutoTokenizer

from mtkv.config.models import ModelConfig
from mtkv.evaluate.lm_eval_tasks import TASK_FOLDER
from mtkv.evaluate.predictions import read_predictions
from mtkv.models.load import load_model, load_tokenizer, model_folder
from mtkv.stages.predict import ModelSource, predict

MODELS = ["llama", "gpt2"]


@pytest.fixture(scope="module")
def predicted(tmp_path_factory, data_folder, model_folders, study_tools):
    """All datasets of each model, answered in batches of 5: name -> dataset -> rows."""
    frames = {}
    for name in MODELS:
        outputs = {dataset: tmp_path_factory.mktemp(name) / f"{dataset}.parquet" for dataset in study_tools.datasets}
        facts = predict(ModelSource(model_folders[name]), data_folder, study_tools.config(), outputs)
        assert facts["failed"] == {}
        frames[name] = {dataset: read_predictions(path)[0].set_index("item") for dataset, path in outputs.items()}
    return frames


def loaded(folder):
    return AutoModelForCausalLM.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)


def questions(data_folder, dataset):
    return pd.read_parquet(data_folder / "test" / f"{dataset}.parquet").to_dict("records")


def greedy(model, tokenizer, prompt, max_new_tokens):
    """Argmax of the whole text's logits, token by token, without a KV cache."""
    ids, new = tokenizer(prompt)["input_ids"], []
    while len(new) < max_new_tokens:
        with torch.no_grad():
            token = int(model(torch.tensor([ids + new])).logits[0, -1].argmax())
        if token == tokenizer.eos_token_id:
            break
        new.append(token)
    return tokenizer.decode(new).split("\n\n")[0], len(new)


@pytest.mark.parametrize("name", MODELS)
def test_generation_is_greedy_decoding_of_each_prompt_alone(name, predicted, data_folder, model_folders, study_tools):
    model, tokenizer = loaded(model_folders[name])
    lengths = []
    for dataset in study_tools.generation:
        for item in questions(data_folder, dataset):
            prompt = study_tools.expected_prompt(dataset, item["question"])
            output, length = greedy(model, tokenizer, prompt, max_new_tokens=20)
            row = predicted[name][dataset].loc[item["id"]]
            lengths.append(length)
            assert row["output"] == output
            found = re.search(r"Answer: *(.+)", output)
            assert row["filtered"] == (found[1].strip() if found else "[no answer]")
            assert row["correct"] == float(row["filtered"] == item["answer"])
            assert row["gold"] == item["answer"]
            assert pd.isna(row["loglikelihoods"])
    assert len(set(lengths)) > 3, "the reference must end at different lengths, or stopping is not tested"


@pytest.mark.parametrize("name", MODELS)
def test_choice_loglikelihoods_are_sums_of_log_softmax(name, predicted, data_folder, model_folders, study_tools):
    model, tokenizer = loaded(model_folders[name])
    for dataset in study_tools.choice:
        for item in questions(data_folder, dataset):
            row = predicted[name][dataset].loc[item["id"]]
            prompt = study_tools.expected_prompt(dataset, item["question"])
            space = " " if prompt.startswith("Question") else ""
            sums = [loglikelihood(model, tokenizer, prompt, space + choice) for choice in item["choices"]]
            assert row["loglikelihoods"] == pytest.approx(sums, abs=1e-4)
            best = sums.index(max(sums))
            assert row["correct"] == float(best == item["gold"])
            assert (row["filtered"], row["gold"]) == (item["choices"][best], item["answer"])
            assert pd.isna(row["output"])


def test_a_choice_merged_with_its_prompt_is_scored_whole(tmp_path, data_folder, model_folders, study_tools):
    """Choices of a question differ by what the whole texts differ by, whatever tokens the prompt's end becomes part of."""
    model, tokenizer = loaded(model_folders["merging"])
    outputs = {dataset: tmp_path / f"{dataset}.parquet" for dataset in study_tools.choice}
    predict(ModelSource(model_folders["merging"]), data_folder, study_tools.config(), outputs)
    merged = 0
    for dataset, path in outputs.items():
        rows = read_predictions(path)[0].set_index("item")
        for item in questions(data_folder, dataset):
            prompt = study_tools.expected_prompt(dataset, item["question"])
            space = " " if prompt.startswith("Question") else ""
            sums = [loglikelihood(model, tokenizer, prompt[0], prompt[1:] + space + text) for text in item["choices"]]
            found = rows.loc[item["id"], "loglikelihoods"]
            assert found - found[0] == pytest.approx([total - sums[0] for total in sums], abs=1e-4)
            alone = tokenizer(prompt)["input_ids"]
            merged += tokenizer(prompt + space + item["choices"][0])["input_ids"][: len(alone)] != alone
    assert merged > 0, "the tokenizer must merge, or nothing is tested"


def loglikelihood(model, tokenizer, prompt, continuation):
    start, ids = len(tokenizer(prompt)["input_ids"]), tokenizer(prompt + continuation)["input_ids"]
    with torch.no_grad():
        log_probabilities = model(torch.tensor([ids])).logits[0].double().log_softmax(-1)
    return sum(float(log_probabilities[time - 1, ids[time]]) for time in range(start, len(ids)))


@pytest.mark.parametrize("name", ["student", "qwen2", "gpt2"])
def test_packaged_models_are_read_the_same_way(name, tmp_path, data_folder, study_tools):
    """The three tokenizers of the pocket study: generation one by one, and differences between whole texts."""
    config = ModelConfig(name=name)
    model, tokenizer = load_model(config), load_tokenizer(config)
    outputs = {dataset: tmp_path / f"{dataset}.parquet" for dataset in ["pocket_bbh", "pocket_gpqa", "pocket_ceval"]}
    predict(
        ModelSource(model_folder(config), lambda _: (model, tokenizer)),
        data_folder,
        study_tools.config(limit=4, max_new_tokens=12),
        outputs,
    )
    for dataset, path in outputs.items():
        rows = read_predictions(path)[0].set_index("item")
        for item in questions(data_folder, dataset)[:4]:
            prompt = study_tools.expected_prompt(dataset, item["question"])
            if dataset == "pocket_bbh":
                assert rows.loc[item["id"], "output"] == greedy(model, tokenizer, prompt, 12)[0]
                continue
            space = " " if prompt.startswith("Question") else ""
            sums = [loglikelihood(model, tokenizer, prompt[0], prompt[1:] + space + text) for text in item["choices"]]
            found = rows.loc[item["id"], "loglikelihoods"]
            assert found - found[0] == pytest.approx([total - sums[0] for total in sums], abs=1e-3)


def test_a_trained_model_knows_the_half_it_was_shown(predicted, study_tools):
    """The fixture is neither all right nor all wrong, so that `correct` is tested both ways."""
    for frames in predicted.values():
        correct = pd.concat([frames[dataset]["correct"] for dataset in study_tools.generation])
        assert 0.3 < correct.mean() < 0.9


@pytest.mark.parametrize("batch_size", [1, 64])
def test_batch_size_changes_nothing(batch_size, predicted, tmp_path, data_folder, model_folders, study_tools):
    datasets = ["pocket_gsm8k", "pocket_ceval"]
    outputs = {dataset: tmp_path / f"{dataset}.parquet" for dataset in datasets}
    predict(ModelSource(model_folders["gpt2"]), data_folder, study_tools.config(batch_size=batch_size), outputs)
    for dataset in datasets:
        rows, expected = read_predictions(outputs[dataset])[0].set_index("item"), predicted["gpt2"][dataset]
        same = ["cluster", "prompt_hash", "output", "filtered", "gold", "correct"]
        pd.testing.assert_frame_equal(rows[same], expected[same])
        for mine, theirs in zip(rows["loglikelihoods"], expected["loglikelihoods"], strict=True):
            assert (mine is None and theirs is None) or list(mine) == pytest.approx(list(theirs), abs=1e-4)


@pytest.mark.parametrize("dataset", ["pocket_math500", "pocket_truthfulqa", "pocket_cmmlu"])
def test_lm_eval_alone_says_the_same(dataset, predicted, tmp_path, data_folder, model_folders, study_tools):
    """The YAML file, loaded by lm-eval's own TaskManager and `load_dataset`, run by `simple_evaluate`."""
    config = yaml.safe_load((TASK_FOLDER / f"{dataset}.yaml").read_text(encoding="utf-8"))
    assert config["dataset_kwargs"] == {"data_files": {"test": f"results/pocket/data/test/{dataset}.parquet"}}
    file = str(data_folder / "test" / f"{dataset}.parquet")
    config["dataset_kwargs"] = {"data_files": {"test": file}, "cache_dir": str(tmp_path / "cache")}
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "task.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    model, tokenizer = loaded(model_folders["llama"])
    gen_kwargs = {"max_gen_toks": 20} if dataset in study_tools.generation else None
    results = simple_evaluate(
        HFLM(pretrained=model, tokenizer=tokenizer, batch_size=7),
        tasks=[dataset],
        task_manager=TaskManager(include_path=str(tmp_path / "tasks"), include_defaults=False),
        bootstrap_iters=0,
        gen_kwargs=gen_kwargs,
    )
    metric = "exact_match" if dataset in study_tools.generation else "acc"
    samples = {sample["doc"]["id"]: sample for sample in results["samples"][dataset]}
    rows = predicted["llama"][dataset]
    assert set(samples) == set(rows.index)
    for item, sample in samples.items():
        assert sample[metric] == rows.loc[item, "correct"]
        assert sample["prompt_hash"] == rows.loc[item, "prompt_hash"]


def test_facts_count_what_was_computed(tmp_path, data_folder, model_folders, study_tools):
    model, tokenizer = loaded(model_folders["llama"])
    outputs = {"pocket_bbh": tmp_path / "out.parquet"}
    facts = predict(ModelSource(model_folders["llama"]), data_folder, study_tools.config(batch_size=1), outputs)
    prompts = [
        study_tools.expected_prompt("pocket_bbh", item["question"]) for item in questions(data_folder, "pocket_bbh")
    ]
    lengths = [greedy(model, tokenizer, prompt, 20)[1] for prompt in prompts]
    with_eos = sum(min(length + 1, 20) for length in lengths)
    assert facts["tokens"] == facts["datasets"]["pocket_bbh"]["generated_tokens"] == with_eos
    assert facts["datasets"]["pocket_bbh"]["forward_passes"] == with_eos  # one a token, in batches of one
    assert facts["datasets"]["pocket_bbh"]["items"] == study_tools.items


def test_limit_takes_the_first_items(tmp_path, data_folder, model_folders, study_tools):
    outputs = {"pocket_gpqa": tmp_path / "out.parquet"}
    predict(ModelSource(model_folders["llama"]), data_folder, study_tools.config(limit=3), outputs)
    expected = [item["id"] for item in questions(data_folder, "pocket_gpqa")[:3]]
    assert read_predictions(outputs["pocket_gpqa"])[0]["item"].tolist() == expected


def test_nothing_is_cut_when_a_prompt_is_too_long(tmp_path, data_folder, model_folders, study_tools):
    """Generation has no room for 140 tokens in a context of 160; multiple choice needs none. The rest of the run goes on."""
    outputs = {dataset: tmp_path / f"{dataset}.parquet" for dataset in ["pocket_gsm8k", "pocket_gpqa"]}
    config, cache = study_tools.config(max_new_tokens=140), tmp_path / "cache"
    facts = predict(ModelSource(model_folders["gpt2"]), data_folder, config, outputs, cache)
    rows, reason = read_predictions(outputs["pocket_gsm8k"])
    assert rows.empty
    assert reason == facts["failed"]["pocket_gsm8k"]
    assert "140" in reason
    assert "160" in reason
    assert read_predictions(outputs["pocket_gpqa"])[1] is None
    assert len(list(cache.iterdir())) == 1, "a failure is tried again next time"


def test_the_longest_fitting_answer_fits(tmp_path, data_folder, model_folders, study_tools):
    """A context exactly as long as the longest prompt and its answer is enough; one token less is not."""
    _, tokenizer = loaded(model_folders["llama"])
    prompts = [
        study_tools.expected_prompt("pocket_bbh", item["question"]) for item in questions(data_folder, "pocket_bbh")
    ]
    room = 160 - max(len(tokenizer(prompt)["input_ids"]) for prompt in prompts)
    for max_new_tokens, failed in [(room, False), (room + 1, True)]:
        outputs = {"pocket_bbh": tmp_path / "out.parquet"}
        config = study_tools.config(max_new_tokens=max_new_tokens, batch_size=64)
        facts = predict(ModelSource(model_folders["llama"]), data_folder, config, outputs)
        assert bool(facts["failed"]) == failed


def test_a_model_without_eos_is_refused(tmp_path, data_folder, model_folders, study_tools):
    def load(folder):
        model, tokenizer = loaded(folder)
        model.generation_config.eos_token_id = None
        return model, tokenizer

    with pytest.raises(ValueError, match="eos_token_id"):
        predict(
            ModelSource(model_folders["llama"], load),
            data_folder,
            study_tools.config(),
            {"pocket_gpqa": tmp_path / "out.parquet"},
        )


def test_infinite_loglikelihoods_are_a_failure(tmp_path, data_folder, model_folders, study_tools):
    def load(folder):
        model, tokenizer = loaded(folder)
        model.get_output_embeddings().weight.data.fill_(float("nan"))
        return model, tokenizer

    outputs = {"pocket_ceval": tmp_path / "out.parquet"}
    predict(ModelSource(model_folders["llama"], load), data_folder, study_tools.config(), outputs)
    assert "not finite" in read_predictions(outputs["pocket_ceval"])[1]


@pytest.mark.parametrize("beams", [1, 2])  # 2: by lm-eval's own loop
@pytest.mark.parametrize("broken", [float("nan"), float("inf")])
def test_a_model_of_nan_says_nothing(tmp_path, data_folder, model_folders, study_tools, beams, broken):
    def load(folder):
        model, tokenizer = loaded(folder)
        model.get_output_embeddings().weight.data[3] = broken
        model.generation_config.num_beams = beams
        return model, tokenizer

    outputs = {"pocket_gsm8k": tmp_path / "out.parquet"}
    facts = predict(ModelSource(model_folders["llama"], load), data_folder, study_tools.config(), outputs)
    rows, reason = read_predictions(outputs["pocket_gsm8k"])
    assert rows.empty
    assert "logits are not finite" in reason
    assert facts["failed"]["pocket_gsm8k"] == reason


def test_a_token_that_a_model_never_says_is_no_failure(tmp_path, data_folder, model_folders, study_tools):
    """Some models put −∞ on tokens of their padded vocabulary."""

    def load(folder):
        model, tokenizer = loaded(folder)
        head, never = model.get_output_embeddings(), torch.zeros(len(tokenizer))
        never[3] = float("-inf")
        head.register_forward_hook(lambda module, inputs, logits: logits + never)
        return model, tokenizer

    outputs = {"pocket_gsm8k": tmp_path / "out.parquet"}
    predict(ModelSource(model_folders["llama"], load), data_folder, study_tools.config(), outputs)
    assert read_predictions(outputs["pocket_gsm8k"])[1] is None
