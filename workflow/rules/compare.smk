rule compare:
    input:
        scores=score_files(STUDY.arms),
        cards=train_cards(),
    output:
        tables=expand(
            f"{ROOT}/compare/{{table}}.parquet",
            table=("items", "cells", "pairs", "matrix", "claims"),
        ),
        study=f"{ROOT}/compare/study.json",
        card=f"{ROOT}/compare/card.json",
    log:
        f"{LOGS}/compare.log",
    localrule: True
    params:
        study=STUDY.study,
        config=study_params(),
        code=code("mtkv.stages.compare"),
    script:
        "../scripts/compare.py"
