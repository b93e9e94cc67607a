"""Small tokenizers of three kinds, the same in every process."""

import math
from collections import Counter

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

CORPUS = [
    "Question: Tom has 12 apples and buys 30 more. How many apples?\nReason: 12+30=42\nAnswer: 42",
    "问题:小明有 5 个苹果,又买了 3 个。\n推理:5+3=8\n答案:8",
    "Émile naïvely paid 7€ for a café crème — twice! 🙂",
] * 4
SPECIAL = ["<pad>", "<eos>", "<unk>"]


def byte_level_bpe(size: int = 320) -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=size, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    return _wrapped(tokenizer)


# The library's own trainers of the following two kinds break ties by hashes, and their tokenizers differ from process to process.


def unigram(size: int = 200) -> PreTrainedTokenizerFast:
    words = [f"▁{word}" for text in CORPUS for word in text.split(" ")]
    counts = _parts(words)
    kept = [*sorted(set("".join(words))), *(part for part in counts if len(part) > 1)][: size - len(SPECIAL)]
    scores = [(part, math.log(counts[part] / sum(counts.values()))) for part in kept]
    tokenizer = Tokenizer(models.Unigram([*((token, 0.0) for token in SPECIAL), *scores], unk_id=2))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    return _wrapped(tokenizer)


def wordpiece(size: int = 200) -> PreTrainedTokenizerFast:
    split, compose = pre_tokenizers.BertPreTokenizer(), normalizers.NFC()
    words = [word for text in CORPUS for word, _ in split.pre_tokenize_str(compose.normalize_str(text))]
    letters = sorted(set("".join(words)))
    beginnings = [part for part in _parts(words, at_start=True) if len(part) > 1]
    kept = [*SPECIAL, *letters, *(f"##{letter}" for letter in letters), *beginnings][:size]
    tokenizer = Tokenizer(models.WordPiece({piece: index for index, piece in enumerate(kept)}, unk_token="<unk>"))
    tokenizer.normalizer = compose
    tokenizer.pre_tokenizer = split
    return _wrapped(tokenizer)


def _parts(words: list[str], at_start: bool = False) -> dict[str, int]:
    """How often each part of one to three letters is in the words, the most frequent first."""
    found = Counter(
        word[start : start + length]
        for word in words
        for start in range(1 if at_start else len(word))
        for length in (1, 2, 3)
        if start + length <= len(word)
    )
    return dict(sorted(found.items(), key=lambda one: (-one[1], one[0])))


def _wrapped(tokenizer: Tokenizer) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>")


KINDS = {"byte_level_bpe": byte_level_bpe, "unigram": unigram, "wordpiece": wordpiece}
