"""The code of docs/extending.md as a module outside the package, beside a study that names all of it, through the real stages.

Stage functions, not Snakemake, whose jobs each import torch; `test_reruns.py` asks Snakemake itself what an edit of such a module reruns.
"""

import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from safetensors.torch import load_file

import mtkv.report.figures.all as all_figures
from mtkv.align.adapters import AdapterShape, build_adapter
from mtkv.align.closed_form_maps import KVMap
from mtkv.align.layers import stored_layers
from mtkv.config.data import DataConfig
from mtkv.config.errors import ConfigError
from mtkv.config.evaluation import EvaluationConfig
from mtkv.config.kv import KVConfig
from mtkv.config.study import read_study
from mtkv.data.build import build_data
from mtkv.data.items import Item
from mtkv.data.mixture import usable_questions
from mtkv.data.sources import source_of
from mtkv.data.splits import TestTexts
from mtkv.distill.controls import CONTROLS, Control, control_of
from mtkv.distill.row_match import RowMatch
from mtkv.distill.teacher_kv import TeacherFiles
from mtkv.evaluate.lm_eval_tasks import load_benchmark
from mtkv.evaluate.scoring import ScoredRun, score
from mtkv.kv.extract import StorePlan, extract_shard
from mtkv.kv.select import select_tokens
from mtkv.kv.store import write_index
from mtkv.models.load import model_layers
from mtkv.provenance import code_digest as code
from mtkv.provenance.files import write_json
from mtkv.registry import FOLDERS, load
from mtkv.stages.compare import compare
from mtkv.stages.fit_map import MapFiles, calibrate_map
from mtkv.stages.predict import ModelSource, predict
from mtkv.stages.report import render
from mtkv.stages.train import TrainingRun, train_arm
from mtkv.training.data_parallel import LOSS_TERMS

