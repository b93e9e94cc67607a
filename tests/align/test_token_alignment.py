"""Time matches against brute force, their invariants, and which of them look ahead."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tokenizers_for_tests import CORPUS, KINDS, byte_level_bpe

from mtkv.align.byte_spans import Spans, synchronised_tokens
from mtkv.align.token_alignment import MATCH_METHODS, look_ahead, match_time
from mtkv.kv.extract import read_kv
from mtkv.models.tokenization import encode_rows

METHODS = ["iou", "overlap", "resample", "sync", "truncate"]


@st.composite
def spans(draw, longest=40):
    """Contiguous spans like those of a tokenizer, some tokens not comparable."""
    cuts = sorted(draw(st.lists(st.integers(1, longest), unique=True, max_size=12)))
    start, end = np.array([0, *cuts][:-1], dtype=np.int32), np.array(cuts, dtype=np.int32)
    hidden = np.array(draw(st.lists(st.booleans(), min_size=len(cuts), max_size=len(cuts))), dtype=bool)
    start[hidden], end[hidden] = -1, -1
    return Spans(start, end)


def dense(match, student, teacher):
    matrix = np.zeros((len(student.end), len(teacher.end)))
    for position, tokens, weights in zip(match.position, match.tokens, match.weight, strict=True):
        for token, weight in zip(tokens, weights, strict=True):
            matrix[position, token] += weight
    return matrix


def shared(student, teacher, i, j):
    if student.end[i] < 0 or teacher.end[j] < 0:
        return 0, 1
    both = set(range(student.start[i], student.end[i])) & set(range(teacher.start[j], teacher.end[j]))
    either = set(range(student.start[i], student.end[i])) | set(range(teacher.start[j], teacher.end[j]))
    return len(both), max(len(either), 1)


def brute_force(student, teacher, raw):
    matrix = np.array(
        [[raw(*shared(student, teacher, i, j)) for j in range(len(teacher.end))] for i in range(len(student.end))],
        dtype=float,
    ).reshape(len(student.end), len(teacher.end))
    total = matrix.sum(axis=1, keepdims=True)
    return np.divide(matrix, total, out=np.zeros_like(matrix), where=total > 0)


def test_the_tests_below_cover_every_method():
    assert sorted(MATCH_METHODS) == METHODS


@given(spans(), spans(), st.sampled_from(METHODS), st.integers(0, 40), st.integers(0, 40))
def test_rows_are_convex_and_use_comparable_tokens_only(student, teacher, method, first, second):
    match = match_time(method, student, teacher, (min(first, second), max(first, second)))
    assert match.weight.dtype == np.float32
    assert match.tokens.shape == match.weight.shape
    assert match.position.tolist() == sorted(set(match.position.tolist()))
    assert (student.end[match.position] >= 0).all()
    assert (match.weight >= 0).all()
    np.testing.assert_allclose(match.weight.sum(axis=1), 1, atol=1e-6)
    assert (teacher.end[match.tokens][match.weight > 0] >= 0).all()
    assert (match.tokens[match.weight == 0] == 0).all()


@given(spans(), spans())
def test_overlap_and_iou_equal_sets_of_bytes(student, teacher):
    for method, raw in (("overlap", lambda both, either: both), ("iou", lambda both, either: both / either)):
        match = match_time(method, student, teacher)
        np.testing.assert_allclose(dense(match, student, teacher), brute_force(student, teacher, raw), atol=1e-6)


@given(spans())
def test_equal_tokenizations_need_one_column(own):
    match = match_time("overlap", own, own)
    assert match.tokens[:, 0].tolist() == match.position.tolist() == own.comparable().tolist()
    assert match.tokens.shape[1] == 1


@given(spans(), spans())
def test_student_tokens_without_overlap_are_left_out(student, teacher):
    touched = [
        i for i in range(len(student.end)) if any(shared(student, teacher, i, j)[0] for j in range(len(teacher.end)))
    ]
    assert match_time("overlap", student, teacher).position.tolist() == touched


@given(spans(), spans())
def test_sync_is_the_synchronised_tokens_and_never_looks_ahead(student, teacher):
    match = match_time("sync", student, teacher)
    matched = synchronised_tokens(student.end, teacher.end)
    assert match.position.tolist() == np.flatnonzero(matched >= 0).tolist()
    assert match.tokens[:, 0].tolist() == matched[matched >= 0].tolist()
    if len(match.position):
        assert look_ahead(student, teacher, match) == 0


@given(spans(), spans())
def test_truncate_pairs_by_count(student, teacher):
    match = match_time("truncate", student, teacher)
    mine = [i for i, end in enumerate(student.end) if end >= 0]
    theirs = [j for j, end in enumerate(teacher.end) if end >= 0]
    assert list(zip(match.position.tolist(), match.tokens[:, 0].tolist(), strict=True)) == list(
        zip(mine, theirs, strict=False)
    )


@given(spans(), spans(), st.lists(st.integers(0, 40), max_size=2).map(sorted))
def test_resample_interpolates_apart_for_each_segment(student, teacher, bounds):
    match = match_time("resample", student, teacher, bounds)
    edges = [0, *bounds, 10**9]
    want = {}
    for low, high in pairwise(edges):
        inside = [[i for i, end in enumerate(side.end) if low < end <= high] for side in (student, teacher)]
        mine, theirs = inside
        if not theirs:
            continue
        places = np.linspace(0, len(theirs) - 1, len(mine)) if len(mine) > 1 else [len(theirs) - 1.0] * len(mine)
        want |= dict(zip(mine, (np.interp(u, range(len(theirs)), theirs) for u in places), strict=True))
    assert match.position.tolist() == sorted(want)
    centre = (match.weight * match.tokens).sum(axis=1)
    # Hidden tokens make indices jump, so compare the mean index, which interpolates between the same two neighbours.
    np.testing.assert_allclose(centre, [want[i] for i in sorted(want)], atol=1e-4)


def test_one_token_and_empty_segments_are_defined():
    three = Spans(np.array([0, 2, 4]), np.array([2, 4, 6]))
    one, none = Spans(np.array([0]), np.array([6])), Spans(np.array([-1]), np.array([-1]))
    assert match_time("resample", three, one).tokens.tolist() == [[0, 0]] * 3
    alone = match_time("resample", one, three)
    assert alone.tokens[0][alone.weight[0] > 0].tolist() == [2]
    for method in METHODS:
        assert len(match_time(method, three, none).position) == 0
        assert len(match_time(method, none, three).position) == 0
    # The teacher's tokens all lie in the first segment, so the second has no target.
    assert match_time("resample", three, Spans(np.array([0]), np.array([2])), (2,)).position.tolist() == [0]


def test_look_ahead_counts_targets_that_have_read_more():
    student, teacher = Spans(np.array([0, 2, 4]), np.array([2, 4, 6])), Spans(np.array([0, 4]), np.array([4, 6]))
    assert look_ahead(student, teacher, match_time("overlap", student, teacher)) == pytest.approx(1 / 3)
    assert look_ahead(student, teacher, match_time("truncate", student, teacher)) == 1
    assert np.isnan(look_ahead(student, student, match_time("sync", student, Spans(np.array([-1]), np.array([-1])))))


def test_what_cannot_be_matched_is_refused():
    ordered = Spans(np.array([0, 2]), np.array([2, 4]))
    with pytest.raises(ValueError, match="'nope' is not one of sync"):
        match_time("nope", ordered, ordered)
    with pytest.raises(ValueError, match="order of the text"):
        match_time("overlap", ordered, Spans(np.array([2, 0]), np.array([4, 2])))
    with pytest.raises(ValueError, match="ascend"):
        match_time("resample", ordered, ordered, (4, 2))


@pytest.mark.parametrize("kind", sorted(KINDS))
@pytest.mark.parametrize("text", sorted(set(CORPUS)))
def test_real_tokenizers_cover_almost_every_student_token(kind, text):
    (mine,), (theirs,) = (encode_rows(tokenizer, [text], [""], None) for tokenizer in (byte_level_bpe(), KINDS[kind]()))
    student, teacher = (Spans(row.byte_start, row.byte_end) for row in (mine, theirs))
    match = match_time("overlap", student, teacher)
    np.testing.assert_allclose(dense(match, student, teacher), brute_force(student, teacher, lambda b, e: b), atol=1e-6)
    assert len(match.position) >= 0.8 * len(student.comparable())


def targets_at_boundaries(build_model, method):
    """Targets of the student tokens inside a shared prompt, for two rows that go on differently."""
    teacher_tokenizer, student_tokenizer = KINDS["unigram"](), byte_level_bpe()
    teacher = build_model("llama", vocab_size=len(teacher_tokenizer), max_position_embeddings=256)
    prompt, found = "Question: Tom has 12 apples", []
    for rest in (" and buys 30 more.", " How many apples?"):
        (mine,), theirs = (encode_rows(t, [prompt], [rest], None) for t in (student_tokenizer, teacher_tokenizer))
        (kv,) = read_kv(teacher, theirs, [0, 1, 2], 1)
        student, other = (Spans(row.byte_start, row.byte_end) for row in (mine, theirs[0]))
        match = match_time(method, student, other)
        inside = match.position[student.end[match.position] <= len(prompt.encode())]
        rows = np.isin(match.position, inside)
        weight = torch.from_numpy(match.weight[rows])
        found.append((inside, torch.einsum("nk,nklcw->nlcw", weight, kv[torch.from_numpy(match.tokens[rows])].float())))
    return found


def test_text_after_a_boundary_changes_no_synchronised_target(build_model):
    (first, before), (second, after) = targets_at_boundaries(build_model, "sync")
    assert first.tolist() == second.tolist()
    assert len(first) > 5
    torch.testing.assert_close(before, after, atol=1e-5, rtol=1e-4)


def test_text_after_a_boundary_does_change_resampled_targets(build_model):
    (_, before), (_, after) = targets_at_boundaries(build_model, "resample")
    shorter = min(len(before), len(after))
    assert not torch.allclose(before[:shorter], after[:shorter], atol=1e-3)
