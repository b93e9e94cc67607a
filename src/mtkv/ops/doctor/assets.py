"""Models and data sets: what a study reads, what of it is here, and what of it is behind a licence."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from mtkv.models.paths import gguf_path
from mtkv.ops.cost_model.model_sizes import local_folder
from mtkv.ops.doctor.checks import DoctorContext, Finding, check

if TYPE_CHECKING:
    from mtkv.config.models import ModelConfig
    from mtkv.data.loading import Origin

HUB = "https://huggingface.co"
# Gated owners and families (as of 2026); where the hub can be asked, its answer counts.
GATED = (
    "meta-llama/",
    "google/gemma",
    "mistralai/",
    "bigcode/starcoder",
    "CohereLabs/",
    "CohereForAI/",
    "stabilityai/",
)
FETCH = "snakemake assets, on a machine with network (a login node); then copy assets/ here if this one has none"


@dataclass(frozen=True)
class Wanted:
    """A model or data set of the hub that the study reads. `kind`: models or datasets, as in the hub's URLs; `needed`: the study stops
    without it.
    """

    name: str
    kind: str
    here: bool
    gated: bool
    needed: bool = True

    @property
    def page(self) -> str:
        """Its page on the hub, where the licence is accepted."""
        return f"{HUB}/{'datasets/' if self.kind == 'datasets' else ''}{self.name}"


@check("models and data")
def assets(patient: DoctorContext) -> Iterator[Finding]:
    """Everything that the study reads is here."""
    for name, model in models(patient):
        place = {"path": Path(model.name) / "config.json", "gguf": gguf_path(model)}.get(model.source)
        if place is not None and not (patient.folder / place).is_file():
            yield Finding(
                "error",
                f"{name}: there is no model at {model.name}",
                f"copy it there, or change the config's {name}.name",
            )
    found = wanted(patient)
    missing = [thing for thing in found if not thing.here]
    if needed := [thing.name for thing in missing if thing.needed]:
        yield Finding("error", f"not here: {', '.join(needed)}", FETCH)
    if asked := [thing.name for thing in missing if not thing.needed]:
        yield Finding(
            "warning", f"benchmarks that are not here: {', '.join(asked)}; their cells of the report stay empty", FETCH
        )
    if not missing:
        yield Finding("ok", f"all {len(found)} of the hub are here" if found else "the study needs nothing of the hub")


def models(patient: DoctorContext) -> list[tuple[str, "ModelConfig"]]:
    """(path in the config, model) of every model of the study."""
    study = patient.study
    return [
        ("student", study.student),
        *((f"teachers.models.{name}", model) for name, model in study.teachers.models.items()),
    ]


def wanted(patient: DoctorContext) -> list[Wanted]:
    """Everything that the study needs from the hub, each once."""
    study = patient.study
    found = [
        Wanted(model.name, "models", local_folder(model) is not None, model.name.startswith(GATED))
        for _, model in models(patient)
        if model.source == "hub"
    ]
    if study.data.mixture != "pocket":
        found += _data_sets(patient)
    return list(dict.fromkeys(found))


def _data_sets(patient: DoctorContext) -> list[Wanted]:
    """The data sets of the training sources and of the benchmarks that the study evaluates."""
    from mtkv.data.build import wanted_splits

    study = patient.study
    sources = wanted_splits(study.data, [])
    benchmarks = [pair for pair in wanted_splits(study.data, study.datasets) if pair not in sources]
    return [*_by_name(patient, sources, needed=True), *_by_name(patient, benchmarks, needed=False)]


def _by_name(patient: DoctorContext, splits: list[tuple["Origin", str]], needed: bool) -> list[Wanted]:
    """One entry per data set; it is here when all of its splits are."""
    here = {origin: [_split_here(patient, *pair) for pair in splits if pair[0] == origin] for origin, _ in splits}
    return [Wanted(origin.hub, "datasets", all(found), origin.gated, needed) for origin, found in here.items()]


def _split_here(patient: DoctorContext, origin: "Origin", split: str) -> bool:
    """Whether a split's files are in `data.folder`; without one, whether Hugging Face's own cache knows the data set."""
    from mtkv.data.loading import local_files
    from mtkv.models.paths import cache_folder

    if folder := patient.study.data.folder:
        return all(local_files(origin, config, split, patient.folder / folder) for config in origin.configs)
    return (cache_folder(patient.study.student).parent / f"datasets--{origin.hub.replace('/', '--')}").is_dir()
