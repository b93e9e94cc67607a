"""Rows with latents: what stands where, which tokens of the chain teach, and what the controls do to that."""

import numpy as np
import pytest
import torch
from latent_setting import CHAINS, ROWS, Setting
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from tokenizers_for_tests import CORPUS, SPECIAL, byte_level_bpe, unigram
from transformers import PreTrainedTokenizerFast

from mtkv.config.latent import LatentConfig
from mtkv.latent.training.chain_of_thought import chain_rows
from mtkv.latent.training.dataset import encode_latent, encode_traces

CONTROLS = ["shuffle_items", "shuffle_time"]
LAST = [" 5*2=10.", " 12+30=42.", " 4+1=5.", "8-1=7。", " <<42+1=43>>"]


@pytest.fixture(scope="module")
def setting(tmp_path_factory, request):
    from conftest import ARCHITECTURES

    def build(name, seed=0, **overrides):
        import transformers

        class_name, arguments = ARCHITECTURES[name]
        torch.manual_seed(seed)
        config = getattr(transformers, class_name)(**(arguments | overrides))
        return transformers.AutoModelForCausalLM.from_config(config).eval()

    return Setting(tmp_path_factory.mktemp("setting"), build)


def crossing_tokenizer():
    """One that writes ":" and the line break behind it as one token, as Llama 3's does."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(["a:\nb:\nc:\n"] * 20 + CORPUS, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>")


def assert_predicts(tokenizer, row, part):
    """The token behind `row.value` is the first that says any of the answer's value; neither it nor those before leave out a blank."""
    said, following = (tokenizer.decode(row.input_ids[row.value + n :].tolist()) for n in (1, 2))
    value = part.answer.removeprefix(part.announced)
    assert said.strip() == f"{value}<eos>"
    assert not following.strip().startswith(value)


def digits_apart():
    """Byte-level BPE that cuts every digit off, so that the blank before a number is a token, as in SmolLM2's and Qwen's."""
    tokenizer = byte_level_bpe(300)
    backend = tokenizer.backend_tokenizer
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    return tokenizer


@pytest.mark.parametrize(
    ("build", "answer", "compared"),
    [
        (digits_apart, "\nAnswer: 42", "Ġ"),
        (lambda: byte_level_bpe(600), "\nAnswer: 42", ":"),  # " 42" is one token, as in GPT-2's
        (unigram, "\nAnswer: 42", "▁"),
        (byte_level_bpe, "\nAnswer: 七", "Ġ"),  # a value of three tokens, no one of which has read it
        (digits_apart, "\n#### 42", "Ġ"),
        (digits_apart, "答案：42", None),
        (digits_apart, "42", None),  # nothing announces it: the end marker, and the end of the chain
    ],
)
def test_codi_compares_the_token_that_predicts_the_value(setting, build, answer, compared):
    """As CODI's code, which moves by one where a blank stands between ":" and the value, and compares there in both passes."""
    tokenizer, student = build(), setting.student(LatentConfig(tokens=4))
    value = answer[-1:] if answer.endswith("七") else "42"
    frame = ROWS.iloc[:1].assign(answer=value, target=CHAINS[0][0] + answer)
    parts = chain_rows(frame, keep_last_step=True)
    (latent,), (trace,) = encode_latent(tokenizer, student, parts, None), encode_traces(tokenizer, parts, None)
    for row in (latent, trace):
        assert_predicts(tokenizer, row, parts[0])
        if compared:
            assert tokenizer.convert_ids_to_tokens([row.input_ids[row.value]]) == [compared]


@pytest.mark.parametrize("markers", [True, False])
@pytest.mark.parametrize("crossing", [False, True])
def test_question_and_answer_stand_around_the_slots(setting, markers, crossing):
    tokenizer = crossing_tokenizer() if crossing else setting.tokenizer
    student = setting.student(LatentConfig(tokens=4, markers=markers))
    parts = chain_rows(ROWS, keep_last_step=False)
    if crossing:
        joined = tokenizer.tokenize(ROWS["prompt"][0] + "\nAnswer")
        assert len(joined) < len(tokenizer.tokenize(ROWS["prompt"][0])) + len(tokenizer.tokenize("\nAnswer"))
    for row, part in zip(encode_latent(tokenizer, student, parts, None), parts, strict=True):
        question = tokenizer(part.prompt)["input_ids"]
        answer = row.input_ids[len(question) + student.slots :].tolist()
        assert row.input_ids[: len(question)].tolist() == question
        assert row.latent_start == len(question) + int(markers)
        assert student.slots == 4 + 2 * markers
        assert tokenizer.decode(answer) == part.answer + "<eos>"
        assert row.is_target.tolist() == [False] * (len(question) + student.slots) + [True] * len(answer)
        assert_predicts(tokenizer, row, part)


