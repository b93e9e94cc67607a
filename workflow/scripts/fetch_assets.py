from pathlib import Path

from mtkv.config.data import DataConfig
from mtkv.config.models import ModelConfig
from mtkv.data.build import fetch_data
from mtkv.models.download import fetch_models
from mtkv.provenance.files import write_json

models = {name: ModelConfig.model_validate(config) for name, config in snakemake.params.models.items()}
found = fetch_data(DataConfig.model_validate(snakemake.params.data), snakemake.params.datasets)
write_json(Path(snakemake.output.data), found)
fetch_models(models, Path(snakemake.output.models))
