"""Small files in the true schema of every source and benchmark, with the edge cases that the real ones have.

Made up for the tests: no text of any benchmark is in here.
"""

import csv
import json
from pathlib import Path

from mtkv.data.benchmarks import BBH_TASKS, CEVAL_SUBJECTS, CMMLU_SUBJECTS

GSM8K_ANSWERS = {"1,000": "1000", "-5": "-5", "$18": "18", "0.50": "0.5", "7.": "7", "72": "72"}


def gsm8k(count, first=0, kind="train"):
    answers = list(GSM8K_ANSWERS)
    return [
        {
            "question": f"In {kind} shop {number} a clerk packs {number} boxes of {number + 2} pens. How many pens is that?",
            "answer": f"He packs {number}*{number + 2}=<<{number}*{number + 2}={number * (number + 2)}>> pens.\nSo it is.\n"
            f"#### {answers[number % len(answers)]}",
        }
        for number in range(first, first + count)
    ]


def svamp(count):
    return [
        {
            "ID": f"chal-{number}",
            "Body": f"Ann has {number + 9} cards and gives {number} of them to her brother{'.' * (number % 2)}",
            "Question": "How many cards has she left?",
            "Equation": f"( {number + 9}.0 - {number}.0 )",
            "Answer": 9.0,
            "Type": "Subtraction",
        }
        for number in range(count)
    ]


def strategyqa(count):
    return [
        {
            "qid": f"q{number}",
            "term": "Moon",
            "question": f"Could castle number {number} hold a whale?",
            "answer": number % 2 == 0,
            "facts": [f"Castle number {number} has a pool", "A whale needs water."],
            "decomposition": ["How large is a whale?"],
        }
        for number in range(count)
    ]


def math23k_text(count):
    """Objects over seven lines each, one after the other, as Math_23K.json has them."""
    values = ["20", "45%", "((1)/(2))", "2((1)/(2))", "0.30"]
    records = [
        {
            "id": str(number),
            "original_text": f"第{number}个盒子里有{number + 3}个球，拿走3个，还剩几个？",
            "segmented_text": f"第 {number} 个",
            "equation": f"x=({number}+3)-3",
            "ans": values[number % len(values)],
        }
        for number in range(count)
    ]
    return "\n".join(json.dumps(record, ensure_ascii=False, indent=2) for record in records)


def math(count, kind="train"):
    boxes = [r"\frac{1}{2}", r"x^{2}+1", r"\left(0,\frac{\pi}{2}\right)", r"1{,}000", r"\text{(A)}"]
    return [
        {
            "problem": f"Task {number} of the {kind} book: what is the value?",
            "level": "Level 3",
            "type": "Algebra",
            "solution": f"We compute step {number}.\nIt is not $\\boxed{{0}}$ but $\\boxed{{{boxes[number % len(boxes)]}}}$.",
        }
        for number in range(count)
    ]


def arc(count):
    return [
        {
            "id": f"Mercury_{number}",
            "question": f"Which thing number {number} is hot?",
            "choices": {"text": ["ice", "fire", "snow", "milk"], "label": list("ABCD" if number % 2 else "1234")},
            "answerKey": "B" if number % 2 else "2",
        }
        for number in range(count)
    ]


def hotpot(count):
    """The original's shape, pairs; every other record in the hub's shape, mappings of lists."""
    records = []
    for number in range(count):
        sentences = [f"House {number} was built by Ann.", " It is red."]
        record = {"_id": str(number), "question": f"Who built the red house {number}?", "answer": "Ann"}
        if number % 2:
            shapes = {"context": {"title": [f"House {number}", "Cat"], "sentences": [sentences, ["Cats purr."]]}}
            shapes["supporting_facts"] = {"title": [f"House {number}"], "sent_id": [0]}
        else:
            shapes = {"context": [["Cat", ["Cats purr."]], [f"House {number}", sentences]]}
            shapes["supporting_facts"] = [
                [f"House {number}", 0],
                [f"House {number}", 7],
            ]  # a sentence that is not there
        records.append(record | shapes)
    return records


def lines(path, records):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records), encoding="utf-8")


def whole(path, value):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False), encoding="utf-8")


def table(path, records):
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(records[0]))
        writer.writeheader()
        writer.writerows(records)


