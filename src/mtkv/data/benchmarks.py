"""The seven real benchmarks as files: where their records are, what the fields mean, and which split few-shot prompts come from.

lm-eval asks and scores them (`mtkv.evaluate.lm_eval_tasks`) and gets the records unchanged. Question, choices and gold answer are read
here for the leakage check and for scoring every prediction a second time.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from mtkv.data.answers import AnswerError, as_text, boxed, number
from mtkv.data.benchmark_parts import BBH_TASKS, CEVAL_SUBJECTS, CMMLU_SUBJECTS
from mtkv.data.items import Item, Language
from mtkv.data.loading import Origin, Record
from mtkv.data.sources import GSM8K_ORIGIN
from mtkv.registry import registered

LETTERS = ("A", "B", "C", "D")
GPQA_OPTIONS = ("choice1", "choice2", "choice3", "choice4")
GPQA_WRONG = ("Incorrect Answer 1", "Incorrect Answer 2", "Incorrect Answer 3")


@dataclass(frozen=True)
class Recipe:
    """One of lm-eval's tasks: its file, with {part} where there are several, and the metric and filter that count.

    `file` is below lm-eval's `tasks` folder, or an absolute path. `options`: fields of a record that hold the options in the order they
    are asked, where that is not the study's.
    """

    file: str
    metric: str
    filter: str = "none"
    options: tuple[str, ...] = ()


@dataclass(frozen=True)
class Benchmark:
    """One benchmark. `document` turns a record of the files into the record that lm-eval expects; `fields` are those lm-eval reads.

    `item(document, config)` gives question, choices and gold answer; it raises AnswerError for a record that cannot be asked (a field
    that is no string). `examples`: the split that few-shot prompts are taken from, or None where lm-eval brings its own.
    `tasks`: lm-eval's tasks that may ask it; the first is the default.
    """

    origin: Origin
    split: str
    language: Language
    fields: tuple[str, ...]
    item: Callable[[Record, str], Item]
    tasks: Mapping[str, Recipe]
    examples: str | None = None
    document: Callable[[Record], Record] = lambda record: record

    @property
    def name(self) -> str:
        """The benchmark's name, also that of its data folder and its test file."""
        return self.origin.name


def gsm8k(record: Record, config: str) -> Item:
    """The gold answer is the text behind "#### ", which lm-eval compares as it is written; every question is its own cluster."""
    gold = as_text(record["answer"]).rpartition("#### ")[2]
    number(gold)
    return Item(as_text(record["question"]), "", gold, "")


def math500(record: Record, config: str) -> Item:
    """Clusters are the subjects; the answer is LaTeX."""
    boxed(as_text(record["solution"]))  # lm-eval takes the answer from there
    return Item(as_text(record["problem"]), "", as_text(record["answer"]), _cluster(record.get("subject")))


def bbh(record: Record, config: str) -> Item:
    """Clusters are the 27 tasks."""
    return Item(as_text(record["input"]), "", as_text(record["target"]), config)


def gpqa(record: Record, config: str) -> Item:
    """The right option first; lm-eval shuffles them."""
    as_text(record["Correct Answer"])
    options = tuple(gpqa_text(record[field]) for field in ("Correct Answer", *GPQA_WRONG))
    return Item(as_text(record["Question"]), "", options[0], _cluster(record.get("Subdomain")), options, 0)


def gpqa_text(value: str | None) -> str:
    """An option as lm-eval's task writes it: a wrong one may be null."""
    return " " if value is None else as_text(value).strip().replace(" [title]", ". ").replace("  ", " ")


def truthfulqa(record: Record, config: str) -> Item:
    """MC1: one option is true. It must be the first, because lm-eval's task ignores the labels."""
    targets = record["mc1_targets"]
    choices, _ = (
        tuple(as_text(choice) for choice in record[name]["choices"]) for name in ("mc1_targets", "mc2_targets")
    )
    if list(targets["labels"]) != [1] + [0] * (len(choices) - 1):
        raise AnswerError(
            f"mc1_targets: the labels {targets['labels']} are not 1 for the first choice and 0 for the others"
        )
    return Item(as_text(record["question"]), "", choices[0], "", choices, 0)


def truthfulqa_document(record: Record) -> Record:
    """The original CSV or JSON record in the hub's shape: {choices, labels} for each of mc1 and mc2."""
    if "Best Answer" in record:
        best, right, wrong = (_answers(record[f"{kind} Answer{'' if kind == 'Best' else 's'}"]) for kind in KINDS)
        right = [*best, *(answer for answer in right if answer not in best)]
        return {"question": record["Question"], "mc1_targets": _targets(best[:1], wrong)} | {
            "mc2_targets": _targets(right, wrong)
        }
    targets = {name: record[name] for name in ("mc1_targets", "mc2_targets")}
    return {"question": record["question"]} | {
        name: value if "choices" in value else {"choices": list(value), "labels": list(value.values())}
        for name, value in targets.items()
    }


