"""The mixture of real sources, from small files in their true schema: shares, splits, styles, and nothing that is tested."""

import hashlib
import json
import re
from collections import Counter
from itertools import combinations

import pandas as pd
import pytest
from benchmark_files import gsm8k, lines, svamp, whole, write_benchmarks, write_sources
from hypothesis import given
from hypothesis import strategies as st

from mtkv.config.data import BENCHMARKS as BENCHMARK_NAMES
from mtkv.config.data import DataConfig
from mtkv.data.benchmarks import BENCHMARKS
from mtkv.data.build import build_data
from mtkv.data.loading import DataFileError, Records, load_origin
from mtkv.data.mixture import _write_tests, quotas, usable_questions
from mtkv.data.rows import ROW_COLUMNS
from mtkv.data.sources import SOURCES
from mtkv.data.splits import LeakageError, TestTexts, question_hash, words
from mtkv.data.testsets import dropped_examples, subset, unavailable

NAMES = list(BENCHMARK_NAMES)


def config(folder, **changes):
    sizes = {"train_rows": 100, "validation_rows": 10, "calibration_rows": 4}
    return DataConfig(**({"mixture": "multi_reasoning_cot_direct", "folder": str(folder)} | sizes | changes))


def rows_of(folder):
    return {split: pd.read_parquet(folder / f"{split}.parquet") for split in ("train", "val", "calibration")}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return write_benchmarks(write_sources(tmp_path_factory.mktemp("files")))


@pytest.fixture(scope="module")
def built(files, tmp_path_factory):
    folder = tmp_path_factory.mktemp("built")
    facts = build_data(config(files), NAMES, folder)
    return facts, rows_of(folder), folder


def test_defaults_of_the_mixture():
    default = DataConfig(mixture="multi_reasoning_cot_direct")
    assert (default.train_rows, default.validation_rows, default.test_items) == (15_000, 2_000, None)
    assert DataConfig().train_rows == 4000


def test_sizes_sources_and_languages(built):
    facts, rows, _ = built
    assert {split: len(frame) for split, frame in rows.items()} == {"train": 100, "val": 10, "calibration": 4}
    train = rows["train"]
    assert tuple(train.columns) == ROW_COLUMNS
    assert train["id"].is_unique
    assert (train["dataset"] == "math23k").sum() == 20  # 20 %
    counts = train["dataset"].value_counts()
    assert set(counts.index) == {"gsm8k", "svamp", "strategyqa", "math23k", "math", "arc_challenge", "hotpotqa"}
    others = counts.drop("math23k")
    assert others.max() - others.min() <= 1
    assert facts["rows"]["train"] == counts.to_dict()


def test_both_styles_of_a_question_and_only_direct_without_a_chain(built):
    for row in built[1]["train"].groupby("question_hash"):
        styles, dataset = sorted(row[1]["style"]), row[1]["dataset"].iloc[0]
        assert styles in ([["direct"]] if dataset == "arc_challenge" else [["cot", "direct"], ["cot"]])
    train = built[1]["train"]
    assert (train[train["style"] == "cot"]["reasoning"] != "").all()
    alone = train[train["dataset"] != "arc_challenge"].groupby("question_hash").filter(lambda rows: len(rows) == 1)
    assert alone["dataset"].is_unique, "only the last question of a source may be cut in two"


def test_segments_are_the_texts(built):
    for row in pd.concat(built[1].values()).itertuples():
        whole_text = (row.prompt + row.target).encode()
        assert whole_text[: row.prompt_end].decode() == row.prompt
        assert whole_text[row.prompt_end : row.reasoning_end].decode().strip() == row.reasoning
        assert whole_text[row.reasoning_end :].decode().endswith(row.answer)
        assert row.prompt.startswith("问题：" if row.dataset == "math23k" else "Question: ")


def test_splits_share_no_question_and_no_test_question_brute_force(built, files):
    facts, rows, _ = built

    def bare(question):
        return re.sub(r"\W", "", question).casefold()

    texts = {split: {bare(question) for question in frame["question"]} for split, frame in rows.items()}
    for one, other in combinations(texts, 2):
        assert not texts[one] & texts[other]
    tested = {bare(record["question"]) for record in gsm8k(6, first=1000, kind="test")}
    assert not tested & set.union(*texts.values())
    assert set(facts["leakage"].values()) == {0}


