"""Cross-entropy of target tokens against the models' own loss with a mask and full logits."""

import pytest
import torch
from conftest import ARCHITECTURES, VOCABULARY

from mtkv.models.cross_entropy import IGNORED_LABEL, target_loss


def padded_batch(pad: int = 0):
    torch.manual_seed(1)
    ids = torch.randint(3, VOCABULARY, (3, 12))
    labels, mask = ids.clone(), torch.ones_like(ids)
    for row, (start, stop) in enumerate([(4, 12), (2, 9), (7, 8)]):
        labels[row, :start] = labels[row, stop:] = IGNORED_LABEL
        ids[row, stop:], mask[row, stop:] = pad, 0
    return ids, labels, mask


@pytest.mark.parametrize("name", [*ARCHITECTURES, "gemma2_softcap", "granite_scaled"])
def test_loss_and_gradients_equal_the_models_own(build_model, name):
    model = special(name) or build_model(name)
    ids, labels, mask = padded_batch()
    want = model(input_ids=ids, attention_mask=mask, labels=labels, use_cache=False).loss
    wanted = torch.autograd.grad(want, list(model.parameters()), allow_unused=True)
    got = target_loss(model, ids, labels)
    torch.testing.assert_close(got, want, atol=1e-5, rtol=1e-5)
    for ours, theirs in zip(torch.autograd.grad(got, list(model.parameters()), allow_unused=True), wanted, strict=True):
        if theirs is not None:
            torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4)


def special(name):
    import transformers

    sizes = {"vocab_size": VOCABULARY, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    sizes |= {"num_key_value_heads": 2, "intermediate_size": 48, "pad_token_id": 0}
    torch.manual_seed(0)
    if name == "gemma2_softcap":
        config = transformers.Gemma2Config(**sizes, head_dim=8, final_logit_softcapping=0.5)
    elif name == "granite_scaled":
        config = transformers.GraniteConfig(**sizes, logits_scaling=4.0)
    else:
        return None
    return transformers.AutoModelForCausalLM.from_config(config).eval()


def test_the_head_sees_only_positions_that_predict_a_target(build_model):
    model = build_model("llama")
    ids, labels, _ = padded_batch()
    seen = []
    hook = model.lm_head.register_forward_hook(lambda _m, _a, output: seen.append(output.shape))
    target_loss(model, ids, labels)
    hook.remove()
    assert seen == [(int((labels[:, 1:] != IGNORED_LABEL).sum()), VOCABULARY)]
    assert model(input_ids=ids).logits.shape == (3, 12, VOCABULARY)  # and afterwards it is as it was
