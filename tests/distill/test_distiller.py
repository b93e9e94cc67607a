"""The Distiller on tiny models of different families: gradients, padding, controls, fusion and the numbers it logs."""

import numpy as np
import pandas as pd
import pytest
import torch
from classic_kv import classic
from tokenizers_for_tests import byte_level_bpe, unigram

from mtkv.align.closed_form_maps import fit_map
from mtkv.config.kv import KVConfig
from mtkv.distill.controls import CONTROLS
from mtkv.distill.dataset import DistillationRows
from mtkv.distill.distiller import Distiller
from mtkv.distill.kv_objective import KVObjective
from mtkv.distill.row_match import RowMatch
from mtkv.distill.teacher_kv import TeacherKV
from mtkv.kv.extract import read_kv
from mtkv.kv.shards import StoredRow, write_shard
from mtkv.kv.store import KVStore, write_index
from mtkv.models.tokenization import encode_rows
from mtkv.training.gradient_shares import gradient_log
from mtkv.training.trainer import training_log

ROWS = pd.DataFrame(
    {
        "id": [f"r{i}" for i in range(6)],
        "dataset": ["a", "b"] * 3,
        "prompt": [f"Question: Tom has {i} apples and buys {i + 3} more.\nAnswer:" for i in range(5)]
        + ["问题:小明\n答案:"],
        "target": [f" {2 * i + 3}" for i in range(5)] + ["8"],
    }
)
TEACHERS = {"llama": byte_level_bpe, "gpt2": unigram}


@pytest.fixture
def setting(build_model, tmp_path):
    """Student (qwen3, own tokenizer) and two teachers' stores and maps."""
    tokenizer = byte_level_bpe(300)
    student = build_model("qwen3", vocab_size=len(tokenizer), max_position_embeddings=256)
    stores, maps = {}, {}
    for name, build_tokenizer in TEACHERS.items():
        theirs = build_tokenizer()
        limit = {"n_positions": 256} if name == "gpt2" else {"max_position_embeddings": 256}
        teacher = build_model(name, seed=1, vocab_size=len(theirs), **limit)
        encoded = encode_rows(theirs, ROWS["prompt"], ROWS["target"], None)
        kvs = read_kv(teacher, encoded, [0, 1, 2], 4)
        rows = [StoredRow(i, kv, e.byte_end, e.byte_start) for i, e, kv in zip(ROWS["id"], encoded, kvs, strict=True)]
        folder = tmp_path / name
        write_shard(folder / "shard-0000.safetensors", rows, [0, 1, 2])
        write_index([folder / "shard-0000.safetensors"], folder / "index.parquet")
        stores[name] = KVStore(folder)
        width = stores[name].width
        generator = torch.Generator().manual_seed(2)
        maps[name] = fit_map(
            torch.randn(200, 3, 2, width, generator=generator),
            torch.randn(200, 3, 2, 32, generator=generator),
            [0, 1, 2],
            "ridge",
            1e-3,
        )
    return tokenizer, student, stores, maps


def make(setting, teachers=("llama", "gpt2"), control="none", **kv):
    tokenizer, student, stores, maps = setting
    config = KVConfig.model_validate(classic({"teachers": list(teachers), "control": control} | kv))
    rows = DistillationRows(
        tokenizer,
        ROWS,
        [TeacherKV(stores[t], torch.eye(3), config.align.time, config.select) for t in teachers],
        control,
        seed=0,
        max_length=None,
    )
    torch.manual_seed(0)
    return Distiller(
        student,
        1.0,
        KVObjective(config, [maps[t] for t in teachers], (student.config.num_key_value_heads, [2, 4][: len(teachers)])),
    ), rows


def test_the_kv_loss_alone_reaches_every_student_layer(setting):
    distiller, rows = make(setting)
    distiller(**rows.collate([0, 1, 5]))["kv"].backward()
    for name, parameter in distiller.student.named_parameters():
        if name.endswith(("k_proj.weight", "v_proj.weight")):
            assert parameter.grad.abs().max() > 0, name


def test_ce_equals_transformers_own_loss(setting):
    distiller, rows = make(setting)
    batch = rows.collate([0, 3])
    want = distiller.student(
        input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], labels=batch["labels"]
    ).loss
    torch.testing.assert_close(distiller(**batch)["ce"], want)


def test_every_term_equals_a_loop_over_rows_layers_and_tokens(setting):
    distiller, rows = make(setting, fusion={"strategy": "fixed", "weights": [0.25, 0.75]})
    _, student, stores, maps = setting
    terms = distiller(**rows.collate([0, 2]))
    fitted = [maps["llama"], maps["gpt2"]]
    key, count = 0.0, 0
    for index in (0, 2):
        encoded, match = rows.encoded[index], rows.matches[index]
        (mine,) = read_kv(student, [encoded], [0, 1, 2], 1)
        for n, position in enumerate(match.position):
            for layer in range(3):
                mean = sum(m.y_mean[layer, 0] for m in fitted) / 2
                scale = sum(w * m.scale[layer, 0] for w, m in zip((0.25, 0.75), fitted, strict=True))
                fused = sum(
                    w
                    * (
                        (stores[t].read(ROWS["id"][index], match.tokens[i][:, 0])[n, layer, 0] - m.x_mean[layer, 0])
                        @ m.weight[layer, 0]
                    )
                    for i, (w, t, m) in enumerate(zip((0.25, 0.75), TEACHERS, fitted, strict=True))
                )
                key += float(((mine[position, layer, 0] - mean - fused) / scale).square().mean())
                count += 1
    assert float(terms["key"].detach()) == pytest.approx(key / count, rel=1e-4)
    loss = distiller.supervision.config.loss
    want = loss.lambda_k * terms["key"] + loss.lambda_v * terms["value"] + loss.beta * terms["cosine"]
    want = want + loss.gamma * terms["attention"]
    torch.testing.assert_close(terms["kv"], want)
    torch.testing.assert_close(terms["loss"], terms["ce"] + terms["kv"])