def test_the_split_is_a_question_s_own_whatever_else_is_there(built, files, tmp_path):
    build_data(
        config(files, seed=5, sources=["gsm8k", "svamp"], train_rows=40, validation_rows=4, calibration_rows=2),
        NAMES,
        tmp_path,
    )
    other = rows_of(tmp_path)
    split_of = {digest: split for split, frame in built[1].items() for digest in frame["question_hash"]}
    both = [
        (split, split_of[digest])
        for split, frame in other.items()
        for digest in frame["question_hash"]
        if digest in split_of
    ]
    assert len(both) >= 10
    assert all(one == two for one, two in both)
    assert list(other["train"]["id"]) != list(built[1]["train"]["id"])[:40]


def test_same_seed_same_bytes(files, built, tmp_path):
    build_data(config(files), NAMES, tmp_path)
    for name in ("train.parquet", "test/bbh.parquet", "examples/cmmlu.parquet"):
        assert (tmp_path / name).read_bytes() == (built[2] / name).read_bytes()


def test_contaminated_questions_are_dropped_and_counted(files, tmp_path):
    """One test question as it is, one in disguise, one with 13 of its words in a row inside a longer text; 12 words may stay."""
    tested = [record["question"] for record in gsm8k(6, first=1000, kind="test")]
    thirteen, twelve = (" ".join(tested[2].split()[2 : 2 + length]) for length in (13, 12))
    assert (len(words(thirteen)), len(words(twelve))) == (13, 12)
    planted = [tested[0], f"  {tested[1].upper()} !", f"Alpha beta {thirteen} gamma", f"Alpha beta {twelve} gamma"]
    write_sources(tmp_path / "files")
    write_benchmarks(tmp_path / "files")
    lines(
        tmp_path / "files" / "gsm8k" / "train.jsonl",
        gsm8k(40) + [{"question": q, "answer": "x #### 1"} for q in planted],
    )
    facts = build_data(
        config(tmp_path / "files", sources=["gsm8k"], train_rows=50, validation_rows=4, calibration_rows=2),
        NAMES,
        tmp_path,
    )
    counts = facts["sources"]["gsm8k"]
    assert (counts["contaminated_text"], counts["contaminated_ngram"], counts["records"]) == (2, 1, 44)
    assert counts["usable"] == 41


def test_words_of_a_test_question_in_the_reasoning_count():
    tests = TestTexts(["one two three four five six seven eight nine ten eleven twelve thirteen fourteen"])
    inside = "a two three four five six seven eight nine ten eleven twelve thirteen fourteen b"
    assert tests.shares("Another?", f"Another? {inside}") == "ngram"
    assert tests.shares("Another?", inside.replace("eight", "ate")) is None
    assert TestTexts(["Short one?"]).shares("short  ONE", "short one") == "text"
    assert TestTexts(["Short one?"]).shares("A short one", "A short one") is None


def test_each_chinese_character_is_a_word():
    question = "小明有三个苹果，又买了五个苹果"
    assert words(question) == list("小明有三个苹果又买了五个苹果")
    assert TestTexts([question]).shares("x", f"昨天{question}，今天呢") == "ngram"
    assert TestTexts([question]).shares("x", f"昨天{question[:11]}，今天呢") is None


def test_repeats_and_unusable_records_are_counted(files, tmp_path):
    write_sources(tmp_path / "files")
    records = gsm8k(40)
    lines(tmp_path / "files" / "gsm8k" / "train.jsonl", [*records, records[3], records[4] | {"answer": "none"}])
    facts = build_data(
        config(tmp_path / "files", sources=["gsm8k"], train_rows=50, validation_rows=4, calibration_rows=2),
        [],
        tmp_path,
    )
    assert facts["sources"]["gsm8k"] == {"records": 42, "unusable": 1, "repeated": 1, "usable": 40}


HALF = "half of \ud83d"
NO_TEXT = {"null": None, "NaN": float("nan"), "list": ["a", 1], "half a character": HALF}
NUMBERS = {("svamp", "Answer"), ("math23k", "ans"), ("gsm8k_aug", "answer"), ("gsm8k_aug_nl", "answer")}
STRUCTURES = {("strategyqa", "facts"), ("arc_challenge", "choices")}


