"""Alignment matrices from printed tokens of every notation, and resampling at its edges."""

from functools import cache

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers
from tokenizers_for_tests import CORPUS, KINDS

from mtkv.align.byte_spans import byte_alphabet, printed_spans
from mtkv.align.token_alignment import match_time
from mtkv.original_api.time_alignment import (
    align_sequence_lengths,
    apply_char_alignment,
    build_char_align_matrix,
    build_safe_linear_indices,
    safe_time_resample,
)

TEXTS = [*sorted(set(CORPUS)), "Ünïcode — 混合 text\twith  double  spaces\nand 🙂🙃 lines", "## heading ##word"]


@cache
def tokenizer_of(kind):
    """One tokenizer of each kind: training another may give another vocabulary."""
    return KINDS[kind]()


def printed(kind, text):
    return tokenizer_of(kind).convert_ids_to_tokens(tokenizer_of(kind)(text)["input_ids"])


def offset_spans(kind, text):
    """Bytes of each token by the tokenizer's own offsets: a second opinion on where a token is."""
    offsets = tokenizer_of(kind)(text, return_offsets_mapping=True)["offset_mapping"]
    return [(len(text[:a].encode()), len(text[:b].encode())) for a, b in offsets]


def as_printed_bytes(text):
    """The text in byte-level letters, by the tokenizers library."""
    return "".join(word for word, _ in pre_tokenizers.ByteLevel(add_prefix_space=False).pre_tokenize_str(text))


def test_the_byte_alphabet_is_that_of_byte_level_tokenizers():
    alphabet = byte_alphabet()
    assert set(alphabet) == set(pre_tokenizers.ByteLevel.alphabet())
    text = "".join(
        chr(code) for code in [*range(0x800), *range(0x1000, 0xD800, 0x40), *range(0x10000, 0x110000, 0x8000)]
    )
    assert bytes(alphabet[letter] for letter in as_printed_bytes(text)) == text.encode()


@pytest.mark.parametrize("text", TEXTS)
def test_byte_level_tokens_tile_the_text(text):
    spans = printed_spans(printed("byte_level_bpe", text), text)
    assert spans.start[0] == 0
    assert spans.end[-1] == len(text.encode())
    assert (spans.start[1:] == spans.end[:-1]).all()
    characters = zip(*offset_spans("byte_level_bpe", text), strict=True)
    first, last = (np.array(edge) for edge in characters)
    assert (spans.start >= first).all()
    assert (spans.end <= last).all()


@pytest.mark.parametrize("kind", ["unigram", "wordpiece"])
@pytest.mark.parametrize("text", sorted(set(CORPUS)))
def test_printed_tokens_are_where_the_offsets_say(kind, text):
    tokens, spans = printed(kind, text), printed_spans(printed(kind, text), text)
    known = [i for i, token in enumerate(tokens) if token not in ("<unk>", "▁")]
    for i in known:
        start, end = offset_spans(kind, text)[i]
        piece = text.encode()[spans.start[i] : spans.end[i]]
        assert piece.strip() == text.encode()[start:end].strip(), tokens[i]
        assert spans.end[i] == end
    unknown = [i for i, token in enumerate(tokens) if token == "<unk>"]
    assert (spans.end[unknown] == -1).all()


def test_every_notation_by_hand():
    text = "Héllo wörld"
    as_bytes = as_printed_bytes(text)
    cases = {
        "byte level": [as_bytes[:1], as_bytes[1:2], as_bytes[2:6], as_bytes[6:]],
        "sentencepiece": ["<s>", "▁Hé", "llo", "▁", "w", "<0xC3>", "<0xB6>", "rld", "</s>"],
        "wordpiece": ["[CLS]", "H", "##é", "##llo", "wör", "##ld", "[SEP]"],
        "uncased": ["[CLS]", "hello", "wo", "##rld", "[SEP]"],
        "plain": list(text),
    }
    want = {
        "byte level": [(0, 1), (1, 2), (2, 6), (6, 13)],
        "sentencepiece": [(-1, -1), (0, 3), (3, 6), (6, 7), (7, 8), (8, 9), (9, 10), (10, 13), (-1, -1)],
        "wordpiece": [(-1, -1), (0, 1), (1, 3), (3, 6), (7, 11), (11, 13), (-1, -1)],
        "uncased": [(-1, -1), (0, 6), (7, 10), (10, 13), (-1, -1)],
        "plain": [(len(text[:i].encode()), len(text[: i + 1].encode())) for i in range(len(text))],
    }
    for name, tokens in cases.items():
        spans = printed_spans(tokens, text)
        assert list(zip(spans.start.tolist(), spans.end.tolist(), strict=True)) == want[name], name


