"""Checks between sections: every arm, teacher, dataset and folder that a config names must exist."""

import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mtkv.config.data import SOURCES_OF
from mtkv.config.errors import Loc, Problem, show, unknown
from mtkv.config.evaluation import COT_TASKS, LM_EVAL_TASKS
from mtkv.config.fusion import LogitConfig
from mtkv.config.kv import KVConfig
from mtkv.config.models import ModelConfig

if TYPE_CHECKING:
    from mtkv.config.study import Study

POCKET = Path(__file__).parents[1] / "models" / "pocket"
ASSETS = "assets"  # folder for models and data that a study brings along; not in git
CLAIM_ARMS = ("arm", "baseline", "twin", "reference")


def reference_problems(study: "Study", arms: Iterable[str], teachers: Iterable[str]) -> list[Problem]:
    """One problem for each reference of `study` to an arm, teacher, dataset or folder that does not exist.

    `arms` and `teachers`: all names that the config defines, also of invalid entries, which `study` lacks: those may be referred to.
    """
    arms, teachers = list(arms), list(teachers)
    return [
        *_dataset_problems(study),
        *_model_problems(study),
        *_cut_problems(study),
        *_arm_problems(study, teachers),
        *_vllm_problems(study),
        *_dtype_problems(study),
        *_style_problems(study),
        *_stream_problems(study),
        *_comparison_problems(study, arms),
        *_claim_problems(study, arms),
    ]


def _dataset_problems(study: "Study") -> Iterator[Problem]:
    known = study.data.datasets
    for index, dataset in enumerate(study.datasets):
        if dataset not in known:
            yield Problem(("datasets", index), unknown(dataset, f"a dataset of mixture {study.data.mixture}", known))


def _model_problems(study: "Study") -> Iterator[Problem]:
    models: dict[Loc, ModelConfig] = {("student",): study.student}
    models |= {("teachers", "models", teacher): model for teacher, model in study.teachers.models.items()}
    for loc, model in models.items():
        if model.source == "gguf":
            yield from _gguf_problems(loc, model)
        if model.source != "path":
            continue
        folder = _folder(model.name)
        if folder is None and Path(model.name).parts[:1] == (ASSETS,):
            continue  # may be put there later, before the study runs; loading reports one that is still missing
        if folder is None or not folder.is_dir():
            yield Problem(
                (*loc, "name"), f"{show(model.name)} is not a folder; source path needs an existing model folder"
            )
        elif not (folder / "config.json").is_file():
            yield Problem((*loc, "name"), f"{show(model.name)} is not a model folder: it has no config.json")


def _gguf_problems(loc: Loc, model: ModelConfig) -> Iterator[Problem]:
    folder = _folder(model.name)
    file = folder / model.gguf_file if folder and model.gguf_file else folder
    if file is None or not file.is_file():
        wanted = model.gguf_file or model.name
        field = "gguf_file" if folder and model.gguf_file else "name"
        yield Problem((*loc, field), f"{show(wanted)} is not a file; source gguf needs an existing GGUF file")


