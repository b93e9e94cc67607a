"""What each arm cost: wall time, peak memory and tokens per second of its training runs, from their cards."""

from typing import Any

from mtkv.report.figure import Figure, Trace, by_seed, label, mean, number, text
from mtkv.report.palette import arm_styles
from mtkv.report.results import Results

MEASURES = (
    ("Wall time (s)", lambda card: card.get("wall_seconds")),
    ("Peak memory (MB)", lambda card: card.get("peak_gpu_memory_mb") or card.get("peak_memory_mb")),
    ("Tokens per second", lambda card: _tokens_per_second(card)),
)


def cost_figures(results: Results) -> list[Figure]:
    """One figure of three panels, or none when no training card exists."""
    arms = [arm for arm in results.trained if any(_card(results, arm, seed) for seed in results.seeds)]
    if not arms:
        return []
    styles = arm_styles(results.arms, results.trained, results.baseline)
    traces: list[Trace] = []
    rows = [[arm] for arm in arms]
    for panel, (title, measure) in enumerate(MEASURES, start=1):
        axis = "" if panel == 1 else str(panel)
        seeds: dict[int, list[Any]] = {
            s: [number(measure(card)) if (card := _card(results, arm, s)) else None for arm in arms]
            for s in results.seeds
        }
        means = [mean(seeds[s][i] for s in results.seeds) for i in range(len(arms))]
        for i in range(len(arms)):
            rows[i].append(text(means[i], 1 if panel != 3 else 0))
        traces.append(
            {
                "type": "bar",
                "orientation": "h",
                "name": title,
                "x": means,
                "y": [label(arm) for arm in arms],
                "xaxis": f"x{axis}",
                "yaxis": "y",
                "marker": {"color": [styles[arm].color for arm in arms]},
                "texttemplate": "%{x:.3s}",
                "textposition": "auto",
                "hovertemplate": "%{y}: %{x:.4g}<extra></extra>",
                "meta": {"points": {"arm": arms}, "by_seed": by_seed("x", seeds)},
            }
        )
    domains = ([0, 0.3], [0.35, 0.65], [0.7, 1])
    layout: dict[str, Any] = {
        f"xaxis{'' if i == 0 else i + 1}": {
            "domain": domains[i],
            "anchor": "y",
            "title": {"text": MEASURES[i][0]},
            "nticks": 5,
        }
        for i in range(len(MEASURES))
    }
    layout |= {
        "yaxis": {"type": "category", "autorange": "reversed", "automargin": True, "showgrid": False},
        "showlegend": False,
        "margin": {"l": 120, "r": 24, "t": 16, "b": 56},
    }
    caption = (
        "Cost of one training run per arm, mean over seeds: wall time of the whole stage, peak memory (of the GPU where one was used), "
        "and tokens per second of the training loop."
    )
    header = ["Arm", *(title for title, _ in MEASURES)]
    return [
        Figure(
            "cost",
            "cost",
            "Cost of training",
            caption,
            traces,
            layout,
            header,
            rows,
            height=max(240, 100 + 34 * len(arms)),
        )
    ]


def _card(results: Results, arm: str, seed: int) -> dict[str, Any] | None:
    return results.cards.get(f"arms/{arm}/seed{seed}")


def _tokens_per_second(card: dict[str, Any]) -> float | None:
    tokens = (card.get("result") or {}).get("tokens") or card.get("tokens")
    seconds = (card.get("result") or {}).get("train_seconds") or card.get("wall_seconds")
    return tokens / seconds if tokens and seconds else None
