"""One cluster and one finished study for all tests of this folder. Without SLURM's programs they are skipped, but in CI they fail."""

import os

import pytest
from slurm.cluster import Cluster, missing
from slurm.studies import PATIENCE, Workplace


@pytest.fixture(scope="package")
def cluster(tmp_path_factory):
    """A running SLURM."""
    if lacking := missing():
        reason = f"{', '.join(lacking)} not found: apt-get install slurmctld slurmd slurm-client munge"
        pytest.fail(reason) if os.environ.get("CI") else pytest.skip(reason)
    pytest.importorskip("snakemake_executor_plugin_slurm", reason="pip install mtkv[slurm]")
    with Cluster(tmp_path_factory.mktemp("slurm") / "cluster") as running:
        yield running


@pytest.fixture(scope="package")
def study(cluster, tmp_path_factory):
    """The study, run once through the profile."""
    place = Workplace.new(tmp_path_factory.mktemp("study") / "mtkv", cluster)
    place.succeeds(place.snakemake("all"), 2 * PATIENCE)
    return place
