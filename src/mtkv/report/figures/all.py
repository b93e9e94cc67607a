"""All figures of a report, in the order in which the page and the files show them."""

from collections.abc import Callable, Sequence

from mtkv.registry import load
from mtkv.report.figures.ablations import ablation_figures
from mtkv.report.figures.alignment import alignment_figures
from mtkv.report.figures.cost import cost_figures
from mtkv.report.figures.figure import Figure
from mtkv.report.figures.latents import latent_figures
from mtkv.report.figures.pairs import pair_figures
from mtkv.report.figures.routing import routing_figures
from mtkv.report.figures.scores import matrix_figures, score_figures
from mtkv.report.figures.training import training_figures
from mtkv.report.figures.where import where_figures
from mtkv.report.results import Results

BUILDERS: tuple[Callable[[Results], list[Figure]], ...] = (
    score_figures,
    pair_figures,
    matrix_figures,
    where_figures,
    ablation_figures,
    training_figures,
    routing_figures,
    alignment_figures,
    latent_figures,
    cost_figures,
)
FIGURE_SECTIONS = ("plots", "where", "ablations", "training", "routing", "alignment", "latents", "cost")
OPTIONAL_SECTIONS = {"where", "latents"}  # left out where there is nothing to show


def all_figures(results: Results, own: Sequence[str] = ()) -> list[Figure]:
    """The figures of all modules whose data exist, then those of the study's own (`report.figures`, import paths)."""
    return [figure for build in (*BUILDERS, *map(load, own)) for figure in build(results)]
