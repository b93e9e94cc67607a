"""Tokens matched for calibration, and their share, against sets of byte ends."""

import numpy as np
import pandas as pd
import pytest

from mtkv.config.models import ModelConfig
from mtkv.kv.extract import read_kv
from mtkv.kv.online_teacher import OnlineTeacher
from mtkv.models.load import load_model, load_tokenizer
from mtkv.models.tokenization import encode_rows
from mtkv.stages.fit_map import matched_kv

ROWS = pd.DataFrame(
    {
        "id": ["a", "b"],
        "prompt": ["Question: Tom has 12 apples and buys 7 more.\n", "问题：3 + 4\n"],
        "target": ["12 + 7 = 19\nAnswer: 19", "答案：7"],
    }
)


def test_coverage_and_kv_are_those_of_the_tokens_that_end_together():
    tokenizer, model = (load(ModelConfig(name="student")) for load in (load_tokenizer, load_model))
    teacher = load_tokenizer(ModelConfig(name="qwen2"))
    store = OnlineTeacher(load_model(ModelConfig(name="qwen2")), teacher, ROWS, [0, 1], 2)
    theirs, ours, covered = matched_kv(tokenizer, model, store, "sync", ROWS)
    mine, other = (encode_rows(each, list(ROWS["prompt"]), list(ROWS["target"])) for each in (tokenizer, teacher))
    together, shares = [], []
    for row, partner in zip(mine, other, strict=True):
        ends = set(partner.byte_end[partner.byte_end >= 0].tolist())
        together.append([i for i, end in enumerate(row.byte_end.tolist()) if end in ends])
        shares.append(len(together[-1]) / (row.byte_end >= 0).sum())
    assert covered == pytest.approx(np.mean(shares))
    assert 0 < covered < 1
    assert len(theirs) == len(ours) == sum(map(len, together))
    (first, _) = read_kv(model, mine, range(3), 1)
    np.testing.assert_allclose(ours[: len(together[0])], first[together[0]], atol=1e-5)
