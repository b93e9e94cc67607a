"""Fit one teacher's map on the calibration rows and probe it on the validation rows: the stage `maps`.

In: the teacher's KV store and the raw student, read over the same rows. Out: the map (safetensors) and the probe table, the
held-out error of identity, fitted map and mean for each student layer and K, V (method.md §4).
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from mtkv.align.layers import layer_map
from mtkv.align.maps import KVMap, fit_map, relative_error
from mtkv.align.tokens import coverage, synchronised_tokens
from mtkv.kv.extract import context_length, read_kv
from mtkv.kv.store import KVStore
from mtkv.models.encode import encode_rows
from mtkv.models.load import load_model, load_tokenizer, model_layers
from mtkv.provenance.files import write_parquet

if TYPE_CHECKING:
    from mtkv.config.kv import AlignConfig
    from mtkv.config.models import ModelConfig

BATCH_SIZE = 64


def calibrate_map(
    student: "ModelConfig",
    teacher_name: str,
    teacher: "ModelConfig",
    align: "AlignConfig",
    store_folder: Path,
    calibration: Path,
    validation: Path,
    output: Path,
    probe: Path,
) -> dict[str, Any]:
    """Stage function: fit, save and probe the map of one teacher; returns coverage, layer map and mean errors."""
    store = KVStore(store_folder, verify=True)
    layers = layer_map(align.layers, model_layers(teacher), model_layers(student))
    fit_x, fit_y, _ = matched_kv(student, store, layers, calibration)
    fitted = fit_map(fit_x, fit_y, layers, align.map, align.ridge)
    fitted.save(output)
    held_x, held_y, covered = matched_kv(student, store, layers, validation)
    table = probe_table(fitted, held_x, held_y, teacher_name)
    write_parquet(probe, table)
    errors = table[table["method"] == align.map].groupby("kind")["error"].mean()
    return {
        "layer_map": layers,
        "coverage": covered,
        "calibration_tokens": len(fit_x),
        "held_out_tokens": len(held_x),
        "held_out_error": {str(kind): float(error) for kind, error in errors.items()},
    }


def matched_kv(
    student: "ModelConfig", store: KVStore, layers: list[int], rows: Path
) -> tuple[
    Float[Tensor, "tokens student_layers 2 teacher_width"],
    Float[Tensor, "tokens student_layers 2 student_width"],
    float,
]:
    """KV of teacher and raw student at every synchronised token of `rows`, and the mean coverage of the rows."""
    frame = pd.read_parquet(rows, columns=["id", "prompt", "target"])
    tokenizer, model = load_tokenizer(student), load_model(student)
    encoded = encode_rows(tokenizer, list(frame["prompt"]), list(frame["target"]), context_length(model))
    position = [store.layers.index(layer) for layer in layers]
    teacher_kv, student_kv, covered = [], [], []
    for row, item, kv in zip(
        frame["id"], encoded, read_kv(model, encoded, range(len(layers)), BATCH_SIZE), strict=True
    ):
        matched = synchronised_tokens(item.byte_end, store.byte_end(row))
        covered.append(coverage(item.byte_end, matched))
        picked = np.flatnonzero(matched >= 0)
        student_kv.append(kv[torch.from_numpy(picked)].float())
        teacher_kv.append(store.read(row, matched[picked])[:, position].float())
    return torch.cat(teacher_kv), torch.cat(student_kv), float(np.nanmean(covered))


def probe_table(
    fitted: KVMap,
    teacher: Float[Tensor, "tokens student_layers 2 teacher_width"],
    student: Float[Tensor, "tokens student_layers 2 student_width"],
    teacher_name: str,
) -> pd.DataFrame:
    """Held-out relative error, one row per student layer × {key, value} × method; identity only where widths agree."""
    mapped = fitted.target(teacher) * fitted.scale[..., None] + fitted.y_mean
    rows = []
    for layer, teacher_layer in enumerate(fitted.teacher_layers.tolist()):
        for kind, name in enumerate(("key", "value")):
            truth, mean = student[:, layer, kind], fitted.y_mean[layer, kind]
            errors = {"ridge": relative_error(mapped[:, layer, kind], truth, mean), "mean": 1.0}
            if teacher.shape[-1] == student.shape[-1]:
                errors["identity"] = relative_error(teacher[:, layer, kind], truth, mean)
            rows += [
                {"layer": layer, "teacher_layer": teacher_layer, "kind": name, "method": method, "error": error}
                for method, error in errors.items()
            ]
    return pd.DataFrame(rows).assign(teacher=teacher_name, tokens=len(student))
