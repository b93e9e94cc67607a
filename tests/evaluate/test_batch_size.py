"""Batches that fit into memory, and what happens when it runs out all the same."""

import random
from types import SimpleNamespace

import pytest
import torch

from mtkv.evaluate import batch_size as memory
from mtkv.evaluate.batch_size import free_bytes, in_batches, row_bytes, rows_at_once
from mtkv.evaluate.generation import GreedyDecoder, next_tokens
from mtkv.evaluate.lm_eval_tasks import UnanswerableError
from mtkv.evaluate.loglikelihood import ChoiceQuestion, score_choices

CPU = "[enforce fail at alloc_cpu.cpp:117] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes."


def out_of_memory():
    return random.choice([torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB."), RuntimeError(CPU)])


def test_memory_bounds_the_batch(build_model, monkeypatch):
    model = build_model("llama")
    one = row_bytes(model, 100, 10)
    for free, wanted in {10 * one: 7, 3 * one: 2, one // 9: 1, 10**15: 64, None: 64}.items():
        monkeypatch.setattr(memory, "free_bytes", lambda device, free=free: free)
        assert rows_at_once(model, 64, 100, 10) == wanted


def test_a_row_counts_more_than_its_kv_and_logits(build_model):
    """A forward of one row may not take more than was counted; its KV (2 · 3 layers · 2 heads · 8 · 4 bytes a token) is in it."""
    model = build_model("llama")
    assert row_bytes(model, 100, 0) > 2 * 100 * 2 * 3 * 2 * 8 * 4
    assert row_bytes(model, 100, 10) - row_bytes(model, 100, 0) == 10 * 64 * (4 + 4 + 4)
    assert row_bytes(model, 200, 0) > 2 * row_bytes(model, 100, 0)


def test_the_smaller_of_machine_and_container_counts(tmp_path, monkeypatch):
    device = torch.device("cpu")
    monkeypatch.setattr(memory, "CGROUP", tmp_path)
    machine = free_bytes(device)
    (tmp_path / "memory.current").write_text("1000\n")
    (tmp_path / "memory.max").write_text("max\n")
    assert free_bytes(device) == pytest.approx(machine, rel=0.5)
    (tmp_path / "memory.max").write_text("5000\n")
    assert free_bytes(device) == 4000


def test_half_the_batch_and_nothing_twice():
    done = []

    def work(batch):
        if len(batch) > 3:
            raise out_of_memory()
        done.extend(batch)

    in_batches(list(range(20)), 16, work)
    assert done == list(range(20))


def test_one_that_does_not_fit_and_another_error():
    def full(batch):
        raise out_of_memory()

    def broken(batch):
        raise RuntimeError("shapes do not match")

    with pytest.raises(UnanswerableError, match="memory does not hold a single question"):
        in_batches([1, 2], 2, full)
    with pytest.raises(RuntimeError, match="shapes"):
        in_batches([1, 2], 2, broken)


class Small:
    """The forward of a model on a machine that holds so many tokens of KV at once."""

    def __init__(self, model, tokens):
        self.model, self.tokens, self.refused = model, tokens, 0

    def __call__(self, **inputs):
        rows, time = inputs["input_ids"].shape
        held = inputs["past_key_values"].get_seq_length() if inputs.get("past_key_values") is not None else 0
        if rows * (held + time) > self.tokens:
            self.refused += 1
            raise out_of_memory()
        return self.model(**inputs)


@pytest.fixture
def model(build_model):
    return build_model("llama", initializer_range=0.4)


def texts(count):
    rng = random.Random(0)
    return [tuple(rng.randrange(3, 64) for _ in range(rng.randint(2, 30))) for _ in range(count)]


def test_answers_are_the_same_on_a_small_machine(model):
    """It runs out in the middle of answers: complete ones are kept, the others begun again, fewer at a time."""
    ended = lambda said: sum(said) % 9 == 0  # noqa: E731
    small = Small(model, 160)
    plenty, little = (GreedyDecoder(model, forward, next_tokens(model), ended, 20) for forward in (model, small))
    with torch.inference_mode():
        assert little.generate(texts(17), 8, True) == plenty.generate(texts(17), 8, True)
    assert small.refused >= 1


def test_scores_are_the_same_on_a_small_machine(model):
    rng = random.Random(2)
    choices = lambda: tuple(tuple(rng.randrange(3, 64) for _ in range(rng.randint(1, 4))) for _ in range(4))  # noqa: E731
    questions = [ChoiceQuestion(text, choices()) for text in texts(17)]
    with torch.inference_mode():
        expected = score_choices(model, model, questions, 8)
        small = Small(model, 100)
        found = score_choices(model, small, questions, 8)
    assert small.refused >= 1
    for mine, theirs in zip(found, expected, strict=True):
        assert [score for score, _ in mine] == pytest.approx([score for score, _ in theirs], abs=1e-4)


def test_a_machine_for_no_question_is_a_missing_cell(model):
    with torch.inference_mode(), pytest.raises(UnanswerableError, match="single question"):
        GreedyDecoder(model, Small(model, 3), next_tokens(model), lambda said: False, 20).generate(texts(2), 8, False)


def test_cuda_counts_what_torch_has_reserved_and_not_used(monkeypatch):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (100, 1000))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 50)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 20)
    assert free_bytes(SimpleNamespace(type="cuda")) == 130
