"""The files of the data stage: columns, segments in bytes, disjoint splits, reproducibility, the leakage check."""

import hashlib
import re
import unicodedata
from itertools import combinations
from types import SimpleNamespace

import pandas as pd
import pytest

from mtkv.config.data import DataConfig
from mtkv.data.build import build_data, draw_frames, split_facts
from mtkv.data.items import Item, Task
from mtkv.data.pocket import TASKS
from mtkv.data.rows import ROW_COLUMNS, TEST_COLUMNS
from mtkv.data.splits import SPLITS, LeakageError, draw_questions, leakage, question_hash, split_of

DATASETS = list(TASKS)
CHINESE = ("pocket_cmmlu", "pocket_ceval")


def config(**changes):
    sizes = {"train_rows": 300, "validation_rows": 60, "calibration_rows": 44, "test_items": 30}
    return DataConfig.model_validate(sizes | changes)


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    facts = build_data(config(), DATASETS, folder)
    rows = {split: pd.read_parquet(folder / f"{split}.parquet") for split in ("train", "val", "calibration")}
    tests = {dataset: pd.read_parquet(folder / "test" / f"{dataset}.parquet") for dataset in DATASETS}
    return SimpleNamespace(facts=facts, rows=rows, tests=tests)


def test_columns_and_counts(study):
    assert {split: len(frame) for split, frame in study.rows.items()} == {"train": 300, "val": 60, "calibration": 44}
    for split, frame in study.rows.items():
        assert tuple(frame.columns) == ROW_COLUMNS
        assert frame["id"].is_unique
        counts = frame["dataset"].value_counts()
        assert counts.to_dict() == study.facts["rows"][split]
        assert set(counts.index) == set(DATASETS)
        assert counts.max() - counts.min() <= 2
    for frame in study.tests.values():
        assert tuple(frame.columns) == TEST_COLUMNS
        assert len(frame) == 30
        assert frame["id"].is_unique


def test_segments_end_on_the_bytes_of_their_texts(study):
    for row in pd.concat(study.rows.values()).itertuples():
        text = (row.prompt + row.target).encode()
        prompt, reasoning, answer = (
            text[: row.prompt_end].decode(),
            text[row.prompt_end : row.reasoning_end].decode(),
            text[row.reasoning_end : row.text_end].decode(),
        )
        assert prompt == row.prompt
        assert reasoning.strip() == row.reasoning
        assert answer.endswith(row.answer)
        assert row.text_end == len(text)
        assert (row.style == "direct") == (row.reasoning == "" and row.reasoning_end == row.prompt_end)


def test_rows_read_as_the_evaluation_asks(study):
    for row in study.rows["train"].itertuples():
        text = row.prompt + row.target
        if row.dataset in CHINESE:
            expected = {
                "cot": f"问题：{row.question}\n推理：{row.reasoning}\n答案：{row.answer}",
                "direct": f"问题：{row.question}\n答案：{row.answer}",
            }
        else:
            expected = {
                "cot": f"Question: {row.question}\nReason: {row.reasoning}\nAnswer: {row.answer}",
                "direct": f"Question: {row.question}\nAnswer: {row.answer}",
            }
        assert text == expected[row.style]
        assert row.prompt.endswith(("：", ":"))


def test_both_styles_of_a_question_are_in_one_split(study):
    for frame in study.rows.values():
        assert (frame.groupby("question_hash")["style"].apply(sorted).map(tuple) == ("cot", "direct")).all()


def test_no_question_is_in_two_splits_brute_force(study):
    def bare(question: str) -> str:  # stricter than the stage's own normalisation: no white space at all
        return re.sub(r"\s", "", unicodedata.normalize("NFKC", question)).casefold()

    texts = {split: {bare(question) for question in frame["question"]} for split, frame in study.rows.items()}
    texts["test"] = {bare(question) for frame in study.tests.values() for question in frame["question"]}
    for one, other in combinations(texts, 2):
        assert not texts[one] & texts[other]
    assert sum(len(frame["question"].unique()) for frame in study.tests.values()) == 30 * len(DATASETS)


def test_facts_digest_the_hashes_and_count_leakage(study):
    hashes = sorted({question_hash(question) for question in study.rows["train"]["question"]})
    assert study.facts["hashes"]["train"] == hashlib.sha256("\n".join(hashes).encode()).hexdigest()
    assert len(study.facts["leakage"]) == 6
    assert set(study.facts["leakage"].values()) == {0}
    assert set(study.rows["train"]["question_hash"]) == set(hashes)