def test_a_search_goes_on_after_an_unknown_word():
    spans = printed_spans(["[UNK]", "apples", "and", "[UNK]", "##s"], "苹果 apples and pears")
    assert spans.start.tolist() == [-1, 7, 14, -1, 22]


def test_a_token_that_does_not_follow_is_not_looked_for():
    spans = printed_spans(["a", "e", "b"], "ab e")
    assert list(zip(spans.start.tolist(), spans.end.tolist(), strict=True)) == [(0, 1), (-1, -1), (1, 2)]


def test_pieces_of_one_normalised_character_cover_all_of_it():
    spans = printed_spans(["x", "f", "ind"], "xﬁnd")
    assert list(zip(spans.start.tolist(), spans.end.tolist(), strict=True)) == [(0, 1), (1, 4), (1, 6)]


def brute_force(student, teacher):
    mine, theirs = (
        [set(range(a, b)) if b >= 0 else set() for a, b in zip(s.start, s.end, strict=True)] for s in (student, teacher)
    )
    return mine, theirs


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("student_kind", sorted(KINDS))
@pytest.mark.parametrize("teacher_kind", sorted(KINDS))
def test_matrices_equal_sets_of_bytes(student_kind, teacher_kind, text):
    mine, theirs = printed(student_kind, text), printed(teacher_kind, text)
    sets = brute_force(printed_spans(mine, text), printed_spans(theirs, text))
    overlap = build_char_align_matrix(mine, theirs, text)
    iou = build_char_align_matrix(mine, theirs, text, method="iou")
    assert overlap.shape == iou.shape == (len(mine), len(theirs))
    for i, own in enumerate(sets[0]):
        shared = torch.tensor([float(len(own & other)) for other in sets[1]])
        union = torch.tensor([float(len(own | other)) for other in sets[1]])
        torch.testing.assert_close(iou[i], shared / union.clamp_min(1))
        torch.testing.assert_close(overlap[i], shared / shared.sum() if shared.sum() else shared)


def test_the_matrix_agrees_with_the_sparse_match():
    text = CORPUS[0]
    mine, theirs = printed("wordpiece", text), printed("byte_level_bpe", text)
    matrix = build_char_align_matrix(mine, theirs, text).numpy()
    match = match_time("overlap", printed_spans(mine, text), printed_spans(theirs, text))
    rows = np.zeros_like(matrix)
    np.add.at(rows, (match.position[:, None], match.tokens), match.weight)
    np.testing.assert_allclose(rows, matrix, atol=1e-6)


def test_one_to_many_many_to_one_and_multi_byte():
    matrix = build_char_align_matrix(["苹果", " pie"], ["苹", "果", " ", "p", "i", "e"], "苹果 pie")
    torch.testing.assert_close(matrix, torch.tensor([[0.5, 0.5, 0, 0, 0, 0], [0, 0, 0.25, 0.25, 0.25, 0.25]]))
    torch.testing.assert_close(build_char_align_matrix(list("abc"), ["abc"], "abc", "iou"), torch.full((3, 1), 1 / 3))
    with pytest.raises(ValueError, match="'nope' is not one of overlap, iou"):
        build_char_align_matrix(["a"], ["a"], "a", "nope")


