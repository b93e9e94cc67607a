from pathlib import Path

from mtkv.provenance.checkpoints import ROOT
from mtkv.provenance.clean import clean

params = snakemake.params
clean(ROOT, params.study, params.asked, Path(snakemake.log[0]), stale=params.stale)