@pytest.mark.parametrize(
    "disguise", [str, str.upper, lambda text: f"  {text.replace(' ', '   ')} !", "\u3000{}".format]
)
def test_a_planted_test_question_is_found(disguise):
    rows, tests = draw_frames(config(), DATASETS)
    planted = disguise(tests["pocket_gsm8k"]["question"].iloc[3])
    rows["train"].loc[5, "question"] = planted  # its question_hash column still claims to be another question
    with pytest.raises(LeakageError, match=r"'test & train': 1"):
        split_facts(rows, tests)


def test_leakage_counts_shared_hashes_per_pair():
    assert leakage({"a": ["1", "2", "3"], "b": ["3", "2"], "c": ["4"]}) == {"a & b": 2, "a & c": 0, "b & c": 0}


def test_hash_ignores_width_case_and_punctuation_but_not_arithmetic():
    assert question_hash("现在是３月，过2个月？") == question_hash("现在是3月 过2个月")
    assert question_hash("Solve X+4-3=2 for x.") == question_hash(" solve  x+4-3=2, for X")
    assert question_hash("Solve x+4-3=2 for x.") != question_hash("Solve x-4+3=2 for x.")


def test_split_follows_from_the_question_alone():
    for seed in (0, 7):
        for split, questions in draw_questions(TASKS["pocket_gpqa"], seed, dict.fromkeys(SPLITS, 25)).items():
            assert len({question.question_hash for question in questions}) == 25
            assert all(split_of(question_hash(question.item.question)) == split for question in questions)


def test_same_seed_same_bytes_and_other_seed_other_questions(tmp_path):
    for name, seed in (("one", 3), ("again", 3), ("other", 4)):
        build_data(config(seed=seed), DATASETS, tmp_path / name)
    for file in ("train.parquet", "test/pocket_ceval.parquet"):
        one, again, other = ((tmp_path / name / file).read_bytes() for name in ("one", "again", "other"))
        assert one == again
        assert one != other


def test_more_train_rows_leave_the_test_alone():
    _, small = draw_frames(config(), ["pocket_bbh"])
    _, large = draw_frames(config(train_rows=600), ["pocket_bbh"])
    assert list(small["pocket_bbh"]["question_hash"]) == list(large["pocket_bbh"]["question_hash"])


def test_rows_of_some_datasets_leave_the_tests_of_all():
    sources = ["pocket_cmmlu", "pocket_bbh"]
    rows, tests = draw_frames(config(sources=sources), DATASETS)
    _, all_tests = draw_frames(config(), DATASETS)
    for split, count in {"train": 300, "val": 60, "calibration": 44}.items():
        assert rows[split]["dataset"].value_counts().to_dict() == dict.fromkeys(sources, count // 2)
    for dataset in DATASETS:
        assert list(tests[dataset]["question"]) == list(all_tests[dataset]["question"])


def test_validation_questions_are_new_and_change_no_row():
    rows, tests = draw_frames(config(), DATASETS)
    same_rows, held_out = draw_frames(config(evaluate_on="validation"), DATASETS)
    for split, frame in rows.items():
        pd.testing.assert_frame_equal(frame, same_rows[split])
    used = {text for frame in rows.values() for text in frame["question"]}
    for dataset in DATASETS:
        texts = list(held_out[dataset]["question"])
        assert len(set(texts)) == len(tests[dataset]) == 30
        assert {split_of(question_hash(text)) for text in texts} == {"val"}
        assert not set(texts) & (used | set(tests[dataset]["question"]))
    assert set(split_facts(same_rows, held_out)["leakage"].values()) == {0}


def test_one_style_and_odd_counts():
    rows, _ = draw_frames(config(styles=["direct"], train_rows=15), DATASETS)
    assert len(rows["train"]) == 15
    assert set(rows["train"]["style"]) == {"direct"}
    rows, _ = draw_frames(config(train_rows=15), DATASETS)
    assert len(rows["train"]) == 15


def test_a_task_that_runs_dry_says_so():
    def only(random):
        return Item(f"Is {random.randint(1, 9)} a number?", "", "yes", "only")

    with pytest.raises(ValueError, match=r"tiny has too few different questions.*of 200"):
        draw_questions(Task("tiny", "en", "generation", {"only": only}), 0, {"test": 200})


def test_the_default_study_fits_the_tasks():
    rows, tests = draw_frames(
        config(train_rows=4000, validation_rows=400, calibration_rows=400, test_items=200), DATASETS
    )
    assert split_facts(rows, tests)["questions"] == {"train": 2000, "val": 200, "calibration": 200, "test": 1400}
