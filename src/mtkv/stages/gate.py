"""The stage `gate`: does an arm's KV loss pull the student's weights where its cross-entropy pulls them? Known before the arm is trained.

In: what the arm is trained from (rows, stores, maps). Out: for each batch, layer and kind (keys, values) cos(∂CE, ∂KV) over all weights
of the student that are trained, once with the teachers' KV of the right row and once with those of another (control `shuffle_items`), of
the same batches at the same weights. Above 0, a step down the KV loss also lowers the cross-entropy; where the right row's cosine is the
other row's, the KV's content adds nothing (method.md §9; docs/where_kv_pays.md has what it predicted and what not).

The gate is about the student as it comes. A trained map that has learnt nothing has a gradient that means nothing, so the map (and a
trained router) first learn alone for some steps, the student frozen: in an ordinary warm-up the student would move as well, and the right
row would be compared with the other at different weights. A map of closed form with given fusion weights needs no step.
"""

from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import set_seed

from mtkv.distill.distiller import Distiller
from mtkv.inject.training import InjectionDistiller
from mtkv.kv.shards import KEY, VALUE
from mtkv.latent.training.objective import LatentDistiller
from mtkv.provenance.files import write_parquet
from mtkv.report.gates import ALL
from mtkv.stages.train import ArmInputs, arm_parts
from mtkv.training.data_parallel import PART
from mtkv.training.gradient_shares import gradients

OTHER_ROW = "shuffle_items"
KINDS = {KEY: "key", VALUE: "value"}


def measure_gate(run: ArmInputs, steps: int, batches: int, output: Path) -> dict[str, Any]:
    """Stage function: write a row for each batch, control, layer (`ALL`: all of them) and kind (key, value, both) to `output`: `cosine`,
    and `ratio`, the norm of the KV gradient divided by that of CE. `steps`: how many the arm's map and router learn alone, if they learn.

    Returns facts for the card; `cosines` are the means over `batches` batches of `training.batch_size` rows, as `summary` has them. Raises
    ValueError for an arm without KV or with a control of its own, and where there are too few rows.
    """
    if run.kv is None or run.kv.injected or run.kv.control != "none":
        have = "no kv" if run.kv is None else "transfer inject" if run.kv.injected else f"control {run.kv.control}"
        raise ValueError(f"the gate compares an arm's KV with another row's, but this arm has {have}")
    tables, learnt = [], 0
    for control in ("none", OTHER_ROW):
        set_seed(run.seed)
        distiller, _, (rows, _) = arm_parts(
            run.model_copy(update={"kv": run.kv.model_copy(update={"control": control})})
        )
        assert not isinstance(distiller, InjectionDistiller)
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        distiller.to(device)
        size = run.training.batch_size
        order = np.random.default_rng(run.seed).permutation(len(rows)).tolist()
        cut = [order[start : start + size] for start in range(0, len(order) - size + 1, size)]
        if len(cut) <= batches:
            raise ValueError(
                f"{len(rows)} training rows are too few for {batches} batches of {size} and one more to train a map on; "
                f"at most {max(0, len(cut) - 1)} batches"
            )
        with torch.autocast(device.type, torch.bfloat16, enabled=run.training.dtype == "bfloat16"):
            rest = cut[batches:]
            warm = (moved(rows.collate(rest[step % len(rest)]), device) for step in range(steps))
            learnt = train_map(distiller, warm, run.training.learning_rate)
            distiller.eval()
            found = [
                pd.DataFrame(gate_cosines(distiller, moved(rows.collate(indices), device))).assign(batch=number)
                for number, indices in enumerate(cut[:batches])
            ]
        tables.append(pd.concat(found, ignore_index=True).assign(control=control))
    table = pd.concat(tables, ignore_index=True)
    write_parquet(output, table)
    return {
        "seed": run.seed,
        "map_steps": learnt,
        "batches": batches,
        "batch_size": run.training.batch_size,
        "cosines": summary(table),
    }


