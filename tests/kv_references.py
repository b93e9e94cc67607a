"""References for captured KV: hooks on the models' own projections."""

from contextlib import contextmanager

import torch
from conftest import VOCABULARY

TIME = 11


def tokens(seed=0, batch=2, time=TIME):
    return torch.randint(3, VOCABULARY, (batch, time), generator=torch.Generator().manual_seed(seed))


def outputs(model, names, run):
    """Outputs of the modules whose last name is in `names`, in call order, while `run()` runs."""
    found = []
    hooks = [
        module.register_forward_hook(lambda _module, _args, output: found.append(output))
        for path, module in model.named_modules()
        if path.rsplit(".", 1)[-1] in names
    ]
    with torch.no_grad():
        run()
    for hook in hooks:
        hook.remove()
    return found


def heads(projected, head_dim):
    """[batch, time, heads·head_dim] → [batch, heads, time, head_dim]; what already has heads keeps them."""
    split = projected if projected.ndim == 4 else projected.unflatten(-1, (-1, head_dim))
    return split if split.shape[2] == TIME else split.transpose(1, 2)


def projected_kv(model, input_ids, head_dim, **inputs):
    """K (after k_norm where there is one) and V as a decoder's own modules produce them, one tensor per layer each."""

    def run():
        model(input_ids, use_cache=False, **inputs)

    leaves = {path.rsplit(".", 1)[-1] for path, _ in model.named_modules()}
    if "query_key_value" in leaves:  # gpt_neox packs (q, k, v) inside every head
        packed = [o.unflatten(-1, (-1, 3 * head_dim)).transpose(1, 2) for o in outputs(model, {"query_key_value"}, run)]
        return [p[..., head_dim : 2 * head_dim] for p in packed], [p[..., 2 * head_dim :] for p in packed]
    if leaves & {"qkv_proj", "c_attn"}:
        config = model.config
        q = config.num_attention_heads * head_dim
        kv = getattr(config, "num_key_value_heads", config.num_attention_heads) * head_dim
        packed = outputs(model, {"qkv_proj", "c_attn"}, run)
        return [heads(p[..., q : q + kv], head_dim) for p in packed], [
            heads(p[..., q + kv :], head_dim) for p in packed
        ]
    keys = outputs(model, {"k_norm"} if "k_norm" in leaves else {"k_proj"}, run)
    return [heads(k, head_dim) for k in keys], [heads(v, head_dim) for v in outputs(model, {"v_proj"}, run)]


@contextmanager
def replaced_projections(model, keys, values, mask):
    """Llama's k_proj and v_proj of layer i return keys[i] and values[i] `[batch, kv_heads, time, head_dim]` where masked."""

    def replace(given):
        flat = given.transpose(1, 2).flatten(2)
        return lambda _module, _args, output: torch.where(mask[..., None], flat, output)

    hooks = []
    for index, layer in enumerate(model.model.layers):
        hooks.append(layer.self_attn.k_proj.register_forward_hook(replace(keys[index])))
        hooks.append(layer.self_attn.v_proj.register_forward_hook(replace(values[index])))
    yield
    for hook in hooks:
        hook.remove()
