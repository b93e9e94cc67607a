"""What an arm reads of a teacher, against loops over rows, tokens and layers: alignment, layer mixing, the mapped tier, controls."""

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.optimize import linear_sum_assignment
from span_rows import NO_SPAN, RAW, SEGMENTS, build, encoded, matrix, stored
from tokenizers_for_tests import CORPUS, byte_level_bpe, unigram

from mtkv.align.closed_form_maps import KVMap, combine_layers
from mtkv.align.layers import layer_weights
from mtkv.distill.dataset import DistillationRows
from mtkv.distill.teacher_kv import ProjectedTeacherKV, TeacherKV
from mtkv.kv.shards import write_mapped
from mtkv.kv.store import MappedStore, mapped_rows, write_index
from mtkv.models.tokenization import encode_rows

TEACHER_LAYERS, STUDENT_LAYERS, WIDTH = 6, 4, 5
STUDENT, TEACHER = build()
BATCH = ["fine", "nothing", "same", "coarse", "near", "fine"]
SIMILARITY = np.random.default_rng(5).random((STUDENT_LAYERS, TEACHER_LAYERS))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("sources")


@pytest.fixture(scope="module")
def teacher(folder):
    return stored(folder / "raw", TEACHER, list(range(TEACHER_LAYERS)), WIDTH)


def mix(strategy):
    return layer_weights(strategy, TEACHER_LAYERS, STUDENT_LAYERS, SIMILARITY, top_k=3)


def targets(time, row, kv, layers):
    """{supervised student token: its target [student_layers, 2, width]}, added up one teacher token and layer at a time."""
    found = {}
    for position, weights in enumerate(matrix(time, STUDENT[row], TEACHER[row])):
        if weights.any():
            found[position] = np.zeros((len(layers), *kv.shape[2:]))
            for token in np.flatnonzero(weights):
                for student_layer, teacher_layer in zip(*np.nonzero(layers), strict=True):
                    share = weights[token] * layers[student_layer, teacher_layer]
                    found[position][student_layer] += share * kv[token, teacher_layer]
    return found


def matched(source, rows):
    return [source.match(row, encoded(STUDENT[row]), SEGMENTS) for row in rows]


def read(source, rows, matches):
    return source.read(rows, [match.tokens for match in matches], [match.weight for match in matches])


@pytest.mark.parametrize("strategy", ["ratio", "interpolate", "cka"])
@pytest.mark.parametrize("time", RAW)
def test_a_batch_is_the_weighted_sum_over_teacher_tokens_and_layers(teacher, time, strategy):
    store, kv, _ = teacher
    layers = mix(strategy)
    source = TeacherKV(store, torch.from_numpy(layers).float(), time)
    matches = matched(source, BATCH)
    want = [targets(time, row, kv[row], layers) for row in BATCH]
    assert [match.position.tolist() for match in matches] == [list(each) for each in want]
    got = read(source, BATCH, matches).double().numpy()
    np.testing.assert_allclose(got, [x for each in want for x in each.values()], atol=1e-5)
    # what makes the case worth it
    assert sum(map(len, want)) > 20
    assert not want[1]
    if time in ("overlap", "iou"):
        assert len({match.tokens.shape[1] for match in matches}) > 2
    assert (layers > 0).sum() > STUDENT_LAYERS or strategy == "ratio"


@pytest.mark.parametrize("layers", [[2, 0, 5, 4], [3, 3, 3, 3]])
def test_one_teacher_token_of_one_layer_is_read_to_the_bit(folder, layers):
    store, kv, _ = stored(folder / "half", TEACHER, list(range(TEACHER_LAYERS)), WIDTH, "float16")
    source = TeacherKV(store, torch.eye(TEACHER_LAYERS)[layers], "sync")
    matches = matched(source, BATCH)
    got = read(source, BATCH, matches).double().numpy()
    place = 0
    for row, match in zip(BATCH, matches, strict=True):
        for position in match.position:
            (token,) = [j for j, span in enumerate(TEACHER[row]) if span[1] == STUDENT[row][position][1]]
            assert (got[place] == kv[row][token, layers]).all()
            place += 1
    assert place == len(got) > 20