@pytest.mark.parametrize("value", [*NO_TEXT, "number"])
@pytest.mark.parametrize("name", SOURCES)
def test_a_record_whose_field_is_no_text_is_unusable_named_and_counted(name, value, tmp_path, monkeypatch):
    source = SOURCES[name]
    write_sources(tmp_path)
    records = [{"question": f"How many are {n}?", "cot": f"<<{n}+1={n + 1}>>", "answer": str(n)} for n in range(9)]
    lines(tmp_path / name / "train.jsonl", records) if source.extra else None
    (good,) = list(load_origin(source.origin, source.split, tmp_path).values())[:1]
    fields = [
        field
        for field in source.fields
        if (value != "number" or (name, field) not in NUMBERS) and (value != "list" or (name, field) not in STRUCTURES)
    ]
    bad = [good[0] | {field: NO_TEXT.get(value, 12)} for field in fields]
    parts = {"default": Records([("one.json", list(good[1:])), ("two.json", [*bad, good[0]])])}
    monkeypatch.setattr("mtkv.data.mixture.load_origin", lambda *_: parts)
    found, counts, unusable = usable_questions(source, config(tmp_path), TestTexts([]))
    assert (counts["records"], counts["unusable"], len(found)) == (len(good) + len(fields), len(fields), len(good))
    assert [reason.split(":")[0] for reason in unusable.reasons] == [
        f"two.json, record {n}" for n in range(len(fields))
    ]
    str(unusable).encode()
    written = [f"{question.item}" for question in found]
    assert not any("nan" in text.split() or "None" in text or "\ud83d" in text for text in written)


def altered(monkeypatch, name, field, value):
    """The second record of the first part of a benchmark holds `value` in `field`."""
    load = load_origin

    def loaded(origin, split, *rest):
        parts = load(origin, split, *rest)
        if origin.name == name and split == BENCHMARKS[name].split:
            records = next(iter(parts.values()))
            records[1] = records[1] | {field: value}
        return parts

    monkeypatch.setattr("mtkv.data.testsets.load_origin", loaded)


TEXTS = [(name, field) for name, benchmark in BENCHMARKS.items() if name != "truthfulqa" for field in benchmark.fields]
TEXTS += [("truthfulqa", field) for field in ("Question", "Best Answer", "Correct Answers", "Incorrect Answers")]


CASES = [(name, field, value) for name, field in TEXTS for value in [*NO_TEXT, "number"]]


@pytest.mark.parametrize(
    ("name", "field", "value"),
    [
        case for case in CASES if not re.match("gpqa Incorrect.* null", " ".join(case))
    ],  # lm-eval asks a blank option there
)
def test_a_test_record_whose_field_is_no_text_is_a_missing_cell(name, field, value, files, tmp_path, monkeypatch):
    altered(monkeypatch, name, field, NO_TEXT.get(value, 12))
    others = [other for other in ("gsm8k", "math500") if other != name][:1]
    tests, asked, missing = _write_tests(config(files), [name, *others], tmp_path)
    assert list(missing) == [name]
    assert list(tests) == list(asked) == others
    assert missing[name].startswith(f"{name}: 1 records cannot be asked: ")
    assert f"{files / name}" in missing[name]
    assert ", record 1: " in missing[name]
    assert unavailable(tmp_path / "test" / f"{name}.parquet") == missing[name]


@pytest.mark.parametrize(("name", "field"), [("math500", "subject"), ("gpqa", "Subdomain"), ("gpqa", "Explanation")])
@pytest.mark.parametrize("value", NO_TEXT)
def test_a_field_that_is_not_asked_costs_nothing(name, field, value, files, tmp_path, monkeypatch):
    altered(monkeypatch, name, field, NO_TEXT[value])
    assert _write_tests(config(files), [name], tmp_path)[2] == {}
    rows = pd.read_parquet(tmp_path / "test" / f"{name}.parquet")
    assert len(rows) == 6
    assert all(set(json.loads(document)) == set(BENCHMARKS[name].fields) for document in rows["document"])


