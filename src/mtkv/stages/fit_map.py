"""Fit one teacher's map on the calibration rows and probe it on the validation rows: the stage `maps`.

In: the teacher's KV store and the raw student, read over the same rows. Out: the map (safetensors) and the probe table, the
held-out error of the fitted map, its alternatives and the mean for each student layer and K, V (method.md §4).
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from mtkv.align.byte_spans import NO_TOKEN, Spans, coverage
from mtkv.align.cka import cka_similarity
from mtkv.align.closed_form_maps import KVMap, combine_layers, fit_map, relative_error
from mtkv.align.layers import layer_weights, stored_layers
from mtkv.align.token_alignment import match_row
from mtkv.config.kv import AlignConfig
from mtkv.config.models import ModelConfig
from mtkv.data.rows import segment_ends
from mtkv.kv.extract import read_kv
from mtkv.kv.online_teacher import OnlineTeacher
from mtkv.kv.store import KVStore
from mtkv.models.load import load_model, load_tokenizer, model_layers
from mtkv.models.tokenization import encode_rows
from mtkv.provenance.files import write_parquet

BATCH_SIZE = 64
CKA_TOKENS = 4096


class MapFiles(NamedTuple):
    """Where a map goes, its probe table, and the alignment of the first validation row (None: nowhere)."""

    map: Path
    probe: Path
    example: Path | None = None


def calibrate_map(
    student: ModelConfig,
    teacher_name: str,
    teacher: ModelConfig,
    align: AlignConfig,
    store_folder: Path | None,
    data_folder: Path,
    files: MapFiles,
) -> dict[str, Any]:
    """Stage function: fit the map of one teacher on the calibration rows of `data_folder`, save and probe it; returns coverage, layer map,
    mean errors and the days that chat templates were told.

    `store_folder` None: an online teacher reads the rows. A map that is trained with the student gets here the statistics of both
    sides and its closed-form counterpart (ridge), for routing and as a start.
    """
    fit, held = (pd.read_parquet(data_folder / f"{split}.parquet") for split in ("calibration", "val"))
    store = open_teacher(student, teacher, align, store_folder, pd.concat([fit, held]))
    sizes = model_layers(teacher), model_layers(student)
    reader = load_tokenizer(student), load_model(student)
    fit_x, fit_y, _ = matched_kv(*reader, store, align.time, fit)
    similarity = layer_similarity(fit_x, fit_y) if align.layers == "cka" else None
    weights = layer_weights(align.layers, *sizes, similarity, align.cka_top_k, student.layers)
    stored = torch.from_numpy(weights[:, store.layers]).float()
    x = combine_layers(fit_x, stored)
    method = "ridge" if align.trained else align.map
    maps = {name: fit_map(x, fit_y, weights, name, align.ridge) for name in probed_methods(method, x, fit_y)}
    maps[method].save(files.map)
    held_x, held_y, covered = matched_kv(*reader, store, align.time, held)
    table = probe_table(maps, combine_layers(held_x, stored), held_y, teacher_name)
    write_parquet(files.probe, table)
    if files.example is not None:
        write_parquet(files.example, example_table(reader[0], store, align.time, held.head(1)))
    errors = table[table["method"] == method].groupby("kind")["error"].mean()
    return {
        "chat_date": student.chat_date,
        "teacher_chat_date": teacher.chat_date,
        "layer_map": maps[method].teacher_layers.tolist(),
        "coverage": covered,
        "calibration_tokens": len(fit_x),
        "held_out_tokens": len(held_x),
        "held_out_error": {str(kind): float(error) for kind, error in errors.items()},
    }


def probed_methods(method: str, teacher: Tensor, student: Tensor) -> list[str]:
    """The arm's own map first, then those it is compared with; identity only where the widths agree."""
    possible = ["ridge", "procrustes"] + (["identity"] if teacher.shape[-1] == student.shape[-1] else [])
    return [method, *(name for name in possible if name != method)]


def open_teacher(
    student: ModelConfig, teacher: ModelConfig, align: AlignConfig, store_folder: Path | None, rows: pd.DataFrame
) -> KVStore | OnlineTeacher:
    """The teacher's store, checked against its checksums, or the teacher itself."""
    if store_folder is not None:
        return KVStore(store_folder, verify=True)
    layers = stored_layers([align.layers], model_layers(teacher), model_layers(student), student.layers)
    return OnlineTeacher(load_model(teacher), load_tokenizer(teacher), rows, layers, BATCH_SIZE)


def layer_similarity(
    teacher: Float[Tensor, "tokens stored 2 teacher_width"],
    student: Float[Tensor, "tokens student_layers 2 student_width"],
) -> Float[np.ndarray, "student_layers stored"]:
    """Linear CKA of every student layer with every teacher layer, on evenly spread tokens."""
    picked = torch.linspace(0, len(teacher) - 1, min(CKA_TOKENS, len(teacher))).long()
    return cka_similarity(student[picked].flatten(2).numpy(), teacher[picked].flatten(2).numpy())