def write_sources(folder: Path, count: int = 40) -> Path:
    lines(folder / "gsm8k" / "train.jsonl", gsm8k(count))
    whole(folder / "svamp" / "SVAMP.json", svamp(count))
    whole(folder / "strategyqa" / "train.json", strategyqa(count))
    whole(folder / "math23k" / "Math_23K.json", math23k_text(count))
    for subject in ("algebra", "counting_and_probability", "geometry", "intermediate_algebra"):
        lines(folder / "math" / subject / "train.jsonl", math(count // 4, subject))
    for subject in ("number_theory", "prealgebra", "precalculus"):
        whole(
            folder / "math" / "train" / subject / "1.json", math(1, subject)[0]
        )  # one file a problem, as in the original
    lines(folder / "arc_challenge" / "train.jsonl", arc(count))
    whole(folder / "hotpotqa" / "hotpot_train_v1.1.json", hotpot(count))
    return folder


BBH_RECORDS = {
    "boolean_expressions": ("not ( True ) and ( {n} ) is", "False"),
    "word_sorting": ("Sort the following words alphabetically: List: pear w{n} apple", "apple pear w0"),
    "dyck_languages": ("Complete: [ ( {n}", ") ]"),
    "multistep_arithmetic_two": ("((-1 + 2) * {n}) =", "-12"),
    "navigate": ("Do you return after {n} steps?\nOptions:\n- Yes\n- No", "No"),
    "object_counting": ("I have {n} cats. How many animals?", "3"),
}


def write_benchmarks(folder: Path, count: int = 6) -> Path:
    lines(folder / "gsm8k" / "test.jsonl", gsm8k(count, first=1000, kind="test"))
    if not (folder / "gsm8k" / "train.jsonl").exists():
        lines(folder / "gsm8k" / "train.jsonl", gsm8k(8))
    lines(
        folder / "math500" / "test.jsonl",
        [
            {"problem": record["problem"], "solution": record["solution"], "answer": record["solution"][-14:-2]}
            | {"subject": "Algebra", "level": 3, "unique_id": f"test/algebra/{number}.json"}
            for number, record in enumerate(math(count, "test"))
        ],
    )
    for task in BBH_TASKS:
        text, target = BBH_RECORDS.get(task, ("Pick for " + task + " {n}.\nOptions:\n(A) red\n(B) blue", "(B)"))
        examples = [{"input": text.format(n=number), "target": target} for number in range(2)]
        whole(folder / "bbh" / f"{task}.json", {"canary": "not this text", "examples": examples})
    gpqa = [
        {
            "Record ID": f"rec{number}",
            "Question": f"Which {number} is right?\nThink.",
            "Correct Answer": f" yes {number}\n",
        }
        | {f"Incorrect Answer {wrong}": f"no {wrong}  of {number}" for wrong in (1, 2, 3)}
        | {"Subdomain": ["Genetics", "Optics"][number % 2], "Explanation": "None"}
        for number in range(count)
    ]
    table(folder / "gpqa" / "gpqa_main.csv", gpqa)
    truth = [
        {
            "Type": "Adversarial",
            "Category": "Myths",
            "Question": f"What happens on day {number}?",
            "Best Answer": "Nothing happens",
        }
        | {
            "Correct Answers": "Nothing happens; All is well; ",
            "Incorrect Answers": f"You fly; You sing {number}",
            "Source": "x",
        }
        for number in range(count)
    ]
    table(folder / "truthfulqa" / "TruthfulQA.csv", truth)
    options = {"A": "None", "B": "NA", "C": "0.50", "D": "1,000"}
    for subject in CMMLU_SUBJECTS:
        for split, letter in (("dev", "A"), ("test", "D")):
            rows = [
                {"": number, "Question": f"{subject}{split}第{number}题？"} | options | {"Answer": letter}
                for number in range(2)
            ]
            table(folder / "cmmlu" / "data" / split / f"{subject}.csv", rows)
    for subject in CEVAL_SUBJECTS:
        for split, letter in (("dev", "A"), ("val", "C")):
            rows = [
                {"id": number, "question": f"{subject}{split}第{number}问____。"}
                | options
                | {"answer": letter, "explanation": ""}
                for number in range(2)
            ]
            table(folder / "ceval" / split / f"{subject}_{split}.csv", rows)
    return folder
