"""Small tokenizers of three kinds, trained in the test."""

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
    return _wrap(tokenizer, trainer)


def unigram(size: int = 200) -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    return _wrap(
        tokenizer,
        trainers.UnigramTrainer(vocab_size=size, special_tokens=SPECIAL, unk_token="<unk>", show_progress=False),
    )


def wordpiece(size: int = 200) -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.WordPiece(unk_token="<unk>"))
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    return _wrap(tokenizer, trainers.WordPieceTrainer(vocab_size=size, special_tokens=SPECIAL, show_progress=False))


def _wrap(tokenizer: Tokenizer, trainer: trainers.Trainer) -> PreTrainedTokenizerFast:
    tokenizer.train_from_iterator(CORPUS, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>")


KINDS = {"byte_level_bpe": byte_level_bpe, "unigram": unigram, "wordpiece": wordpiece}
