"""Which supervised tokens an arm keeps of a row under a budget, against loops over tokens and layers for every method."""

import hashlib
import math

import numpy as np
import pytest
import torch
from span_rows import SEGMENTS, build, encoded, matrix, stored

from mtkv.config.kv import SelectConfig
from mtkv.distill.teacher_kv import TeacherKV
from mtkv.kv.row_rng import row_uniforms
from mtkv.kv.select import METHODS

LAYERS, WIDTH = 3, 5
STUDENT, TEACHER = build(1)
RATE = 0.3


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    return stored(tmp_path_factory.mktemp("selected"), TEACHER, list(range(LAYERS)), WIDTH, seed=4)


def cosines(keys):
    """Cosine of every token with every other, 0 with itself `[n, n]`."""
    return np.array(
        [
            [0.0 if i == j else a @ b / math.sqrt(a @ a * (b @ b)) for j, b in enumerate(keys)]
            for i, a in enumerate(keys)
        ]
    )


def redundancy(keys):
    return np.array([sum(row) / len(keys) for row in cosines(keys)])


def softmax(x):
    return np.exp(x) / np.exp(x).sum()


def evenly(keys, importance, places, count, row):
    picked = {math.floor((i + 0.5) * len(places) / count) for i in range(count)}
    return np.array([float(rank in picked) for rank in range(len(places))])


def drawn(keys, importance, places, count, row):
    seed = int.from_bytes(hashlib.sha256(row.encode()).digest()[:7], "big")
    return row_uniforms(torch.tensor([seed]), (len(places),))[0].numpy()


def rkv(keys, importance, places, count, row):
    return RATE * importance / importance.sum() + (1 - RATE) * softmax(-redundancy(keys))


def rkv_decode(keys, importance, places, count, row):
    """R-KV's score with a window of 8, max-pool over 7 positions, threshold 0.5 and mix 0.07 (method.md §6)."""
    n = len(places)
    past = max(0, n - 8)
    share = dict(zip(places[:past], importance[:past] / importance[:past].sum(), strict=True)) if past else {}
    pooled = [max(share.get(place + step, 0.0) for step in range(-3, 4)) for place in places]
    similar = cosines(keys)
    for row_of in similar:
        if (row_of > 0.5).any():
            row_of[np.flatnonzero(row_of > 0.5)[-1]] = 0
    redundant = softmax(np.array([sum(row_of) / n for row_of in similar]))
    return np.array([0.07 * pooled[i] - 0.93 * redundant[i] if i < past else 2.0 + i for i in range(n)])


SCORES = {
    "keep_first": lambda keys, importance, places, count, row: -np.arange(len(places)),
    "keep_last": lambda keys, importance, places, count, row: np.arange(len(places)),
    "right_crop": lambda keys, importance, places, count, row: np.arange(len(places)),
    "uniform": evenly,
    "random": drawn,
    "attention": lambda keys, importance, places, count, row: importance / importance.sum(),
    "cosine": lambda keys, importance, places, count, row: -redundancy(keys),
    "rkv": rkv,
    "rkv_decode": rkv_decode,
}


def kept(method, budget, time, row, kv, importance):
    """Supervised tokens that stay and those that fall out: the heaviest teacher token of each decides."""
    weights = matrix(time, STUDENT[row], TEACHER[row])
    places = np.flatnonzero(weights.any(0)).tolist()
    count = min(budget, len(places)) if isinstance(budget, int) else math.ceil(budget * len(places))
    score = np.mean(
        [
            SCORES[method](kv[places, layer, 0], importance[places, layer].mean(-1), places, count, row)
            for layer in range(LAYERS)
        ],
        0,
    )
    chosen = {places[i] for i in sorted(range(len(places)), key=lambda i: (-score[i], i))[:count]}
    supervised = np.flatnonzero(weights.any(1)).tolist()
    stays = [position for position in supervised if int(weights[position].argmax()) in chosen]
    return stays, sorted(set(supervised) - set(stays))


def test_the_loops_cover_every_method():
    assert set(SCORES) == set(METHODS) - {"full"}


@pytest.mark.parametrize("budget", [4, 0.4, 1000])
@pytest.mark.parametrize("time", ["sync", "overlap", "resample"])
@pytest.mark.parametrize("method", SCORES)
def test_a_token_stays_where_its_heaviest_teacher_token_is_selected(teacher, method, time, budget):
    store, kv, importance = teacher
    source = TeacherKV(store, torch.eye(LAYERS), time, SelectConfig(method=method, budget=budget, rate=RATE))
    whole = TeacherKV(store, torch.eye(LAYERS), time)
    dropped = {}
    for row in STUDENT:
        if row == "nothing":  # has no supervised token and counts nowhere
            assert not len(source.match(row, encoded(STUDENT[row]), SEGMENTS).position)
            continue
        stays, dropped[row] = kept(method, budget, time, row, kv[row], importance[row])
        found = source.match(row, encoded(STUDENT[row]), SEGMENTS)
        assert found.position.tolist() == stays, row
        every = whole.match(row, encoded(STUDENT[row]), SEGMENTS)
        same = np.isin(every.position, stays)
        assert (found.tokens == every.tokens[same]).all()
        assert (found.weight == every.weight[same]).all()
    assert any(dropped.values()) == (budget != 1000)
    assert source.bites == pytest.approx(sum(map(bool, dropped.values())) / len(dropped))


def test_full_keeps_everything_and_counts_no_row(teacher):
    source = TeacherKV(teacher[0], torch.eye(LAYERS), "overlap", SelectConfig())
    for row in STUDENT:
        match = source.match(row, encoded(STUDENT[row]), SEGMENTS)
        want = np.flatnonzero(matrix("overlap", STUDENT[row], TEACHER[row]).any(1))
        assert match.position.tolist() == want.tolist()
    assert source.bites == 0