def test_the_trace_is_the_row_without_its_last_step(setting):
    for keep in (False, True):
        parts = chain_rows(ROWS, keep)
        for row, part, target, last in zip(
            encode_traces(setting.tokenizer, parts, None), parts, ROWS["target"], LAST, strict=True
        ):
            said = setting.tokenizer.decode(row.input_ids[row.is_target].tolist())
            assert said == (target if keep else target.replace(last, "")) + "<eos>"
            assert_predicts(setting.tokenizer, row, part)


def test_too_long_rows_are_refused(setting):
    student = setting.student(LatentConfig(tokens=4))
    longest = max(len(row.input_ids) for row in encode_latent(setting.tokenizer, student, chain_rows(ROWS, True), None))
    with pytest.raises(ValueError, match=f"{longest} tokens"):
        encode_latent(setting.tokenizer, student, chain_rows(ROWS, True), longest - 1)


@pytest.mark.parametrize("keep", [True, False])
def test_slots_are_taught_by_the_chain_alone(setting, keep):
    _, rows = setting.make({"teachers": ["llama", "gpt2"]}, keep_last_step=keep, tokens=40)
    for index, match in enumerate(rows.matches):
        counts = []
        for source in rows.teachers:
            tokens, count = source.kept[match.row]
            written = (ROWS["prompt"][index] + ROWS["target"][index]).encode()
            start, end = source.store.byte_start(match.row)[tokens], source.store.byte_end(match.row)[tokens]
            taught = b"".join(written[a:b] for a, b in zip(start, end, strict=True)).decode()
            chain = CHAINS[index][0] if keep else CHAINS[index][0].removesuffix(LAST[index])
            assert chain.strip().endswith(taught.strip())
            assert len(taught.strip()) >= 0.7 * len(
                chain.strip()
            )  # a token that begins in the question may hold its first letters
            counts.append((len(tokens), count))
        assert {count for _, count in counts} == {min(length for length, _ in counts)}
        first = rows.encoded[index].latent_start
        assert match.position.tolist() == list(range(first, first + counts[0][1]))


def test_a_short_chain_teaches_the_first_latents_and_an_empty_one_none(setting):
    _, rows = setting.make({}, tokens=4)
    lengths = [len(rows.teachers[0].kept[row][0]) for row in ROWS["id"]]
    assert lengths[1] == 0
    assert [len(match.position) for match in rows.matches] == [min(4, length) for length in lengths]
    batch = rows.collate([1, 0])
    assert batch["kv_sample"].tolist() == [1] * 4
    assert batch["teacher_kv"][0].shape == (4, 3, 2, 16)
    assert rows.teachers[0].bites == np.mean([length > 4 for length in lengths])


def test_a_row_s_targets_do_not_depend_on_its_batch(setting):
    for method in ("rkv", "random", "cosine"):
        _, rows = setting.make({"select": {"method": method}})
        alone = torch.cat([rows.collate([index])["teacher_kv"][0] for index in (2, 0, 4)])
        torch.testing.assert_close(rows.collate([2, 0, 4])["teacher_kv"][0], alone)


@pytest.mark.parametrize("control", CONTROLS)
def test_controls_change_the_content_only(setting, control):
    _, true = setting.make({}, keep_last_step=True)
    _, wrong = setting.make({"control": control}, keep_last_step=True)
    for index, (one, other) in enumerate(zip(true.matches, wrong.matches, strict=True)):
        assert one.position.tolist() == other.position.tolist()
        assert (one.row != other.row) == (control == "shuffle_items")
        mine, theirs = (rows.collate([index])["teacher_kv"][0] for rows in (true, wrong))
        source = true.ids.index(other.row)
        partner = true.collate([source])["teacher_kv"][0]
        assert torch.equal(theirs, partner[torch.from_numpy(other.tokens[0][:, 0])])
        assert not torch.equal(mine, theirs) or control == "shuffle_time"


def test_nothing_to_teach_is_an_error(setting):
    with pytest.raises(ValueError, match="no token of any row"):
        setting.make({}, rows=ROWS.iloc[[1]])
