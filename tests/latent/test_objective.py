"""The loss of the latent view against plain transformers calls, row by row; gradients; what each option and control changes."""

import itertools
import math
import statistics

import numpy as np
import pytest
import torch
from kv_references import outputs
from latent_setting import ROWS, TEACHERS, Setting
from torch.nn import functional as F
from transformers.models.llama import modeling_llama

from mtkv.config.kv import SelectConfig
from mtkv.kv.select import select
from mtkv.latent.training.codi_loss import codi_loss
from mtkv.latent.training.self_teacher import SelfTeacherReading

INDICES = [0, 2, 1, 3]
FUSED = {"teachers": ["llama", "gpt2"], "fusion": {"strategy": "fixed", "weights": [0.25, 0.75]}}
BY_ATTENTION = FUSED | {"select": {"method": "rkv", "rate": 0.5}, "loss": {"gamma": 0, "beta": 0}}
STUDENT_SIDE = {"align": {"map": "linear", "side": "student"}}
OWN = {"teachers": ["student"], "align": {"map": "identity"}}


@pytest.fixture
def setting(tmp_path, build_model):
    return Setting(tmp_path, build_model)


def read(student, ids, latent_start=None):
    """One row, alone: logits and hidden states `[time, _]`, K before RoPE and V `[time, layers, 2, width]`, by hand."""
    model, latent = student.model, student.latent
    x = model.get_input_embeddings()(torch.tensor(ids)[None])
    if latent_start is not None:
        begin = latent_start - 1
        own = torch.cat([latent.begin[None], latent.latents, latent.end[None]])
        x = torch.cat([x[:, :begin], own[None], x[:, begin + len(own) :]], 1)
        for _ in range(latent.iterations):
            hidden = model.model(inputs_embeds=x).last_hidden_state
            refined = latent.projection(hidden[:, begin : begin + latent.tokens])
            x = torch.cat([x[:, :latent_start], refined, x[:, latent_start + latent.tokens :]], 1)
    result = {}

    def run():
        result["out"] = model(inputs_embeds=x, output_hidden_states=True)

    keys, values = outputs(model, {"k_proj"}, run), outputs(model, {"v_proj"}, run)
    kv = torch.stack([torch.stack([k[0], v[0]], 1) for k, v in zip(keys, values, strict=True)], 1)
    return result["out"].logits[0], [h[0] for h in result["out"].hidden_states[1:]], kv


def cross_entropy(readings):
    """Mean over the target tokens of all rows: (logits, ids, is_target) each."""
    nats = [
        -logits[t - 1].log_softmax(-1)[ids[t]]
        for logits, ids, is_target in readings
        for t in range(1, len(ids))
        if is_target[t]
    ]
    return torch.stack(nats).mean()


def codi_of_layer(student, teacher):
    """smooth_l1(student, teacher) / std(teacher), element by element."""
    total = 0.0
    for a, b in zip(student.ravel().tolist(), teacher.ravel().tolist(), strict=True):
        total += 0.5 * (a - b) ** 2 if abs(a - b) < 1 else abs(a - b) - 0.5
    return total / teacher.size / statistics.stdev(teacher.ravel().tolist())


@pytest.mark.parametrize("size", [0.05, 20.0])
def test_codi_divides_the_distance_and_not_what_is_compared(size):
    """Small states lie in the square of smooth L1, large ones in its lines; either way a·L1(x, y)/std, not L1(x/std, y/std)."""
    generator = torch.Generator().manual_seed(0)
    student, teacher = ([size * torch.randn(2, 3, generator=generator) for _ in range(2)] for _ in range(2))
    want = [codi_of_layer(a.numpy(), b.numpy()) for a, b in zip(student, teacher, strict=True)]
    assert codi_loss(student, teacher).item() == pytest.approx(np.mean(want), rel=1e-5)