@pytest.mark.parametrize(
    ("name", "field", "value"),
    [
        ("gsm8k", "answer", "as many as before\n#### many"),
        ("gsm8k", "answer", "lm-eval asks for a blank ####18"),
        ("math500", "solution", "there is no box"),
        ("cmmlu", "Answer", "E"),
        ("ceval", "answer", ""),
        ("truthfulqa", "Best Answer", " "),
    ],
)
def test_a_test_record_without_an_answer_for_lm_eval_is_a_missing_cell(
    name, field, value, files, tmp_path, monkeypatch
):
    altered(monkeypatch, name, field, value)
    missing = _write_tests(config(files), [name], tmp_path)[2]
    assert ", record 1: " in missing[name]


def test_bad_records_as_files_hold_them(files, tmp_path):
    """NaN and half a character as JSON writes them, in a source, a test set and examples; the card names file and record."""
    write_benchmarks(write_sources(tmp_path / "files"))
    train = tmp_path / "files" / "gsm8k" / "train.jsonl"
    bad = '{"question": NaN, "answer": "#### 1"}\n{"question": "a \\ud83d b", "answer": "#### 1"}\n{"question": 12, "answer": null}\n'
    train.write_text(train.read_text() + bad)
    test = tmp_path / "files" / "math500" / "test.jsonl"
    test.write_text(test.read_text() + '{"problem": "\\ud83d", "solution": "\\\\boxed{1}", "answer": "1"}\n')
    sizes = {"sources": ["gsm8k"], "train_rows": 50, "validation_rows": 4, "calibration_rows": 2}
    facts = build_data(config(tmp_path / "files", **sizes), ["gsm8k", "math500"], tmp_path)
    assert facts["sources"]["gsm8k"]["unusable"] == facts["examples"]["gsm8k"]["unusable"] == 3
    assert re.search(r"train.jsonl, record 40: .*nan is not text", facts["unusable"]["gsm8k (examples)"])
    for index, said in enumerate(["nan is not text", "half a character", "12 is not text|None is not text"]):
        assert re.search(rf"train.jsonl, record {40 + index}: .*({said})", facts["unusable"]["gsm8k"])
    assert re.search(
        r"math500: 1 records cannot be asked: .*test.jsonl, record 6: .*half", facts["unavailable"]["math500"]
    )
    json.dumps(facts, ensure_ascii=False).encode()


def test_examples_that_are_test_questions_are_dropped_and_counted(tmp_path):
    """Upper-cased questions of the test in GSM8K's train split, and one of C-Eval with its options in another order."""
    write_benchmarks(write_sources(tmp_path / "files"))
    tested = gsm8k(6, first=1000, kind="test")
    copies = [record | {"question": record["question"].upper()} for record in tested] * 3
    similar = tested[0] | {"question": f"{tested[0]['question']} And how many boxes?"}
    lines(tmp_path / "files" / "gsm8k" / "train.jsonl", [*gsm8k(40), *copies, similar])
    path = tmp_path / "files" / "ceval" / "dev" / "law_dev.csv"
    copied = pd.read_csv(tmp_path / "files" / "ceval" / "val" / "law_val.csv", dtype=str, keep_default_na=False).iloc[
        :1
    ]
    swapped = copied.rename(columns={"A": "C", "C": "A"}).assign(answer="A")
    other = copied.assign(C="another thing")
    dev = [pd.read_csv(path, dtype=str, keep_default_na=False), swapped, other]
    pd.concat(dev).to_csv(path, index=False)
    sizes = {"sources": ["gsm8k"], "train_rows": 50, "validation_rows": 4, "calibration_rows": 2}
    facts = build_data(config(tmp_path / "files", **sizes), ["gsm8k", "ceval", "math500"], tmp_path)
    assert facts["examples"] == {
        "gsm8k": {"records": 59, "contaminated_text": 18, "shares_ngram": 1, "usable": 41},
        "ceval": {"records": 106, "contaminated_text": 1, "usable": 105},
    }
    examples = pd.read_parquet(tmp_path / "examples" / "gsm8k.parquet")["document"].map(json.loads)
    assert not {document["question"].casefold() for document in examples} & {r["question"].casefold() for r in tested}
    assert dropped_examples(tmp_path / "examples" / "gsm8k.parquet") == {"main": 18}
    assert dropped_examples(tmp_path / "examples" / "ceval.parquet")["law"] == 1


