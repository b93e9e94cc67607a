"""Snakemake whose SLURM plugin asks for the state of jobs twice a second, for tests only.

The plugin (2.8) asks after `init` seconds and then ever more seldom, and ignores `--seconds-between-status-checks`.
"""

import sys

import snakemake_executor_plugin_slurm as plugin
from snakemake.cli import main

plugin.Executor.next_seconds_between_status_checks = property(lambda self: 0.5, lambda self, seconds: None)

if __name__ == "__main__":
    sys.argv[0] = "snakemake"
    sys.exit(main())
