from pathlib import Path

from mtkv.config.evaluation import EvaluationConfig
from mtkv.config.models import ModelConfig
from mtkv.stages.predict import ModelSource, predict
from mtkv.provenance.card import Card
from mtkv.checkpointing.store import Checkpoint

params, given = snakemake.params, snakemake.params.model or {}
outputs = {Path(path).stem: Path(path) for path in snakemake.output.predictions}
with Card.for_job(snakemake, "predictions") as card, Checkpoint.for_job(snakemake, "predictions") as checkpoint:
    config = ModelConfig.model_validate(given["config"]) if "config" in given else None
    read = given.get("teachers", {}).items()
    teachers = {name: ModelConfig.model_validate(teacher["config"]) for name, teacher in read}
    card.result = predict(
        ModelSource.of(snakemake.input.model, config, params.chat, teachers),
        Path(snakemake.input.test[0]).parents[1],
        EvaluationConfig.model_validate(params.evaluation),
        outputs,
        Path("checkpoints/predictions"),
        checkpoint,
        params.code,
    )