def _cut_problems(study: "Study") -> Iterator[Problem]:
    """Layers that the teacher of a pruned student has not; loading reports them of a teacher that is still to be fetched or converted."""
    teacher = study.student.teacher
    folders = {"pocket": POCKET, "path": Path()}
    if teacher is None or teacher.source not in folders:
        return
    try:
        settings = json.loads((folders[teacher.source] / teacher.name / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return
    text = settings.get("text_config") or settings
    count = next((text[name] for name in ("num_hidden_layers", "n_layer") if name in text), None)
    for index, layer in enumerate(study.student.layers):
        if count is not None and layer >= count:
            message = f"{layer} is not a layer of {teacher.name!r}; allowed: 0 to {count - 1}"
            yield Problem(("student", "layers", index), message)


def _folder(name: str) -> Path | None:
    try:
        Path(name).stat()
    except (OSError, ValueError):  # too long a name, a null byte …
        return None
    return Path(name)


def _arm_problems(study: "Study", teachers: list[str]) -> Iterator[Problem]:
    if "student" in study.arms:
        yield Problem(
            ("arms", "student"), "'student' is reserved for the model that is trained; choose another arm name"
        )
    for name, arm in study.arms.items():
        if arm.model not in ("student", *teachers):
            yield Problem(
                ("arms", name, "model"), unknown(arm.model, "student or a teacher id", ["student", *teachers])
            )
        start = study.teachers.models.get(arm.model)
        if start is not None and start.source != "merged" and arm.training is not None:
            message = f"given, but model {arm.model!r} is a teacher, which is only evaluated; allowed: null"
            yield Problem(("arms", name, "training"), message)
        for index, teacher in enumerate(arm.logits.teachers if arm.logits else []):
            if teacher not in teachers:
                yield Problem(("arms", name, "logits", "teachers", index), unknown(teacher, "a teacher id", teachers))
        yield from _source_problems(study, name)
        for part in ("kv", "logits"):
            yield from _task_problems(study, (name, part), getattr(arm, part))
        if arm.kv and arm.kv.own:
            continue  # neither a store nor a map
        if arm.kv and arm.kv.injected:
            yield from _injection_problems(study, name, arm.kv)
        if arm.kv and study.teachers.tier != "raw":
            yield from _tier_problems(name, arm.kv, study.teachers.tier)
        if arm.kv and arm.kv.select.needs_attention and study.teachers.mode == "online":
            allowed = "the others, or teachers.mode stored"
            message = f"{arm.kv.select.method!r} needs attention, which only a store keeps; allowed: {allowed}"
            yield Problem(("arms", name, "kv", "select", "method"), message)
        for index, teacher in enumerate(arm.kv.teachers if arm.kv else []):
            if teacher not in teachers:
                yield Problem(("arms", name, "kv", "teachers", index), unknown(teacher, "a teacher id", teachers))
            elif (
                arm.kv
                and arm.kv.align.layers == "origin"
                and study.teachers.models.get(teacher) != study.student.teacher
            ):
                message = f"'origin' needs a student cut from teacher {teacher!r} (source: pruned); allowed: ratio and the others"
                yield Problem(("arms", name, "kv", "align", "layers"), message)


def _vllm_problems(study: "Study") -> Iterator[Problem]:
    """vLLM reads a model's folder as it is; a trained one holds its scaling, one that is evaluated as it comes does not."""
    models = {"student": study.student} | study.teachers.models if study.evaluation.backend == "vllm" else {}
    for name, arm in study.arms.items():
        model = models.get(arm.model)
        if model and model.rope_scaling and arm.training is None:
            loc: Loc = ("student",) if arm.model == "student" else ("teachers", "models", arm.model)
            allowed = "null, with the scaling in the model's own config.json, or evaluation.backend hf"
            message = f"given, but arm {name!r} evaluates this model as it comes, and vLLM would not see it; allowed: {allowed}"
            yield Problem((*loc, "rope_scaling"), message)


def _injection_problems(study: "Study", name: str, kv: KVConfig) -> Iterator[Problem]:
    """Teachers read what is asked: in transformers, as plain text, weighed by what is known of a test question."""
    loc: Loc = ("arms", name, "kv", "transfer")
    models = {"student": study.student} | {name: study.teachers.models.get(name) for name in kv.teachers}
    if chat := [model for model, config in models.items() if config and config.prompt == "chat"]:
        yield Problem(loc, f"'inject' given, but {chat[0]} has prompt chat; for now injection reads plain text alone")
    if study.evaluation.backend == "vllm":
        yield Problem(("evaluation", "backend"), f"'vllm' cannot inject KV, as arm {name!r} does; allowed: hf")
    weighed = kv.fusion.by_task
    if absent := [dataset for dataset in study.datasets if weighed is not None and dataset not in weighed]:
        message = f"has no weights for {', '.join(absent)}; with transfer inject each dataset that is asked needs some"
        yield Problem(("arms", name, "kv", "fusion", "by_task"), message)
    if study.resources.train.strategy != "single":
        message = f"{study.resources.train.strategy!r} given, but arm {name!r} injects KV, trained by one process for now; allowed: single"
        yield Problem(("resources", "train", "strategy"), message)


def _task_problems(study: "Study", place: tuple[str, str], part: KVConfig | LogitConfig | None) -> Iterator[Problem]:
    """Weights by task: one entry for each training source, and for nothing else."""
    given = part.fusion.by_task if part else None
    if given is None:
        return
    known, used = _sources(study)
    training = study.arms[place[0]].training
    used = (training and training.sources) or used
    loc: Loc = ("arms", place[0], place[1], "fusion", "by_task")
    yield from (Problem((*loc, task), unknown(task, "a training source", known)) for task in given if task not in known)
    if absent := [source for source in used if source in known and source not in given]:
        yield Problem(loc, f"has no weights for {', '.join(absent)}; each training source needs some")


def _sources(study: "Study") -> tuple[tuple[str, ...], Sequence[str]]:
    """All sources that the study's mixture knows, and those that are trained on; none where only the data's code knows the default."""
    data = study.data
    known = (*SOURCES_OF[data.mixture], *data.extra)
    return known, data.sources or (known if data.mixture == "pocket" else ())


def _source_problems(study: "Study", name: str) -> Iterator[Problem]:
    """Sources of an arm that the study does not train on, and those of a phase that the arm does not."""
    training, (known, used) = study.arms[name].training, _sources(study)
    if training is None:
        return
    places: dict[Loc, Sequence[str] | None] = {("sources",): training.sources}
    places |= {("phases", index, "sources"): phase.sources for index, phase in enumerate(training.phases)}
    for place, sources in places.items():
        whose, allowed = ("study", used or known)
        if training.sources and place != ("sources",):
            whose, allowed = "arm", training.sources
        for number, source in enumerate(sources or []):
            if source not in allowed:
                loc: Loc = ("arms", name, "training", *place, number)
                yield Problem(loc, unknown(source, f"a training source of this {whose}", allowed))


def _dtype_problems(study: "Study") -> Iterator[Problem]:
    """float16 has five exponent bits (largest number 65,504), which trained weights may exceed."""
    whole = [name for name, arm in study.arms.items() if arm.training and not arm.training.lora]
    if study.student.dtype == "float16" and whole:
        allowed = "bfloat16 or float32 (weights are trained in float32 and saved in this), or training.lora"
        message = f"'float16' given, but arm {whole[0]!r} trains all weights; allowed: {allowed}"
        yield Problem(("student", "dtype"), message)


def _style_problems(study: "Study") -> Iterator[Problem]:
    """Every arm's row styles are among `data.styles`, and arms with latent tokens get rows with a chain of thought to replace."""
    written = list(study.data.styles)
    for name, arm in study.arms.items():
        if arm.training is None:
            continue
        loc: Loc = ("arms", name, "training", "styles")
        if absent := [style for style in arm.training.styles or [] if style not in written]:
            yield Problem(loc, f"{', '.join(absent)}: not in data.styles, which is {', '.join(written)}; add it there")
        elif arm.latent and (arm.training.styles or written) != ["cot"]:
            given = ", ".join(arm.training.styles or written)
            fix = "write [cot]" if "cot" in written else "write [cot], and cot into data.styles"
            yield Problem(loc, f"student_view latent puts latents in place of a chain, but the rows are {given}; {fix}")
    if study.evaluation.style == "cot" and study.data.mixture != "pocket":
        for index, dataset in enumerate(study.datasets):
            if dataset in LM_EVAL_TASKS and study.evaluation.task_of(dataset) not in COT_TASKS:
                task = study.evaluation.task_of(dataset)
                message = f"task {task} cannot be asked in evaluation.style cot; allowed: {', '.join(COT_TASKS)}"
                yield Problem(("datasets", index), message)


def _stream_problems(study: "Study") -> Iterator[Problem]:
    """Arms whose rows are streamed from disk are of a kind that can be."""
    trained = {name: arm for name, arm in study.arms.items() if arm.training is not None}
    if not study.resources.train.stream:
        return
    reasons = {
        "has student_view latent": [name for name, arm in trained.items() if arm.latent],
        "has teachers that read along (teachers.mode online)": [
            name for name, arm in trained.items() if arm.kv and not arm.kv.own and study.teachers.mode == "online"
        ],
    }
    for reason, arms in reasons.items():
        if arms:
            message = f"true, but arm {arms[0]!r} {reason}, which keeps all rows in memory; allowed: false"
            yield Problem(("resources", "train", "stream"), message)


def _tier_problems(name: str, kv: KVConfig, tier: str) -> Iterator[Problem]:
    """Settings that need the raw tier: targets of the others are already selected and without statistics, those of mapped are mapped."""
    needs_raw = {
        ("transfer",): kv.injected and kv.transfer,
        ("align", "map"): tier == "mapped" and kv.align.trained and kv.align.map,
        ("loss", "distance"): tier == "mapped" and kv.loss.distance == "relation" and "relation",
        ("select", "method"): kv.select.method != "full" and kv.select.method,
        ("fusion", "strategy"): kv.fusion.row_statistics and kv.fusion.strategy,
    }
    for field, value in needs_raw.items():
        if value:
            message = f"{value!r} needs the teacher's own KV, but teachers.tier is {tier}; allowed with it: raw"
            yield Problem(("arms", name, "kv", *field), message)


def _comparison_problems(study: "Study", arms: list[str]) -> Iterator[Problem]:
    if study.comparison.baseline not in arms:
        yield Problem(("comparison", "baseline"), unknown(study.comparison.baseline, "an arm", arms))


def _claim_problems(study: "Study", arms: list[str]) -> Iterator[Problem]:
    for name, claim in study.claims.items():
        written: dict[str, Any] = claim.model_dump()
        named: list[tuple[Loc, str]] = [
            (("claims", name, field), written[field]) for field in CLAIM_ARMS if written.get(field) is not None
        ]
        named += [(("claims", name, "baselines", i), arm) for i, arm in enumerate(written.get("baselines", []))]
        yield from (Problem(loc, unknown(arm, "an arm", arms)) for loc, arm in named if arm not in arms)
        if claim.kind == "accuracy" and claim.dataset not in ("macro", *study.datasets):
            allowed = [*study.datasets, "macro"]
            yield Problem(("claims", name, "dataset"), unknown(claim.dataset, "a dataset of this study", allowed))
        if claim.kind == "datasets_improved" and claim.at_least > len(study.datasets):
            message = (
                f"{claim.at_least} is not possible; allowed: at most {len(study.datasets)}, the number of datasets"
            )
            yield Problem(("claims", name, "at_least"), message)
