"""The two passes against one forward without a cache (`injected_by_hand`), for many architectures; and what a fuser's start is."""

import pytest
import torch
from conftest import ARCHITECTURES
from injected_by_hand import tail_logits

from mtkv.inject.patched_cache import TeacherTokens, read_answers
from mtkv.models.cross_entropy import IGNORED_LABEL, target_logits

LENGTHS = [(9, 4), (2, 3), (14, 1), (6, 6)]  # tokens of prompt and answer
SHARE = 0.6  # of the tokens, that are corrected


def batch_of(seed=0):
    """Rows padded on the right: ids, labels, and the corrected tokens' row and place in it."""
    generator = torch.Generator().manual_seed(seed)
    time = max(map(sum, LENGTHS))
    ids, labels = torch.zeros(len(LENGTHS), time, dtype=torch.long), torch.full((len(LENGTHS), time), IGNORED_LABEL)
    for row, (prompt, answer) in enumerate(LENGTHS):
        ids[row, : prompt + answer] = torch.randint(3, 60, (prompt + answer,), generator=generator)
        labels[row, prompt : prompt + answer] = ids[row, prompt : prompt + answer]
    chosen = torch.rand(len(LENGTHS), time, generator=generator) < SHARE
    chosen &= torch.arange(time) < torch.tensor([prompt - 1 for prompt, _ in LENGTHS])[:, None]
    return ids, labels, *chosen.nonzero(as_tuple=True)


class Drawn:
    """A fuser whose corrections are drawn once."""

    def __init__(self, model, tokens):
        config = model.config
        heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
        width = heads * (getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)
        torch.manual_seed(1)
        self.correction = torch.randn(tokens, config.num_hidden_layers, 2, width) * 0.7

    def __call__(self, own, sample, kv, batch, **context):
        assert own.shape == self.correction.shape
        return self.correction, torch.ones(batch, 1)


@pytest.mark.parametrize("name", sorted(set(ARCHITECTURES) - {"opt"}))
def test_two_passes_with_a_cache_are_one_without(build_model, name):
    """Grouped heads, partial rotary channels, learned positions, trained norms, windows shorter than the prompt."""
    model = build_model(name, initializer_range=0.2)
    ids, labels, sample, position = batch_of()
    fuser = Drawn(model, len(sample))
    with torch.no_grad():
        logits, said, _ = read_answers(model, fuser, ids, labels, TeacherTokens(sample, position, [], {}))
        expected = []
        for row, (prompt, answer) in enumerate(LENGTHS):
            correction = torch.zeros(prompt - 1, *fuser.correction.shape[1:])
            correction[position[sample == row]] = fuser.correction[sample == row]
            text = ids[row, : prompt + answer].tolist()
            expected.append(tail_logits(model, text[: prompt - 1], text[prompt - 1 : -1], correction))
    assert said.tolist() == labels[labels != IGNORED_LABEL].tolist()
    plain, _ = target_logits(model, ids, labels)
    assert (plain - torch.cat(expected)).abs().max() > 0.1  # the corrections count
    torch.testing.assert_close(logits, torch.cat(expected), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma3"])
def test_without_correction_the_passes_are_an_ordinary_forward(build_model, name):
    model = build_model(name)
    ids, labels, sample, position = batch_of()
    fuser = Drawn(model, len(sample))
    fuser.correction.zero_()
    logits, _, _ = read_answers(model, fuser, ids, labels, TeacherTokens(sample, position, [], {}))
    torch.testing.assert_close(logits, target_logits(model, ids, labels)[0], rtol=1e-6, atol=1e-6)


def test_corrections_get_the_gradient_of_the_loss_and_a_frozen_student_none(build_model):
    """Against a difference quotient."""
    model = build_model("gpt2").double().requires_grad_(False)  # a Llama computes its norms in float32
    ids, labels, sample, position = batch_of()
    fuser = Drawn(model, len(sample))
    fuser.correction = fuser.correction.double().requires_grad_()
    teachers = TeacherTokens(sample, position, [], {})

    def loss():
        logits, said, _ = read_answers(model, fuser, ids, labels, teachers)
        return torch.nn.functional.cross_entropy(logits, said)

    loss().backward()
    assert all(parameter.grad is None for parameter in model.parameters())
    gradient, step = fuser.correction.grad.clone(), 1e-6
    for place in [(0, 0, 0, 3), (4, 1, 1, 5), (len(sample) - 1, 2, 0, 0)]:
        values = []
        for sign in (1, -1):
            with torch.no_grad():
                fuser.correction[place] += sign * step
                values.append(float(loss()))
                fuser.correction[place] -= sign * step
        assert (values[0] - values[1]) / (2 * step) == pytest.approx(float(gradient[place]), rel=1e-4, abs=1e-9)
