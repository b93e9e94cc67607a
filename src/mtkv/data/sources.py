"""The sources of the training mixture: each turns one record of its true schema into an `Item`.

What a source needs is its origin, its split and a function of a record. A record that lacks a field stops the build (the file
is not what it claims to be); one whose answer is unusable is left out and counted.
"""

import reprlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

from mtkv.data.answers import AnswerError, as_fraction, as_text, boxed, number, text, without_calculations, yes_no
from mtkv.data.items import Item, Language
from mtkv.data.loading import DataFileError, Origin, Record, Records
from mtkv.registry import registered

MATH_SUBJECTS = (
    "algebra",
    "counting_and_probability",
    "geometry",
    "intermediate_algebra",
    "number_theory",
    "prealgebra",
    "precalculus",
)
NAMED = 3  # records that a message names
GSM8K_ORIGIN = Origin("gsm8k", "openai/gsm8k", ("main",), ("{split}.jsonl",))


@dataclass(frozen=True)
class Source:
    """One source: where its records are and what they mean (`item`). Every record must have `fields`; `extra`: used only when named."""

    origin: Origin
    split: str
    language: Language
    fields: tuple[str, ...]
    item: Callable[[Record], Item]
    extra: bool = False

    @property
    def name(self) -> str:
        """Name of the source, of its folder and of its rows' dataset."""
        return self.origin.name


@dataclass
class Unusable:
    """Collects the records of a data set that could not be read: file and number of each, the reason, and the start of its `fields`."""

    fields: tuple[str, ...]
    reasons: list[str] = field(default_factory=list)

    @contextmanager
    def unless_read(self, records: Records, index: int) -> Iterator[None]:
        """Context manager: an error while reading record `index` in the block is noted here instead of raised."""
        try:
            yield
        except DataFileError:
            raise
        except (ValueError, TypeError, AttributeError, LookupError) as error:  # AnswerError is a ValueError
            held = [f"{name} {reprlib.repr(records[index][name])}" for name in self.fields if name in records[index]]
            said = f"{records.where(index)}: {error} ({', '.join(held)})"
            self.reasons.append(said.encode(errors="backslashreplace").decode())

    def __len__(self) -> int:
        return len(self.reasons)

    def __str__(self) -> str:
        return "; ".join(self.reasons[:NAMED]) + ("; …" if len(self) > NAMED else "")


def check_fields(name: str, records: list[Record], fields: tuple[str, ...]) -> None:
    """Raises DataFileError when a record lacks one of `fields`: then the file holds other data than expected."""
    for index, record in enumerate(records):
        lacking = [field for field in fields if field not in record]
        if lacking:
            raise DataFileError(
                f"{name}: record {index} has no {', '.join(lacking)}; it has {', '.join(map(str, record))}"
            )


def gsm8k(record: Record) -> Item:
    """`answer` is the chain of thought with <<calculations>>, then "#### N"."""
    reasoning, mark, answer = as_text(record["answer"]).rpartition("####")
    if not mark:
        raise AnswerError("the answer has no ####")
    return Item(text(record["question"]), text(without_calculations(reasoning)), number(answer), "gsm8k")


def gsm8k_aug(record: Record) -> Item:
    """`cot` is a list of equations "<<600*30/100=180>> <<…>>", or sentences; `answer` a number (Deng et al., arXiv 2311.01460)."""
    return Item(text(record["question"]), text(record["cot"]), number(record["answer"]), "gsm8k_aug")


def svamp(record: Record) -> Item:
    """`Body` and `Question` make the problem, `Equation` is the chain of thought, `Answer` a number such as 51.0."""
    body, question = _sentence(record["Body"]), text(record["Question"])
    answer = number(record["Answer"])
    equation = text(record["Equation"]).removeprefix("( ").removesuffix(" )").replace(".0 ", " ")
    return Item(f"{body} {question}", f"{equation.removesuffix('.0')} = {answer}", answer, "svamp")


def strategyqa(record: Record) -> Item:
    """`facts` is a list of sentences, or on the hub one text; `answer` is a boolean."""
    facts = record["facts"]
    reasoning = " ".join(_sentence(fact) for fact in facts) if isinstance(facts, list) else text(facts)
    return Item(text(record["question"]), text(reasoning), yes_no(record["answer"]), "strategyqa")


def math23k(record: Record) -> Item:
    """`equation` is "x=(11-1)*2", `ans` its value, which is written as a number, a percentage or a fraction "((1)/(2))"."""
    equation = text(record["equation"]).removeprefix("x=")
    answer = number(_math23k_fraction(str(record["ans"])))
    return Item(text(record["original_text"]).replace(" ", ""), f"{equation}={answer}", answer, "math23k")


def math(record: Record) -> Item:
    r"""`solution` ends in \boxed{answer}."""
    answer = boxed(as_text(record["solution"]))
    return Item(text(record["problem"]), text(record["solution"]), text(answer), "math")


