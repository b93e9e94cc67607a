"""The real benchmarks, from files in their true schema, against lm-eval's own front end on the same files and model."""

import json
import shutil
import sys

import lm_eval.tasks
import pandas as pd
import pytest
import yaml
from benchmark_files import lines, whole, write_benchmarks, write_sources
from hypothesis import given, settings
from hypothesis import strategies as st
from lm_eval.api.metrics import exact_match_fn
from lm_eval.evaluator import simple_evaluate
from lm_eval.filters.extraction import RegexFilter
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from lm_eval.tasks._yaml_loader import load_yaml
from transformers import AutoTokenizer

from mtkv.config.data import BENCHMARKS, DataConfig
from mtkv.config.evaluation import LM_EVAL_TASKS
from mtkv.config.models import DATE, ModelConfig
from mtkv.data.build import build_data
from mtkv.data.mixture import _write_tests
from mtkv.evaluate.answer_matching import Rules, take
from mtkv.evaluate.answer_rows import answer_row, rules_of
from mtkv.evaluate.lm_eval_model import EvaluationModel
from mtkv.evaluate.lm_eval_tasks import LM_EVAL_FOLDER, RECIPES, UnanswerableError, load_benchmark
from mtkv.evaluate.predictions import read_metric, read_predictions
from mtkv.evaluate.scoring import ScoredRun, score
from mtkv.models.load import load_model, load_tokenizer
from mtkv.models.tokenization import encode_rows
from mtkv.stages.predict import ModelSource, predict, predictions_digest

NAMES = list(BENCHMARKS)
WITHOUT_EXTRAS = {"math500": "hendrycks_math500"}  # lm-eval's other task for it needs math_verify
CHAT = (
    "{% for message in messages %}<{{ message['role'] }}>{{ message['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant>\n{% endif %}"
)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return write_benchmarks(tmp_path_factory.mktemp("files"))


