"""The mixture of real sources, `multi_reasoning_cot_direct`: which of their questions become rows, and how many of each source.

A question must have a usable answer, not be too long, not repeat an earlier one and share no text with any test set; what is left out is
counted in the card. Its split follows from its hash alone, as for the pocket tasks. The Chinese sources give a set share of all rows;
within a language the sources give equal parts as far as they reach.
"""

import hashlib
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from itertools import islice
from pathlib import Path
from random import Random
from typing import Any

import pandas as pd

from mtkv.config.data import DataConfig
from mtkv.data.benchmarks import benchmark_of
from mtkv.data.loading import DataFileError, load_origin
from mtkv.data.rows import ROW_COLUMNS, Question, row
from mtkv.data.sources import DEFAULT_SOURCES, Source, Unusable, check_fields, source_of
from mtkv.data.splits import TestTexts, question_hash, split_facts, split_of
from mtkv.data.testsets import TestSet, read_benchmark, subset, write_examples, write_test
from mtkv.provenance.files import write_parquet


def quotas(total: int, available: Mapping[str, int], chinese: Collection[str], share: float) -> dict[str, int]:
    """Number of rows to take from each source; `available`: how many each has. `share` of `total` comes from the sources in `chinese`.

    A source that has less than its part gives all it has, and the others of its language more. Where a language has too few rows, the
    other one fills up; the sum is less than `total` only when every row is used.
    """
    groups = ({name for name in available if name in chinese}, {name for name in available if name not in chinese})
    room = [sum(available[name] for name in group) for group in groups]
    first = min(round(total * share), room[0]) if groups[1] else min(total, room[0])
    second = min(total - first, room[1])
    first = min(total - second, room[0])
    parts = _even(first, {name: available[name] for name in available if name in groups[0]})
    parts |= _even(second, {name: available[name] for name in available if name in groups[1]})
    return {name: parts[name] for name in available}