def arc_challenge(record: Record) -> Item:
    """`choices` has `text` and `label` (A … or 1 …); `answerKey` is one of the labels. There is no chain of thought."""
    choices: Mapping[str, Any] = record["choices"]
    texts, labels = [text(choice) for choice in choices["text"]], [str(label) for label in choices["label"]]
    if str(record["answerKey"]) not in labels or len(texts) != len(labels):
        raise AnswerError(f"answerKey {record['answerKey']!r} is not one of the labels {labels}")
    gold = labels.index(str(record["answerKey"]))
    question = f"{text(record['question'])} Options: {'; '.join(texts)}"
    return Item(question, "", texts[gold], "arc_challenge", tuple(texts), gold)


def hotpotqa(record: Record) -> Item:
    """The chain of thought is the supporting sentences, in both the hub's shape (mappings of lists) and the original's (pairs)."""
    facts, context = record["supporting_facts"], record["context"]
    if isinstance(facts, Mapping):
        facts = zip(facts["title"], facts["sent_id"], strict=True)
        context = zip(context["title"], context["sentences"], strict=True)
    sentences = dict(context)
    support = [
        sentences[title][index] for title, index in facts if title in sentences and index < len(sentences[title])
    ]
    return Item(text(record["question"]), text(" ".join(support)), text(record["answer"]), "hotpotqa")


def _sentence(value: Any) -> str:
    """A text with a full stop where it has no other end."""
    sentence = text(value)
    return sentence if sentence.endswith((".", "?", "!")) else f"{sentence}."


def _math23k_fraction(value: str) -> str:
    """Math23K's mixed number "2((1)/(2))" as the fraction "5/2"; any other value, "((1)/(2))" for instance, unchanged."""
    whole, bracket, part = value.partition("(")
    if not bracket or not whole.strip():
        return value
    first, second = as_fraction(number(whole)), as_fraction(number("(" + part))
    if first is None or second is None:
        raise AnswerError(f"{value!r} is not a number")
    total = first + second
    return f"{total.numerator}/{total.denominator}"


SOURCES: dict[str, Source] = {
    "gsm8k": Source(GSM8K_ORIGIN, "train", "en", ("question", "answer"), gsm8k),
    "svamp": Source(
        Origin("svamp", "ChilleD/SVAMP", files=("SVAMP.json", "{split}.json")),
        "train",
        "en",
        ("Body", "Question", "Equation", "Answer"),
        svamp,
    ),
    "strategyqa": Source(
        Origin("strategyqa", "ChilleD/StrategyQA", files=("{split}.json",)),
        "train",
        "en",
        ("question", "answer", "facts"),
        strategyqa,
    ),
    "math23k": Source(
        Origin("math23k", "Gxg/Math23K", files=("Math_23K.json", "{split}.json*"), hub_file="Math_23K.json"),
        "train",
        "zh",
        ("original_text", "equation", "ans"),
        math23k,
    ),
    "math": Source(
        Origin("math", "EleutherAI/hendrycks_math", MATH_SUBJECTS, ("{split}/{config}/*.json", "{config}/{split}.*")),
        "train",
        "en",
        ("problem", "solution"),
        math,
    ),
    "arc_challenge": Source(
        Origin("arc_challenge", "allenai/ai2_arc", ("ARC-Challenge",), ("{split}.jsonl",)),
        "train",
        "en",
        ("question", "choices", "answerKey"),
        arc_challenge,
    ),
    "hotpotqa": Source(
        Origin("hotpotqa", "hotpotqa/hotpot_qa", ("distractor",), ("hotpot_{split}*.json", "{split}.jsonl")),
        "train",
        "en",
        ("question", "answer", "supporting_facts", "context"),
        hotpotqa,
    ),
    "gsm8k_aug": Source(
        Origin("gsm8k_aug", "zen-E/GSM8k-Aug", files=("{split}.jsonl",)),
        "train",
        "en",
        ("question", "cot", "answer"),
        gsm8k_aug,
        extra=True,
    ),
    "gsm8k_aug_nl": Source(
        Origin("gsm8k_aug_nl", "zen-E/GSM8k-Aug-NL", files=("{split}.jsonl",)),
        "train",
        "en",
        ("question", "cot", "answer"),
        gsm8k_aug,
        extra=True,
    ),
}
DEFAULT_SOURCES = tuple(name for name, source in SOURCES.items() if not source.extra)


def source_of(name: str, own: Mapping[str, str]) -> Source:
    """The source of that name; `own`: import paths of one's own by name. Raises ValueError for what is none."""
    source = registered(SOURCES, own.get(name, name))
    if not isinstance(source, Source):
        raise ValueError(f"data.extra.{name}: {own[name]} is a {type(source).__name__}; data.sources needs a Source")
    return replace(source, origin=replace(source.origin, name=name))
