"""Synchronised boundaries: brute force, and no look-ahead shown on a real model."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tokenizers_for_tests import CORPUS, KINDS, byte_level_bpe

from mtkv.align.byte_spans import coverage, synchronised_tokens
from mtkv.kv.extract import read_kv
from mtkv.models.tokenization import encode_rows

ends = st.lists(st.integers(1, 40), unique=True, max_size=12).map(sorted)


@given(ends, ends)
def test_equals_a_double_loop(student, teacher):
    matched = synchronised_tokens(np.array(student), np.array(teacher))
    for i, end in enumerate(student):
        hits = [j for j, other in enumerate(teacher) if other == end]
        assert matched[i] == (hits[0] if hits else -1)


@given(ends)
def test_a_tokenizer_matches_itself_everywhere(own):
    assert synchronised_tokens(np.array(own), np.array(own)).tolist() == list(range(len(own)))


def test_unmatchable_tokens_never_match_each_other():
    assert synchronised_tokens(np.array([-1, 3]), np.array([-1, 3])).tolist() == [-1, 1]
    assert np.isnan(coverage(np.array([-1]), np.array([-1])))
    assert coverage(np.array([-1, 3, 5]), np.array([-1, 0, -1])) == 0.5


@pytest.mark.parametrize("kind", ["unigram", "wordpiece"])
@pytest.mark.parametrize("text", sorted(set(CORPUS)))
def test_matched_tokens_have_read_the_same_text(kind, text):
    student, teacher = byte_level_bpe(), KINDS[kind]()
    (mine,), (theirs,) = (encode_rows(tokenizer, [text], [""], None) for tokenizer in (student, teacher))
    matched = synchronised_tokens(mine.byte_end, theirs.byte_end)
    assert (matched >= 0).sum() > 5
    for i, j in enumerate(matched):
        if j >= 0:
            assert mine.byte_end[i] == theirs.byte_end[j]


def test_text_after_a_boundary_does_not_change_the_target_there(build_model):
    teacher_tokenizer, student_tokenizer = KINDS["unigram"](), byte_level_bpe()
    teacher = build_model("llama", vocab_size=len(teacher_tokenizer), max_position_embeddings=256)
    prompt, first, second = "Question: Tom has 12 apples", " and buys 30 more.", " How many apples?"
    targets = []
    for rest in (first, second):
        (mine,), theirs = (encode_rows(t, [prompt], [rest], None) for t in (student_tokenizer, teacher_tokenizer))
        (kv,) = read_kv(teacher, theirs, [0, 1, 2], 1)
        matched = synchronised_tokens(mine.byte_end, theirs[0].byte_end)
        inside = [j for i, j in enumerate(matched) if j >= 0 and mine.byte_end[i] <= len(prompt.encode())]
        targets.append(kv[torch.tensor(inside)])
    assert len(targets[0]) > 5
    torch.testing.assert_close(targets[0], targets[1], atol=1e-5, rtol=1e-4)
