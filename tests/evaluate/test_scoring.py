"""Scores of a predictions file, and the files they refuse."""

import json
import subprocess
import sys

import pandas as pd
import pytest
from statsmodels.stats.proportion import proportion_confint

from mtkv.evaluate.answer_matching import Rules
from mtkv.evaluate.predictions import SCHEMA, write_failure, write_predictions
from mtkv.evaluate.scoring import ScoredRun, score, wilson_interval
from mtkv.stats.items import read_scores

RULES = {"": Rules(taken=[{"regex_pattern": "Answer: *(.+)", "group_select": 0, "fallback": "[no answer]"}])}


def question(index, **changes):
    choices = ["newton", "joule", "watt", "pascal"]
    return (
        {"id": f"item-{index}", "question": "?", "choices": choices, "gold": index % 4, "answer": choices[index % 4]}
        | {"cluster": f"c{index % 2}"}
        | changes
    )


def choice_row(item, chosen):
    return {
        "item": item["id"],
        "cluster": item["cluster"],
        "prompt_hash": "0",
        "output": None,
        "loglikelihoods": [-1.0 if index == chosen else -2.0 - index for index in range(4)],
        "filtered": item["choices"][chosen],
        "gold": item["choices"][item["gold"]],
        "correct": float(chosen == item["gold"]),
    }


def generation_row(item, answer):
    return {
        "item": item["id"],
        "cluster": item["cluster"],
        "prompt_hash": "0",
        "output": f" thinking\nAnswer: {answer}",
        "loglikelihoods": None,
        "filtered": answer,
        "gold": item["answer"],
        "correct": float(answer == item["answer"]),
    }


@pytest.fixture(params=["choice", "generation"])
def case(request, tmp_path):
    """Eight questions, five of them answered rightly; `case.score(rows)` writes and scores."""
    if request.param == "choice":
        items = [question(index) for index in range(8)]
        rows = [
            choice_row(item, item["gold"] if index < 5 else (item["gold"] + 1) % 4) for index, item in enumerate(items)
        ]
    else:
        items = [question(index, choices=[], gold=-1, answer=str(index)) for index in range(8)]
        rows = [generation_row(item, item["answer"] if index < 5 else "99") for index, item in enumerate(items)]
    pd.DataFrame(items).to_parquet(tmp_path / "test.parquet")

    class Case:
        kind = request.param
        output = tmp_path / "score.json"

        def __init__(self):
            self.items, self.rows = items, rows

        def score(self, rows, limit=None):
            write_predictions(tmp_path / "predictions.parquet", rows, rules=RULES)
            return run_score(tmp_path, limit)

        def contradiction(self, rows, limit=None):
            """The reason of a dataset without a score."""
            facts = self.score(rows, limit)
            assert json.loads(self.output.read_text()) == facts | {"items": {"id": [], "cluster": [], "correct": []}}
            assert (facts["status"], facts["n"], facts["accuracy"]) == ("failed", 0, None)
            return facts["reason"]

    return Case()


def run_score(folder, limit=None):
    return score(
        ScoredRun("s", "sft", 42, "pocket_x"),
        folder / "predictions.parquet",
        folder / "score.json",
        folder / "test.parquet",
        limit,
    )


def test_score_file(case):
    facts = case.score(case.rows)
    written = json.loads(case.output.read_text())
    low, high = proportion_confint(5, 8, method="wilson")
    assert written == facts | {
        "items": {
            "id": [item["id"] for item in case.items],
            "cluster": [item["cluster"] for item in case.items],
            "correct": [1, 1, 1, 1, 1, 0, 0, 0],
        }
    }
    assert facts == {
        "study": "s",
        "arm": "sft",
        "seed": 42,
        "dataset": "pocket_x",
        "metric": "acc" if case.kind == "choice" else "exact_match",
        "status": "ok",
        "reason": None,
        "n": 8,
        "correct": 5,
        "accuracy": 0.625,
        "low": pytest.approx(low),
        "high": pytest.approx(high),
        "repeats": 0,
    }


def test_items_come_in_the_order_of_the_questions(case):
    case.score(case.rows[::-1])
    assert json.loads(case.output.read_text())["items"]["correct"] == [1, 1, 1, 1, 1, 0, 0, 0]


def test_limit(case):
    assert case.score(case.rows[:6], limit=6)["accuracy"] == pytest.approx(5 / 6)
    assert "2 not of the dataset" in case.contradiction(case.rows, limit=6)


def test_missing_items_are_said(case):
    assert "2 missing (item-2, item-3)" in case.contradiction(case.rows[:2] + case.rows[4:])
    assert "8 missing" in case.contradiction([])