@torch.no_grad()
def test_every_term_equals_a_loop_over_rows_slots_layers_and_heads(setting):
    distiller, rows = setting.make(BY_ATTENTION, codi_weight=0.3, chain_weight=0.7)
    student = distiller.student
    terms = distiller(**rows.collate(INDICES))
    latent, chain, states, found, wanted = [], [], [], [], []
    for index in INDICES:
        row, trace = rows.encoded[index], rows.traces[index]
        logits, hidden, kv = read(student, row.input_ids.tolist(), row.latent_start)
        latent.append((logits, row.input_ids, row.is_target))
        text_logits, text_hidden, _ = read(student, trace.input_ids.tolist())
        chain.append((text_logits, trace.input_ids, trace.is_target))
        states.append(([h[row.value] for h in hidden], [h[trace.value] for h in text_hidden]))
        for slot, target in enumerate(slots_of(setting, rows, index)):
            found.append(kv[row.latent_start + slot])
            wanted.append(target)
    torch.testing.assert_close(terms["ce"], cross_entropy(latent))
    torch.testing.assert_close(terms["chain_ce"], cross_entropy(chain))
    distances = []
    for layer in range(3):
        mine, theirs = (torch.stack([pair[side][layer] for pair in states]) for side in (0, 1))
        distances.append(codi_of_layer(mine.numpy(), theirs.numpy()))
    assert terms["codi"].item() == pytest.approx(np.mean(distances), rel=1e-5)
    y_mean = (setting.maps["llama"].y_mean + setting.maps["gpt2"].y_mean) / 2
    scale = 0.25 * setting.maps["llama"].scale + 0.75 * setting.maps["gpt2"].scale
    gap = (torch.stack(found) - y_mean - torch.stack(wanted)) / scale[..., None]
    torch.testing.assert_close(terms["key"], gap[:, :, 0].square().mean())
    torch.testing.assert_close(terms["value"], gap[:, :, 1].square().mean())
    total = terms["ce"] + 0.7 * terms["chain_ce"] + 0.3 * terms["codi"] + terms["key"] + terms["value"]
    torch.testing.assert_close(terms["loss"], total)


def slots_of(setting, rows, index):
    """The fused targets `[layers, 2, width]` of a row's slots, each layer and head of each teacher selected alone."""
    row, prompt = ROWS["id"][index], ROWS["prompt"][index]
    chain = ROWS["target"][index].split("\n")[0]
    before_last = {0: " 3+4=7. 7-2=5.", 1: "", 2: " 8/2=4.", 3: "5+3=8。"}[index]
    assert chain.startswith(before_last)
    start, end = len(prompt.encode()), len((prompt + before_last).encode())
    ends = {t: setting.stores[t].byte_end(row) for t in TEACHERS}
    tokens = {
        t: torch.tensor([j for j, e in enumerate(ends[t]) if start < e <= end], dtype=torch.long) for t in TEACHERS
    }
    count = min(4, *(len(found) for found in tokens.values()))
    targets = torch.zeros(count, 3, 2, 16)
    for teacher, weight in zip(TEACHERS, (0.25, 0.75), strict=True):
        store, kv_map, heads = setting.stores[teacher], setting.maps[teacher], TEACHERS[teacher][1]
        kv = store.read(row, tokens[teacher].numpy()).float()
        importance = torch.as_tensor(store.importance(row)).float()[tokens[teacher]]
        width = kv.shape[-1] // heads
        picked = torch.zeros(count, *kv.shape[1:])
        for layer in range(3 if count else 0):
            for head in range(heads):
                part = slice(head * width, (head + 1) * width)
                chosen = select(
                    "rkv",
                    kv[None, None, :, layer, 0, part],
                    count,
                    torch.ones(1, len(kv), dtype=torch.bool),
                    importance=importance[None, None, :, layer, head],
                    rate=0.5,
                ).index[0, 0]
                picked[:, layer, :, part] = kv[chosen, layer, :, part]
        for layer in range(3):
            for kind in range(2):
                centred = picked[:, layer, kind] - kv_map.x_mean[layer, kind]
                targets[:, layer, kind] += weight * centred @ kv_map.weight[layer, kind]
    return targets


