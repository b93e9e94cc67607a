"""An arm that was never run: the weighted mean of two others, item by item and seed by seed, for contrasts of three arms."""

from dataclasses import replace

from mtkv.stats.bootstrap import Resamples
from mtkv.stats.items import Answers

MIXTURE = "(mixture)"


def mixture(answers: Answers, resamples: Resamples, arms: tuple[str, str], share: float) -> tuple[Answers, Resamples]:
    """Answers and resamples with one more arm, `MIXTURE` = (1 − share)·first + share·second. Both must have the same seeds."""
    first, second = arms
    weights = (1 - share, share)
    correct = dict(answers.correct)
    for seed in answers.seeds[first]:
        for dataset in answers.datasets:
            one, other = (answers.correct[arm, seed, dataset] for arm in arms)
            correct[MIXTURE, seed, dataset] = weights[0] * one + weights[1] * other
    seeds = answers.seeds | {MIXTURE: answers.seeds[second]}
    return replace(answers, seeds=seeds, correct=correct, _matrices={}), resamples.with_mixture(MIXTURE, arms, weights)