def letters(record: Record, config: str) -> Item:
    """CMMLU and C-Eval: four options, answered by their letter; clusters are the subjects."""
    question, answer = (as_text(record.get(name, record.get(name.capitalize()))) for name in ("question", "answer"))
    for letter in LETTERS:
        as_text(record[letter])
    if answer not in LETTERS:
        raise AnswerError(f"{answer!r} is none of the letters {', '.join(LETTERS)}")
    return Item(question, "", answer, config, LETTERS, LETTERS.index(answer))


def asked(item: Item, document: Record) -> str:
    """The text by which the leakage check knows a question: with options, question and right option ("Which is true?" is asked often)."""
    return f"{item.question}\n{document[item.answer]}" if item.choices == LETTERS else item.question


def _cluster(value: object) -> str:
    """The subject that the record names, or "" for none: then the question is a cluster of its own."""
    return value if isinstance(value, str) and value.isprintable() else ""


KINDS = ("Best", "Correct", "Incorrect")


def _answers(cell: str) -> list[str]:
    """Several answers in one cell, separated by semicolons."""
    return [answer.strip() for answer in cell.split(";") if answer.strip()]


def _targets(right: list[str], wrong: list[str]) -> Record:
    return {"choices": [*right, *wrong], "labels": [1] * len(right) + [0] * len(wrong)}


BENCHMARKS: dict[str, Benchmark] = {
    "gsm8k": Benchmark(
        GSM8K_ORIGIN,
        "test",
        "en",
        ("question", "answer"),
        gsm8k,
        examples="train",
        tasks={
            "gsm8k": Recipe("gsm8k/gsm8k.yaml", "exact_match", "flexible-extract"),
            "gsm8k_cot_zeroshot": Recipe("gsm8k/gsm8k-cot-zeroshot.yaml", "exact_match", "flexible-extract"),
        },
    ),
    "math500": Benchmark(
        Origin("math500", "HuggingFaceH4/MATH-500", files=("{split}.jsonl",)),
        "test",
        "en",
        ("problem", "solution", "answer"),
        math500,
        tasks={
            "minerva_math500": Recipe("minerva_math/minerva_math500.yaml", "math_verify"),
            "hendrycks_math500": Recipe("hendrycks_math/hendrycks_math500.yaml", "exact_match"),
        },
    ),
    "bbh": Benchmark(
        Origin("bbh", "SaylorTwift/bbh", BBH_TASKS, ("{config}.json",)),
        "test",
        "en",
        ("input", "target"),
        bbh,
        tasks={
            "bbh_cot_zeroshot": Recipe("bbh/cot_zeroshot/{part}.yaml", "exact_match", "flexible-extract"),
            "bbh_zeroshot": Recipe("bbh/zeroshot/{part}.yaml", "exact_match", "flexible-extract"),
            "bbh_cot_fewshot": Recipe("bbh/cot_fewshot/{part}.yaml", "exact_match", "get-answer"),
        },
    ),
    "gpqa": Benchmark(
        Origin("gpqa", "Idavidrein/gpqa", ("gpqa_main",), ("{config}.csv", "{config}.jsonl"), gated=True),
        "train",
        "en",
        ("Question", "Correct Answer", *GPQA_WRONG),
        gpqa,
        tasks={
            "gpqa_main_zeroshot": Recipe("gpqa/zeroshot/gpqa_main_zeroshot.yaml", "acc", options=GPQA_OPTIONS),
            "gpqa_main_n_shot": Recipe("gpqa/n_shot/gpqa_main_n_shot.yaml", "acc", options=GPQA_OPTIONS),
        },
    ),
    "truthfulqa": Benchmark(
        Origin("truthfulqa", "truthfulqa/truthful_qa", ("multiple_choice",), ("mc_task.json", "TruthfulQA.csv")),
        "validation",
        "en",
        ("question", "mc1_targets", "mc2_targets"),
        truthfulqa,
        document=truthfulqa_document,
        tasks={"truthfulqa_mc1": Recipe("truthfulqa/truthfulqa_mc1.yaml", "acc")},
    ),
    "cmmlu": Benchmark(
        Origin("cmmlu", "haonan-li/cmmlu", CMMLU_SUBJECTS, ("data/{split}/{config}.csv", "{split}/{config}.csv")),
        "test",
        "zh",
        ("Question", *LETTERS, "Answer"),
        letters,
        examples="dev",
        tasks={"cmmlu": Recipe("cmmlu/cmmlu_{part}.yaml", "acc")},
    ),
    "ceval": Benchmark(
        Origin("ceval", "ceval/ceval-exam", CEVAL_SUBJECTS, ("{split}/{config}_{split}.csv",)),
        "val",
        "zh",
        ("question", *LETTERS, "answer"),
        letters,
        examples="dev",
        tasks={"ceval-valid": Recipe("ceval/ceval-valid_{part}.yaml", "acc")},
    ),
}


def benchmark_of(name: str, own: Mapping[str, str]) -> Benchmark:
    """The benchmark of that name; `own`: import paths of one's own by name. Raises ValueError for what is none."""
    benchmark = registered(BENCHMARKS, own.get(name, name))
    if not isinstance(benchmark, Benchmark):
        raise ValueError(
            f"data.extra.{name}: {own[name]} is a {type(benchmark).__name__}; a dataset that data.sources does not name needs a Benchmark"
        )
    return replace(benchmark, origin=replace(benchmark.origin, name=name))
