"""What a student says when its cached KV are corrected, written without caches, left padding or hooks on them.

The prompt but for its last token stands in the row twice. The first copy is read as ever. The second, at the same positions, has the
corrected K and V in place of its own (`KVInjection`) and is all that the rest of the row sees. One row, one forward.
"""

import torch

from mtkv.kv.capture import KVCapture
from mtkv.kv.patch import KVInjection


@torch.no_grad()
def own_kv(model, ids):
    """K before RoPE and V [time, layers, 2, width] of a text read alone."""
    with KVCapture(model) as capture:
        model.base_model(input_ids=torch.tensor([list(ids)]), use_cache=False)
        pairs = zip(capture.keys(), capture.values(), strict=True)
        return torch.stack(
            [torch.stack([x[0].transpose(0, 1).flatten(1) for x in pair], 1) for pair in pairs], 1
        ).float()


@torch.no_grad()
def tail_logits(model, read, tail, correction):
    """Logits [tail, vocabulary] behind the ids `read`, with KV corrected by `correction` [read, layers, 2, width], at the ids `tail`."""
    n, time = len(read), 2 * len(read) + len(tail)
    position = torch.tensor([*range(n), *range(n), *range(n, n + len(tail))])
    place = torch.arange(time)
    copy, last = (place >= n) & (place < 2 * n), place >= 2 * n
    sees = position[:, None] >= position[None]
    sees &= torch.where(last[:, None], copy | last, (place < n)[None] & ~copy[:, None])
    sees |= copy[:, None] & (place[:, None] - n == place[None])  # a copy sees something, which nobody reads
    given = torch.zeros(1, time, *correction.shape[1:])
    given[0, n : 2 * n] = own_kv(model, read) + correction
    window = getattr(model.config, "sliding_window", None)
    near = position[:, None] - position[None] < window if window else torch.ones_like(sees)
    masks = {
        kind: torch.zeros(1, 1, time, time).masked_fill(~allowed, torch.finfo(torch.float32).min)
        for kind, allowed in (("full_attention", sees), ("sliding_attention", sees & near))
    }
    kinds = set(getattr(model.config, "layer_types", None) or [])
    mask = masks if len(kinds) > 1 else masks["sliding_attention" if window else "full_attention"]
    with KVInjection(model, given, copy[None]):
        ids = torch.tensor([[*read, *read, *tail]])
        out = model(input_ids=ids, position_ids=position[None], attention_mask=mask, use_cache=False)
    return out.logits[0, 2 * n :]


@torch.no_grad()
def correction_of(fuser, student, tokenizer, teachers, text, given_text=None):
    """(ids of the prompt, correction [ids − 1, layers, 2, width]) of plain ASCII text, read alone by everybody; `given_text`: what the
    teachers read instead, whose r-th matched token then speaks for the text's r-th."""
    ids, positions, _ = _matched(tokenizer, teachers, text)
    _, theirs, kvs = _matched(tokenizer, teachers, given_text or text)
    picked = [kv[[theirs[r % len(theirs)][i + 1] for r in range(len(positions))]] for i, kv in enumerate(kvs)]
    own = own_kv(student, ids[:-1])
    at = [position[0] for position in positions]
    layered = [
        torch.einsum("ntkw,st->nskw", kv, kv_map.layer_weights)
        for kv, kv_map in zip(picked, fuser.kv_maps, strict=True)
    ]
    found, _ = fuser(own[at], torch.zeros(len(at), dtype=torch.long), layered, 1)
    whole = torch.zeros_like(own)
    whole[at] = found
    return ids, whole


def _matched(tokenizer, teachers, text):
    """Ids, (student token, token of each teacher) of every synchronised place before the last, and each teacher's KV of its own reading."""
    mine = tokenizer(text, return_offsets_mapping=True)
    ends = [end for _, end in mine["offset_mapping"]]
    others, kvs = [], []
    for model, their_tokenizer in teachers:
        read = their_tokenizer(text, return_offsets_mapping=True, add_special_tokens=False)
        first = their_tokenizer("x")["input_ids"][0]
        ahead = [first] if first in their_tokenizer.all_special_ids else []
        others.append([0] * len(ahead) + [end for _, end in read["offset_mapping"]])
        kvs.append(own_kv(model, [*ahead, *read["input_ids"]]))
    places = [
        (place, *(their.index(end) for their in others))
        for place, end in enumerate(ends[:-1])
        if place > 0 and all(end in their[1:] for their in others)
    ]
    return mine["input_ids"], places, kvs
