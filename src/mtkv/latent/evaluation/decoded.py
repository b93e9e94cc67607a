"""What each latent says through the lm head in the final pass: its likeliest tokens, over the questions of a dataset and of single ones."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch

from mtkv.evaluate.batch_size import in_batches, rows_to_read
from mtkv.latent.evaluation.lm_eval_model import LatentEvaluationModel
from mtkv.models.tokenization import pad_batch

COLUMNS = {"item": object, "question": object, "slot": int, "rank": int, "token_id": int, "token": str}
COLUMNS |= {"probability": float, "first": float}


def decoded_tokens(
    model: LatentEvaluationModel, prompts: Mapping[str, str], questions: Mapping[str, str], top: int, examples: int
) -> pd.DataFrame:
    """The `top` tokens of each slot (from 1), with the `COLUMNS`: over all `prompts` (by item), then of the first `examples` items.

    `questions` are shown beside the items. Over all (`item` and `question` None), `probability` is the mean over the prompts, where a
    token that is not among a prompt's `top` counts 0; `first` is the share of the prompts in which the token is the likeliest.
    """
    items, asked = list(prompts), list(prompts.values())
    tokens, likely = _likeliest(model, model._encode(asked), top)
    single = _long(items[:examples], tokens[:examples], likely[:examples]).assign(first=np.nan)
    everything = _long(items, tokens, likely)
    mean = everything.assign(probability=everything["probability"] / len(items), first=everything["rank"] == 1)
    mean["first"] = mean["first"] / len(items)
    mean = mean.groupby(["slot", "token_id"], as_index=False)[["probability", "first"]].sum()
    mean = mean.sort_values(["slot", "probability", "token_id"], ascending=[True, False, True])
    mean["rank"] = mean.groupby("slot").cumcount() + 1
    table = pd.concat([mean[mean["rank"] <= top].assign(item=None), single], ignore_index=True)
    table["question"] = [questions.get(item) for item in table["item"]]
    table["token"] = [model.tokenizer.decode([token]) for token in table["token_id"]]
    return table[list(COLUMNS)].astype({name: kind for name, kind in COLUMNS.items() if kind is not object})


def _likeliest(model: LatentEvaluationModel, ids: Sequence[Sequence[int]], top: int) -> tuple[np.ndarray, np.ndarray]:
    """Ids and probabilities [prompts, M, top]."""
    student, pad = model.student, model.tokenizer.pad_token_id or 0
    longest = max(map(len, ids)) + student.slots
    found: dict[int, tuple[Any, Any]] = {}

    def work(places: Sequence[int]) -> None:
        read = [np.asarray(ids[place]) for place in places]
        padded, mask = (
            torch.from_numpy(pad_batch(rows, value)).to(student.device)
            for rows, value in ((read, pad), ([np.ones_like(row) for row in read], 0))
        )
        tokens, likely = student.decode_latents(padded, mask, top)
        found.update(zip(places, zip(tokens.cpu().numpy(), likely.cpu().numpy(), strict=True), strict=True))

    with torch.inference_mode():
        rows = rows_to_read(student.model, model.batch_size, longest, student.latent.tokens)
        in_batches(sorted(range(len(ids)), key=lambda place: -len(ids[place])), rows, work)
    ordered = [found[place] for place in range(len(ids))]
    return np.stack([tokens for tokens, _ in ordered]), np.stack([likely for _, likely in ordered])


def _long(items: Sequence[str], tokens: np.ndarray, likely: np.ndarray) -> pd.DataFrame:
    """One row per item, slot and rank."""
    item, slot, rank = (place.ravel() for place in np.indices(tokens.shape))
    return pd.DataFrame(
        {
            "item": np.asarray(items, dtype=object)[item],
            "slot": slot + 1,
            "rank": rank + 1,
            "token_id": tokens.ravel(),
            "probability": likely.ravel().astype(float),
        }
    )
