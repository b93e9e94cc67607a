from itertools import zip_longest
from pathlib import Path

from mtkv.config.arms import TrainingConfig
from mtkv.config.evaluation import EvaluationConfig
from mtkv.config.kv import KVConfig
from mtkv.config.latent import LatentConfig
from mtkv.config.models import ModelConfig
from mtkv.distill.teacher_kv import TeacherFiles, store_folder
from mtkv.stages.diagnose_latents import diagnose_latents
from mtkv.provenance.card import Card

given, arm = snakemake.input, snakemake.params.arm
models = [ModelConfig.model_validate(teacher["config"]) for teacher in arm["teachers"]]
files = zip_longest(models, map(Path, given.get("maps", [])), [store_folder(Path(p)) for p in given.get("stores", [])])
with Card.for_job(snakemake, "latents") as card:
    card.result = diagnose_latents(
        Path(given.model),
        [Path(path).stem for path in given.test],
        Path(given.val).parent,
        EvaluationConfig.model_validate(snakemake.params.evaluation),
        LatentConfig.model_validate(arm["latent"]),
        TrainingConfig.model_validate(arm["training"]),
        KVConfig.model_validate(arm["kv"]) if arm["kv"] else None,
        [TeacherFiles(*each, arm["tier"]) for each in files],
        Path(snakemake.output.card).parent,
        int(snakemake.wildcards.seed),
        chat=snakemake.params.chat,
    )
