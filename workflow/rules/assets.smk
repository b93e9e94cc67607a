# The pocket models are shipped in the package. This rule re-makes them from nothing (CPU, up to 30 minutes):
#   snakemake --profile profiles/local pocket_models
rule pocket_models:
    output:
        directory("build/pocket_models"),
    log:
        "build/pocket_models.log",
    params:
        code=code_digest("mtkv.models.pocket_recipe"),
    script:
        "../scripts/assets.py"
