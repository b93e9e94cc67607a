# Which jobs of the study keep checkpoints, and what each of them is asked.
from itertools import product
from types import SimpleNamespace

from mtkv.checkpointing.clean import asked_digest


def jobs_that_save():
    """Rule, stage and wildcards of every job that keeps checkpoints."""
    for teacher, shard in product(STUDY.teachers.models, SHARDS):
        yield "teacher_kv", "teachers", {"teacher": teacher, "shard": shard}
    for arm, seed in STUDY.runs():
        run = {"arm": arm, "seed": str(seed)}
        if STUDY.trained(arm):
            yield "train", "arms", run
        if PER_RUN:
            yield "predict", "predictions", run
        else:
            for dataset in STUDY.datasets:
                yield "predict", "predictions", run | {"dataset": dataset}


def asked(_):
    """Digests of what each of them is asked, by its rule's own params."""
    digests = []
    for rule, stage, named in jobs_that_save():
        wildcards = SimpleNamespace(**named)
        config = {
            name: value(wildcards) if callable(value) else value
            for name, value in workflow.get_rule(rule).params.items()
        }
        identity = {"stage": stage, "wildcards": named, "code": config.pop("code")}
        digests.append(asked_digest(identity | {"config": config}))
    return digests
