# The validated study and the functions that the rules share. Nothing below reads `config` itself; each job gets, as `params`, the
# smallest validated part it needs and the digest of the code it runs, so that a change reruns just what depends on it.
import re
import signal
import sys
import threading
from functools import cache
from pathlib import Path

from mtkv.config.errors import ConfigError
from mtkv.config.models import POCKET_MODELS
from mtkv.config.overlay import read_overlaid
from mtkv.config.site import read_site
from mtkv.config.study import load_study
from mtkv.provenance.digest import state_of
from mtkv.ops import warm_workers
from mtkv.ops.doctor.packages import path_problem
from mtkv.models.paths import content_digest
from mtkv.provenance.code_digest import code_digest
from mtkv.registry import import_paths, look_beside

look_beside(workflow.configfiles)
try:
    # Snakemake's own reader passes over a key given twice, and takes 010 for 8.
    if workflow.is_main_process:
        read_overlaid(*workflow.configfiles)
    STUDY = load_study(config)
    SITE = read_site(Path(workflow.basedir) / "profiles/slurm/site.yaml")
except ConfigError as error:
    sys.exit(f"the study's config is not valid:\n{error}")

if workflow.is_main_process and (problem := path_problem(sys.executable)):
    sys.exit(f"{problem}; move the folder, and make the environment there")

# SLURM sends USR1 to every process of a job: the stage saves (mtkv.checkpointing.preemption), and Snakemake around it must not die of it.
if threading.current_thread() is threading.main_thread():
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)

MOST = {"mem_mb": "max_mem_mb", "runtime": "max_runtime"}
ROOT = f"results/{STUDY.study}"
LOGS = f"{ROOT}/logs"
MIXTURE_DATASETS = STUDY.data.datasets
# Real benchmarks bring records for few-shot prompts, in files of their own; the pocket tasks take them from the training rows.
HAS_EXAMPLES = STUDY.data.mixture != "pocket"
BASELINES = [arm for arm in ("raw", "sft", "single") if arm in STUDY.arms]
ROUTING = [arm for arm in ("fixed", "similarity", "learnable") if arm in STUDY.arms]


def code(*modules, data=(), own=lambda wildcards: None):
    """The digest of the code that a job runs, computed only for jobs that are looked at, so that parsing stays fast.

    `own`: the part of the study whose modules of the user's own (module:name) the job runs.
    """
    digest = cache(lambda paths: code_digest(*modules, data=data, config=paths))
    return lambda wildcards: digest(tuple(import_paths(own(wildcards))))


def one_of(names):
    """A wildcard constraint that admits just these names."""
    return "|".join(re.escape(name) for name in names)


def written(model):
    """A pydantic model as the plain values that go into `params`."""
    return model.model_dump(mode="json")


def study_params():
    """The study for what is made of all its results; `resources` influence none of them."""
    return STUDY.model_dump(mode="json", exclude={"resources"})


def model_params(model):
    """A model's config with the digest of its weights, where those are known before the run."""
    return {"config": written(model), "content": content_digest(model, STUDY.study)}


def own_runs(*models):
    """Folders of the runs of this study that these models are or are made of: they are trained first."""
    runs = [run for model in models for run in model.runs if run.study == STUDY.study]
    return list(dict.fromkeys(f"{run.run_folder}/model" for run in runs))


def arm_runs(wildcards):
    """Such runs among what an arm starts from and its teachers."""
    arm = STUDY.arms[wildcards.arm]
    names = other_teachers(wildcards.arm) + (arm.logits.teachers if arm.logits else [])
    models = [STUDY.teachers.models[name] for name in names]
    return own_runs(model_of(wildcards.arm), *models)


def read_runs(wildcards):
    """Such runs among a teacher and the student."""
    return own_runs(STUDY.teachers.models[wildcards.teacher], STUDY.student)


def model_of(arm):
    """The student or the teacher that an arm starts from."""
    name = STUDY.arms[arm].model
    return STUDY.student if name == "student" else STUDY.teachers.models[name]


def example_files(datasets):
    """Files of the records for few-shot prompts."""
    return (
        [f"{ROOT}/data/examples/{dataset}.parquet" for dataset in datasets]
        if HAS_EXAMPLES
        else []
    )


def score_files(arms):
    """Every score file of these arms."""
    return [
        f"{ROOT}/scores/{arm}/seed{seed}/{dataset}.json"
        for arm in arms
        for seed in STUDY.seeds_of(arm)
        for dataset in STUDY.datasets
    ]


def train_cards():
    """The cards of every trained run."""
    return [
        f"{ROOT}/arms/{arm}/seed{seed}/card.json"
        for arm in STUDY.arms
        if STUDY.trained(arm)
        for seed in STUDY.seeds_of(arm)
    ]


def grown(stage, name, gpus):
    """A stage's memory (MB) or run time (minutes) from the study, which grows with each attempt up to what the site allows."""
    start = getattr(getattr(STUDY.resources, stage), name)
    most = max(start, SITE.most(MOST[name], gpus))
    return lambda wildcards, attempt: min(start * attempt, most)


