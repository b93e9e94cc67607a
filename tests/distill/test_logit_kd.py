"""Logit distillation against numpy, its limits, and which tokenizers it accepts."""

import numpy as np
import pytest
import torch
from scipy.special import log_softmax, softmax
from scipy.stats import entropy
from tokenizers_for_tests import KINDS, byte_level_bpe
from torch.nn import functional as F

from mtkv.distill.logit_kd import kd_loss, shared_vocabulary

TOKENS, VOCABULARY = 5, 7


def logits(student_padding=0, teacher_padding=0, seed=0):
    generator = torch.Generator().manual_seed(seed)
    sizes = (VOCABULARY + student_padding, VOCABULARY + teacher_padding)
    student, teacher = (torch.randn(TOKENS, n, generator=generator, dtype=torch.float64) * 2 for n in sizes)
    return student, teacher, torch.randint(VOCABULARY, (TOKENS,), generator=generator)


@pytest.mark.parametrize(("padding", "teacher_padding"), [(0, 0), (0, 3), (2, 0), (2, 3)])
@pytest.mark.parametrize(("alpha", "temperature"), [(0.5, 2.0), (0.0, 1.0), (0.9, 4.0)])
def test_equals_numpy(padding, teacher_padding, alpha, temperature):
    student, teacher, labels = logits(padding, teacher_padding)
    s, t = student.numpy(), teacher.numpy()
    ce = -np.mean([log_softmax(row)[label] for row, label in zip(s, labels, strict=True)])
    kl = np.mean(
        [
            entropy(softmax(b[:VOCABULARY] / temperature), softmax(a[:VOCABULARY] / temperature))
            for a, b in zip(s, t, strict=True)
        ]
    )
    found = kd_loss(student, teacher, labels, alpha, temperature, VOCABULARY).item()
    assert found == pytest.approx(alpha * ce + (1 - alpha) * temperature**2 * kl)


def test_alpha_one_is_cross_entropy_and_the_padding_of_a_teacher_counts_nothing():
    student, teacher, labels = logits(2, 3)
    assert kd_loss(student, teacher, labels, 1.0, 2.0, VOCABULARY).item() == pytest.approx(
        F.cross_entropy(student, labels).item()
    )
    padded = teacher.clone()
    padded[:, VOCABULARY:] = 1e6
    assert torch.equal(
        kd_loss(student, padded, labels, 0.5, 2.0, VOCABULARY), kd_loss(student, teacher, labels, 0.5, 2.0, VOCABULARY)
    )


def test_hot_temperature_is_the_mean_squared_error_of_centred_logits():
    """Hinton et al. 2015, eq. 4: T²·∂KL/∂z → (z − v)/N for zero-mean logits; the mean over tokens divides once more."""
    student, teacher, labels = logits()
    student.requires_grad_()
    kd_loss(student, teacher.requires_grad_(), labels, 0.0, 1e4, VOCABULARY).backward()
    difference = student.detach() - teacher.detach()
    expected = (difference - difference.mean(-1, keepdim=True)) / VOCABULARY / TOKENS
    assert torch.allclose(student.grad, expected, rtol=1e-2, atol=1e-5)
    assert teacher.grad is None


def test_computed_in_float32_and_no_token_is_a_zero_with_a_gradient_path():
    student, teacher, labels = logits()
    half = kd_loss(student.bfloat16(), teacher.bfloat16(), labels, 0.5, 2.0, VOCABULARY)
    exact = kd_loss(student.bfloat16().double(), teacher.bfloat16().double(), labels, 0.5, 2.0, VOCABULARY)
    assert half.dtype == torch.float32
    assert half.item() == pytest.approx(exact.item(), rel=1e-5)
    empty = kd_loss(student[:0].requires_grad_(), teacher[:0], labels[:0], 0.5, 2.0, VOCABULARY)
    assert empty.item() == 0
    empty.backward()


@pytest.mark.parametrize("kind", KINDS)
def test_one_vocabulary_with_logits_padded_to_different_sizes(kind, tmp_path):
    tokenizer = KINDS[kind]()
    tokenizer.save_pretrained(tmp_path)
    copy = type(tokenizer).from_pretrained(tmp_path)
    size = len(tokenizer)
    assert shared_vocabulary(tokenizer, copy, size, size) == size
    assert shared_vocabulary(tokenizer, copy, size + 3, size + 64) == size
    assert shared_vocabulary(tokenizer, copy, size + 3, size - 1) == size - 1


def test_different_tokenizers_are_refused_with_the_first_difference_and_a_way_out():
    student, teacher = byte_level_bpe(), byte_level_bpe()
    student.name_or_path, teacher.name_or_path = "small/student", "big/teacher"
    first = len(student)
    teacher.add_tokens(["<think>", "</think>"])
    for a, b in ((student, teacher), (teacher, student)):
        with pytest.raises(ValueError, match="logit distillation needs one vocabulary") as error:
            shared_vocabulary(a, b, 400, 400)
        text = str(error.value)
        words = ["small/student", "big/teacher", "'<think>'", f"has id {first}", "is missing", "`kv`", "SFT"]
        assert all(word in text for word in words)
    unigram = KINDS["unigram"]()
    with pytest.raises(ValueError, match=rf"tokenizer \({type(unigram).__name__}\)"):
        shared_vocabulary(unigram, KINDS["wordpiece"](), 400, 400)


def test_the_same_tokens_under_other_ids_are_refused():
    student, teacher = byte_level_bpe(), byte_level_bpe()
    student.add_tokens(["<a>", "<b>"])
    teacher.add_tokens(["<b>", "<a>"])
    size = len(student) - 2
    with pytest.raises(ValueError, match=f"token '<a>' has id {size} in the student's and has id {size + 1} in the"):
        shared_vocabulary(student, teacher, 400, 400)
