"""What a training has counted so far: a part of its checkpoint beside the Trainer's own state."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Self

from mtkv.provenance.files import write_text

FILE = "counters.json"


@dataclass
class MetricAccumulator:
    """`tokens` (unpadded) and `rows` read so far; `sums` of every loss term over `batches` since the last line of the log.

    Of the Trainer's own counters: `loss` is the sum since the log line of step `logged`, `total_loss` the sum before it. `seconds` of
    training over all starts; `finished` after the last step.
    """

    tokens: int = 0
    rows: int = 0
    batches: int = 0
    sums: dict[str, float] = field(default_factory=dict)
    loss: float = 0.0
    logged: int = 0
    total_loss: float = 0.0
    seconds: float = 0.0
    finished: bool = False

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read the file that `save` wrote."""
        return cls(**json.loads((folder / FILE).read_text(encoding="utf-8")))

    def save(self, folder: Path) -> None:
        """Write as JSON. A float survives to the bit; NaN, which a term of a failing run can be, is written as Python does."""
        write_text(folder / FILE, json.dumps(asdict(self)) + "\n")

    def without_parts(self) -> Self:
        """A copy without tokens and rows, for all processes but the first when training resumes.

        The saved numbers are sums over all processes: if each began with them, `sum_metrics` would count them several times.
        """
        return replace(self, tokens=0, rows=0)

    def add_batch(self, tokens: int, rows: int, terms: dict[str, float]) -> None:
        """Count one forward pass."""
        self.tokens, self.rows, self.batches = self.tokens + tokens, self.rows + rows, self.batches + 1
        _add(self.sums, terms)

    def means(self) -> dict[str, float]:
        """Mean of every term since the last call, and begin anew; empty when there was no batch."""
        means = {name: total / self.batches for name, total in self.sums.items()}
        self.sums.clear()
        self.batches = 0
        return means


def sum_metrics(parts: Sequence[MetricAccumulator]) -> MetricAccumulator:
    """The counters of all processes as one: tokens and rows are added, the terms' sums, which are of the same batches, averaged."""
    whole = MetricAccumulator(**asdict(parts[0]))
    whole.tokens, whole.rows = (sum(getattr(part, name) for part in parts) for name in ("tokens", "rows"))
    whole.sums = {}
    for part in parts:
        _add(whole.sums, {name: value / len(parts) for name, value in part.sums.items()})
    return whole


def _add(sums: dict[str, float], values: dict[str, float]) -> None:
    for name, value in values.items():
        sums[name] = sums.get(name, 0.0) + value
