from pathlib import Path

from mtkv.align.layers import stored_layers
from mtkv.config.models import ModelConfig
from mtkv.kv.extract import StorePlan, extract_shard
from mtkv.models.load import model_layers
from mtkv.provenance.card import Card
from mtkv.checkpointing.store import Checkpoint

student, teacher = (ModelConfig.model_validate(snakemake.params[name]["config"]) for name in ("student", "teacher"))
sizes = model_layers(teacher), model_layers(student)
plan = {name: snakemake.params[name] for name in ("shards", "dtype", "batch_size", "importance", "statistics")}
with Card.for_job(snakemake, "teachers") as card, Checkpoint.for_job(snakemake, "teachers") as checkpoint:
    card.result = extract_shard(
        teacher,
        [Path(path) for path in snakemake.input.rows],
        int(snakemake.wildcards.shard),
        StorePlan(stored_layers(snakemake.params.layers, *sizes, student.layers), **plan),
        Path(snakemake.output.shard),
        checkpoint=checkpoint,
        placement=snakemake.resources.get("placement", "single"),
    )
