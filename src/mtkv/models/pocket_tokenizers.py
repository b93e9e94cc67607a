"""The pocket models' tokenizers, trained from nothing on texts: two byte-level BPEs and one Unigram.

Each splits numbers into single digits, gives back exactly the text it read and keeps the end of a prompt a token boundary
(log-likelihood scoring cuts there). None adds a beginning-of-text token: rows start with their prompt, as in training.
"""

import json
import math
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast, Qwen2Tokenizer
from transformers.models.qwen2.tokenization_qwen2 import PRETOKENIZE_REGEX

END = "<|end|>"
PAD = "<|pad|>"
UNKNOWN = "<unk>"  # Unigram asks for one; the bytes stand in before it is used
BYTE_SCORE = -20.0  # far below every learned piece, so bytes serve only characters without a piece
DIGITS = pre_tokenizers.Digits(individual_digits=True)
SIGNS = pre_tokenizers.Split(Regex(r"[\p{P}\p{S}\n]"), behavior="isolated")
# Clean-up would eat the spaces before punctuation, and decoding could not give the text back.
NAMES: dict[str, Any] = {
    "eos_token": END,
    "pad_token": PAD,
    "clean_up_tokenization_spaces": False,
    "padding_side": "right",
}


def byte_level_bpe(texts: Sequence[str], vocabulary: int) -> PreTrainedTokenizerFast:
    """Byte-level BPE that splits words as GPT-2 does; 256 bytes, two special tokens and learned merges."""
    tokenizer = _learned_bpe(texts, vocabulary, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True))
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **NAMES)


def byte_level_bpe_of_qwen(texts: Sequence[str], vocabulary: int) -> PreTrainedTokenizerFast:
    """Byte-level BPE in Qwen2's own tokenizer class, which is what transformers loads for every model of that family.

    That class lets a word begin with a sign. The merges are learned with signs apart, so no piece joins the end of a prompt to
    the first letter of an answer.
    """
    words = pre_tokenizers.Split(Regex(PRETOKENIZE_REGEX), behavior="isolated")
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    learned = json.loads(_learned_bpe(texts, vocabulary, SIGNS, words, byte_level).to_str())["model"]
    merges = [(left, right) for left, right in learned["merges"]]
    # Without an `unk_token` of its own the class would add a token that the model has no embedding for.
    return Qwen2Tokenizer(vocab=learned["vocab"], merges=merges, unk_token=END, **NAMES)  # type: ignore[arg-type]


def unigram(texts: Sequence[str], vocabulary: int) -> PreTrainedTokenizerFast:
    """Unigram over characters in the manner of SentencePiece: spaces are `▁`, unknown characters fall back to bytes.

    The pieces come from merges of characters and their scores are log frequencies: unlike the library's trainer of Unigram
    models, this gives the same pieces every time.
    """
    learner = Tokenizer(models.BPE())
    learner.pre_tokenizer = pre_tokenizers.Sequence([DIGITS, SIGNS, pre_tokenizers.Metaspace(prepend_scheme="never")])
    trainer = trainers.BpeTrainer(vocab_size=vocabulary - 256 - 3, show_progress=False)
    learner.train_from_iterator(texts, trainer)
    counts = Counter(piece for encoding in learner.encode_batch(list(texts)) for piece in encoding.tokens)
    total = counts.total()
    learned = [(piece, math.log((counts[piece] + 0.5) / total)) for piece in sorted(learner.get_vocab())]
    special = [(END, 0.0), (PAD, 0.0), (UNKNOWN, 0.0)]
    fallback = [(f"<0x{byte:02X}>", BYTE_SCORE) for byte in range(256)]
    tokenizer = Tokenizer(models.Unigram([*special, *fallback, *learned], unk_id=2, byte_fallback=True))
    tokenizer.pre_tokenizer = learner.pre_tokenizer
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **NAMES)


TOKENIZERS: dict[str, Callable[[Sequence[str], int], PreTrainedTokenizerFast]] = {
    "byte_level_bpe": byte_level_bpe,
    "byte_level_bpe_of_qwen": byte_level_bpe_of_qwen,
    "unigram": unigram,
}


def _learned_bpe(texts: Sequence[str], vocabulary: int, *splits: pre_tokenizers.PreTokenizer) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([DIGITS, *splits])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[END, PAD],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer
