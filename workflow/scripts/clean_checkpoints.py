from pathlib import Path

from mtkv.checkpointing.store import ROOT
from mtkv.checkpointing.clean import clean

params = snakemake.params
clean(ROOT, params.study, params.asked, Path(snakemake.log[0]), stale=params.stale)
