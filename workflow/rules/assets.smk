# The pocket models are shipped in the package. These rules re-make them from nothing, side by side (CPU, about 30 minutes):
#   snakemake --profile profiles/local pocket_models
rule pocket_models:
    input:
        expand("build/pocket_models/{name}", name=POCKET_MODELS),
    output:
        "build/pocket_models/recipe.json",
    log:
        "build/pocket_models/recipe.log",
    params:
        code=code("mtkv.models.pocket_recipe"),
    script:
        "../scripts/pocket_models.py"


rule pocket_model:
    output:
        directory("build/pocket_models/{name}"),
    log:
        "build/pocket_models/{name}.log",
    wildcard_constraints:
        name=one_of(POCKET_MODELS),
    params:
        code=code("mtkv.models.pocket_recipe"),
    script:
        "../scripts/assets.py"
