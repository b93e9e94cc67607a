"""Reads what a study has left on disk into one `Results` object, the only thing figures, tables and the page look at.

What each arm changes in the arm that it extends (`changes`) is read from the study's config, as in `kv.loss.layers: all → first`.

In: `results/<study>/` (compare/, cards, training logs, routing, maps). Out: tidy frames with accuracies in 0..1. Files that only
some studies have may be absent: `Results.absent` then names them, and the page says so. Predictions and questions stay on disk:
`item_browser` reads the few that are shown.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from mtkv.provenance.files import read_json
from mtkv.report.gates import Gate, read_gates
from mtkv.report.latent_results import Latents, read_latents
from mtkv.report.strings import retold, say
from mtkv.stats.transfers import Transfer, transfers

if TYPE_CHECKING:
    from mtkv.config.arms import Arm
    from mtkv.config.study import Study


NO_SETTINGS = ("description", "extends", "seeds")


def changes(study: "Study") -> dict[str, list[str]]:
    """Arm → what differs from the arm it extends, in the order of the config; arms that extend none are left out."""
    dumped = {name: arm.model_dump(mode="json", exclude=set(NO_SETTINGS)) for name, arm in study.arms.items()}
    written = {name: dict(_leaves(settings)) for name, settings in dumped.items()}
    return {
        name: list(_differences(written[arm.extends], written[name]))
        for name, arm in study.arms.items()
        if arm.extends in study.arms
    }


def kv_part(arm: "Arm") -> dict[str, Any]:
    """What the figures need of an arm's KV loss: teachers, layers, kinds (K, V) and control."""
    assert arm.kv is not None
    loss = arm.kv.loss
    kinds = [name for name, weight in (("K", loss.lambda_k), ("V", loss.lambda_v)) if weight > 0]
    layers = loss.layers if isinstance(loss.layers, str) else f"{loss.layers[0]}–{loss.layers[1]}"
    return {
        "teachers": list(arm.kv.teachers),
        "layers": layers,
        "kinds": " + ".join(kinds) or "neither",
        "control": arm.kv.control,
        "aligns": [f"{teacher}/{arm.kv.align.slug}" for teacher in arm.kv.teachers],
    }


