"""Rows in chat templates: what the model sees is the template's own text, and byte spans stay those of the row's text."""

import dataclasses
from datetime import datetime, time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, processors
from tokenizers_for_tests import KINDS, byte_level_bpe

from mtkv.config.models import ModelConfig
from mtkv.models.load import load_tokenizer
from mtkv.models.tokenization import dated_template, encode_rows
from mtkv.models.tokenizer_limits import Reading

CHATML = (
    "{% for m in messages %}{{ '<turn>' + m['role'] + '\n' + m['content'] + '<end>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<turn>assistant\n' }}{% endif %}"
)
TRIMMING = CHATML.replace("m['content']", "m['content'] | trim")
WORDS = "{% for m in messages %}{{ 'Human: ' + m['content'] + '\n\nAI:' }}{% endfor %}"  # ends no answer, has no special token
DATED = "{{ strftime_now('%d %b %Y') if date_string is not defined else date_string }}" + CHATML
CALLING = "{{ strftime_now('%Y-%m-%d') }}" + CHATML
TEMPLATES = {"chatml": CHATML, "trimming": TRIMMING, "words": WORDS, "dated": DATED, "calling": CALLING}
REAL = Path("/tmp/real")


def chat(template: str = CHATML, tokenizer=None):
    tokenizer = tokenizer or byte_level_bpe()
    tokenizer.add_tokens([AddedToken("<turn>", special=True), AddedToken("<end>", special=True)])
    tokenizer.chat_template = template
    tokenizer.reading = Reading(prompt="chat")
    return tokenizer


TOKENIZERS = {name: chat(template) for name, template in TEMPLATES.items()}


@pytest.mark.parametrize("name", TEMPLATES)
def test_the_model_reads_the_rendered_template_and_the_answer(name):
    tokenizer = TOKENIZERS[name]
    prompt, target = " How many?\n", " 42"
    (row,) = encode_rows(tokenizer, [prompt], [target], None)
    turns = [{"role": "user", "content": prompt}]
    rendered = tokenizer.apply_chat_template(
        turns, tokenize=False, add_generation_prompt=True, date_string="26 Jul 2024"
    )
    rendered = rendered.replace(f"{datetime.now():%Y-%m-%d}", "2024-07-26")
    end = "<eos>" if name == "words" else "<end>"
    assert tokenizer.decode(row.input_ids) == rendered + target + end
    assert tokenizer.decode(row.input_ids[row.is_target]) == target + end


@settings(max_examples=100, deadline=None)
@given(
    st.sampled_from(sorted(TEMPLATES)),
    st.text(alphabet="aé小🙂 1\n,.", min_size=1, max_size=20),
    st.text(alphabet="aé小🙂 1\n,.", min_size=1, max_size=12),
)
def test_spans_are_the_bytes_of_the_rows_own_text(name, prompt, target):
    """Independent of offsets: a byte-level token's bytes are its printed characters, one for each byte."""
    tokenizer = TOKENIZERS[name]
    (row,) = encode_rows(tokenizer, [prompt], [target], None)
    text = (prompt + target).encode()
    alphabet = {byte: character for character, byte in _byte_of().items()}
    for index, start, end in zip(row.input_ids, row.byte_start, row.byte_end, strict=True):
        assert (start < 0) == (end < 0)
        if end >= 0:
            piece = tokenizer.convert_ids_to_tokens(int(index))
            assert "".join(alphabet[byte] for byte in text[start:end]).endswith(piece)
    ends = row.byte_end[row.byte_end >= 0]
    assert (np.diff(ends) > 0).all()
    assert ends.max(initial=0) == len(text)