def matched_kv(
    tokenizer: PreTrainedTokenizerBase,
    model: PreTrainedModel,
    store: KVStore | OnlineTeacher,
    time: str,
    frame: pd.DataFrame,
) -> tuple[
    Float[Tensor, "tokens stored 2 teacher_width"],
    Float[Tensor, "tokens student_layers 2 student_width"],
    float,
]:
    """KV of teacher and raw student at every matched token of the rows, and the mean share of a row's tokens that are."""
    encoded = encode_rows(tokenizer, list(frame["prompt"]), list(frame["target"]))
    ends = segment_ends(frame)
    teacher_kv, student_kv, covered = [], [], []
    readings = read_kv(model, encoded, range(model.config.get_text_config().num_hidden_layers), BATCH_SIZE)
    for start in range(0, len(frame), BATCH_SIZE):
        rows = list(frame["id"][start : start + BATCH_SIZE])
        store.prefetch(rows)
        batch = slice(start, start + BATCH_SIZE)
        for row, item, segments, kv in zip(rows, encoded[batch], ends[batch], readings, strict=False):
            match = match_row(time, row, item, store, segments)
            matched = np.full(len(item.byte_end), NO_TOKEN)
            matched[match.position] = match.tokens[:, 0]
            covered.append(coverage(item.byte_end, matched))
            student_kv.append(kv[torch.from_numpy(match.position)].float())
            found = store.read(row, match.tokens.ravel()).float().cpu().unflatten(0, match.tokens.shape)
            teacher_kv.append(torch.einsum("nk,nklcw->nlcw", torch.from_numpy(match.weight), found))
    return torch.cat(teacher_kv), torch.cat(student_kv), float(np.nanmean(covered))


def example_table(
    tokenizer: PreTrainedTokenizerBase, store: KVStore | OnlineTeacher, time: str, frame: pd.DataFrame
) -> pd.DataFrame:
    """Every token of one row on both sides and who is compared with whom: student_token, teacher_token (numbers, None without a
    partner), weight, student_text, teacher_text."""
    (row,), (prompt,), (target,) = (list(frame[name]) for name in ("id", "prompt", "target"))
    (item,) = encode_rows(tokenizer, [prompt], [target])
    match = match_row(time, row, item, store, segment_ends(frame)[0])
    spans = Spans(item.byte_start, item.byte_end), Spans(store.byte_start(row), store.byte_end(row))
    sides = [span_texts(prompt + target, side) for side in spans]
    pairs = [
        (int(position), int(token), float(weight))
        for position, tokens, weights in zip(match.position, match.tokens, match.weight, strict=True)
        for token, weight in zip(tokens, weights, strict=True)
        if weight > 0
    ]
    alone = [set(range(len(texts))) - {pair[side] for pair in pairs} for side, texts in enumerate(sides)]
    table = (
        pairs
        + [(token, None, None) for token in sorted(alone[0])]
        + [(None, token, None) for token in sorted(alone[1])]
    )
    found = pd.DataFrame(table, columns=["student_token", "teacher_token", "weight"]).astype(
        {"student_token": "Int64", "teacher_token": "Int64", "weight": "Float64"}
    )
    for name, texts in zip(("student", "teacher"), sides, strict=True):
        found[f"{name}_text"] = [None if pd.isna(token) else texts[int(token)] for token in found[f"{name}_token"]]
    return found


def span_texts(text: str, spans: Spans) -> list[str]:
    """The text of each token; ∅ for tokens that are never compared."""
    written = text.encode()
    return [
        written[start:end].decode(errors="replace") if end >= 0 else "∅"
        for start, end in zip(spans.start, spans.end, strict=True)
    ]


def probe_table(
    maps: dict[str, KVMap],
    teacher: Float[Tensor, "tokens student_layers 2 teacher_width"],
    student: Float[Tensor, "tokens student_layers 2 student_width"],
    teacher_name: str,
) -> pd.DataFrame:
    """Held-out relative error, one row per student layer × {key, value} × method of `maps`, and the mean, whose error is 1."""
    rows = []
    for method, fitted in maps.items():
        mapped = fitted.target(teacher) * fitted.scale[..., None] + fitted.y_mean
        for layer, teacher_layer in enumerate(fitted.teacher_layers.tolist()):
            for kind, name in enumerate(("key", "value")):
                error = relative_error(mapped[:, layer, kind], student[:, layer, kind], fitted.y_mean[layer, kind])
                place = {"layer": layer, "teacher_layer": teacher_layer, "kind": name}
                rows.append(place | {"method": method, "error": error})
    table = pd.DataFrame(rows)
    mean = table[table["method"] == table["method"].iloc[0]].assign(method="mean", error=1.0)
    return pd.concat([table, mean], ignore_index=True).assign(teacher=teacher_name, tokens=len(student))


def gather_probes(tables: Sequence[Path], output: Path) -> dict[str, Any]:
    """Stage function: the probe tables of all maps in one, with the name of each map. Returns the mean error per method."""
    frames = [
        pd.read_parquet(path).assign(map=f"{path.parent.name}/{path.name.removesuffix('.probe.parquet')}")
        for path in tables
    ]
    table = pd.concat(frames, ignore_index=True)
    write_parquet(output, table)
    return {"mean_error": {str(name): float(error) for name, error in table.groupby("method")["error"].mean().items()}}
