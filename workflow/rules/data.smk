# Every test set of the mixture is made, whichever of them the study evaluates: adding a dataset then changes no row.
rule data:
    output:
        train=f"{ROOT}/data/train.parquet",
        val=f"{ROOT}/data/val.parquet",
        calibration=f"{ROOT}/data/calibration.parquet",
        test=expand(f"{ROOT}/data/test/{{dataset}}.parquet", dataset=MIXTURE_DATASETS),
        examples=example_files(MIXTURE_DATASETS),
        card=f"{ROOT}/data/card.json",
    log:
        f"{LOGS}/data.log",
    localrule: True
    resources:
        **job_resources("data"),
    params:
        study=STUDY.study,
        config=written(STUDY.data),
        datasets=list(MIXTURE_DATASETS),
        files=lambda wildcards: state_of(STUDY.data.folder),
        code=code("mtkv.data.build", own=lambda wildcards: STUDY.data),
    script:
        "../scripts/data.py"
