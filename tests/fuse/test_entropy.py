"""The entropy regulariser against scipy, and what following its gradient does."""

import pytest
import torch
from scipy.stats import entropy as scipy_entropy

from mtkv.fuse.routers import EntropyRegularizer, entropy, entropy_loss


def test_entropy_equals_scipy_and_its_sign_follows_the_target():
    weights = torch.tensor([[0.2, 0.8], [1.0, 0.0]], dtype=torch.float64, requires_grad=True)
    assert entropy(weights).item() == pytest.approx(float(scipy_entropy(weights.detach().numpy(), axis=1).mean()))
    assert entropy_loss(weights, "specialized", 0.1).item() == pytest.approx(0.1 * entropy(weights).item())
    assert entropy_loss(weights, "diverse", 0.1).item() == pytest.approx(-0.1 * entropy(weights).item())
    entropy(weights).backward()
    assert torch.isfinite(weights.grad).all()


def test_weights_per_layer_have_the_mean_of_their_layers_entropies():
    weights = torch.rand(5, 3, 4, dtype=torch.float64).softmax(1)
    assert entropy(weights).item() == pytest.approx(float(scipy_entropy(weights.numpy(), axis=1).mean()))


@pytest.mark.parametrize(("target", "limit"), [("specialized", 1.0), ("diverse", 1 / 3)])
def test_descending_reaches_one_teacher_or_all(target, limit):
    logits = torch.tensor([[0.5, 0.1, -0.4]], requires_grad=True)
    regularizer = EntropyRegularizer(target=target, strength=1.0)
    for _ in range(300):
        regularizer.compute_loss(logits.softmax(1)).backward()
        with torch.no_grad():
            logits -= logits.grad
            logits.grad = None
    assert logits.softmax(1).max().item() == pytest.approx(limit, abs=0.02)


def test_an_unknown_target_and_a_negative_strength_are_refused():
    with pytest.raises(ValueError, match="specialized, diverse"):
        EntropyRegularizer(target="sharp")
    with pytest.raises(ValueError, match="negative"):
        EntropyRegularizer(strength=-0.1)