def test_more_padding_changes_no_term(setting):
    distiller, rows = make(setting, fusion={"strategy": "similarity"})
    batch = rows.collate([0, 1])
    padded = batch | {
        name: torch.nn.functional.pad(batch[name], (0, 7), value=fill)
        for name, fill in {"input_ids": 0, "attention_mask": 0, "labels": -100}.items()
    }
    with torch.no_grad():
        plain, wider = distiller(**batch), distiller(**padded)
    for name in plain:
        torch.testing.assert_close(plain[name], wider[name], atol=1e-5, rtol=1e-5)


def test_learnable_router_is_trained_and_fixed_has_no_parameters(setting):
    learnable, rows = make(setting, fusion={"strategy": "learnable"})
    learnable(**rows.collate([0, 1, 2]))["kv"].backward()
    assert learnable.supervision.router.scorer.output.weight.grad.abs().max() > 0
    fixed, _ = make(setting)
    assert list(fixed.supervision.parameters()) == []


def test_zero_weight_has_the_gradient_of_ce_alone(setting):
    distiller, rows = make(setting, control="zero_weight")
    terms = distiller(**rows.collate([0, 1]))
    assert terms["kv"].item() == 0
    assert terms["key"].item() > 0
    found = shares(distiller, terms)
    assert found.pop("share.ce") == 1.0
    assert set(found.values()) == {0.0}


def test_gaussian_targets_differ_from_the_true_ones_but_have_their_scale(setting):
    true, rows = make(setting, teachers=["llama"])
    noise, _ = make(setting, teachers=["llama"], control="gaussian")
    batch = rows.collate([0, 1])
    assert true(**batch)["key"].item() != pytest.approx(noise(**batch)["key"].item(), rel=1e-3)
    kv_map = setting[3]["llama"]
    (frozen,) = noise.supervision.maps
    drawn = noise.supervision._in_student_space(frozen, torch.zeros(4000, 3, 2, kv_map.x_mean.shape[-1]))
    torch.testing.assert_close(drawn.std(0), kv_map.channel_std * kv_map.scale[..., None], atol=0.1, rtol=0.1)


def test_gradient_shares_sum_to_one(setting):
    distiller, rows = make(setting)
    found = shares(distiller, distiller(**rows.collate([0, 1])))
    assert set(found) == {"share.ce", "share.key", "share.value", "share.cosine", "share.attention"}
    assert sum(found.values()) == pytest.approx(1)
    assert min(found.values()) > 0


def shares(distiller, terms):
    parts = {name.removeprefix("part."): value for name, value in terms.items() if name.startswith("part.")}
    return gradient_log(parts, distiller.student.parameters())


def tokens(*numbers):
    return np.array(numbers, dtype=np.int64)[:, None]


matches = [
    RowMatch(
        f"r{i}",
        np.arange(n),
        [tokens(*range(10 * i, 10 * i + n)), tokens(*range(10 * i + 5, 10 * i + 5 + n))],
        [np.ones((n, 1), dtype=np.float32)] * 2,
    )
    for i, n in enumerate((3, 0, 5, 2))
]


def test_shuffle_items_reads_another_row_and_keeps_the_positions():
    shuffled = list(CONTROLS["shuffle_items"](matches, np.random.default_rng(0)))
    for before, after in zip(matches, shuffled, strict=True):
        assert after.position.tolist() == before.position.tolist()
        if len(before.position):
            assert after.row != before.row
            partner = next(m for m in matches if m.row == after.row)
            for i in range(2):
                want = [
                    partner.tokens[i][rank % len(partner.position)].tolist() for rank in range(len(before.position))
                ]
                assert after.tokens[i].tolist() == want
    assert sorted(m.row for m in shuffled) == sorted(m.row for m in matches)


def test_shuffle_time_permutes_within_the_row_alike_for_all_teachers():
    shuffled = list(CONTROLS["shuffle_time"](matches, np.random.default_rng(1)))
    for before, after in zip(matches, shuffled, strict=True):
        assert after.row == before.row
        assert sorted(after.tokens[0]) == sorted(before.tokens[0])
        assert (after.tokens[1] - after.tokens[0] == 5).all()
    assert any(a.tokens[0].tolist() != b.tokens[0].tolist() for a, b in zip(matches, shuffled, strict=True))


def test_a_row_missing_from_a_store_is_named(setting):
    tokenizer, _, stores, _ = setting
    strange = ROWS.assign(id=[f"x{i}" for i in range(6)])
    with pytest.raises(ValueError, match="row x0"):
        DistillationRows(tokenizer, strange, [TeacherKV(stores["llama"], torch.eye(3))], "none", 0, None)


def test_training_log_is_long_and_splits_train_from_validation():
    history = [{"loss": 2.0, "learning_rate": 0.1, "ce": 1.5, "step": 10, "epoch": 1}, {"eval_ce": 1.7, "step": 10}]
    rows = training_log(history).to_dict("records")
    assert {"step": 10, "split": "val", "term": "ce", "value": 1.7} in rows
    assert {"step": 10, "split": "train", "term": "ce", "value": 1.5} in rows
    assert all(row["term"] != "epoch" for row in rows)