def test_items_that_are_there_twice_are_said(case):
    assert "1 there twice (item-3)" in case.contradiction([*case.rows, case.rows[3]])
    said = case.contradiction([*case.rows[1:], case.rows[3]])
    assert "1 there twice (item-3); 1 missing (item-0)" in said


def test_a_tampered_file_has_no_score(case):
    """Making a wrong answer right takes more than editing any one column."""
    wrong, item = case.rows[6], case.items[6]
    edits = [
        {"correct": 1.0},
        {"correct": 0.5},
        {"cluster": "other"},
        {"gold": wrong["filtered"]},
        {"filtered": item["answer"]},
    ]
    edits += [{"filtered": item["answer"], "correct": 1.0}, {"gold": wrong["filtered"], "correct": 1.0}]
    if case.kind == "choice":
        edits.append({"loglikelihoods": choice_row(item, item["gold"])["loglikelihoods"]})
    for edit in edits:
        said = case.contradiction([*case.rows[:6], wrong | edit, case.rows[7]])
        assert "in 1 of 8 rows (item-6); the first: filtered " in said


def test_a_contradiction_costs_one_cell_of_the_comparison(case, tmp_path):
    """The other datasets of the run are compared; the reason names the item and what was found of it."""
    paths = []
    for name in ("one", "two", "three"):
        wrong = [*case.rows[:6], case.rows[6] | {"correct": 1.0}, *case.rows[7:]]
        case.score(wrong if name == "two" else case.rows)
        paths.append(tmp_path / f"{name}.json")
        paths[-1].write_text(json.dumps(json.loads(case.output.read_text()) | {"dataset": name}))
    answers = read_scores(paths, "s", {"sft": [42]}, ["one", "two", "three"])
    assert set(answers.correct) == {("sft", 42, "one"), ("sft", 42, "three")}
    assert list(answers.reasons) == [("sft", 42, "two")]
    said = str(answers.reasons["sft", 42, "two"])
    assert said.startswith(
        "failed: a second look contradicts: correct does not follow from filtered and gold in 1 of 8 rows (item-6)"
    )
    assert f"filtered {case.rows[6]['filtered']!r}, gold {case.rows[6]['gold']!r}, correct 1.0" in said


def test_a_failed_dataset_has_a_score_without_a_number(tmp_path):
    pd.DataFrame([question(0)]).to_parquet(tmp_path / "test.parquet")
    write_failure(tmp_path / "predictions.parquet", "the longest text has 900 tokens")
    facts = run_score(tmp_path)
    assert (facts["status"], facts["reason"]) == ("failed", "the longest text has 900 tokens")
    assert (facts["accuracy"], facts["low"], facts["high"], facts["n"]) == (None, None, None, 0)
    assert json.loads((tmp_path / "score.json").read_text())["items"] == {"id": [], "cluster": [], "correct": []}


def test_another_table_is_refused(tmp_path):
    pd.DataFrame([question(0)]).to_parquet(tmp_path / "test.parquet")
    pd.DataFrame({"item": ["item-0"], "correct": [1.0]}).to_parquet(tmp_path / "predictions.parquet")
    with pytest.raises(ValueError, match="not a predictions file"):
        run_score(tmp_path)


@pytest.mark.parametrize(("correct", "count"), [(0, 1), (0, 200), (1, 1), (200, 200), (63, 200), (1, 3)])
@pytest.mark.parametrize("confidence", [0.9, 0.95])
def test_wilson_interval(correct, count, confidence):
    expected = proportion_confint(correct, count, alpha=1 - confidence, method="wilson")
    assert wilson_interval(correct, count, confidence) == pytest.approx(expected, abs=1e-12)


def test_columns_are_the_agreed_ones():
    assert SCHEMA.names == ["item", "cluster", "prompt_hash", "output", "loglikelihoods", "filtered", "gold", "correct"]


def test_scoring_needs_no_model_code():
    program = "import sys, mtkv.evaluate.scoring; print(*{name.split('.')[0] for name in sys.modules})"
    loaded = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.split()
    assert "mtkv" in loaded
    assert not {"torch", "transformers", "lm_eval", "datasets", "scipy", "statsmodels"} & set(loaded)


def test_questions_asked_again_are_counted_and_named(tmp_path):
    items = [question(index) for index in range(4)]
    pd.DataFrame(items).assign(same_as=["item-0", "item-1", "item-0", "item-0"]).to_parquet(tmp_path / "test.parquet")
    write_predictions(tmp_path / "p.parquet", [choice_row(item, item["gold"]) for item in items])
    paths = [tmp_path / name for name in ("p.parquet", "s.json", "test.parquet")]
    assert score(ScoredRun("s", "a", 42, "d"), *paths)["repeats"] == 2
    written = json.loads((tmp_path / "s.json").read_text())
    assert written["items"]["same_as"] == ["item-0", "item-1", "item-0", "item-0"]