def test_a_batch_without_any_supervised_token_is_empty(teacher):
    source = TeacherKV(teacher[0], torch.from_numpy(mix("interpolate")).float(), "overlap")
    assert read(source, ["nothing"], matched(source, ["nothing"])).shape == (0, STUDENT_LAYERS, 2, WIDTH)


@pytest.fixture(scope="module")
def kv_map():
    generator = torch.Generator().manual_seed(3)
    shapes = {"weight": (WIDTH, 4), "x_mean": (WIDTH,), "y_mean": (4,), "channel_std": (4,), "x_channel_std": (WIDTH,)}
    shapes |= dict.fromkeys(("x_scale", "y_scale", "scale"), ())
    tensors = {name: torch.rand(STUDENT_LAYERS, 2, *shape, generator=generator) + 0.1 for name, shape in shapes.items()}
    return KVMap(**tensors, layer_weights=torch.from_numpy(mix("interpolate")).float())


@pytest.mark.parametrize("dtype", ["float32", "float16", "int8"])
@pytest.mark.parametrize("time", ["sync", "overlap"])
def test_the_mapped_tier_reads_the_targets_of_the_raw_one(teacher, folder, kv_map, time, dtype):
    raw = TeacherKV(teacher[0], kv_map.layer_weights, time)
    rows = list(STUDENT)
    matches = dict(zip(rows, matched(raw, rows), strict=True))

    def target(kv):
        return kv_map.target(combine_layers(kv, kv_map.layer_weights))

    tier = folder / f"mapped-{time}-{dtype}"
    tier.mkdir()
    for number in range(2):
        part = mapped_rows(teacher[0], [(row, matches[row]) for row in rows[number::2]], target)
        write_mapped(tier / f"shard-{number:04d}.safetensors", part, dtype)
    write_index([tier / f"shard-{number:04d}.safetensors" for number in range(2)], tier / "index.parquet")
    mapped = ProjectedTeacherKV(MappedStore(tier))
    assert all(row in mapped for row in rows)
    assert "another" not in mapped

    found = matched(mapped, BATCH)
    for row, match in zip(BATCH, found, strict=True):
        assert match.position.tolist() == matches[row].position.tolist()
    # every second token only, last first, as the intersection with another teacher and the control in time read them
    part = [np.arange(len(match.position))[::-2] for match in found]
    got = mapped.read(BATCH, *([getattr(m, name)[at] for m, at in zip(found, part, strict=True)] for name in FIELDS))
    theirs = [[getattr(matches[row], name)[at] for row, at in zip(BATCH, part, strict=True)] for name in FIELDS]
    want = kv_map.target(raw.read(BATCH, *theirs)).double()
    assert got.shape == want.shape
    assert len(want) > 10

    shards = [torch.cat([kv_map.target(read(raw, [row], [matches[row]])) for row in rows[n::2]]) for n in range(2)]
    steps = [(x - x.mean(0)).abs().amax(0) / 127 for x in shards]
    allowed = {"float32": 1e-5, "float16": want.abs() * 2**-11 + 1e-5, "int8": torch.maximum(*steps) / 2 + 1e-5}[dtype]
    error = (got.double() - want).abs()
    assert (error <= allowed).all()
    assert error.max() > 0 or dtype == "float32"


FIELDS = ("tokens", "weight")
TEXTS = pd.DataFrame(
    [(f"r{i}", "a", text, text[: 5 * i + 1]) for i, text in enumerate(CORPUS[:6])],
    columns=["id", "dataset", "prompt", "target"],
)


@pytest.fixture(scope="module")
def arm(folder):
    """Student spans, and of two teachers: the store, its spans and KV."""
    sides = [
        {
            row: list(zip(item.byte_start.tolist(), item.byte_end.tolist(), strict=True))
            for row, item in zip(
                TEXTS["id"], encode_rows(tokenizer, list(TEXTS["prompt"]), list(TEXTS["target"]), None), strict=True
            )
        }
        for tokenizer in (byte_level_bpe(300), byte_level_bpe(340), unigram())
    ]
    opened = [stored(folder / f"teacher-{i}", side, [0, 1], 3 + i, seed=i) for i, side in enumerate(sides[1:])]
    return sides[0], [(store, spans, kv) for (store, kv, _), spans in zip(opened, sides[1:], strict=True)]