PAGE = Path(__file__).parents[2] / "docs/extending.md"
BLOCKS = {
    language: re.findall(rf"^```{language}\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    for language in ("python", "yaml")
}
TRAINING = {
    "steps": 4,
    "batch_size": 8,
    "gradient_accumulation": 1,
    "logging_steps": 2,
    "eval_steps": 2,
    "learning_rate": 1e-3,
}
FULL = {"kv": {"teachers": ["qwen2", "gpt2"]}}
BASE = {
    "study": "tiny",
    "seeds": [42],
    "data": {"train_rows": 32, "validation_rows": 16, "calibration_rows": 64, "test_items": 4},
    "student": {"source": "pocket", "name": "student"},
    "teachers": {"shards": 1, "models": {name: {"source": "pocket", "name": name} for name in ("qwen2", "gpt2")}},
    "evaluation": {"max_new_tokens": 8},
    "comparison": {"baseline": "sft", "resamples": 200},
    "arms": {"sft": {"training": TRAINING}, "fixed": {"extends": "sft"} | FULL},
}
QUIZ = """task: quiz
dataset_path: json
test_split: test
output_type: generate_until
doc_to_text: "{{q}}"
doc_to_target: "{{a}}"
metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """mine.py and mine.yaml, as the page has them, and the study that they build on. Leaves this process as it was."""
    folder = tmp_path_factory.mktemp("mine")
    (folder / "mine.py").write_text("\n\n".join(BLOCKS["python"]))
    (folder / "mine.yaml").write_text(BLOCKS["yaml"][0])
    (folder / "base.yaml").write_text(yaml.safe_dump(BASE))
    (folder / "quiz.yaml").write_text(QUIZ)
    path, terms = list(sys.path), dict(LOSS_TERMS)
    yield folder
    sys.path[:] = path
    sys.modules.pop("mine", None)
    os.environ.pop(FOLDERS, None)
    code._own.clear()
    code.forget()
    LOSS_TERMS.clear()
    LOSS_TERMS.update(terms)


def read(folder):
    return read_study(folder / "base.yaml", folder / "mine.yaml")


@pytest.fixture(scope="module")
def study(folder):
    return read(folder)


@pytest.fixture(scope="module")
def run(folder, study):
    """All stages of the study; its results' folder."""
    root = folder / "results/tiny"
    data = {split: root / f"data/{split}.parquet" for split in ("train", "val", "calibration")}
    build_data(study.data, list(study.data.datasets), root / "data")
    for name, teacher in study.teachers.models.items():
        shard = root / f"teachers/{name}/shard-0000.safetensors"
        methods = {align.layers for align in study.aligns(name)}
        layers = stored_layers(sorted(methods), model_layers(teacher), model_layers(study.student))
        extract_shard(teacher, list(data.values()), 0, StorePlan(layers, 1, "float16", 64), shard)
        write_index([shard], shard.with_name("index.parquet"))
        for align in study.aligns(name):
            path = root / f"maps/{name}/{align.slug}.safetensors"
            ends = [path.with_name(f"{align.slug}.{end}.parquet") for end in ("probe", "example")]
            calibrate_map(study.student, name, teacher, align, shard.parent, root / "data", MapFiles(path, *ends))
    scores, cards = [], []
    for arm in study.arms:
        place = root / f"arms/{arm}/seed42"
        kv = study.arms[arm].kv
        facts = train_arm(
            TrainingRun(
                student=study.student,
                training=study.arms[arm].training,
                seed=42,
                train_rows=data["train"],
                validation_rows=data["val"],
                model_folder=place / "model",
                log_path=place / "training.parquet",
                routing_path=place / "routing.parquet",
                kv=kv,
                teachers=[
                    TeacherFiles(
                        study.teachers.models[name],
                        root / f"maps/{name}/{kv.align.slug}.safetensors",
                        root / f"teachers/{name}",
                    )
                    for name in (kv.teachers if kv else [])
                ],
            )
        )
        card = {"stage": "arms", "wildcards": {"arm": arm, "seed": "42"}, "result": facts}
        write_json(place / "card.json", card)
        cards.append(place / "card.json")
        outputs = {name: root / f"predictions/{arm}/seed42/{name}.parquet" for name in study.datasets}
        read = study.teachers.models if kv and kv.injected else {}
        predict(ModelSource(place / "model", teachers=read), root / "data", study.evaluation, outputs)
        for name, predictions in outputs.items():
            scores.append(root / f"scores/{arm}/seed42/{name}.json")
            asked = root / f"data/test/{name}.parquet"
            score(ScoredRun("tiny", arm, 42, name), predictions, scores[-1], asked)
    compare(study, scores, cards, root / "compare")
    return root


def facts_of(run, arm):
    return json.loads((run / f"arms/{arm}/seed42/card.json").read_text())["result"]


def test_a_head_learns_what_the_student_reads(run):
    tensors = load_file(run / "arms/mine_read/seed42/model/fuser.safetensors")
    assert all(tensors[f"trained.heads.{number}.weight"].abs().max() > 0 for number in range(2))


def test_a_selector_chooses_the_tokens_that_are_supervised(run, study):
    keys = torch.randn(1, 1, 6, 4) * torch.tensor([1.0, 9, 1, 8, 1, 1])[:, None]
    picked = select_tokens("mine:long_keys", keys, 2, torch.ones(1, 6, dtype=torch.bool))
    assert picked.index.tolist() == [[1, 3]]
    shares = {arm: facts_of(run, arm)["supervised_share"] for arm in ("fixed", "mine")}
    assert 0 < shares["mine"] < 0.8 * shares["fixed"]
    assert facts_of(run, "mine")["budget_bites"] > 0
    asking = KVConfig.model_validate({"teachers": ["a"], "select": {"method": "mine:looked_at"}})
    assert (asking.select.needs_attention, study.arms["mine"].kv.select.needs_attention) == (True, False)


def test_a_map_is_fitted_or_trained(run, study):
    def loaded(arm):
        return KVMap.load(run / f"maps/qwen2/{study.arms[arm].kv.align.slug}.safetensors")

    assert not torch.equal(loaded("mine").weight, loaded("fixed").weight)
    probe = pd.read_parquet(run / f"maps/qwen2/{study.arms['mine'].kv.align.slug}.probe.parquet")
    assert "mine:least_squares" in set(probe["method"])
    assert torch.equal(loaded("mine_trained").weight, loaded("fixed").weight)  # its counterpart of closed form: ridge
    assert study.arms["mine_trained"].kv.align.trained
    assert build_adapter("mine:LowRank", AdapterShape(3, 8, 6))(torch.randn(5, 3, 2, 8)).shape == (5, 3, 2, 6)


def test_a_router_gives_its_weights(run):
    routing = pd.read_parquet(run / "arms/mine/seed42/routing.parquet")
    assert routing.groupby("teacher")["weight"].mean().to_dict() == {"qwen2": 1.0, "gpt2": 0.0}


def test_a_loss_term_is_in_the_log_and_in_the_gradient(run):
    logs = {arm: pd.read_parquet(run / f"arms/{arm}/seed42/training.parquet") for arm in ("fixed", "mine")}
    assert not logs["fixed"]["term"].str.contains("norm").drop_duplicates().iloc[0]
    term = logs["mine"][logs["mine"]["term"] == "norm"]
    assert set(term["split"]) == {"train", "val"}
    assert (term["value"] > 0).all()
    assert (logs["mine"][logs["mine"]["term"] == "share.norm"]["value"] > 0).all()


def test_a_control_changes_the_targets(run):
    tokens, weight = np.arange(6).reshape(3, 2), np.ones((3, 2), dtype=np.float32)
    match = RowMatch("a", np.arange(3), [tokens], [weight])
    (changed,) = control_of("mine:REVERSED")([match], np.random.default_rng(0))
    assert changed.tokens[0].tolist() == [[4, 5], [2, 3], [0, 1]]
    assert torch.equal(control_of("mine:NEGATED").values(torch.ones(2)), -torch.ones(2))
    values = {
        arm: pd.read_parquet(run / f"arms/{arm}/seed42/training.parquet").query("term == 'key' and step == 0")
        for arm in ("mine", "mine_reversed")
    }
    assert values["mine"]["value"].tolist() != values["mine_reversed"]["value"].tolist()


def test_a_control_that_does_nothing_is_refused(monkeypatch):
    monkeypatch.setitem(CONTROLS, "idle", Control())
    with pytest.raises(ValueError, match="in one way"):
        Control(row=lambda match, rng: match, partner=lambda supervised, rng: np.arange(len(supervised)))
    for name, said in (("idle", "changes nothing"), ("shufle", "'shufle' is not one of none, shuffle_items")):
        with pytest.raises(ValueError, match=said):
            control_of(name)


def test_a_dataset_is_trained_on_and_answered(run):
    assert set(pd.read_parquet(run / "data/train.parquet")["dataset"]) >= {"letters", "pocket_cmmlu"}
    answers = pd.read_parquet(run / "predictions/mine/seed42/letters.parquet")
    assert len(answers) == 4
    assert json.loads((run / "scores/mine/seed42/letters.json").read_text())["status"] != "failed"


EXTRA = {"riddles": "mine:RIDDLES", "quiz": "mine:QUIZ"}


def of_files(folder, *more):
    """The config of a mixture of the page's source and benchmark, whose files hold `more` records behind 80 good ones."""
    for name, split in (("riddles", "train"), ("quiz", "test")):
        records = [{"q": f"What is {name} {i}?", "why": "It is so.", "a": str(i)} for i in range(80)]
        path = folder / f"files/{name}/{split}.jsonl"
        path.parent.mkdir(parents=True)
        path.write_text("\n".join(map(json.dumps, [*records, *more])))
    sizes = {"train_rows": 12, "validation_rows": 2, "calibration_rows": 2, "test_items": 5}
    given = {"mixture": "multi_reasoning_cot_direct", "folder": str(folder / "files"), "sources": ["riddles"]}
    return DataConfig.model_validate(given | sizes | {"extra": EXTRA})


def test_records_that_hold_no_text_are_unusable_named_and_counted(study, tmp_path):
    """The page's readers check nothing."""
    good = {"q": "How many are left?", "why": "One went.", "a": "9"}
    values = [None, float("nan"), 12, ["a"], "half of \ud83d", " "]
    bad = [
        good | {field: value} for field in good for value in values if (field, value) != ("why", " ")
    ]  # no reasoning
    config = of_files(tmp_path, *bad)
    facts = build_data(config, ["quiz"], tmp_path)
    assert facts["sources"]["riddles"] == {"records": 97, "unusable": 17, "repeated": 0, "usable": 80}
    reasons = usable_questions(source_of("riddles", EXTRA), config, TestTexts([]))[2].reasons
    assert [re.search(r"train\.jsonl, record (\d+): ", said)[1] for said in reasons] == [str(n) for n in range(80, 97)]
    assert facts["asked"] == {}
    assert re.match(r"quiz: 12 records cannot be asked: .*test\.jsonl, record 80: ", facts["unavailable"]["quiz"])
    rows = pd.concat(pd.read_parquet(tmp_path / f"{split}.parquet") for split in ("train", "val", "calibration"))
    assert not rows["target"].str.contains("nan|None", regex=True).any()


def test_options_and_what_lm_eval_reads_are_text_too(study, tmp_path, monkeypatch):
    config = of_files(tmp_path)
    quiz = load("mine:QUIZ")
    mine = sys.modules["mine"]
    wrong = {"choices": ("a", float("nan")), "gold": 0}, {"choices": ("a", "b"), "gold": 2}, {"gold": 0}, {"cluster": 3}
    for change in wrong:
        item = {"question": "q", "reasoning": "", "answer": "a", "cluster": ""} | change
        own = replace(quiz, item=lambda record, part, item=item: Item(**item))
        monkeypatch.setattr(mine, "QUIZ", own)
        assert "80 records cannot be asked" in build_data(config, ["quiz"], tmp_path)["unavailable"]["quiz"], change
    for value in (float("nan"), "half of \ud83d"):  # in a field that lm-eval reads and the item does not
        told = replace(own, document=lambda record, value=value: record | {"hint": value})
        told = replace(told, item=lambda record, part: Item(record["q"], "", "a", ""), fields=("q", "hint"))
        monkeypatch.setattr(mine, "QUIZ", told)
        assert "80 records cannot be asked" in build_data(config, ["quiz"], tmp_path)["unavailable"]["quiz"]
    monkeypatch.setattr(mine, "RIDDLES", replace(mine.RIDDLES, item=lambda record: None))  # a return that was forgotten
    with pytest.raises(ValueError, match=r"riddles: none of its 80 records is usable.*train\.jsonl, record 0: "):
        build_data(config, [], tmp_path)


def test_a_source_and_a_benchmark_of_files(folder):
    config = of_files(folder)
    assert config.datasets[-1] == "quiz"
    build_data(config, list(config.datasets), folder / "real")
    assert set(pd.read_parquet(folder / "real/train.parquet")["dataset"]) == {"riddles"}
    settings = EvaluationConfig()
    (task,) = load_benchmark(settings.task_of("quiz"), "quiz", folder / "real", settings)
    assert len(task.questions) == 5
    assert task.eval_docs[0]["q"].startswith("What is quiz")
    with pytest.raises(ValueError, match=r"data.extra.quiz: mine:QUIZ is a Benchmark; data.sources needs a Source"):
        source_of("quiz", EXTRA)


def test_a_figure_is_on_the_page(run, study, monkeypatch):
    monkeypatch.setattr(all_figures, "BUILDERS", ())  # drawing all others takes half a minute
    render(study, run, run / "report/index.html")
    assert "Best of all arms" in (run / "report/index.html").read_text(encoding="utf-8")
    assert (run / "report/figures/best.svg").is_file()


MISTAKES = {
    "mine:long_kays": r"arms\.mine\.kv\.select\.method: 'mine:long_kays': .*mine\.py defines no long_kays; it defines .*long_keys",
    "mein:long_keys": r"arms\.mine\.kv\.select\.method: 'mein:long_keys': there is no module mein; put mein\.py into ",
    "long_keys": r"arms\.mine\.kv\.select\.method: 'long_keys' is not one of full, keep_first.*or module:name of your own",
}


@pytest.mark.parametrize("written", MISTAKES)
def test_a_misspelt_name_is_one_line_that_says_what_to_do(folder, written):
    text = (folder / "mine.yaml").read_text()
    (folder / "wrong.yaml").write_text(text.replace("mine:long_keys", written))
    with pytest.raises(ConfigError, match=MISTAKES[written]):
        read_study(folder / "base.yaml", folder / "wrong.yaml")


def test_validation_runs_neither_torch_nor_the_module(folder):
    (folder / "loud.py").write_text("raise SystemExit('it ran')\ndef f(tokens): pass\n")
    (folder / "loud.yaml").write_text((folder / "mine.yaml").read_text().replace("mine:long_keys", "loud:f"))
    program = f"""import sys
from mtkv.config.study import read_study
study = read_study("{folder}/base.yaml", "{folder}/loud.yaml")
assert study.arms["mine"].kv.select.method == "loud:f"
assert not {{"torch", "numpy", "mine", "loud"}} & set(sys.modules), set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", program], check=True)


def test_an_edit_changes_the_digest_of_the_stages_that_run_it(folder, study):
    def digest(arm, stage="mtkv.stages.train"):
        code.forget()
        return code.code_digest(stage, config=study.arms[arm])

    (folder / "helper.py").write_text("FACTOR = 1\n")
    file = folder / "mine.py"
    text = file.read_text()
    file.write_text("import helper\n" + text)
    before = {arm: digest(arm) for arm in study.arms}
    assert before["fixed"] == before["sft"] != before["mine"]
    for path, old, new, changes in (
        (file, "The length of each key", "Another docstring", False),
        (file, "tokens.keys.double()", "tokens.keys.double().abs()", True),
        (folder / "helper.py", "FACTOR = 1", "FACTOR = 2", True),
    ):
        was = path.read_text()
        assert old in was
        path.write_text(was.replace(old, new))
        assert (digest("mine") != before["mine"]) == changes
        assert digest("fixed") == before["fixed"]
        path.write_text(was)
    file.write_text(text)
    assert {"mine", "mtkv.kv.scores"} <= set(code.stage_modules(*code.covered(digest("mine")).modules))