def _byte_of() -> dict[str, int]:
    """GPT-2's printable stand-ins for bytes, by its published rule."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    rest = [byte for byte in range(256) if byte not in plain]
    return {chr(byte): byte for byte in plain} | {chr(256 + i): byte for i, byte in enumerate(rest)}


def test_template_tokens_are_never_supervised_and_text_tokens_are_those_of_the_plain_row():
    prompt, target = "Question: 12+30\nAnswer:", " 42"
    (plain,) = encode_rows(byte_level_bpe(), [prompt], [target], None)
    (row,) = encode_rows(TOKENIZERS["chatml"], [prompt], [target], None)
    kept = row.byte_end >= 0
    assert 0 < kept.sum() < len(kept)
    # The plain row's first token is its attention sink and has no span; in the template it is an ordinary token.
    assert row.input_ids[kept].tolist() == plain.input_ids[:-1].tolist()
    assert row.byte_end[kept].tolist()[1:] == plain.byte_end[1:-1].tolist()


def test_a_template_that_changes_words_is_refused():
    shouting = CHATML.replace("m['content']", "(m['content'] | upper)")
    with pytest.raises(ValueError, match=r"changes the words of the prompt 'Question'.*prompt: plain"):
        encode_rows(chat(shouting), ["Question"], ["a"], None)
    with pytest.raises(ValueError, match="does not show the user's turn once"):
        encode_rows(chat("nothing"), ["Question"], ["a"], None)


def test_chat_without_a_template_is_refused_when_the_tokenizer_is_loaded(tmp_path, model_folder):
    config = ModelConfig(source="path", name=str(model_folder("llama", tmp_path)), prompt="chat")
    with pytest.raises(ValueError, match=r"no chat template, as a base model's has not; use prompt: plain"):
        load_tokenizer(config)
    assert load_tokenizer(config.model_copy(update={"prompt": "plain"})).reading.prompt == "plain"


def test_what_is_loaded_as_chat_writes_chat_and_is_saved_without_it(tmp_path, model_folder):
    folder = model_folder("llama", tmp_path / "model", tokenizer=chat(), vocab_size=400)
    loaded = load_tokenizer(ModelConfig(source="path", name=str(folder), prompt="chat"))
    (row,) = encode_rows(loaded, ["Question"], [" 42"], None)
    assert "<turn>user\nQuestion<end>" in loaded.decode(row.input_ids)
    loaded.save_pretrained(tmp_path / "saved")
    assert not any("reading" in path.read_text() for path in (tmp_path / "saved").glob("tokenizer_config.json"))


@pytest.mark.parametrize(("name", "said"), [("dated", "31 Jan 2025"), ("calling", "2025-01-31")])
def test_a_template_that_prints_the_date_prints_the_study_s(name, said, tmp_path, model_folder):
    folder = model_folder("llama", tmp_path, tokenizer=chat(TEMPLATES[name]), vocab_size=400)
    config = ModelConfig(source="path", name=str(folder), prompt="chat")
    for day, written in (({"date": "2025-01-31"}, said), ({}, "26 Jul 2024" if name == "dated" else "2024-07-26")):
        loaded = load_tokenizer(config.model_copy(update=day))
        (row,) = encode_rows(loaded, ["Question"], [" 42"], None)
        assert loaded.decode(row.input_ids).startswith(written + "<turn>user")


def test_plain_rows_begin_with_bos_where_the_tokenizer_puts_one():
    tokenizer = byte_level_bpe()
    (without,) = encode_rows(tokenizer, ["Question"], [" 42"], None)
    tokenizer.add_special_tokens({"bos_token": "<bos>"})
    template = processors.TemplateProcessing(single="<bos> $0", special_tokens=[("<bos>", tokenizer.bos_token_id)])
    tokenizer.backend_tokenizer.post_processor = template
    (row,) = encode_rows(tokenizer, ["Question"], [" 42"], None)
    assert row.input_ids.tolist() == [*tokenizer("Question 42")["input_ids"], tokenizer.eos_token_id]
    assert row.input_ids[1:].tolist() == without.input_ids.tolist()
    assert row.byte_end.tolist()[:2] == [-1, len(tokenizer.decode(row.input_ids[1]))]  # bos is the sink now
    assert row.is_target.tolist() == [False, *without.is_target]


def test_an_eos_behind_texts_is_not_taken_for_a_bos_before_them():
    """Some tokenizers have one token for both."""
    tokenizer = byte_level_bpe()
    tokenizer.bos_token = tokenizer.eos_token
    template = processors.TemplateProcessing(single="$0 <eos>", special_tokens=[("<eos>", tokenizer.eos_token_id)])
    tokenizer.backend_tokenizer.post_processor = template
    (row,) = encode_rows(tokenizer, ["Question"], [" 42"], None)
    assert row.input_ids.tolist() == tokenizer("Question 42")["input_ids"]


def test_a_tokenizer_that_reads_something_else_is_refused():
    """Ids of another vocabulary: the offsets look right, the model would read other words."""
    other = byte_level_bpe(300)
    swapped = _Swapped(byte_level_bpe(300), other)
    with pytest.raises(ValueError, match=r"row number 1: .* reads .* where the row says"):
        encode_rows(swapped, ["1", "Question: 1"], ["", " 2"], None)


class _Swapped:
    """Encodes with one tokenizer, decodes as if every id but that of "1" were another."""

    def __init__(self, encoding, decoding):
        self._encoding, self._decoding = encoding, decoding
        self._same = encoding("1")["input_ids"]

    def __getattr__(self, name):
        return getattr(self._encoding, name)

    def __call__(self, *arguments, **keywords):
        return self._encoding(*arguments, **keywords)

    def decode(self, ids, **keywords):
        return self._decoding.decode([i if i in self._same else i + 1 for i in ids], **keywords)


@pytest.mark.parametrize("kind", KINDS)
def test_normalisers_do_not_trip_the_check(kind):
    encode_rows(KINDS[kind](), ["Question: Tom has 12 apples"], [" Answer: 42"], None)


@pytest.mark.parametrize("name", ["smollm2-135m-instruct", "qwen2.5-coder-0.5b-instruct"])
def test_real_chat_models(name):
    if not (REAL / name / "config.json").is_file():
        pytest.skip(f"no {REAL / name}: real models are not part of the project")
    tokenizer = load_tokenizer(ModelConfig(source="path", name=str(REAL / name), prompt="chat"))
    prompt, target = "Question: 小明 pays 12€.\nReason:", " 12*3=36\nAnswer: 36"
    (row,) = encode_rows(tokenizer, [prompt], [target], None)
    turns = [{"role": "user", "content": prompt}, {"role": "assistant", "content": target}]
    assert tokenizer.decode(row.input_ids) + "\n" == tokenizer.apply_chat_template(turns, tokenize=False)
    assert dataclasses.asdict(tokenizer.reading)["prompt"] == "chat"
    spans = row.byte_end >= 0
    text = (prompt + target).encode()
    assert "".join(text[s:e].decode() for s, e in zip(row.byte_start[spans], row.byte_end[spans], strict=True)) == (
        prompt + target
    )


@given(
    st.dates(),
    st.sampled_from("aAbBcdDeFHIjmMpSTuUwWxXyY").map("%{}".format)
    | st.sampled_from(["%-d %B, %Y", "%-m/%-d/%y", "at %H:%M:%S"]),
)
def test_a_stopped_clock_writes_what_python_writes(day, form):
    template = "\n\n  {% if strftime_now is defined %}{% set now = strftime_now(form) %}{{ now }}{% endif %}"
    tokenizer = SimpleNamespace(get_chat_template=lambda: template)
    stopped, there = dated_template(tokenizer, day.isoformat()), TOKENIZERS["chatml"]
    turns = [{"role": "user", "content": ""}]
    written = there.apply_chat_template(turns, chat_template=stopped, tokenize=False, form=form)
    assert written == "\n\n" + datetime.combine(day, time()).strftime(form)