@pytest.fixture(scope="module")
def data(files, tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    config = DataConfig(mixture="multi_reasoning_cot_direct", folder=str(files))
    assert _write_tests(config, NAMES, folder)[2] == {}
    return folder


@pytest.fixture(scope="module")
def model_folder(model_folders, tmp_path_factory):
    """An untrained model with room for the longest prompt, and a tokenizer with a chat template."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig

    folder = tmp_path_factory.mktemp("long")
    tokenizer = AutoTokenizer.from_pretrained(model_folders["llama"])
    tokenizer.chat_template = CHAT
    torch.manual_seed(1)
    AutoModelForCausalLM.from_config(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=6000,
            initializer_range=0.3,
            pad_token_id=tokenizer.pad_token_id,
            eos_token_id=tokenizer.eos_token_id,
            bos_token_id=None,
        )
    ).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def answers(data, model_folder, folder, names, settings, **options):
    outputs = {name: folder / f"{name}.parquet" for name in names}
    facts = predict(ModelSource(model_folder, **options), data, settings, outputs)
    return facts, {name: read_predictions(path)[0].set_index("item") for name, path in outputs.items()}


@pytest.fixture(scope="module")
def answered(data, model_folder, study_tools, tmp_path_factory):
    settings = study_tools.config(num_fewshot=0, max_new_tokens=12, tasks=WITHOUT_EXTRAS)
    folder = tmp_path_factory.mktemp("answers")
    facts, rows = answers(data, model_folder, folder, NAMES, settings)
    assert facts["failed"] == {}
    return folder, rows


def test_config_and_recipes_name_the_same_tasks():
    assert set(LM_EVAL_TASKS) == set(BENCHMARKS)
    assert {task for tasks in LM_EVAL_TASKS.values() for task in tasks} == set(RECIPES)
    for recipe in RECIPES.values():
        found = list(LM_EVAL_FOLDER.glob(recipe.file.replace("{part}", "*")))
        assert len(found) >= 1, recipe.file


# (dataset, lm-eval's task, the test file and its type, files of other splits, settings of ours, settings of lm-eval's)
PARITY = {
    "generation": ("gsm8k", "gsm8k", "gsm8k/test.jsonl", {}, {}, {"num_fewshot": 0}),
    "examples": ("gsm8k", "gsm8k", "gsm8k/test.jsonl", {"train": "gsm8k/train.jsonl"}, {"num_fewshot": None}, {}),
    "limit": ("gsm8k", "gsm8k", "gsm8k/test.jsonl", {}, {"limit": 4}, {"num_fewshot": 0, "limit": 4}),
    "chat": (
        "gsm8k", "gsm8k", "gsm8k/test.jsonl", {"train": "gsm8k/train.jsonl"},
        {"num_fewshot": 2, "chat": DATE}, {"num_fewshot": 2, "apply_chat_template": True},
    ),
    "one subtask of 27": ("bbh", "bbh_cot_zeroshot_navigate", "bbh/navigate.json", {}, {}, {}),
    "another task": (
        "bbh", "bbh_cot_fewshot_navigate", "bbh/navigate.json", {},
        {"tasks": {"bbh": "bbh_cot_fewshot"}, "num_fewshot": 1}, {"num_fewshot": 1},
    ),
    "shuffled options": ("gpqa", "gpqa_main_zeroshot", "gpqa/gpqa_main.csv", {}, {"num_fewshot": 3}, {"num_fewshot": 3}),
    "choice with examples": (
        "ceval", "ceval-valid_law", "ceval/val/law_val.csv", {"dev": "ceval/dev/law_dev.csv"}, {"num_fewshot": 2}, {"num_fewshot": 2}
    ),
    "choice in chat": (
        "ceval", "ceval-valid_law", "ceval/val/law_val.csv", {"dev": "ceval/dev/law_dev.csv"},
        {"num_fewshot": 2, "chat": DATE}, {"num_fewshot": 2, "apply_chat_template": True},
    ),
    "math": ("math500", "hendrycks_math500", "math500/test.jsonl", {}, {"tasks": WITHOUT_EXTRAS}, {}),
}  # fmt: skip
FILES = {
    "bbh_cot_zeroshot_navigate": "bbh/cot_zeroshot/navigate.yaml",
    "bbh_cot_fewshot_navigate": "bbh/cot_fewshot/navigate.yaml",
    "ceval-valid_law": "ceval/ceval-valid_law.yaml",
}
SPLITS = {"gpqa_main_zeroshot": "train", "ceval-valid_law": "val"}


def lm_eval_alone(files, model_folder, tmp_path, task, test, others, options):
    """`simple_evaluate` on the file itself: lm-eval's own task, but for the address of its data, and its own model class."""
    split = SPLITS.get(task, "test")
    kwargs = {"data_files": {name: str(files / path) for name, path in ({split: test} | others).items()}}
    if test.endswith(".json"):
        kwargs["field"] = "examples"
    for name, path in kwargs["data_files"].items():
        if path.endswith(".csv"):  # lm-eval reads parquet of the hub, where options such as "None" and "0.50" are text
            kwargs["data_files"][name] = str(tmp_path / f"{name}.jsonl")
            frame = pd.read_csv(path, dtype=str, keep_default_na=False)
            frame.to_json(kwargs["data_files"][name], orient="records", lines=True)
    own = {"include": str(LM_EVAL_FOLDER / FILES.get(task, RECIPES.get(task, RECIPES["gsm8k"]).file)), "task": task}
    own |= {"dataset_path": "json", "dataset_name": None}
    own |= {} if others else {"fewshot_split": None} | ({"training_split": None} if split != "train" else {})
    (tmp_path / "task.yaml").write_text(yaml.safe_dump(own), encoding="utf-8")
    manager = TaskManager(include_defaults=False)
    loaded = {**yaml_config(tmp_path / "task.yaml"), "dataset_kwargs": kwargs | {"cache_dir": str(tmp_path / "cache")}}
    return simple_evaluate(
        HFLM(pretrained=str(model_folder), batch_size=3, device="cpu"),
        tasks=[loaded],
        task_manager=manager,
        bootstrap_iters=0,
        gen_kwargs={"max_gen_toks": 12},
        **options,
    )["samples"][task]


def yaml_config(path):
    return load_yaml(path, resolve_func=True)


@pytest.mark.parametrize("case", PARITY)
def test_lm_eval_alone_says_the_same_to_the_last_item(case, files, data, model_folder, study_tools, tmp_path):
    dataset, task, test, others, ours, theirs = PARITY[case]
    chat = {"chat": ours["chat"]} if "chat" in ours else {}
    settings = study_tools.config(
        **({"max_new_tokens": 12, "num_fewshot": 0} | {k: v for k, v in ours.items() if k != "chat"})
    )
    rows = answers(data, model_folder, tmp_path, [dataset], settings, **chat)[1][dataset]
    recipe = RECIPES[settings.task_of(dataset)]
    samples = [
        sample
        for sample in lm_eval_alone(files, model_folder, tmp_path, task, test, others, theirs)
        if sample["filter"] == recipe.filter
    ]
    part = rows[rows.index.str.contains("-navigate-|-law-")] if dataset in ("bbh", "ceval") else rows
    assert len(samples) == len(part) > 0
    for sample, (_, row) in zip(samples, part.iterrows(), strict=True):
        assert sample["prompt_hash"] == row["prompt_hash"]
        assert sample[recipe.metric] == row["correct"]
        if pd.notna(row["output"]):
            assert (sample["resps"][0][0], sample["filtered_resps"][0]) == (row["output"], row["filtered"])
        else:
            found = [response[0][0] for response in sample["resps"]]
            assert sorted(found) == pytest.approx(sorted(row["loglikelihoods"]), abs=1e-4)


def test_examples_of_lm_eval_s_own_that_are_test_questions_are_left_out_and_counted(
    files, model_folder, study_tools, tmp_path
):
    """Navigate's first example, upper-cased, among the test questions; GPQA's examples are test questions all."""
    shutil.copytree(files, tmp_path / "files")
    shown = yaml_config(LM_EVAL_FOLDER / "bbh/cot_fewshot/navigate.yaml")["fewshot_config"]["samples"]
    copies = [{"input": shown[0]["input"].upper(), "target": "No"}, {"input": "Do you return?", "target": "No"}]
    whole(tmp_path / "files/bbh/navigate.json", copies)
    config = DataConfig(mixture="multi_reasoning_cot_direct", folder=str(tmp_path / "files"))
    assert _write_tests(config, ["bbh", "gpqa"], tmp_path)[2] == {}
    tasks = {"bbh": "bbh_cot_fewshot", "gpqa": "gpqa_main_n_shot"}
    settings = study_tools.config(num_fewshot=3, max_new_tokens=2, tasks=tasks)
    for task in load_benchmark("bbh_cot_fewshot", "bbh", tmp_path, settings):
        prompt = task.fewshot_context(task.eval_docs[0], num_fewshot=task.config.num_fewshot)
        asked = task.part == "navigate"
        assert task.own_examples == (3, asked)
        assert prompt.count("Let's think step by step.") == (3 if asked else 4)
        if asked:
            assert shown[0]["input"] not in prompt
            assert all(example["target"] in prompt for example in shown[1:])
    facts = answers(tmp_path, model_folder, tmp_path, ["gpqa"], settings)[0]
    assert facts["datasets"]["gpqa"] | {"lm_eval_examples": 6, "lm_eval_examples_asked": 6} == facts["datasets"]["gpqa"]
    settings = study_tools.config(num_fewshot=0, max_new_tokens=2, tasks=tasks)
    assert {task.own_examples for task in load_benchmark("bbh_cot_fewshot", "bbh", tmp_path, settings)} == {()}


def test_gpqa_is_asked_in_shuffled_order_and_written_in_the_study_s(answered, data):
    questions = pd.read_parquet(data / "test" / "gpqa.parquet").set_index("id")
    rows = answered[1]["gpqa"]
    assert 0 < rows["correct"].sum() < len(rows) or len(rows) < 4
    for item, row in rows.iterrows():
        choices = questions.loc[item, "choices"]
        assert row["gold"] == choices[0]
        assert row["filtered"] == choices[row["loglikelihoods"].argmax()]


def test_scores_of_all_seven(answered, data, tmp_path):
    for name in NAMES:
        metric = read_metric(answered[0] / f"{name}.parquet")
        facts = score(
            ScoredRun("s", "a", 1, name),
            answered[0] / f"{name}.parquet",
            tmp_path / f"{name}.json",
            data / "test" / f"{name}.parquet",
        )
        assert (facts["status"], facts["n"], facts["metric"]) == ("ok", len(answered[1][name]), metric)
        assert facts["correct"] == answered[1][name]["correct"].sum()
    assert len(set(json.loads((tmp_path / "bbh.json").read_text())["items"]["cluster"])) == 27


def outcome(task, index, output):
    """The predictions row for one question when the model says `output`."""
    if not hasattr(task, "_instances"):
        task.build_all_requests(limit=None, rank=0, world_size=1)
    for instance in task.instances:
        instance.resps = [output]
    task.apply_filters()
    instance = next(instance for instance in task.instances if instance.doc_id == index)
    filtered = [instance.filtered_resps[task.filter]]
    sample = {"doc_id": index, "doc": instance.doc, "prompt_hash": "", "resps": [[output]], "filtered_resps": filtered}
    return answer_row(task, sample | task.process_results(instance.doc, filtered))


@pytest.mark.parametrize(
    ("dataset", "part", "index", "output", "correct"),
    [
        ("gsm8k", "main", 2, " so 10*100 = 1,000.", 1),
        ("gsm8k", "main", 2, " it is $1000", 1),
        ("gsm8k", "main", 2, " 1000 and no, 1001", 0),
        ("gsm8k", "main", 3, "#### -5", 1),
        ("gsm8k", "main", 4, " 18 dollars.", 1),
        ("gsm8k", "main", 2, " nothing", 0),
        ("bbh", "date_understanding", 0, " So the answer is (B).", 1),
        ("bbh", "navigate", 0, " Step by step: No.", 1),
        ("bbh", "object_counting", 0, " There are three cats.", 1),
        ("bbh", "word_sorting", 0, " so: apple pear w0", 1),
        ("bbh", "boolean_expressions", 0, " True and then False", 1),
        ("bbh", "boolean_expressions", 0, " False, no: True", 0),
        ("math500", "default", 0, r" it is $\frac12$", 1),
        ("math500", "default", 0, r" it is $0.5$", 1),
        ("math500", "default", 0, r" it is $\frac{1}{3}$", 0),
    ],
)
def test_answers_are_taken_and_compared_and_stand_a_second_look(
    dataset, part, index, output, correct, data, study_tools, tmp_path
):
    settings = study_tools.config(num_fewshot=0, tasks=WITHOUT_EXTRAS)
    tasks = load_benchmark(settings.task_of(dataset), dataset, data, settings)
    task = next(task for task in tasks if task.questions[0]["part"] == part)
    assert second_look(tmp_path, task, index, [output]) == [correct]


def run_score(folder, task, questions, rows):
    from mtkv.evaluate.predictions import write_predictions

    pd.DataFrame(questions).to_parquet(folder / "test.parquet")
    write_predictions(folder / "p.parquet", rows, task.metric, {task.part: rules_of(task)})
    return score(ScoredRun("s", "a", 1, "x"), folder / "p.parquet", folder / "s.json", folder / "test.parquet")


def second_look(folder, task, index, outputs):
    """lm-eval's verdicts on outputs to one question, after asserting that the second look agrees with each and with no opposite."""
    rows = [outcome(task, index, output) | {"item": str(number)} for number, output in enumerate(outputs)]
    questions = [task.questions[index] | {"id": row["item"]} for row in rows]
    facts, verdicts = run_score(folder, task, questions, rows), [row["correct"] for row in rows]
    assert (facts["status"], facts["reason"]) == ("ok", None)
    assert json.loads((folder / "s.json").read_text())["items"]["correct"] == verdicts
    if rules_of(task).ignored is not None:
        said = run_score(folder, task, questions, [row | {"correct": 1 - row["correct"]} for row in rows])["reason"]
        assert f"correct does not follow from filtered and gold in {len(rows)} of {len(rows)} rows" in said
    return verdicts


@pytest.mark.parametrize("task", ["gsm8k", "gsm8k_cot_zeroshot"])
def test_the_gold_answer_is_compared_as_it_is_written(task, files, study_tools, tmp_path):
    """lm-eval compares what stands behind ####, less commas, dollars and a full stop: 0.50 is not 0.5 to it."""
    right = {
        "0.50": "0.50",
        "3.00": "3.00",
        "007": "007",
        "+4": None,
        "−3": None,
        "1,234.": "$1234",
        "$5": "5",
        "18": "18",
    }
    values = {"0.50": "0.5", "3.00": "3", "007": "7", "+4": "4", "−3": "-3", "1,234.": "123", "$5": "5.0", "18": "18.0"}
    records = [{"question": f"How many are {gold}?", "answer": f"So.\n#### {gold}"} for gold in right]
    shutil.copytree(files / "gsm8k", tmp_path / "files" / "gsm8k")
    lines(tmp_path / "files" / "gsm8k" / "test.jsonl", records)
    config = DataConfig(mixture="multi_reasoning_cot_direct", folder=str(tmp_path / "files"))
    _write_tests(config, ["gsm8k"], tmp_path / "data")
    (loaded,) = load_benchmark(task, "gsm8k", tmp_path / "data", study_tools.config(num_fewshot=0))
    for index, gold in enumerate(right):
        said = [f" it is {answer}" for answer in (values[gold], gold, right[gold] or "-")]
        assert second_look(tmp_path, loaded, index, said) == [0, right[gold] is not None, right[gold] is not None]


GENERATED = [task for task, recipe in RECIPES.items() if recipe.metric == "exact_match"]
SAID = [
    "",
    " the answer is no.",
    " the answer is No.",
    " the answer is (b).",
    " the answer is (B).",
    " So the answer is (A)",
]
SAID += [
    " 7.",
    " 5.\0",
    " -5",
    " False",
    " FALSE,",
    " valid",
    " apple pear w0",
    " apple, pear w0.",
    " ) ]",
    ' "3"\n',
    " İ ß.",
]


@pytest.mark.parametrize("name", GENERATED)
def test_every_task_is_looked_at_by_its_own_rules(name, data, study_tools, tmp_path):
    """All parts of all tasks of lm-eval that generate; what each ignores is lm-eval's to say, whose verdict is `outcome`'s."""
    dataset = next(dataset for dataset, tasks in LM_EVAL_TASKS.items() if name in tasks)
    tasks = load_benchmark(name, dataset, data, study_tools.config(num_fewshot=0))
    found = {verdict for task in tasks for verdict in second_look(tmp_path, task, 0, SAID)}
    assert name == "hendrycks_math500" or found == {0.0, 1.0}


def test_case_counts_in_one_task_and_not_in_another(data, study_tools, tmp_path):
    """The gold answers are No and (B); in bbh_cot_fewshot lm-eval's file says nothing of case."""
    verdicts = {}
    for name in ("bbh_cot_zeroshot", "bbh_cot_fewshot"):
        tasks = load_benchmark(name, "bbh", data, study_tools.config(num_fewshot=0))
        parts = {task.part: task for task in tasks}
        verdicts[name] = second_look(tmp_path, parts["navigate"], 0, [" the answer is no.", " the answer is No."])
        verdicts[name] += second_look(tmp_path, parts["snarks"], 0, [" the answer is (b).", " the answer is (B)."])
    assert verdicts == {"bbh_cot_zeroshot": [1, 1, 0, 1], "bbh_cot_fewshot": [0, 1, 0, 1]}


TEXT = st.text(st.sampled_from('aBß İ.,$#\\"\n5-\0é\u0307!'), max_size=8)
IGNORED = st.fixed_dictionaries(
    {},
    optional={name: st.booleans() for name in ("ignore_case", "ignore_punctuation", "ignore_numbers")}
    | {
        "regexes_to_ignore": st.lists(
            st.sampled_from([",", "\\$", "(?s).*#### ", "\\.$", "\\\\", "\n", '"']), max_size=4
        )
    },
)


@given(
    filtered=TEXT,
    gold=TEXT,
    alike=st.sampled_from([str.lower, str.upper, str.casefold, str.strip, None]),
    ignored=IGNORED,
)
@settings(max_examples=500, deadline=None)
def test_comparison_is_that_of_lm_eval_s_metric(filtered, gold, alike, ignored):
    gold = gold if alike is None else alike(filtered)
    theirs = exact_match_fn(predictions=[filtered], references=[gold], **ignored)["exact_match"]
    assert Rules(ignored=ignored).agrees(float(theirs), filtered, gold)
    assert not Rules(ignored=ignored).agrees(1 - float(theirs), filtered, gold)


@given(
    output=st.text(st.sampled_from("ab 1.-\n"), max_size=12),
    pattern=st.sampled_from(["a", "(a)|(b+)", "a *(.+)", "(-?[$0-9.,]{2,})|(-?[0-9]+)", "()x?", "(?<=a )(.*)(?=.)"]),
    place=st.sampled_from([{}, {"group_select": 0}, {"group_select": -1}]),
    fallback=st.sampled_from([{}, {"fallback": " none "}]),
)
def test_answers_are_taken_as_lm_eval_s_filter_takes_them(output, pattern, place, fallback):
    options = {"regex_pattern": pattern} | place | fallback
    assert take(output, [options]) == RegexFilter(**options).apply([[output]], [{}])[0][0]


def test_equally_likely_options_are_lm_eval_s_choice(files, data, model_folder, study_tools, tmp_path):
    """A model with a head of zeros finds every option as likely as any: the first that was asked counts, here and in lm-eval."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(model_folder)
    model.lm_head.weight.data.zero_()
    model.save_pretrained(tmp_path / "flat")
    AutoTokenizer.from_pretrained(model_folder).save_pretrained(tmp_path / "flat")
    names = ["gpqa", "truthfulqa", "ceval"]
    _, rows = answers(data, tmp_path / "flat", tmp_path, names, study_tools.config())
    assert all(len(set(found)) == 1 for found in rows["gpqa"]["loglikelihoods"])
    samples = lm_eval_alone(files, tmp_path / "flat", tmp_path, "gpqa_main_zeroshot", "gpqa/gpqa_main.csv", {}, {})
    assert [sample["acc"] for sample in samples] == list(rows["gpqa"]["correct"])
    assert 0 < sum(rows["gpqa"]["correct"]) < len(samples)
    for name in names:
        facts = score(
            ScoredRun("s", "a", 1, name),
            tmp_path / f"{name}.parquet",
            tmp_path / f"{name}.json",
            data / "test" / f"{name}.parquet",
        )
        assert (facts["status"], facts["correct"]) == ("ok", rows[name]["correct"].sum())


def test_an_answer_that_lm_eval_cannot_read_costs_one_dataset(data, model_folder, study_tools, tmp_path, monkeypatch):
    """BBH's filter for numbers raises ValueError for this one; the other datasets of the run are answered."""
    said = " one thousand thousand"
    monkeypatch.setattr(EvaluationModel, "generate_until", lambda self, requests, **_: [said] * len(requests))
    facts, rows = answers(data, model_folder, tmp_path, ["bbh", "gsm8k"], study_tools.config())
    assert list(facts["failed"]) == ["bbh"]
    assert "taking answers of bbh_cot_zeroshot_" in facts["failed"]["bbh"]
    assert "Redundant number word" in facts["failed"]["bbh"]
    assert list(rows["gsm8k"]["output"]) == [said] * 6


def test_options_other_than_the_question_s_cost_one_dataset(data, study_tools):
    (task,) = load_benchmark("gpqa_main_zeroshot", "gpqa", data, study_tools.config())
    task.build_all_requests(limit=None, rank=0, world_size=1)
    sample = {"doc_id": 0, "doc": task.instances[0].doc | {"choice1": "other"}, "prompt_hash": "", "acc": 1.0}
    with pytest.raises(UnanswerableError, match=r"gpqa-00000: lm-eval asked .*other"):
        answer_row(task, sample | {"resps": [[(-1.0, False)]] * 4})


def planted(folder, files):
    """Test questions in upper case among GSM8K's examples, and one of two dev questions of C-Eval's law that is tested."""
    shutil.copytree(files, folder)
    tested = [json.loads(line) for line in (files / "gsm8k" / "test.jsonl").read_text().splitlines()]
    copies = [record | {"question": record["question"].upper()} for record in tested] * 3
    train = [json.loads(line) for line in (files / "gsm8k" / "train.jsonl").read_text().splitlines()]
    lines(folder / "gsm8k" / "train.jsonl", train + copies)
    dev, val = (pd.read_csv(files / "ceval" / split / f"law_{split}.csv", dtype=str) for split in ("dev", "val"))
    pd.concat([val.head(1), dev.head(1)]).to_csv(folder / "ceval" / "dev" / "law_dev.csv", index=False)
    return DataConfig(mixture="multi_reasoning_cot_direct", folder=str(folder))


def test_no_prompt_holds_its_own_question_twice(files, study_tools, tmp_path):
    config = planted(tmp_path / "files", files)
    assert _write_tests(config, ["gsm8k", "ceval"], tmp_path)[2] == {}
    (task,) = load_benchmark("gsm8k", "gsm8k", tmp_path, study_tools.config(num_fewshot=5))
    parts = load_benchmark("ceval-valid", "ceval", tmp_path, study_tools.config(num_fewshot=2))
    for loaded, field, shots in [(task, "question", 5), *((part, "question", 2) for part in parts)]:
        loaded.build_all_requests(limit=None, rank=0, world_size=1)
        left = 1 if loaded.part == "law" else shots
        for instance in loaded.instances:
            prompt = instance.args[0].casefold()
            assert prompt.count(instance.doc[field].casefold().strip()) == 1
            assert prompt.count("\nanswer:" if loaded is task else "\n答案：") == left + 1


def test_more_examples_than_there_are_cost_one_dataset(files, study_tools, tmp_path):
    config = planted(tmp_path / "files", files)
    _write_tests(config, ["ceval"], tmp_path)
    with pytest.raises(
        UnanswerableError, match=r"num_fewshot: 3 solved examples are asked for, ceval-valid_\w+ has [12]"
    ):
        load_benchmark("ceval-valid", "ceval", tmp_path, study_tools.config(num_fewshot=3))


def test_equivalent_mathematics_is_right(data, study_tools):
    pytest.importorskip("math_verify", reason="lm-eval's symbolic comparison is an extra")
    settings = study_tools.config(num_fewshot=0)
    (task,) = load_benchmark(settings.task_of("math500"), "math500", data, settings)
    assert task.metric == "math_verify"
    said = {r" so $\boxed{0.5}$": 1, r" is $\frac{2}{4}$.": 1, r" $\boxed{\frac{1}{3}}$": 0, " nothing": 0}
    assert {output: outcome(task, 0, output)["correct"] for output in said} == said
    assert outcome(task, 1, r" $1+x^2$")["correct"] == 1


def test_a_missing_package_is_a_missing_cell(data, model_folder, study_tools, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "math_verify", None)
    monkeypatch.delitem(sys.modules, "lm_eval.tasks.minerva_math.utils", raising=False)
    settings = study_tools.config(num_fewshot=0, max_new_tokens=4, limit=2)
    facts, rows = answers(data, model_folder, tmp_path, ["math500", "gsm8k"], settings)
    assert list(facts["failed"]) == ["math500"]
    assert "minerva_math500 needs packages that are not installed" in facts["failed"]["math500"]
    assert (len(rows["math500"]), len(rows["gsm8k"])) == (0, 2)


def test_a_benchmark_that_could_not_be_loaded_is_a_missing_cell(files, model_folder, study_tools, tmp_path):
    shutil.copytree(files, tmp_path / "files")
    shutil.rmtree(tmp_path / "files" / "gpqa")
    write_sources(tmp_path / "files")
    config = DataConfig(
        mixture="multi_reasoning_cot_direct", folder=str(tmp_path / "files"), sources=["gsm8k"],
        train_rows=4, validation_rows=1, calibration_rows=1,
    )  # fmt: skip
    build_data(config, NAMES, tmp_path / "data")
    facts, _ = answers(tmp_path / "data", model_folder, tmp_path, ["gpqa"], study_tools.config(), load=None)
    assert "load_seconds" not in facts, "no model is loaded for nothing"
    result = score(
        ScoredRun("s", "a", 1, "gpqa"),
        tmp_path / "gpqa.parquet",
        tmp_path / "gpqa.json",
        tmp_path / "data" / "test" / "gpqa.parquet",
    )
    assert (result["status"], result["accuracy"], result["n"]) == ("failed", None, 0)
    assert "Idavidrein/gpqa" in result["reason"]


def test_a_chat_prompt_without_a_template_is_refused(data, model_folders, study_tools, tmp_path):
    with pytest.raises(ValueError, match="no chat template"):
        answers(data, model_folders["llama"], tmp_path, ["gsm8k"], study_tools.config(), chat=DATE)


@pytest.mark.parametrize("today", ["{{ date_string }}", "{{ strftime_now('%d %b %Y') }}"])
def test_questions_are_asked_on_the_day_that_rows_are_written(today, data, model_folder, study_tools, tmp_path):
    folder = shutil.copytree(model_folder, tmp_path / "model")
    dated = AutoTokenizer.from_pretrained(folder)
    dated.chat_template = today + CHAT
    dated.save_pretrained(folder)
    config = ModelConfig(source="path", name=str(folder), prompt="chat", date="2025-01-31")
    settings = study_tools.config(num_fewshot=0, max_new_tokens=2)
    asked: list[str] = []

    def load(_):
        tokenizer = load_tokenizer(config)
        apply = tokenizer.apply_chat_template
        tokenizer.apply_chat_template = lambda *a, **k: asked.append(apply(*a, **k)) or asked[-1]
        return load_model(config), tokenizer

    facts, _ = answers(data, folder, tmp_path, ["gsm8k"], settings, chat=config.chat_date, load=load)
    assert facts["chat_date"] == "2025-01-31"
    assert len(asked) >= facts["datasets"]["gsm8k"]["items"] > 0
    assert {text[:11] for text in asked} == {"31 Jan 2025"}
    (row,) = encode_rows(load_tokenizer(config), ["Question"], [" 42"])
    assert dated.decode(row.input_ids).startswith("31 Jan 2025")


def test_a_prompt_that_is_too_long_is_never_cut(data, model_folders, study_tools, tmp_path):
    facts, _ = answers(data, model_folders["gpt2"], tmp_path, ["truthfulqa"], study_tools.config())
    assert "context of 160" in facts["failed"]["truthfulqa"]


def test_what_decides_an_answer_decides_the_digest(data, model_folder, study_tools, tmp_path):
    shutil.copytree(data, tmp_path / "data")

    def digest(chat=None, **changes):
        settings = study_tools.config(**changes)
        return predictions_digest(ModelSource(model_folder, chat=chat), "gsm8k", tmp_path / "data", settings, "c")

    first = digest()
    found = {
        first,
        digest(chat=DATE),
        digest(chat="2025-01-31"),
        digest(num_fewshot=None),
        digest(tasks={"gsm8k": "gsm8k_cot_zeroshot"}),
    }
    path = tmp_path / "data" / "examples" / "gsm8k.parquet"
    pd.read_parquet(path).iloc[1:].to_parquet(path)
    found.add(digest())
    assert len(found) == 6


def test_lm_eval_s_zero_stays_zero(data, study_tools):
    """A task that says num_fewshot: 0 keeps it, as in lm-eval; one that says nothing or more is set."""
    shots = {
        name: load_benchmark(settings.task_of(name), name, data, settings)[0].config.num_fewshot
        for name, settings in ((name, study_tools.config(num_fewshot=2, tasks=WITHOUT_EXTRAS)) for name in NAMES)
    }
    assert shots == {"gsm8k": 2, "math500": 2, "bbh": 0, "gpqa": 0, "truthfulqa": 0, "cmmlu": 2, "ceval": 2}


def test_an_unavailable_benchmark_says_why(data, tmp_path, study_tools):
    from mtkv.data.testsets import write_examples, write_test

    write_test(tmp_path / "test" / "gsm8k.parquet", pd.DataFrame(), "the disk is elsewhere")
    write_examples(tmp_path / "examples" / "gsm8k.parquet", pd.DataFrame())
    with pytest.raises(UnanswerableError, match="the disk is elsewhere"):
        load_benchmark("gsm8k", "gsm8k", tmp_path, study_tools.config())


def test_the_folder_of_lm_eval_s_tasks_is_the_installed_one():
    assert LM_EVAL_FOLDER.parent.name == "lm_eval" and str(LM_EVAL_FOLDER) in lm_eval.tasks.__file__  # noqa: PT018