def test_long_rows_are_left_out(files, tmp_path):
    facts = build_data(
        config(files, sources=["gsm8k"], train_rows=10, validation_rows=1, calibration_rows=1, max_bytes=134),
        [],
        tmp_path,
    )
    rows = pd.concat(rows_of(tmp_path).values())
    assert 0 < facts["sources"]["gsm8k"]["too_long"] < 40
    assert rows["text_end"].max() <= 134


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"sources": ["hotpotqa"]}, r"hotpotqa: no file of split train.*looked for .*hotpotqa"),
        ({"sources": ["svamp"]}, r"svamp: record 0 has no Equation"),
        ({"sources": ["strategyqa"]}, r"strategyqa: none of its 2 records is usable"),
        ({"sources": ["gsm8k"], "train_rows": 9000}, r"sources gsm8k give \d+ train rows, not 9000"),
    ],
)
def test_what_is_wrong_with_a_source_is_said(tmp_path, change, said):
    lines(tmp_path / "gsm8k" / "train.jsonl", gsm8k(10))
    whole(tmp_path / "svamp" / "SVAMP.json", [{key: value for key, value in svamp(1)[0].items() if key != "Equation"}])
    whole(tmp_path / "strategyqa" / "train.json", [{"question": "a?", "answer": "maybe", "facts": ["b"]}] * 2)
    with pytest.raises((DataFileError, ValueError), match=said):
        build_data(config(tmp_path, **change), [], tmp_path / "out")


def test_a_benchmark_that_is_absent_leaves_its_reason(tmp_path):
    write_sources(tmp_path / "files")
    write_benchmarks(tmp_path / "files")
    (tmp_path / "files" / "bbh" / "navigate.json").unlink()
    whole(tmp_path / "files" / "math500" / "test.jsonl", '{"problem": "half a rec')
    facts = build_data(config(tmp_path / "files"), NAMES, tmp_path)
    assert set(facts["unavailable"]) == {"bbh", "math500"}
    assert "bbh" not in facts["checked_against"]
    assert "navigate" in unavailable(tmp_path / "test" / "bbh.parquet")
    assert unavailable(tmp_path / "test" / "gsm8k.parquet") is None
    assert len(pd.read_parquet(tmp_path / "test" / "bbh.parquet")) == 0


def test_questions_of_every_benchmark(built):
    facts, _, folder = built
    assert facts["asked"] == {
        "gsm8k": 6,
        "math500": 6,
        "bbh": 54,
        "gpqa": 6,
        "truthfulqa": 6,
        "cmmlu": 134,
        "ceval": 104,
    }
    tests = {name: pd.read_parquet(folder / "test" / f"{name}.parquet") for name in BENCHMARKS}
    assert all(frame["id"].is_unique for frame in tests.values())
    assert list(tests["gsm8k"]["answer"]) == ["7.", "72", "1,000", "-5", "$18", "0.50"]  # as lm-eval compares them
    assert tests["bbh"].groupby("cluster").size().eq(2).all()
    assert set(tests["bbh"].head(27)["part"]) == set(tests["bbh"]["part"]), "every prefix is of all parts"
    gpqa = tests["gpqa"].iloc[1]
    assert (list(gpqa["choices"]), gpqa["gold"]) == (["yes 1", "no 1 of 1", "no 2 of 1", "no 3 of 1"], 0)
    truth = tests["truthfulqa"].iloc[2]
    assert list(truth["choices"]) == ["Nothing happens", "You fly", "You sing 2"]
    assert json.loads(truth["document"])["mc2_targets"] == {
        "choices": ["Nothing happens", "All is well", "You fly", "You sing 2"],
        "labels": [1, 1, 0, 0],
    }
    assert set(tests["cmmlu"]["answer"]) == {"D"}
    assert json.loads(tests["cmmlu"]["document"].iloc[0]) | {"Question": ""} == {
        "Question": "", "A": "None", "B": "NA", "C": "0.50", "D": "1,000", "Answer": "D"
    }  # fmt: skip
    examples = pd.read_parquet(folder / "examples" / "cmmlu.parquet")
    assert Counter(json.loads(text)["Answer"] for text in examples["document"]) == {"A": 134}


