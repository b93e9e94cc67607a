"""The item browser: questions that one arm answers and another does not, with both outputs.

In: `Results`, the questions in data/test/ and the predictions of the few runs that are shown. Out: a JSON-able dict of plain text
(the page escapes it). Counts are over all items; of the items themselves at most `MAX_ENTRIES` are shown in all, the ones on
which the arms differ in the most seeds first, and texts are cut at `MAX_CHARS`. When the texts together reach `MAX_TEXT` bytes, no
further items are shown; every list gets its first item before any gets its second.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from jaxtyping import Float

from mtkv.report.figures.figure import Verbatim, number
from mtkv.report.results import Results

MAX_ENTRIES = 3000
MAX_PER_LIST = 20
MAX_CHARS = 600
MAX_TEXT = 4_000_000
Pair = tuple[str, str]
Said = dict[tuple[str, int, str, str], str]


def item_browser(results: Results) -> dict[str, Any] | None:
    """Lists of items per (arm, other) and dataset, in both directions; None when the study has no questions or predictions on disk.

    `texts` holds every text once; `questions` maps dataset → item → numbers of question and gold answer. An entry of `shown` is
    [item, share of seeds in which arm is right, the same of other, seed of arm, seed of other, number of either's output].
    """
    if not (results.root / "data/test").is_dir() or not (results.root / "predictions").is_dir():
        return None
    grids = sheets(results)
    pairs = [(one, other) for arm, against in compared(results) for one, other in ((arm, against), (against, arm))]
    lists = [(pair, name) for pair in pairs for name in results.datasets if all((arm, name) in grids for arm in pair)]
    if not lists:
        return None
    cap = max(1, min(MAX_PER_LIST, MAX_ENTRIES // len(lists)))
    candidates = [_candidates(pair, name, grids, cap) for pair, name in lists]
    book = Book(results, answers(results, candidates))
    for place in range(cap):
        for one, entries in candidates:
            if place < len(entries) and book.size < MAX_TEXT:
                one["shown"].append(book.entry(one, entries[place]))
    return {
        "cap": cap,
        "chars": MAX_CHARS,
        "datasets": results.datasets,
        "lists": [one for one, _ in candidates],
        "questions": book.questions,
        "texts": list(book.texts),
    }


def compared(results: Results) -> list[Pair]:
    """The pairs of arms that can be browsed: against the baseline, against the arm that is extended, and those of the claims."""
    pairs = [(arm, results.baseline) for arm in results.arms]
    pairs += list(results.extends.items())
    for claim in results.claims.to_dict("records"):
        pairs += [(claim["arm"], claim[key]) for key in ("baseline", "twin")]
    known = [(arm, other) for arm, other in pairs if arm != other and arm in results.arms and other in results.arms]
    kept: dict[frozenset[str], Pair] = {}
    for pair in known:
        kept.setdefault(frozenset(pair), pair)
    return list(kept.values())


@dataclass(frozen=True)
class ItemSheet:
    """Correctness (0..1) of an arm on a dataset; `items` are sorted."""

    items: list[str]
    seeds: list[int]
    correct: Float[np.ndarray, "items seeds"]


def sheets(results: Results) -> dict[Pair, ItemSheet]:
    """(arm, dataset) → the arm's answers, for arms with all their seeds there, on the same items."""
    found = {}
    for (arm, name), part in results.items.sort_values(["item", "seed"]).groupby(["arm", "dataset"], sort=False):
        seeds, items = results.runs_of(str(arm)), part["item"].drop_duplicates().tolist()
        if len(part) == len(items) * len(seeds) and part["seed"].tolist() == seeds * len(items):
            correct = part["correct"].to_numpy().reshape(len(items), len(seeds))
            found[str(arm), str(name)] = ItemSheet(items, seeds, correct)
    return found


Entry = tuple[str, float, float, int, int]
Candidates = tuple[dict[str, Any], list[Entry]]


def _candidates(pair: Pair, dataset: str, grids: dict[Pair, ItemSheet], cap: int) -> Candidates:
    """How many items of a dataset the pair's first arm answers in more seeds than its second, and the `cap` clearest of them."""
    ours, theirs = (grids[arm, dataset] for arm in pair)
    one = {"arm": pair[0], "other": pair[1], "dataset": dataset, "n": 0, "lost": 0, "of": 0, "shown": []}
    if ours.items != theirs.items:
        return one, []
    marks = ours.correct.mean(axis=1), theirs.correct.mean(axis=1)
    lead = marks[0] - marks[1]
    order = [int(i) for i in np.argsort(-lead, kind="stable") if lead[i] > 1e-9]
    one |= {"n": len(order), "lost": int((lead < -1e-9).sum()), "of": len(lead)}
    shown = [(ours.items[i], float(marks[0][i]), float(marks[1][i]), *_seeds(ours, theirs, i)) for i in order[:cap]]
    return one, shown


def _seeds(ours: ItemSheet, theirs: ItemSheet, i: int) -> tuple[int, int]:
    """A seed in which the first arm is right and one in which the second is wrong, the same one if possible."""
    best, worst = ours.correct[i].max(), theirs.correct[i].min()
    right = [seed for seed, value in zip(ours.seeds, ours.correct[i], strict=True) if value == best]
    wrong = [seed for seed, value in zip(theirs.seeds, theirs.correct[i], strict=True) if value == worst]
    both = [seed for seed in right if seed in wrong]
    return (both[0], both[0]) if both else (right[0], wrong[0])


def answers(results: Results, candidates: list[Candidates]) -> Said:
    """(arm, seed, dataset, item) → the output, for the candidates; each file is read once."""
    wanted: dict[tuple[str, int, str], set[str]] = {}
    for one, entries in candidates:
        for item, _, _, *seeds in entries:
            for arm, seed in zip((one["arm"], one["other"]), seeds, strict=True):
                wanted.setdefault((arm, seed, one["dataset"]), set()).add(item)
    said: Said = {}
    for (arm, seed, dataset), items in wanted.items():
        outputs = _outputs(results.root / f"predictions/{arm}/seed{seed}/{dataset}.parquet")
        said |= {(arm, seed, dataset, item): outputs.get(item, "") for item in items}
    return said


class Book:
    """The shown texts, each once, with its number; `size` is their length in bytes."""

    def __init__(self, results: Results, said: Said) -> None:
        self.root = results.root
        self.size = 0
        self.texts: dict[str, int] = {}
        self.questions: dict[str, dict[str, list[int]]] = {}
        self._said = said
        self._asked: dict[str, dict[str, tuple[str, str]]] = {}

    def number(self, text: str) -> int:
        """The number of a text, cut at `MAX_CHARS`."""
        cut = text if len(text) <= MAX_CHARS else text[:MAX_CHARS] + " …"
        if cut not in self.texts:
            self.texts[cut] = len(self.texts)
            self.size += len(cut.encode())
        return self.texts[cut]

    def entry(self, one: dict[str, Any], entry: Entry) -> list[Any]:
        """A candidate with the numbers of its texts; its question and gold answer are entered too."""
        item, ours, theirs, *seeds = entry
        self._ask(one["dataset"], item)
        runs = zip((one["arm"], one["other"]), seeds, strict=True)
        outputs = [self.number(self._said[arm, seed, one["dataset"], item]) for arm, seed in runs]
        return [item, number(ours, 3), number(theirs, 3), *seeds, *outputs]

    def _ask(self, dataset: str, item: str) -> None:
        if dataset not in self._asked:
            self._asked[dataset] = _questions(self.root / f"data/test/{dataset}.parquet")
        if item not in (known := self.questions.setdefault(dataset, {})):
            question, gold = self._asked[dataset].get(item, ("", ""))
            known[item] = [self.number(question), self.number(gold)]


def _outputs(path: Path) -> dict[str, str]:
    """item → what the model answered; empty when there is no such file."""
    if not path.is_file():
        return {}
    table = pq.read_table(path, columns=["item", "output", "filtered"], use_threads=False).to_pydict()
    rows = zip(table["item"], table["output"], table["filtered"], strict=True)
    return {item: str((chosen if output is None else output) or "") for item, output, chosen in rows}


def _questions(path: Path) -> dict[str, tuple[str, str]]:
    """item → question (with its choices) and gold answer."""
    if not path.is_file():
        return {}
    return {row["id"]: (_asked(row), _gold(row)) for row in pq.read_table(path).to_pylist()}


def _asked(row: dict[Any, Any]) -> str:
    choices = [f"{chr(65 + i)}. {choice}" for i, choice in enumerate(row["choices"])]
    return "\n".join([str(row["question"]), *choices])


def _gold(row: dict[Any, Any]) -> str:
    return str(row["choices"][row["gold"]] if row["gold"] >= 0 else row["answer"])


def item_rows(browser: dict[str, Any]) -> Iterator[list[str]]:
    """The shown items as rows of a table: arm, other, dataset, item, shares, question, gold, both outputs."""
    texts = browser["texts"]
    for one in browser["lists"]:
        for item, ours, theirs, _, _, mine, others in one["shown"]:
            question, gold = browser["questions"][one["dataset"]][item]
            head = [one["arm"], one["other"], one["dataset"], item, f"{ours:g}", f"{theirs:g}"]
            yield [*head, *(Verbatim(texts[place]) for place in (question, gold, mine, others))]


ITEM_HEADER = [
    *("right", "wrong", "dataset", "item", "share right", "share right of the other"),
    *("question", "gold", "output", "output of the other"),
]