@pytest.mark.parametrize(("method", "unit"), [("rkv", "layer"), ("attention", "channel"), ("rkv_decode", "layer")])
def test_the_student_s_own_kv_is_selected_by_its_own_attention(setting, monkeypatch, method, unit):
    """Against attention that transformers itself gives out, one row at a time; R-KV's against the queries and keys behind it."""
    loss = {"gamma": 0, "beta": 0, "unit": unit}
    decoding = {"tokens": 11, "keep_last_step": True} if method == "rkv_decode" else {}  # more than its window of 8
    distiller, rows = setting.make(OWN | {"select": {"method": method, "rate": 0.5}, "loss": loss}, **decoding)
    model = distiller.student.model
    with torch.no_grad():  # attention far from uniform, so that picks hang on it
        for layer in model.model.layers:
            layer.self_attn.q_proj.weight *= 300
    eager, attended = modeling_llama.eager_attention_forward, []
    monkeypatch.setattr(
        modeling_llama, "eager_attention_forward", lambda *a, **k: attended.append(a[1:3]) or eager(*a, **k)
    )
    seen = []
    distiller.supervision.register_forward_pre_hook(lambda _m, args: seen.append(args))
    terms = distiller(**rows.collate(INDICES))
    (args,) = seen
    student_kv, _, (target,), _ = args[:4]
    assert not target.requires_grad
    assert student_kv.requires_grad
    model.set_attn_implementation("eager")
    wanted = []
    for index in INDICES:
        trace = rows.traces[index]
        tokens, count = rows.readers[0].kept[ROWS["id"][index]]
        if not count:
            continue
        ids = torch.tensor(trace.input_ids)[None]
        attended.clear()
        with torch.no_grad():
            weights = model(ids, output_attentions=True).attentions
            asked = list(attended)
            _, _, kv = read(distiller.student, trace.input_ids.tolist())
        asking = [t for t in range(len(trace.input_ids)) if trace.is_target[t] and t > tokens.max()]
        picked = torch.zeros(count, 3, 2, 16)
        for layer in range(3):
            for head in range(2):
                group = slice(2 * head, 2 * head + 2)
                importance = weights[layer][0, group, asking].amax(0).mean(0)[tokens]
                if method == "rkv_decode":
                    queries, keys = asked[layer]
                    logits = queries[0, group, tokens[-8:]] @ keys[0, head, tokens[:-8]].T / math.sqrt(8)
                    importance = F.pad(logits.amax(0).softmax(-1).mean(0), (0, min(8, len(tokens))))
                part = slice(8 * head, 8 * head + 8)
                chosen = select(
                    method,
                    kv[None, None, tokens, layer, 0, part],
                    count,
                    torch.ones(1, len(tokens), dtype=torch.bool),
                    importance=importance[None, None],
                    rate=0.5,
                ).index[0, 0]
                picked[:, layer, :, part] = kv[tokens[chosen], layer, :, part]
        wanted.append(picked)
    wanted = torch.cat(wanted)
    torch.testing.assert_close(target, wanted, atol=1e-5, rtol=1e-4)
    channel = (wanted - wanted.mean(0)).square().mean(0).sqrt()
    spread = channel if unit == "channel" else channel.square().mean(-1, keepdim=True).sqrt()
    gap = ((student_kv - wanted) / spread).square().mean((0, 1, 3))
    torch.testing.assert_close(torch.stack([terms["key"], terms["value"]]), gap, atol=1e-5, rtol=1e-4)


def gradients(distiller, loss):
    distiller.zero_grad()
    loss.backward()
    return {name: parameter.grad for name, parameter in distiller.student.named_parameters()}


@pytest.mark.parametrize("kv", [{}, FUSED, STUDENT_SIDE, OWN], ids=["one", "fused", "student side", "own"])
def test_the_kv_loss_alone_reaches_every_layer_the_latents_and_the_projection(setting, kv):
    distiller, rows = setting.make(kv)
    found = gradients(distiller, distiller(**rows.collate(INDICES))["kv"])
    for name, gradient in found.items():
        if name.endswith(("k_proj.weight", "v_proj.weight")) or name.startswith(("latent.latents", "latent.begin")):
            assert gradient.abs().max() > 0, name
        if name.startswith("latent.projection") and name.endswith("weight"):
            assert gradient.abs().max() > 0, name


