"""The seven real benchmarks as files: where their records are, what the fields mean, and which split few-shot prompts come from.

lm-eval asks and scores them (`mtkv.evaluate.lm_eval_tasks`) and gets the records unchanged. Question, choices and gold answer are read
here for the leakage check and for scoring every prediction a second time. First the names of the parts of those benchmarks that have
many: BBH's 27 tasks, the 67 subjects of CMMLU and the 52 of C-Eval.
"""

from collections.abc import Callable
from dataclasses import dataclass

from mtkv.data.answers import AnswerError, as_text, boxed, number
from mtkv.data.items import Item, Language
from mtkv.data.loading import Origin, Record
from mtkv.data.sources import GSM8K_ORIGIN

BBH_TASKS = (
    "boolean_expressions",
    "causal_judgement",
    "date_understanding",
    "disambiguation_qa",
    "dyck_languages",
    "formal_fallacies",
    "geometric_shapes",
    "hyperbaton",
    "logical_deduction_five_objects",
    "logical_deduction_seven_objects",
    "logical_deduction_three_objects",
    "movie_recommendation",
    "multistep_arithmetic_two",
    "navigate",
    "object_counting",
    "penguins_in_a_table",
    "reasoning_about_colored_objects",
    "ruin_names",
    "salient_translation_error_detection",
    "snarks",
    "sports_understanding",
    "temporal_sequences",
    "tracking_shuffled_objects_five_objects",
    "tracking_shuffled_objects_seven_objects",
    "tracking_shuffled_objects_three_objects",
    "web_of_lies",
    "word_sorting",
)
CMMLU_SUBJECTS = (
    "agronomy",
    "anatomy",
    "ancient_chinese",
    "arts",
    "astronomy",
    "business_ethics",
    "chinese_civil_service_exam",
    "chinese_driving_rule",
    "chinese_food_culture",
    "chinese_foreign_policy",
    "chinese_history",
    "chinese_literature",
    "chinese_teacher_qualification",
    "clinical_knowledge",
    "college_actuarial_science",
    "college_education",
    "college_engineering_hydrology",
    "college_law",
    "college_mathematics",
    "college_medical_statistics",
    "college_medicine",
    "computer_science",
    "computer_security",
    "conceptual_physics",
    "construction_project_management",
    "economics",
    "education",
    "electrical_engineering",
    "elementary_chinese",
    "elementary_commonsense",
    "elementary_information_and_technology",
    "elementary_mathematics",
    "ethnology",
    "food_science",
    "genetics",
    "global_facts",
    "high_school_biology",
    "high_school_chemistry",
    "high_school_geography",
    "high_school_mathematics",
    "high_school_physics",
    "high_school_politics",
    "human_sexuality",
    "international_law",
    "journalism",
    "jurisprudence",
    "legal_and_moral_basis",
    "logical",
    "machine_learning",
    "management",
    "marketing",
    "marxist_theory",
    "modern_chinese",
    "nutrition",
    "philosophy",
    "professional_accounting",
    "professional_law",
    "professional_medicine",
    "professional_psychology",
    "public_relations",
    "security_study",
    "sociology",
    "sports_science",
    "traditional_chinese_medicine",
    "virology",
    "world_history",
    "world_religions",
)
CEVAL_SUBJECTS = (
    "accountant",
    "advanced_mathematics",
    "art_studies",
    "basic_medicine",
    "business_administration",
    "chinese_language_and_literature",
    "civil_servant",
    "clinical_medicine",
    "college_chemistry",
    "college_economics",
    "college_physics",
    "college_programming",
    "computer_architecture",
    "computer_network",
    "discrete_mathematics",
    "education_science",
    "electrical_engineer",
    "environmental_impact_assessment_engineer",
    "fire_engineer",
    "high_school_biology",
    "high_school_chemistry",
    "high_school_chinese",
    "high_school_geography",
    "high_school_history",
    "high_school_mathematics",
    "high_school_physics",
    "high_school_politics",
    "ideological_and_moral_cultivation",
    "law",
    "legal_professional",
    "logic",
    "mao_zedong_thought",
    "marxism",
    "metrology_engineer",
    "middle_school_biology",
    "middle_school_chemistry",
    "middle_school_geography",
    "middle_school_history",
    "middle_school_mathematics",
    "middle_school_physics",
    "middle_school_politics",
    "modern_chinese_history",
    "operating_system",
    "physician",
    "plant_protection",
    "probability_and_statistics",
    "professional_tour_guide",
    "sports_science",
    "tax_accountant",
    "teacher_qualification",
    "urban_and_rural_planner",
    "veterinary_medicine",
)


LETTERS = ("A", "B", "C", "D")
GPQA_WRONG = ("Incorrect Answer 1", "Incorrect Answer 2", "Incorrect Answer 3")


@dataclass(frozen=True)
class Benchmark:
    """One benchmark. `document` turns a record of the files into the record that lm-eval expects; `fields` are those lm-eval reads.

    `item(document, config)` gives question, choices and gold answer; it raises AnswerError for a record that cannot be asked (a field
    that is no string). `examples`: the split that few-shot prompts are taken from, or None where lm-eval brings its own.
    """

    origin: Origin
    split: str
    language: Language
    fields: tuple[str, ...]
    item: Callable[[Record, str], Item]
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
    benchmark.name: benchmark
    for benchmark in (
        Benchmark(GSM8K_ORIGIN, "test", "en", ("question", "answer"), gsm8k, examples="train"),
        Benchmark(
            Origin("math500", "HuggingFaceH4/MATH-500", files=("{split}.jsonl",)),
            "test",
            "en",
            ("problem", "solution", "answer"),
            math500,
        ),
        Benchmark(
            Origin("bbh", "SaylorTwift/bbh", BBH_TASKS, ("{config}.json",)),
            "test",
            "en",
            ("input", "target"),
            bbh,
        ),
        Benchmark(
            Origin("gpqa", "Idavidrein/gpqa", ("gpqa_main",), ("{config}.csv", "{config}.jsonl"), gated=True),
            "train",
            "en",
            ("Question", "Correct Answer", *GPQA_WRONG),
            gpqa,
        ),
        Benchmark(
            Origin("truthfulqa", "truthfulqa/truthful_qa", ("multiple_choice",), ("mc_task.json", "TruthfulQA.csv")),
            "validation",
            "en",
            ("question", "mc1_targets", "mc2_targets"),
            truthfulqa,
            document=truthfulqa_document,
        ),
        Benchmark(
            Origin("cmmlu", "haonan-li/cmmlu", CMMLU_SUBJECTS, ("data/{split}/{config}.csv", "{split}/{config}.csv")),
            "test",
            "zh",
            ("Question", *LETTERS, "Answer"),
            letters,
            examples="dev",
        ),
        Benchmark(
            Origin("ceval", "ceval/ceval-exam", CEVAL_SUBJECTS, ("{split}/{config}_{split}.csv",)),
            "val",
            "zh",
            ("question", *LETTERS, "answer"),
            letters,
            examples="dev",
        ),
    )
}
