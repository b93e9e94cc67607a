from pathlib import Path

from mtkv.models.pocket_recipe import collect_recipes

collect_recipes([Path(folder) / "recipe.json" for folder in snakemake.input], Path(snakemake.output[0]))