def test_questions_that_a_test_asks_again_are_counted_and_lie_in_one_cluster(tmp_path):
    """Ten questions of GSM8K twenty times, and three once; two of C-Eval with the same stem but other options."""
    write_sources(tmp_path / "files")
    write_benchmarks(tmp_path / "files")
    ten, three = gsm8k(10, first=1000, kind="test"), gsm8k(3, first=2000, kind="test")
    lines(tmp_path / "files/gsm8k/test.jsonl", [*ten * 20, *three])
    subject = tmp_path / "files/ceval/val/law_val.csv"
    frame = pd.read_csv(subject, dtype=str)
    same = pd.concat([frame, frame.iloc[:1], frame.iloc[:1].assign(A="another")])
    same.to_csv(subject, index=False)
    facts = build_data(config(tmp_path / "files"), NAMES, tmp_path)
    assert facts["repeated_tests"]["gsm8k"] == 190
    assert facts["repeated_tests"]["ceval"] == 1
    asked = pd.read_parquet(tmp_path / "test/gsm8k.parquet")
    assert sorted(asked.groupby("cluster").size()) == [1] * 3 + [20] * 10
    assert (asked.groupby("cluster")["question"].nunique() == 1).all()
    again = pd.read_parquet(tmp_path / "test/ceval.parquet").query("part == 'law' and id != same_as")
    assert len(again) == 1
    assert set(again["cluster"]) == {"law"}


def test_truthfulqa_of_the_hub_is_the_same_as_the_csv_s():
    row = {"Question": "Q?", "Best Answer": "a", "Correct Answers": "a; b", "Incorrect Answers": "c; d"}
    of_csv = BENCHMARKS["truthfulqa"].document(row)
    original = {
        "question": "Q?",
        "mc1_targets": {"a": 1, "c": 0, "d": 0},
        "mc2_targets": {"a": 1, "b": 1, "c": 0, "d": 0},
    }
    assert of_csv == BENCHMARKS["truthfulqa"].document(original) == BENCHMARKS["truthfulqa"].document(of_csv)


def test_a_subset_is_drawn_by_the_hash_of_seed_and_id(built):
    frame = pd.read_parquet(built[2] / "test" / "cmmlu.parquet")
    drawn = subset(frame, 20, seed=3)
    ranked = sorted(frame["id"], key=lambda item: hashlib.sha256(f"3:{item}".encode()).hexdigest())
    assert set(drawn["id"]) == set(ranked[:20])
    assert list(drawn["id"]) == [item for item in frame["id"] if item in set(ranked[:20])]
    assert set(subset(frame, 21, seed=3)["id"]) > set(drawn["id"])
    assert len(subset(frame, None, 0)) == len(subset(frame, 10**6, 0)) == len(frame)


def test_all_questions_are_kept_from_training_not_just_those_asked(tmp_path, files):
    facts = build_data(config(files, subsets={"cmmlu": 5}, test_items=3), NAMES, tmp_path)
    assert facts["asked"] == dict.fromkeys(NAMES, 3) | {"cmmlu": 5}
    assert facts["checked_against"]["cmmlu"] == 134


def test_a_leak_would_stop_the_build(built):
    from mtkv.data.splits import split_facts

    _, rows, _ = built
    test = pd.DataFrame({"question": [rows["train"]["question"].iloc[0].upper()]})
    with pytest.raises(LeakageError):
        split_facts(rows, {"x": test})
    assert question_hash(test["question"][0]) == rows["train"]["question_hash"].iloc[0]


@given(
    total=st.integers(1, 300),
    room=st.dictionaries(st.sampled_from("abcdef"), st.integers(0, 100), min_size=1),
    chinese=st.sets(st.sampled_from("abcdef")),
    share=st.floats(0, 1),
)
def test_quotas(total, room, chinese, share):
    parts = quotas(total, room, chinese, share)
    assert list(parts) == list(room)
    assert all(0 <= parts[name] <= room[name] for name in room)
    assert sum(parts.values()) == min(total, sum(room.values()))
    for group in (set(room) & chinese, set(room) - chinese):
        full = [parts[name] for name in group if parts[name] < room[name]]
        assert not full or max(parts[name] for name in group) - min(full) <= 1, "equal as far as they reach"
    zh = sum(parts[name] for name in room if name in chinese)
    have_zh, have_other = (sum(room[n] for n in room if (n in chinese) == flag) for flag in (True, False))
    if have_zh >= round(total * share) and have_other >= total - round(total * share) and set(room) - chinese:
        assert zh == round(total * share)
