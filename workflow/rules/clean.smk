# `snakemake clean_checkpoints` removes the checkpoints of finished jobs and says what else lies there and why it stays;
# `snakemake clean_stale_checkpoints` also removes what no job of the study, as it is now, would go on from.
include: "saved.smk"


rule clean_checkpoints:
    log:
        f"{LOGS}/clean_checkpoints.log",
    localrule: True
    params:
        study=STUDY.study,
        asked=asked,
        stale=False,
        code=code("mtkv.checkpointing.clean"),
    script:
        "../scripts/clean_checkpoints.py"


use rule clean_checkpoints as clean_stale_checkpoints with:
    log:
        f"{LOGS}/clean_stale_checkpoints.log",
    params:
        study=STUDY.study,
        asked=asked,
        stale=True,
        code=code("mtkv.checkpointing.clean"),