def _even(total: int, available: Mapping[str, int]) -> dict[str, int]:
    """`total` in parts as equal as `available` allows; earlier sources get the remainder."""
    parts = dict.fromkeys(available, 0)
    left = min(total, sum(available.values()))
    while left:
        open_sources = [name for name in available if parts[name] < available[name]]
        each = max(1, left // len(open_sources))
        for name in open_sources[:left]:
            more = min(each, available[name] - parts[name])
            parts[name] += more
            left -= more
    return parts


# Shares of the questions' hash bins, out of 16; the tests are sets of their own.
BINS = {"train": range(0, 13), "val": range(13, 15), "calibration": range(15, 16)}


def build_mixture(config: DataConfig, datasets: list[str], folder: Path) -> dict[str, Any]:
    """`build_data` for the real sources. Rows are compared with every test question of `datasets`, also those the study does not ask."""
    tests, asked, missing = _write_tests(config, datasets, folder)
    questions = {name: test.questions for name, test in tests.items()}
    texts = TestTexts(question for frame in questions.values() for question in frame["question"])
    pools: dict[str, list[Question]] = {}
    counts: dict[str, Counter[str]] = {}
    unusable = {f"{name} (examples)": str(test.unusable) for name, test in tests.items() if test.unusable}
    names: list[str] = [*(config.sources or DEFAULT_SOURCES)]
    for name in names:
        pools[name], counts[name], bad = usable_questions(source_of(name, config.extra), config, texts)
        unusable |= {name: str(bad)} if bad else {}
    _without_repeats(pools, counts)
    frames = {split: _draw(config, split, pools) for split in BINS}
    facts = split_facts(frames, questions) | {
        "sources": {name: dict(count) for name, count in counts.items()},
        "examples": {name: dict(test.counts) for name, test in tests.items() if test.counts},
        "unusable": unusable,
        "checked_against": {name: len(frame) for name, frame in questions.items()},
        "asked": asked,
        "repeated_tests": {name: int((frame["id"] != frame["same_as"]).sum()) for name, frame in questions.items()},
        "unavailable": missing,
    }
    facts["rows"]["test"] = asked
    for split, frame in frames.items():
        write_parquet(folder / f"{split}.parquet", frame)
    return facts


def usable_questions(
    source: Source, config: DataConfig, tests: TestTexts
) -> tuple[list[Question], Counter[str], Unusable]:
    """Questions of one source that may be trained on, the number of records left out by reason, and the unusable records.

    Raises DataFileError when the source is absent or has other fields, or when no record is usable.
    """
    folder = Path(config.folder) if config.folder else None
    parts = load_origin(source.origin, source.split, folder, config.revisions.get(source.name))
    items: list[Question] = []
    unusable = Unusable(source.fields)
    counts: Counter[str] = Counter(records=0)
    for part in parts.values():
        check_fields(source.name, part, source.fields)
        for index, record in enumerate(part):
            with unusable.unless_read(part, index):
                item = source.item(record)
                digest = question_hash(item.question)
                items.append(Question(source.name, source.language, counts["records"], digest, item))
            counts["records"] += 1
    if unusable:
        counts["unusable"] = len(unusable)
    found: list[Question] = []
    for question in items:
        item = question.item
        shared = tests.shares(item.question, f"{item.question} {item.reasoning} {item.answer}")
        if shared:
            counts[f"contaminated_{shared}"] += 1
        elif config.max_bytes and _longest(question, config) > config.max_bytes:
            counts["too_long"] += 1
        else:
            found.append(question)
    if not found:
        raise DataFileError(
            f"{source.name}: none of its {counts['records']} records is usable: {dict(counts)} {unusable}"
        )
    return found, counts, unusable


def styles_of(question: Question, styles: Sequence[str]) -> list[str]:
    """The styles a question is written in: `cot` needs a chain of thought, which ARC-Challenge has not."""
    return [style for style in styles if style != "cot" or question.item.reasoning]


def _write_tests(
    config: DataConfig, datasets: list[str], folder: Path
) -> tuple[dict[str, TestSet], dict[str, int], dict[str, str]]:
    """Write the test files. Returns, by dataset: each test set, how many of its questions are asked, why others cannot be loaded."""
    tests, asked, missing = {}, {}, {}
    for name in datasets:
        path, examples_path = folder / "test" / f"{name}.parquet", folder / "examples" / f"{name}.parquet"
        try:
            tests[name] = read_benchmark(benchmark_of(name, config.extra), config)
        except DataFileError as error:
            missing[name] = str(error)
            write_test(path, pd.DataFrame(), missing[name], config.extra.get(name))
            write_examples(examples_path, pd.DataFrame())
            continue
        chosen = subset(tests[name].questions, config.subsets.get(name, config.test_items), config.seed)
        asked[name] = len(chosen)
        write_test(path, chosen, own=config.extra.get(name))
        write_examples(examples_path, tests[name].examples, tests[name].dropped)
    return tests, asked, missing


def _without_repeats(pools: dict[str, list[Question]], counts: Mapping[str, Counter[str]]) -> None:
    """Of questions that are equal after normalisation, over all sources, keep the first (`pools` and `counts` change in place)."""
    seen: set[str] = set()
    for name, questions in pools.items():
        kept = []
        for question in questions:
            if question.question_hash not in seen:
                seen.add(question.question_hash)
                kept.append(question)
        counts[name]["repeated"] = len(questions) - len(kept)
        counts[name]["usable"] = len(kept)
        pools[name] = kept


def _draw(config: DataConfig, split: str, pools: Mapping[str, list[Question]]) -> pd.DataFrame:
    """The rows of one split: each source's share of them, in an order that mixes the sources."""
    wanted = {"train": config.train_rows, "val": config.validation_rows, "calibration": config.calibration_rows}[split]
    ordered = {
        name: _order([question for question in pool if split_of(question.question_hash, BINS) == split], config.seed)
        for name, pool in pools.items()
    }
    available = {name: sum(len(styles_of(q, config.styles)) for q in pool) for name, pool in ordered.items()}
    chinese = {name for name in pools if source_of(name, config.extra).language == "zh"}
    shares = quotas(wanted, available, chinese, config.chinese_share)
    if (total := sum(shares.values())) < wanted:
        raise ValueError(
            f"data: the sources {', '.join(pools)} give {total} {split} rows, not {wanted}: "
            f"ask for fewer rows, add sources or allow longer ones (max_bytes); there are {available}"
        )
    frames = [_rows(ordered[name], config.styles, share) for name, share in shares.items()]
    rows = pd.concat([frame for frame in frames if len(frame)], ignore_index=True)
    hashes = sorted(set(rows["question_hash"]))
    Random(f"{config.seed}:{split}").shuffle(hashes)
    place = {digest: index for index, digest in enumerate(hashes)}
    return rows.sort_values("question_hash", key=lambda column: column.map(place), kind="stable", ignore_index=True)


def _rows(questions: list[Question], styles: Sequence[str], count: int) -> pd.DataFrame:
    """The first `count` rows of the questions, each in all of its styles."""
    every = (row(question, style) for question in questions for style in styles_of(question, styles))
    return pd.DataFrame(islice(every, count), columns=list(ROW_COLUMNS))


def _order(questions: list[Question], seed: int) -> list[Question]:
    return sorted(questions, key=lambda q: hashlib.sha256(f"{seed}:{q.question_hash}".encode()).digest())


def _longest(question: Question, config: DataConfig) -> int:
    return max(int(row(question, style)["text_end"]) for style in styles_of(question, config.styles) or ["direct"])
