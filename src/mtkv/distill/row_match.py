"""Which tokens of a row the teachers supervise, and which of their stored tokens do it."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class RowMatch:
    """Where one row is supervised, and by what: its token `position[i]` by Σⱼ weight[i, j] · KV of token `tokens[i, j]` of row `row`.

    `position [n]`; `tokens` and `weight`, both `[n, k]`, one each per teacher. `row` is another row's id under `shuffle_items`.
    """

    row: str
    position: np.ndarray
    tokens: list[np.ndarray]
    weight: list[np.ndarray]