def collated(arm, control, indices):
    """The batch, and by loops what each row's own supervised tokens are and what each teacher holds for them."""
    mine, teachers = arm
    sources = [TeacherKV(store, torch.eye(2), "overlap") for store, _, _ in teachers]
    data = DistillationRows(byte_level_bpe(300), TEXTS, sources, control, 3, None)
    weights = {row: [matrix("overlap", mine[row], spans[row]) for _, spans, _ in teachers] for row in mine}
    positions = {row: np.flatnonzero(np.all([w.any(1) for w in both], 0)) for row, both in weights.items()}
    true = {
        row: [
            np.einsum("nt,t...->n...", w[positions[row]], kv[row]) for w, (_, _, kv) in zip(both, teachers, strict=True)
        ]
        for row, both in weights.items()
    }
    return data.collate(indices), positions, true, data


def test_the_true_arm_reads_every_row_own_teacher_tokens_where_both_teachers_have_some(arm):
    indices = [4, 0, 5]
    batch, positions, true, _ = collated(arm, "none", indices)
    rows = [f"r{i}" for i in indices]
    assert batch["kv_position"].tolist() == np.concatenate([positions[row] for row in rows]).tolist()
    assert batch["kv_sample"].tolist() == [n for n, row in enumerate(rows) for _ in positions[row]]
    for number, kv in enumerate(batch["teacher_kv"]):
        np.testing.assert_allclose(kv.numpy(), np.concatenate([true[row][number] for row in rows]), atol=1e-5)


def test_shuffled_items_read_one_other_row_with_its_weights_and_likelihood_at_the_own_positions(arm):
    plain, positions, true, _ = collated(arm, "none", range(6))
    batch, _, _, data = collated(arm, "shuffle_items", range(6))
    for name in ("input_ids", "attention_mask", "labels", "kv_position", "kv_sample", "row_seed"):
        assert torch.equal(batch[name], plain[name]), name
    partners = [match.row for match in data.matches]
    assert sorted(partners) == list(TEXTS["id"])
    assert all(partner != own for partner, own in zip(partners, TEXTS["id"], strict=True))
    for number, kv in enumerate(batch["teacher_kv"]):
        want = [
            true[partner][number][rank % len(positions[partner])]
            for partner, own in zip(partners, TEXTS["id"], strict=True)
            for rank in range(len(positions[own]))
        ]
        np.testing.assert_allclose(kv.numpy(), want, atol=1e-5)
    assert any(len(positions[p]) < len(positions[o]) for p, o in zip(partners, TEXTS["id"], strict=True))
    likelihood = {row: -0.5 - number for number, row in enumerate(TEXTS["id"])}
    assert batch["likelihood"].tolist() == [[likelihood[partner]] * 2 for partner in partners]


def test_shuffled_time_moves_the_tokens_of_a_row_alike_for_both_teachers(arm):
    plain, _, true, _ = collated(arm, "none", range(6))
    batch, *_ = collated(arm, "shuffle_time", range(6))
    assert torch.equal(batch["kv_position"], plain["kv_position"])
    moved = 0
    for number, row in enumerate(TEXTS["id"]):
        own = batch["kv_sample"].numpy() == number
        want = np.concatenate([x.reshape(len(x), -1) for x in true[row]], 1)  # both teachers side by side
        got = np.concatenate([x[own].flatten(1).numpy() for x in batch["teacher_kv"]], 1)
        distance = np.abs(got[:, None] - want).max(-1)
        assert distance[linear_sum_assignment(distance)].max() < 1e-5
        moved += int((distance.diagonal() > 0.1).sum())
    assert moved > len(plain["kv_position"]) / 2


def test_the_rows_of_these_tests_have_tokens_that_cannot_be_compared():
    assert all(spans[row].count(NO_SPAN) >= 5 for spans in (STUDENT, TEACHER) for row in STUDENT)
