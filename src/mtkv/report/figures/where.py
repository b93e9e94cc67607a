"""Where KV helps: each way of moving knowledge through KV beside the others, its gain over the arm without KV and over its control twin.

In: `Results` with the study's transfers (`mtkv.stats.transfers`). Out: a forest plot of two differences per arm, whose table names the
kind of transfer.
"""

from mtkv.report.figures.figure import Figure
from mtkv.report.figures.pairs import forest_figure, significance_note
from mtkv.report.results import Results
from mtkv.report.strings import listed, say


def where_figures(results: Results) -> list[Figure]:
    """The forest plot; nothing in a study without an arm that has a twin."""
    pairs = where_pairs(results)
    if not pairs:
        return []
    caption = say(
        "Every arm with teachers' KV that has a control twin: its gain over the arm that differs in nothing but the KV (or else the "
        "baseline), and over the twin, whose KV have the wrong content. KV helps where both are above 0: the first alone may be a "
        "regulariser's, the second alone harm done to the twin. Paired on the same items; filled: a clear difference."
    )
    alone = [one.arm for one in results.transfers if not one.twin]
    if alone:
        caption += say(" Without a twin, and so not here: {arms}.", arms=", ".join(alone))
    caption += significance_note(results, pairs)
    figure = forest_figure(results, "where", "where", "Gain over no KV and over the control twin", caption, pairs)
    kinds = {one.arm: listed([say(kind) for kind in one.kinds]) for one in results.transfers}
    twins = {(one.arm, one.twin) for one in results.transfers}
    figure.header = [*figure.header, "Kind of transfer", "Gain over"]
    figure.rows = [
        [*row, kinds[row[1]], "its control twin" if (row[1], row[2]) in twins else "no KV"] for row in figure.rows
    ]
    return [figure]


def where_pairs(results: Results) -> list[tuple[str, str]]:
    """(arm, arm without KV) and (arm, twin) for every transfer that has a twin."""
    return [(one.arm, other) for one in results.transfers if one.twin for other in (one.without, one.twin)]
