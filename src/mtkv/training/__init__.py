"""How one training runs, whatever it trains: the Trainer, its checkpoints, its processes.

    stages.train_worker ── world_layout: how many processes ── launcher starts them
    in each process: stages.train ── strategies (DDP, FSDP2, ZeRO) ── trainer ─┬─ data_parallel: its rows, sums over all processes
                                                                             └─ resume ── checkpointing, metrics

A *step* is one change of the weights; its rows are read in *parts*, one forward pass of one process each.
"""
