"""What one claim has for and against it, before any adjustment, and how it is put in words."""

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from mtkv.stats.bootstrap import Resamples
from mtkv.stats.items import MACRO, Answers
from mtkv.stats.paired_tests import difference
from mtkv.stats.translatable import tell

if TYPE_CHECKING:
    from mtkv.stats.paired_tests import Difference

NAN = float("nan")


@dataclass(frozen=True)
class Evidence:
    """What one claim has for and against it, before Holm's adjustment.

    The claim holds between `threshold` and `upper`. These, `delta`, `low`, `high` and `mdd` (smallest detectable difference) are
    percentage points, or numbers of datasets; the twin's are differences from the control twin. `p` tests the side of the threshold
    that the interval lies on; `inclusive`: equal to it is enough. `n` counts items. `finding` is the first half of the verdict's
    sentence; `missing` why there is nothing to weigh; `unmet` a further condition that does not hold; `contradicted` one that is refuted.
    """

    finding: str
    threshold: float
    delta: float = NAN
    low: float = NAN
    high: float = NAN
    p: float = NAN
    n: int = 0
    baseline: str | None = None
    inclusive: bool = False
    missing: str | None = None
    unmet: str | None = None
    contradicted: str | None = None
    upper: float = float("inf")
    mdd: float = NAN
    n_seeds: int = 0
    twin_delta: float = NAN
    twin_low: float = NAN
    twin_high: float = NAN

    @property
    def beyond(self) -> bool:
        """The whole interval is on the claim's side of the threshold."""
        past = self.low >= self.threshold if self.inclusive else self.low > self.threshold
        return past and self.high < self.upper

    @property
    def below(self) -> bool:
        """The whole interval is on the other side of the threshold, or beyond `upper`."""
        return self.high < self.threshold or self.low > self.upper

    def with_(self, **changes: object) -> "Evidence":
        """A copy with other fields."""
        return replace(self, **changes)  # type: ignore[arg-type]


@dataclass(frozen=True)
class Weighing:
    """What the functions of `kinds.KINDS` need besides the claim. `margin` (0..1): arms closer than this count as equivalent."""

    answers: Answers
    resamples: Resamples
    confidence: float
    margin: float = 0.01


def macro_difference(on: Weighing, arm: str, baseline: str, threshold: float) -> Evidence:
    """arm − baseline in macro accuracy, against a threshold in points."""
    found = difference(on.answers, on.resamples, arm, baseline, MACRO, on.confidence, threshold / 100)
    if isinstance(found, str):
        return Evidence("", threshold, baseline=baseline, missing=found)
    return evidence_of(found, arm, baseline, threshold, on.confidence)


def evidence_of(found: "Difference", arm: str, baseline: str, threshold: float, confidence: float) -> Evidence:
    """A paired difference (0..1) as evidence in points, with the finding in words."""
    of = found.estimate
    delta, low, high = (100 * value for value in (of.value, of.low, of.high))
    finding = tell(
        "{arm} − {baseline} = {delta} points ({interval}, {sample})",
        arm=arm,
        baseline=baseline,
        delta=f"{delta:+.1f}",
        interval=interval(confidence, low, high, "+"),
        sample=sample(of.n_items, of.n_seeds),
    )
    return Evidence(
        finding,
        threshold,
        *(delta, low, high, found.p, of.n_items),
        baseline=baseline,
        mdd=100 * found.mdd,
        n_seeds=of.n_seeds,
    )


def interval(confidence: float, low: float, high: float, sign: str = "") -> str:
    """For example `95 % interval 1.0 to 2.0`; `sign` "+" writes plus signs."""
    return tell(
        "{confidence} % interval {low} to {high}",
        confidence=f"{100 * confidence:.4g}",
        low=f"{low:{sign}.1f}",
        high=f"{high:{sign}.1f}",
    )


def sample(items: int, seeds: int) -> str:
    """For example `1,400 items, 3 seeds`."""
    if seeds > 1:
        return tell("{items} items, {seeds} seeds", items=f"{items:,}", seeds=seeds)
    return tell("{items} items, {seeds} seed", items=f"{items:,}", seeds=seeds)