def train_map(distiller: Distiller | LatentDistiller, batches: Any, learning_rate: float) -> int:
    """Train what of an arm is not its student, one step for each of `batches`; returns the steps: 0 where there is nothing to train."""
    assert distiller.supervision is not None
    learning = [parameter for parameter in distiller.supervision.parameters() if parameter.requires_grad]
    if not learning:
        return 0
    optimizer, steps = torch.optim.AdamW(learning, learning_rate), 0
    for steps, batch in enumerate(batches, 1):  # noqa: B007
        optimizer.zero_grad()
        distiller(**batch)["loss"].backward(inputs=learning)
        optimizer.step()
    return steps


def gate_cosines(distiller: Distiller | LatentDistiller, batch: Mapping[str, Any]) -> list[dict[str, Any]]:
    """`layer`, `kind`, `cosine` and `ratio` of one batch. The KV loss of layer l's keys is what moves the weights through those keys:
    Σ ∂L_KV/∂k_l · ∂k_l/∂θ, so that the gradients of all layers and kinds add up to that of the arm's whole KV loss.

    A layer that the loss does not supervise has no row. Costs a backward pass for each layer and kind.
    """
    supervision, seen = distiller.supervision, []
    assert supervision is not None
    hook = supervision.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    terms = distiller(**batch)
    hook.remove()
    (student_kv,) = seen
    weights = [parameter for parameter in distiller.student.parameters() if parameter.requires_grad]

    def gradient(loss: Tensor) -> Tensor:
        found = gradients(loss, weights) or [None] * len(weights)
        parts = (torch.zeros_like(p) if g is None else g for p, g in zip(weights, found, strict=True))
        return torch.cat([part.flatten().float() for part in parts])

    matching = [terms[PART + name] for name in supervision.matching_terms if PART + name in terms]
    if not matching:
        raise ValueError("no term of this arm's KV loss has a weight above 0, so there is no gradient to compare")
    (pull,) = torch.autograd.grad(torch.stack(matching).sum(), student_kv, retain_graph=True)
    ce = gradient(terms["ce"])
    sums = {kind: torch.zeros_like(ce) for kind in KINDS}
    rows = []
    for layer, kind in product(range(student_kv.shape[1]), KINDS):
        if not bool((here := pull[:, layer, kind]).any()):
            continue
        found = gradient((student_kv[:, layer, kind].float() * here).sum())
        sums[kind] += found
        rows.append({"layer": layer, "kind": KINDS[kind]} | compared(ce, found))
    whole = {KINDS[kind]: found for kind, found in sums.items() if found.any()} | {"both": sums[KEY] + sums[VALUE]}
    return rows + [{"layer": ALL, "kind": kind} | compared(ce, found) for kind, found in whole.items()]


def compared(ce: Tensor, kv: Tensor) -> dict[str, float]:
    """Cosine of two gradients [weights], and the second's norm divided by the first's."""
    return {"cosine": float(F.cosine_similarity(ce, kv, dim=0)), "ratio": float(kv.norm() / ce.norm())}


def summary(table: pd.DataFrame) -> list[dict[str, Any]]:
    """Of each layer and kind the mean cosine over the batches with the `right` row's KV and the `other` row's, their `difference`,
    paired by batch, each with its standard error (`_se`), and the mean `ratio` with the right row's."""
    wide = table.pivot(index=["layer", "kind", "batch"], columns="control", values="cosine")
    cosine = wide.rename(columns={"none": "right", OTHER_ROW: "other"})
    cosine["difference"] = cosine["right"] - cosine["other"]
    places = cosine.groupby(level=["layer", "kind"])
    ratio = table[table["control"] == "none"].groupby(["layer", "kind"])["ratio"].mean()
    found = places.mean().join(places.sem().add_suffix("_se")).join(ratio)
    return found.reset_index().to_dict("records")  # type: ignore[return-value]


def moved(batch: Mapping[str, Any], device: torch.device) -> dict[str, Any]:
    """A batch on `device`."""

    def to(value: Any) -> Any:
        return [one.to(device) for one in value] if isinstance(value, Sequence) else value.to(device)

    return {name: to(value) for name, value in batch.items()}