def test_checkpointing_changes_no_gradient(setting):
    found = []
    for checkpointing in (False, True):
        distiller, rows = setting.make(OWN | {"select": {"method": "rkv"}}, codi_weight=1)
        distiller.train()
        if checkpointing:
            distiller.student.model.gradient_checkpointing_enable({"use_reentrant": False})
        found.append(gradients(distiller, distiller(**rows.collate(INDICES))["loss"]))
    for name, gradient in found[0].items():
        torch.testing.assert_close(gradient, found[1][name], msg=name)


def test_codi_teaches_the_latent_pass_and_not_the_other(setting):
    """Without latents both passes share all weights; the pass with the chain is a fixed target."""
    distiller, rows = setting.make(None, codi_weight=1, chain_weight=0)
    terms = distiller(**rows.collate(INDICES))
    assert "chain_ce" not in terms
    student, teacher = ([torch.randn(4, 8, requires_grad=True) for _ in range(2)] for _ in range(2))
    codi_loss(student, teacher).backward()
    assert all(part.grad is not None for part in student)
    assert all(part.grad is None for part in teacher)
    assert gradients(distiller, terms["codi"])["latent.latents"].abs().max() > 0


LOSSES = {
    "chain_weight": {"chain_weight": 0.0},
    "codi_weight": {"codi_weight": 2.0},
    "tokens": {"tokens": 3},
    "iterations": {"iterations": 1},
    "markers": {"markers": False},
    "projection": {"projection": False},
    "keep_last_step": {"keep_last_step": True},
    "teachers": {"kv": FUSED},
    "own": {"kv": OWN},
    "side": {"kv": STUDENT_SIDE},
    "elastic": {"kv": {"align": {"map": "elastic"}}},
    "z_space": {"kv": {"align": {"map": "z_space"}}},
    "relation": {"kv": {"loss": {"distance": "relation"}}},
    "smooth_l1": {"kv": {"loss": {"distance": "smooth_l1"}}},
    "no attention term": {"kv": {"loss": {"gamma": 0}}},
    "cosine": {"kv": {"select": {"method": "cosine"}}},
    "attention": {"kv": {"select": {"method": "attention"}}},
    "random": {"kv": {"select": {"method": "random"}}},
    "keep_last": {"kv": {"select": {"method": "keep_last"}}, "tokens": 10},
    "rkv_decode": {"kv": {"select": {"method": "rkv_decode"}}, "tokens": 10},  # which keeps the last 8
    "budget": {"kv": {"select": {"method": "uniform", "budget": 2}}},
    "similarity": {"kv": FUSED | {"fusion": {"strategy": "similarity"}}},
    "learnable": {"kv": FUSED | {"fusion": {"strategy": "learnable"}}},
    "injected_ce": {"kv": FUSED | {"fusion": {"strategy": "learnable", "objective": "injected_ce"}}},
    "shuffle_items": {"kv": {"control": "shuffle_items"}},
    "shuffle_time": {"kv": {"control": "shuffle_time"}},
    "gaussian": {"kv": {"control": "gaussian"}},
    "zero_weight": {"kv": {"control": "zero_weight"}},
}


def differ(ours, theirs):
    """Whether two sets of loss terms differ by more than rounding does: a small term does not show in the sum of all."""
    return ours.keys() != theirs.keys() or any(
        value != pytest.approx(theirs[name], rel=1e-4) for name, value in ours.items()
    )


def test_every_option_changes_the_loss(setting):
    found = {}
    for name, options in {"base": {}, **LOSSES}.items():
        distiller, rows = setting.make(options.get("kv", {}), **{k: v for k, v in options.items() if k != "kv"})
        terms = distiller(**rows.collate(INDICES))
        found[name] = {term: float(value.detach()) for term, value in terms.items() if value.ndim == 0}
    assert all(math.isfinite(value) for terms in found.values() for value in terms.values())
    alike = [pair for pair in itertools.combinations(found, 2) if not differ(*(found[name] for name in pair))]
    assert alike == [], found


def test_zero_weight_and_projector_only_leave_the_student_alone(setting):
    for kv in ({"control": "zero_weight"}, STUDENT_SIDE | {"control": "projector_only"}):
        distiller, rows = setting.make(kv)
        distiller(**rows.collate(INDICES))["kv"].backward()
        touched = [p for p in distiller.student.parameters() if p.grad is not None and p.grad.abs().max() > 0]
        assert touched == []
        moved = [p for p in distiller.supervision.parameters() if p.grad is not None and p.grad.abs().max() > 0]
        assert bool(moved) == (kv["control"] == "projector_only")


