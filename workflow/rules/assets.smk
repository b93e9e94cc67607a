# What a study needs from the network, fetched once on a machine that has one; all other rules run offline:
#   snakemake assets            (HF_ENDPOINT names a mirror; `hf auth login` first for gated models)
# Models go to assets/models and stay there whatever becomes of this job: one that cannot be had costs no other.
rule assets:
    output:
        models=f"assets/{STUDY.study}.json",
        data=f"assets/{STUDY.study}.data.json",
    log:
        f"{LOGS}/assets.log",
    localrule: True
    params:
        models={
            name: written(model)
            for name, model in {
                "student": STUDY.student,
                **STUDY.teachers.models,
            }.items()
            if not own_runs(model)
        },
        data=written(STUDY.data),
        datasets=list(MIXTURE_DATASETS),
        code=code(
            "mtkv.models.download",
            "mtkv.data.build",
            own=lambda wildcards: STUDY.data,
        ),
    script:
        "../scripts/fetch_assets.py"


# The pocket models are shipped in the package. These rules re-make them from nothing, side by side (18 minutes on two CPU cores):
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