def test_a_character_tokenizer_of_the_tokenizers_library():
    tokenizer = Tokenizer(models.WordLevel({letter: i for i, letter in enumerate("abc é混")}, unk_token="a"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokens = tokenizer.encode("é混 cab").tokens
    matrix = build_char_align_matrix(tokens, ["é混", "Ġcab"], "é混 cab")
    assert len(tokens) == 6
    assert matrix[:2, 0].tolist() == [1, 1]


def test_alignment_is_a_weighted_mean_and_masks_what_has_no_target():
    matrix = torch.tensor([[0.5, 0.5, 0], [0, 0, 0], [0, 0.1, 0.3]])
    kv = torch.randn(2, 4, 3, 5)
    out, mask = apply_char_alignment(kv, matrix)
    assert mask.tolist() == [True, False, True]
    torch.testing.assert_close(out[:, :, 0], kv[:, :, :2].mean(2))
    assert (out[:, :, 1] == 0).all()
    torch.testing.assert_close(out[:, :, 2], 0.25 * kv[:, :, 1] + 0.75 * kv[:, :, 2])
    assert apply_char_alignment(kv.half(), matrix)[0].dtype == torch.half
    with pytest.raises(ValueError, match="3 teacher tokens, the KV 4"):
        apply_char_alignment(torch.randn(2, 4, 4, 5), matrix)


@pytest.mark.parametrize(("teacher", "student"), [(8, 10), (10, 8), (3, 3), (0, 4)])
def test_lengths_are_padded_never_cut(teacher, student):
    t, s = torch.randn(2, 3, teacher, 6), torch.randn(2, 1, student, 4)
    out_t, out_s, mask_t, mask_s = align_sequence_lengths(t, s)
    longest = max(teacher, student)
    assert out_t.shape == (2, 3, longest, 6)
    assert out_s.shape == (2, 1, longest, 4)
    torch.testing.assert_close(out_t[:, :, mask_t], t)
    torch.testing.assert_close(out_s[:, :, mask_s], s)
    assert (out_t[:, :, ~mask_t] == 0).all()
    assert (mask_t.sum(), mask_s.sum()) == (teacher, student)


def test_lengths_with_a_matrix_are_the_students():
    matrix = torch.tensor([[1.0, 0], [0, 0], [0, 1]])
    t, s = torch.randn(1, 2, 2, 3), torch.randn(1, 2, 3, 3)
    out_t, out_s, mask_t, mask_s = align_sequence_lengths(t, s, align_matrix=matrix)
    assert torch.equal(out_s, s)
    assert mask_t.tolist() == [True, False, True]
    assert mask_s.all()
    torch.testing.assert_close(out_t[:, :, mask_t], t)


@given(st.integers(0, 90), st.integers(0, 90))
def test_linear_indices_never_leave_the_input(t_in, t_out):
    indices = build_safe_linear_indices(2, t_in, t_out, "cpu")
    assert indices.dtype == torch.long
    assert indices.shape == (2, t_out)
    assert ((indices >= 0) & (indices <= max(t_in - 1, 0))).all()
    if t_out > 1 and t_in:
        exact = np.linspace(0, t_in - 1, t_out)
        assert (np.abs(indices[0].numpy() - exact) <= 0.5 + 1e-9).all()
        assert (indices[0, 0], indices[0, -1]) == (0, t_in - 1)
    if t_out == 1:
        assert indices[0, 0] == max(t_in - 1, 0)


def test_resampling_gathers_and_clamps():
    x = torch.randn(4, 2, 80, 3)
    picked = safe_time_resample(x, torch.tensor([0, 5, 81, -3]))  # "index 81 is out of bounds for dimension of size 80"
    torch.testing.assert_close(picked, x[:, :, [0, 5, 79, 0]])
    per_sample = torch.randint(0, 80, (4, 7))
    want = torch.stack([x[b][:, per_sample[b]] for b in range(4)])
    torch.testing.assert_close(safe_time_resample(x, per_sample.int()), want)
    torch.testing.assert_close(safe_time_resample(x[:, 0], per_sample.double()), want[:, 0])
    assert safe_time_resample(x, build_safe_linear_indices(4, 80, 50, x.device)).shape == (4, 2, 50, 3)


def test_resampling_nothing_and_one_step():
    out, mask = safe_time_resample(torch.randn(2, 3, 0, 4), build_safe_linear_indices(2, 0, 5), return_mask=True)
    assert out.shape == (2, 3, 5, 4)
    assert not out.any()
    assert not mask.any()
    one = torch.randn(2, 3, 1, 4)
    out, mask = safe_time_resample(one, build_safe_linear_indices(2, 1, 5), return_mask=True)
    assert torch.equal(out, one.expand(-1, -1, 5, -1))
    assert mask.shape == (2, 5)
    assert mask.all()
    assert safe_time_resample(one, build_safe_linear_indices(2, 1, 0)).shape == (2, 3, 0, 4)