def _leaves(tree: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted path, value) of everything in a tree that is no mapping."""
    if not isinstance(tree, dict):
        yield path, tree
        return
    for key, value in tree.items():
        yield from _leaves(value, f"{path}.{key}" if path else key)


def _differences(before: dict[str, Any], after: dict[str, Any]) -> Iterator[str]:
    """One text per setting that differs; a whole section that comes or goes is one text."""
    told: set[str] = set()
    for path in dict.fromkeys([*before, *after]):
        if before.get(path) == after.get(path) and (path in before) == (path in after):
            continue
        section = path.split(".")[0]
        if (section in before) != (section in after):  # a section is null on one side
            if section not in told:
                told.add(section)
                yield say("without {section}" if section in after else "with {section}", section=section)
            continue
        yield f"{path}: {_shown(before.get(path))} → {_shown(after.get(path))}"


def _shown(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "none"
    if isinstance(value, float):
        return f"{value:g}"
    return "none" if value is None else str(value)


MACRO = "macro"
MATRIX_ARMS = 30  # arms shown against each other in the page and results.json; of more, only the named ones


@dataclass(frozen=True)
class Results:
    """Everything a report shows. `seed_scores` has arm, dataset (or "macro"), seed, accuracy, n; cards are keyed by folder.

    `extends` maps an arm to the arm it is made from, `changes` to what it changes there (`kv.loss.layers: all → first`), `kv` to the
    settings of its KV loss; `transfers` are the arms with KV and what their gain is counted against. `examples` maps a map's name to the
    alignment of one row. `matrix` is empty in studies from before it existed. `latents` is None without latent tokens.
    """

    name: str
    description: str
    descriptions: dict[str, str]
    arms: list[str]
    trained: list[str]
    students: list[str]
    datasets: list[str]
    seeds: list[int]
    runs: set[tuple[str, int]]
    baseline: str
    confidence: float
    cells: pd.DataFrame
    pairs: pd.DataFrame
    claims: pd.DataFrame
    seed_scores: pd.DataFrame
    training: pd.DataFrame
    routing: pd.DataFrame
    probe: pd.DataFrame | None
    cards: dict[str, dict[str, Any]]
    grade: str
    absent: list[str]
    root: Path = Path()
    items: pd.DataFrame = field(default_factory=pd.DataFrame)
    matrix: pd.DataFrame = field(default_factory=pd.DataFrame)
    examples: dict[str, pd.DataFrame] = field(default_factory=dict)
    extends: dict[str, str] = field(default_factory=dict)
    changes: dict[str, list[str]] = field(default_factory=dict)
    kv: dict[str, dict[str, Any]] = field(default_factory=dict)
    transfers: list[Transfer] = field(default_factory=list)
    latents: Latents | None = None
    gates: dict[str, Gate] = field(default_factory=dict)

    @property
    def alpha(self) -> float:
        """Adjusted p values below this count as significant."""
        return 1 - self.confidence

    @property
    def columns(self) -> list[str]:
        """The datasets, then the macro average."""
        return [*self.datasets, MACRO]

    def cell(self, arm: str, dataset: str) -> dict[str, Any]:
        """The row of cells.parquet for one arm and dataset; a row that is not there counts as missing."""
        return self._cells.get((arm, dataset)) or {"status": "missing", "reason": "no row in cells.parquet"}

    def pair(self, arm: str, dataset: str, other: str | None = None) -> dict[str, Any] | None:
        """The row of pairs.parquet of `arm` against `other` (the study's baseline), if there is one with numbers."""
        found = self._pairs.get((arm, dataset, other or self.baseline))
        return found if found is not None and found["delta"] == found["delta"] else None

    @property
    def matrix_arms(self) -> list[str]:
        """The arms shown against each other: all, or where there are more than `MATRIX_ARMS` the baseline and those of the claims."""
        if len(self.arms) <= MATRIX_ARMS:
            return self.arms
        claimed = self.pairs[self.pairs["family"].isin(["claim", "twin"])]
        named = {self.baseline, *self.claims["arm"], *self.claims["baseline"], *claimed["arm"], *claimed["baseline"]}
        return [arm for arm in self.arms if arm in named]

    @property
    def matrix_shown(self) -> pd.DataFrame:
        """The rows of `matrix` among `matrix_arms`."""
        if self.matrix.empty:
            return self.matrix
        return self.matrix[self.matrix["arm"].isin(self.matrix_arms) & self.matrix["other"].isin(self.matrix_arms)]

    def runs_of(self, arm: str) -> list[int]:
        """The seeds that the config gives `arm`."""
        return sorted(seed for name, seed in self.runs if name == arm)

    def accuracy(self, arm: str, dataset: str, seed: int) -> float | None:
        """Accuracy of one run on one dataset, or None."""
        return self._by_run.get((arm, dataset, seed))

    def delta(self, arm: str, dataset: str, seed: int, other: str | None = None) -> float | None:
        """Accuracy of one run minus that of `other` (the study's baseline) with the same seed, or None."""
        ours, theirs = self.accuracy(arm, dataset, seed), self.accuracy(other or self.baseline, dataset, seed)
        return None if ours is None or theirs is None else ours - theirs

    @cached_property
    def _by_run(self) -> dict[tuple[str, str, int], float]:
        frame = self.seed_scores
        return dict(
            zip(zip(frame["arm"], frame["dataset"], frame["seed"], strict=True), frame["accuracy"], strict=True)
        )

    @cached_property
    def _cells(self) -> dict[tuple[str, ...], dict[Any, Any]]:
        return _by_key(self.cells, ["arm", "dataset"])

    @cached_property
    def _pairs(self) -> dict[tuple[str, ...], dict[Any, Any]]:
        return _by_key(self.pairs, ["arm", "dataset", "baseline"])


def _by_key(table: pd.DataFrame, names: list[str]) -> dict[tuple[str, ...], dict[Any, Any]]:
    """The first row of a table for each value of the columns `names`."""
    rows: Any = table.drop_duplicates(names).to_dict("records")
    return {tuple(row[name] for name in names): row for row in rows}


def read_results(study: "Study", root: Path) -> Results:
    """Read `root` (results/<study>). Raises FileNotFoundError when a file of `compare` is not there."""
    runs = [(arm, int(seed)) for arm, seed in study.runs()]
    absent: list[str] = []
    used = set(study.maps())
    cards = {key: card for key, card in read_cards(root).items() if not key.startswith("maps/") or _map_of(key) in used}
    items = pd.read_parquet(root / "compare/items.parquet", columns=["arm", "seed", "dataset", "item", "correct"])
    probe = _probes(root, used)
    if not any(key.startswith("arms/") for key in cards):
        absent.append("arms/*/seed*/card.json")
    has_training = any(arm.training is not None for arm in study.arms.values())
    has_kv = any(arm.kv is not None for arm in study.arms.values())
    if has_kv and probe is None:
        absent.append("maps/*/*.probe.parquet")
    latents = read_latents(study, root, absent)
    return Results(
        name=study.study,
        description=study.description or "",
        descriptions={name: arm.description or "" for name, arm in study.arms.items()},
        arms=list(study.arms),
        trained=[name for name, arm in study.arms.items() if arm.training is not None],
        students=[name for name, arm in study.arms.items() if arm.model == "student"],
        datasets=list(study.datasets),
        seeds=sorted({seed for _, seed in runs}),
        runs=set(runs),
        baseline=study.comparison.baseline,
        confidence=study.comparison.confidence,
        cells=pd.read_parquet(root / "compare/cells.parquet"),
        pairs=pd.read_parquet(root / "compare/pairs.parquet"),
        claims=pd.read_parquet(root / "compare/claims.parquet"),
        seed_scores=seed_scores(items, list(study.datasets)),
        training=_run_frames(root, runs, "training.parquet", absent if has_training else []),
        routing=_run_frames(root, runs, "routing.parquet", absent if has_kv else []),
        probe=probe,
        cards=cards,
        grade=str(cards.get("compare", {}).get("result", {}).get("grade", "none")),
        absent=absent,
        root=root,
        items=items,
        matrix=_optional(root / "compare/matrix.parquet"),
        examples={name: pd.read_parquet(path) for name, path in _of_maps(root, "example", used).items()},
        extends={name: arm.extends for name, arm in study.arms.items() if arm.extends in study.arms},
        changes=changes(study),
        kv={name: kv_part(arm) for name, arm in study.arms.items() if arm.kv is not None},
        transfers=transfers(study),
        latents=latents,
        gates=read_gates(root, study.arms, absent),
    )


def reason_of(cell: dict[str, Any]) -> str:
    """Why the cell of an arm and dataset has no number."""
    return retold(cell.get("reason"), cell.get("reason_parts")) or "no reason given"


def seed_scores(items: pd.DataFrame, datasets: list[str]) -> pd.DataFrame:
    """Accuracy and n per arm, dataset and seed, plus a "macro" row wherever a run has every dataset."""
    grouped = (
        items.groupby(["arm", "dataset", "seed"], sort=True)["correct"].agg(accuracy="mean", n="size").reset_index()
    )
    wide = grouped.pivot(index=["arm", "seed"], columns="dataset", values="accuracy").reindex(columns=datasets)
    totals = grouped.groupby(["arm", "seed"])["n"].sum()
    macro = wide.mean(axis=1, skipna=False).dropna().rename("accuracy").to_frame().join(totals).reset_index()
    return pd.concat([grouped, macro.assign(dataset=MACRO)], ignore_index=True)


def read_cards(root: Path) -> dict[str, dict[str, Any]]:
    """Every card of the study, keyed by its path below `root` without "card.json"; the report's own and those of `mtkv gate`,
    which are no part of a study, are left out."""
    paths = sorted(root.glob("*/**/*card.json"))
    named = {path.relative_to(root).as_posix().removesuffix("card.json").rstrip("/.-_"): path for path in paths}
    shown = {
        name: path for name, path in named.items() if not name.startswith(("report", "gate")) and "/model" not in name
    }
    return {name: read_json(path) for name, path in shown.items()}


def _map_of(key: str) -> str:
    """The map that a card `maps/<map>` or `maps/<map>.targets` belongs to."""
    return key.removeprefix("maps/").removesuffix(".targets")


def _of_maps(root: Path, kind: str, used: set[str]) -> dict[str, Path]:
    """Map ("qwen2/ratio-ridge-1a2b3c") → its file `maps/<map>.<kind>.parquet`, for the maps that some arm uses.

    Files of earlier settings may lie beside them.
    """
    paths = {name: root / f"maps/{name}.{kind}.parquet" for name in sorted(used)}
    return {name: path for name, path in paths.items() if path.is_file()}


def _probes(root: Path, used: set[str]) -> pd.DataFrame | None:
    """The probe tables of the used maps with a column `map`, or None."""
    frames = [pd.read_parquet(path).assign(map=name) for name, path in _of_maps(root, "probe", used).items()]
    return pd.concat(frames, ignore_index=True) if frames else None


def _optional(path: Path) -> pd.DataFrame:
    """The table at `path`; an empty one where an older study has no such file."""
    return pd.read_parquet(path) if path.is_file() else pd.DataFrame()


def _run_frames(root: Path, runs: list[tuple[str, int]], name: str, absent: list[str]) -> pd.DataFrame:
    frames = []
    for arm, seed in runs:
        path = root / f"arms/{arm}/seed{seed}/{name}"
        if path.is_file():
            frames.append(pd.read_parquet(path).assign(arm=arm, seed=seed))
    if not frames:
        absent.append(f"arms/*/seed*/{name}")
        return pd.DataFrame({"arm": [], "seed": []})
    return pd.concat(frames, ignore_index=True)
