"""Choices and answers computed together against each text read alone, in many architectures; and who may read together at all."""

import itertools
import random

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from transformers.generation import RepetitionPenaltyLogitsProcessor

from mtkv.evaluate.generation import GreedyDecoder, is_greedy, next_tokens
from mtkv.evaluate.loglikelihood import ChoiceQuestion, score_choices
from mtkv.evaluate.prefix_cache import WORTH, can_share, shared_beginnings

SHARING = ["llama", "llama_mqa_wide", "llama_yarn", "qwen2", "qwen3", "phi3", "glm4", "gpt_neox", "gpt2", "opt"]
SPREAD = {"initializer_range": 0.4}
WIDE = {"sliding_window": 64}


def prompts(count, seed=0, start=32, length=8):
    """Token ids; the even ones begin with the same `start` tokens, and so do the odd ones."""
    rng = random.Random(seed)
    starts = [[rng.randrange(3, 64) for _ in range(start)] for _ in range(2)]
    return [
        (*starts[place % 2], *(rng.randrange(3, 64) for _ in range(rng.randint(1, length)))) for place in range(count)
    ]


def alone(model, context, choice):
    """Sum of log-probabilities of one text, no cache and no padding; and whether greedy decoding would say it."""
    with torch.no_grad():
        said = model(torch.tensor([[*context, *choice]])).logits[0].double().log_softmax(-1)[len(context) - 1 : -1]
    return sum(float(row[token]) for row, token in zip(said, choice, strict=True)), said.argmax(-1).tolist() == [
        *choice
    ]


SCORING = [
    *((name, {}, 3) for name in SHARING),
    ("gemma3", WIDE, 3),
    ("mistral", WIDE, 3),
    ("llama", {}, 1),
    ("gpt2", {}, 50),
]


@pytest.mark.parametrize(("name", "changes", "batch_size"), SCORING)
def test_choices_score_as_if_each_were_read_alone(name, changes, batch_size, build_model):
    model = build_model(name, **(changes if name == "opt" else SPREAD | changes))
    rng = random.Random(1)
    questions = [
        ChoiceQuestion(context, tuple(tuple(rng.randrange(3, 64) for _ in range(rng.randint(1, 6))) for _ in range(3)))
        for context in prompts(18)
    ]
    assert can_share(model, 50)
    assert {group.shared for group in shared_beginnings([q.context for q in questions], 64)} == {32}
    read = []
    with torch.inference_mode():
        found = score_choices(
            model, lambda **kw: read.append(kw["input_ids"].numel()) or model(**kw), questions, batch_size
        )
    for question, scores in zip(questions, found, strict=True):
        for choice, (score, greedy) in zip(question.choices, scores, strict=True):
            assert (score, greedy) == (
                pytest.approx(alone(model, question.context, choice)[0], abs=2e-4),
                alone(model, question.context, choice)[1],
            )
    if batch_size == 1:
        once = 2 * 32 + sum(len(question.context) - 32 + question.read for question in questions)
        assert sum(read) == once, "every token once"


def greedy_alone(model, prompt, limit, ended, penalty):
    said = []
    punish = RepetitionPenaltyLogitsProcessor(penalty)
    while len(said) < limit and not (said and ended(said)):
        ids = torch.tensor([[*prompt, *said]])
        with torch.no_grad():
            said.append(int(punish(ids, model(ids).logits[:, -1].clone()).argmax()))
    return said


ANSWERING = [
    *((name, {}, 1.0) for name in SHARING),
    ("gemma3", {}, 1.0),
    ("gemma3", WIDE, 1.0),
    ("llama", {}, 1.3),
    ("opt", {}, 1.3),
]


@pytest.mark.parametrize(("name", "changes", "penalty"), ANSWERING)
def test_answers_are_those_of_each_prompt_alone(name, changes, penalty, build_model):
    model = build_model(name, **(changes if name == "opt" else SPREAD | changes))
    model.generation_config.repetition_penalty = penalty
    texts = prompts(18)
    ended = lambda said: sum(said) % 7 == 0  # noqa: E731
    share = can_share(model, 50)
    assert share == (name != "gemma3" or changes == WIDE)
    widths = []
    forward = lambda **kw: widths.append(len(kw["input_ids"])) or model(**kw)  # noqa: E731
    with torch.inference_mode():
        found = GreedyDecoder(model, forward, next_tokens(model), ended, 14).generate(texts, 5, share)
    expected = [greedy_alone(model, text, 14, ended, penalty) for text in texts]
    assert found == expected
    assert max(widths) == 5
    if name != "gemma3":  # it says one token again and again
        assert len({len(said) for said in expected}) > 3, "answers must end at different times, or nothing is tested"


def test_what_may_not_be_laid_out_freely(build_model):
    assert can_share(build_model("llama"), 10**6)
    assert not can_share(build_model("mistral"), 5), "a window of 4"
    assert can_share(build_model("mistral"), 4)
    flash = build_model("llama")
    flash.config._attn_implementation = "flash_attention_2"
    assert not can_share(flash, 4)
    own = build_model("llama")
    own.__class__ = type("Llama", (type(own),), {"__module__": "transformers_modules.somebody"})
    assert not can_share(own, 4)


def test_only_greedy_search_is_done_here(build_model):
    model, plain = build_model("llama"), {"until": ["x"], "max_gen_toks": 3, "do_sample": False, "temperature": 0.0}
    assert is_greedy(model, plain)
    assert not is_greedy(model, plain | {"do_sample": True})
    assert not is_greedy(model, plain | {"top_k": 3})
    model.generation_config.update(repetition_penalty=1.1, top_p=0.8, temperature=0.7, do_sample=True)
    assert is_greedy(model, plain), "Qwen2.5's own settings"
    model.generation_config.no_repeat_ngram_size = 3
    assert not is_greedy(model, plain)


texts = st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=9), min_size=1, max_size=30)


@given(texts, st.integers(0, 30))
@example([[0]] * 20 + [[0, 1]] * 20, 0)  # the same text many times, and as another's beginning
def test_groups_hold_every_prompt_once_and_share_what_they_say(ids, overhead):
    long = [[token] * 40 + text for text, token in zip(ids, itertools.cycle([5, 6]), strict=False)]
    groups = shared_beginnings(long, overhead)
    assert sorted(place for group in groups for place in group.members) == list(range(len(long)))
    for group in groups:
        members = [long[place] for place in group.members]
        assert len({tuple(text[: group.shared]) for text in members}) == 1
        assert group.shared < min(map(len, members))
        assert [len(text) for text in members] == sorted((len(text) for text in members), reverse=True)
    read = lambda groups: sum(g.shared + sum(len(long[p]) - g.shared for p in g.members) + overhead for g in groups)  # noqa: E731
    assert read(groups) <= sum(map(len, long)) + overhead
    halves = [[text for text in long if text[0] == token] for token in (5, 6)]
    if all(40 * (len(half) - 1) >= WORTH for half in halves):
        assert read(groups) <= sum(map(len, long)) - sum(40 * (len(half) - 1) for half in halves) + 2 * overhead
