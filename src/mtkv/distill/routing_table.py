"""The mean routing weights of a trained arm over its validation rows: how much each teacher counted."""

from typing import Any

import pandas as pd
import torch

from mtkv.distill.dataset import DistillationRows


@torch.no_grad()
def routing_table(distiller: Any, rows: DistillationRows, teachers: list[str], batch_size: int) -> pd.DataFrame:
    """Mean routing weight per dataset and teacher over `rows`, and per student layer for a router that weighs each layer apart.

    Columns dataset, teacher, weight and, for such a router, layer; empty for arms without KV.
    """
    columns = ["dataset", "teacher", "weight"]
    if not teachers:
        return pd.DataFrame(columns=columns)
    distiller.eval()
    device = distiller.student.device
    weights = []
    for start in range(0, len(rows), batch_size):
        batch = rows.collate(range(start, min(start + batch_size, len(rows))))
        batch["teacher_kv"] = [kv.to(device) for kv in batch["teacher_kv"]]
        moved = {name: value.to(device) if hasattr(value, "to") else value for name, value in batch.items()}
        weights.append(distiller(**moved)["weights"].cpu())
    table = torch.cat(weights).numpy()  # [rows, teachers, *layers]
    own = table if table.ndim == 3 else table[..., None]
    parts = [
        pd.DataFrame({"dataset": rows.datasets, "teacher": teacher, "layer": layer, "weight": own[:, i, layer]})
        for i, teacher in enumerate(teachers)
        for layer in range(own.shape[2])
    ]
    means = pd.concat(parts).groupby(["dataset", "teacher", "layer"])["weight"].mean().reset_index()
    return means if table.ndim == 3 else means[columns]
