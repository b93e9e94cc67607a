from pathlib import Path

from mtkv.models.pocket_recipe import make_pocket_models

make_pocket_models(Path(snakemake.output[0]), names=[snakemake.wildcards.name])