@pytest.mark.parametrize("control", ["shuffle_items", "shuffle_time", "gaussian"])
def test_controls_of_the_own_kv(setting, control):
    """Another row's chain is read in a pass of its own; the order is that of the match; noise has the batch's spread."""
    true, rows = setting.make(OWN, keep_last_step=True)
    wrong, other = setting.make(OWN | {"control": control}, keep_last_step=True)
    wanted, found = [], []
    for distiller, kept in ((true, wanted), (wrong, found)):
        distiller.supervision.register_forward_pre_hook(lambda _m, args, kept=kept: kept.append(args[2][0]))
    true(**rows.collate(range(5)))
    terms = wrong(**other.collate(range(5)))
    if control == "gaussian":
        assert torch.equal(wanted[0], found[0])
        assert not torch.equal(terms["key"], true(**rows.collate(range(5)))["key"])
        return
    place = {match.row: number for number, match in enumerate(rows.matches)}
    starts = torch.tensor([0, *[len(match.position) for match in rows.matches]]).cumsum(0)
    from_true = [starts[place[match.row]] + torch.from_numpy(match.tokens[0][:, 0]) for match in other.matches]
    torch.testing.assert_close(found[0], wanted[0][torch.cat(from_true)])
    assert not torch.equal(found[0], wanted[0])


def test_the_own_reading_needs_no_gradient_and_leaves_the_chain_s_loss_as_it_is(setting):
    with_kv, rows = setting.make(OWN)
    without, plain = setting.make(None)
    assert torch.equal(with_kv(**rows.collate([0, 2]))["chain_ce"], without(**plain.collate([0, 2]))["chain_ce"])
    reading = SelfTeacherReading(
        with_kv.student.model, SelectConfig(method="uniform"), torch.zeros(1, 3), torch.zeros(1, 3)
    )
    assert not reading.done


def test_validation_without_gradient_gives_the_same_terms(setting):
    distiller, rows = setting.make(OWN | {"select": {"method": "attention"}}, codi_weight=1)
    with torch.no_grad():
        quiet = distiller(**rows.collate(INDICES))
    for name, term in distiller(**rows.collate(INDICES)).items():
        torch.testing.assert_close(quiet[name], term, msg=name)


def test_a_batch_without_any_target_trains_on_its_text(setting):
    distiller, rows = setting.make({})
    terms = distiller(**rows.collate([1]))
    assert float(terms["key"]) == 0
    terms["loss"].backward()


@pytest.mark.parametrize("kv", [None, BY_ATTENTION, STUDENT_SIDE, OWN], ids=["none", "fused", "student side", "own"])
def test_under_autocast_terms_and_gradients_are_those_of_full_precision_but_for_rounding(setting, kv):
    """As training in bfloat16 runs on a GPU (transformers' Trainer refuses it on a CPU)."""
    distiller, rows = setting.make(kv, codi_weight=0.5)
    batch, found, directions = rows.collate(INDICES), {}, {}
    for dtype in (torch.float32, torch.bfloat16):
        with torch.autocast("cpu", dtype, enabled=dtype == torch.bfloat16):
            found[dtype] = distiller(**batch)
        directions[dtype] = gradients(distiller, found[dtype]["loss"])
    exact, rounded = found.values()
    assert exact.keys() == rounded.keys() >= {"ce", "chain_ce", "codi"}
    for name in {"ce", "chain_ce", "codi", "key", "value"} & exact.keys():
        assert rounded[name].dtype == torch.float32
        assert float(rounded[name].detach()) == pytest.approx(float(exact[name].detach()), rel=0.03), name
    assert rounded["ce"] != exact["ce"]  # it did compute in another format
    for name, gradient in directions[torch.float32].items():
        other = directions[torch.bfloat16][name]
        assert (gradient is None) == (other is None), name
        if gradient is not None and gradient.norm() > 1e-3:
            assert torch.cosine_similarity(gradient.flatten(), other.flatten(), dim=0) > 0.98, name
