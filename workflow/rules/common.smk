# The validated study and the functions that the rules share. No rule reads `config` itself: each gets, as `params`, the
# smallest validated part it needs and the digest of the code it runs, so that a change reruns just what depends on it.
import re
import sys

from mtkv.config.data import POCKET_DATASETS
from mtkv.config.errors import ConfigError
from mtkv.config.models import POCKET_MODELS
from mtkv.config.study import load_study
from mtkv.models.digest import content_digest
from mtkv.provenance.digest import code_digest

try:
    STUDY = load_study(config)
except ConfigError as error:
    sys.exit(f"the study's config is not valid:\n{error}")

ROOT = f"results/{STUDY.study}"
LOGS = f"{ROOT}/logs"
BASELINES = [arm for arm in ("raw", "sft", "single") if arm in STUDY.arms]
ROUTING = [arm for arm in ("fixed", "similarity", "learnable") if arm in STUDY.arms]


def one_of(names):
    """A wildcard constraint that admits just these names."""
    return "|".join(re.escape(name) for name in names)


def written(model):
    """A pydantic model as the plain values that go into `params`."""
    return model.model_dump(mode="json")


def model_params(model):
    """A model's config with the digest of its weights, where those are known before the run."""
    return {"config": written(model), "content": content_digest(model)}


def model_of(arm):
    """The student or the teacher that an arm starts from."""
    name = STUDY.arms[arm].model
    return STUDY.student if name == "student" else STUDY.teachers.models[name]


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


def resource(stage, name):
    """A stage's memory (MB), run time (minutes) or GPUs from the study; memory and time grow with each attempt."""

    def value(wildcards, attempt):
        return getattr(getattr(STUDY.resources, stage), name) * (
            attempt if name != "gpu" else 1
        )

    return value
