"""Byte ends against the bytes themselves, for byte-level, Unigram and WordPiece tokenizers."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from tokenizers_for_tests import CORPUS, KINDS, SPECIAL
from transformers import PreTrainedTokenizerFast

from mtkv.models.tokenization import byte_ends, encode_rows

TOKENIZERS = {name: build() for name, build in KINDS.items()}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("text", sorted(set(CORPUS)))
def test_ends_rise_strictly_and_lie_on_characters(kind, text):
    (row,) = encode_rows(TOKENIZERS[kind], [text], [""], None)
    ends = row.byte_end[row.byte_end >= 0]
    starts_of_characters = {len(text[:i].encode()) for i in range(len(text) + 1)}
    assert (np.diff(ends) > 0).all()
    assert set(ends.tolist()) <= starts_of_characters
    assert ends[-1] == len(text.encode())


@settings(max_examples=100, deadline=None)
@given(st.text(alphabet="aé小🙂 1,.", min_size=2, max_size=20))
def test_byte_level_ends_equal_the_length_of_the_decoded_prefix(text):
    tokenizer = TOKENIZERS["byte_level_bpe"]
    (row,) = encode_rows(tokenizer, [text], [""], None)
    alphabet = {token: index for index, token in tokenizer.get_added_vocab().items()}
    pieces = tokenizer.convert_ids_to_tokens(row.input_ids[:-1].tolist())
    # In byte-level BPE every character of a token's name stands for one byte.
    lengths = np.cumsum([len(piece) for piece in pieces if piece not in alphabet])
    complete = {len(text[:i].encode()) for i in range(len(text) + 1)}
    want = [end if end in complete and i > 0 else -1 for i, end in enumerate(lengths.tolist())]
    assert row.byte_end[:-1].tolist() == want


def test_first_token_and_eos_are_no_boundaries_and_target_starts_after_the_prompt():
    tokenizer = TOKENIZERS["byte_level_bpe"]
    (row,) = encode_rows(tokenizer, ["Question: 12+30\nAnswer:"], [" 42"], None)
    assert row.byte_end[0] == -1
    assert row.byte_end[-1] == -1
    assert row.input_ids[-1] == tokenizer.eos_token_id
    assert tokenizer.decode(row.input_ids[row.is_target]) == " 42<eos>"


def test_a_row_over_the_limit_is_refused_not_cut():
    with pytest.raises(ValueError, match=r"more than the limit of 5.*training\.max_length"):
        encode_rows(TOKENIZERS["byte_level_bpe"], ["Question: a long one"], [" 42"], 5)


def test_empty_text_and_empty_spans():
    assert byte_ends("", []).tolist() == []
    assert byte_ends("小a", [(0, 0), (0, 1), (0, 1), (1, 2)]).tolist() == [-1, -1, 3, 4]
    assert byte_ends("小a", [(0, 1), (0, 0), (0, 2), (0, 0)]).tolist() == [-1, -1, 4, -1]


def straddling_bpe():
    """Byte-level BPE with a token of the last byte of 小 and the first of 问, as real ones of 150,000 tokens have some."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    name = {byte: token for token, byte in zip("å°ıéĹ®", "小问".encode(), strict=True)}
    last, first = name["小".encode()[-1]], name["问".encode()[0]]
    vocabulary = {token: index for index, token in enumerate([*SPECIAL, *alphabet, last + first])}
    tokenizer = Tokenizer(models.BPE(vocabulary, [(last, first)]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>")


@settings(max_examples=100, deadline=None)
@given(st.text(alphabet="小问a", min_size=2, max_size=12))
def test_a_token_across_two_characters_ends_neither(text):
    """A token counts as having read as many bytes as the tokens up to it hold, where that is a whole number of characters."""
    tokenizer = straddling_bpe()
    (row,) = encode_rows(tokenizer, [text], [""], None)
    lengths = np.cumsum([len(piece) for piece in tokenizer.convert_ids_to_tokens(row.input_ids[:-1].tolist())])
    complete = {len(text[:i].encode()) for i in range(len(text) + 1)}
    assert row.byte_end[:-1].tolist() == [e if e in complete and i > 0 else -1 for i, e in enumerate(lengths.tolist())]


@settings(max_examples=100, deadline=None)
@given(st.sampled_from(sorted(KINDS)), st.text(alphabet="aé小🙂 1,.", min_size=2, max_size=20))
def test_spans_share_no_byte_and_leave_no_gap_after_the_first_token(kind, text):
    (row,) = encode_rows(TOKENIZERS[kind], [text], [""], None)
    comparable = row.byte_end >= 0
    assert ((row.byte_start >= 0) == comparable).all()
    starts, ends = row.byte_start[comparable], row.byte_end[comparable]
    assert (starts < ends).all()
    assert (starts[1:] == ends[:-1]).all()