def job_resources(stage, saves=False, on_gpu=True):
    """What a job of a stage asks of the scheduler; one that `saves` is told to (USR1) before its time is up."""
    asked = getattr(STUDY.resources, stage)
    gpus = asked.gpu if on_gpu else 0
    return {
        "mem_mb": grown(stage, "mem_mb", gpus),
        "runtime": grown(stage, "runtime", gpus),
        **SITE.gpu_flags(gpus, getattr(asked, "nodes", 1)),
        **SITE.flags(gpus, saves),
    }


def kv_inputs(wildcards):
    """Maps of the arm's teachers, in their order, their stores where they are stored, and the runs that it and they start from."""
    kv = STUDY.arms[wildcards.arm].kv
    teachers = other_teachers(wildcards.arm)
    if STUDY.teachers.mode == "online":
        stores = []
    elif STUDY.teachers.tier != "raw":
        stores = [
            f"{ROOT}/maps/{teacher}/{kv.align.slug}.targets" for teacher in teachers
        ]
    else:
        stores = [f"{ROOT}/teachers/{teacher}/index.parquet" for teacher in teachers]
    maps = [
        f"{ROOT}/maps/{teacher}/{kv.align.slug}.safetensors" for teacher in teachers
    ]
    return {"stores": stores, "maps": maps, "runs": arm_runs(wildcards)}


def other_teachers(arm):
    """Teachers whose KV an arm reads, in its order; nothing for one that teaches itself."""
    kv = STUDY.arms[arm].kv
    return [] if kv is None or kv.own else kv.teachers


def teacher_index(wildcards):
    """The index of a teacher's store; nothing with online teachers."""
    stored = STUDY.teachers.mode == "stored"
    return [f"{ROOT}/teachers/{wildcards.teacher}/index.parquet"] if stored else []


def arm_params(wildcards):
    """What of an arm its training depends on: not its name, its description or which other arms there are."""
    arm = STUDY.arms[wildcards.arm]
    teachers = other_teachers(wildcards.arm)
    latent = {"latent": written(arm.latent)} if arm.latent else {}
    return latent | {
        "training": written(arm.training) if arm.training else None,
        "kv": written(arm.kv) if arm.kv else None,
        "student_view": arm.student_view,
        "teachers": [model_params(STUDY.teachers.models[name]) for name in teachers],
        "tier": STUDY.teachers.tier if STUDY.teachers.mode == "stored" else "online",
        "logits": written(arm.logits) if arm.logits else None,
        "logit_teachers": [
            model_params(STUDY.teachers.models[name])
            for name in (arm.logits.teachers if arm.logits else [])
        ],
    }


def trained_model(wildcards):
    """The trained model of a run; nothing for arms that are evaluated as they come."""
    if STUDY.trained(wildcards.arm):
        return [f"{ROOT}/arms/{wildcards.arm}/seed{wildcards.seed}/model"]
    return []


def injected_kv(wildcards):
    """The `kv` part of an arm whose student reads its teachers' KV, when it is asked too; None for all others."""
    kv = STUDY.arms[wildcards.arm].kv
    return kv if kv is not None and kv.injected else None


def asked_model(wildcards):
    """Of a model that is asked, what its trained folder does not hold: its teachers where it reads their KV, all of one untrained."""
    if kv := injected_kv(wildcards):
        models = STUDY.teachers.models
        return {"teachers": {name: model_params(models[name]) for name in kv.teachers}}
    return (
        None if STUDY.trained(wildcards.arm) else model_params(model_of(wildcards.arm))
    )


def asked_runs(wildcards):
    """Such runs among the models that `asked_model` gives."""
    asks = not STUDY.trained(wildcards.arm) or injected_kv(wildcards)
    return arm_runs(wildcards) if asks else []


def align_of(wildcards):
    """The align config behind a map's file name."""
    return next(
        align
        for align in STUDY.aligns(wildcards.teacher)
        if align.slug == wildcards.align
    )


def answered():
    """Wildcards of the predict jobs; `dataset` only where each dataset is a job of its own."""
    jobs = [
        (arm, seed, dataset)
        for arm, seed in STUDY.runs()
        for dataset in ([""] if PER_RUN else STUDY.datasets)
    ]
    return dict(zip(("arm", "seed", "dataset"), zip(*jobs)))


def figure_labels(wildcards):
    """ "heatmap-delta" → figure "heatmap", view "delta" in the list of `snakemake --report`."""
    name, _, view = wildcards.figure.partition("-")
    return {"figure": name.replace("_", " "), "view": view or "—"}


# On one machine jobs fork from a process that has imported torch; everywhere else `start` and `stop` do nothing. There Snakemake (9.27)
# may not limit its rate either: with a limit each look at the waiting jobs orders another in a second, and each of those the next, so
# that at the end of a study hundreds a second take a core for themselves.
onstart:
    if workflow.local_exec:
        workflow.scheduler.job_rate_limiter = None
    warm_workers.start(workflow, shell)


onsuccess:
    warm_workers.stop()


onerror:
    warm_workers.stop()
