"""Where in the chain the kept tokens stand: against the selectors' own words, and against what training puts into the slots."""

from itertools import pairwise

import numpy as np
import pandas as pd
import pytest
from classic_kv import classic
from tiny_study import TRAINING, TinyStudy

from mtkv.config.kv import KVConfig
from mtkv.config.latent import LatentConfig
from mtkv.kv.store import KVStore
from mtkv.latent.evaluation.selected_positions import COLUMNS, LatentTeaching, kept_places
from mtkv.latent.model.student import LatentStudent
from mtkv.latent.training import self_teacher as own_kv
from mtkv.latent.training import teacher_kv as latent_sources
from mtkv.latent.training.arm import latent_arm
from mtkv.latent.training.dataset import LatentArm
from mtkv.models.load import load_model, load_tokenizer, model_kv_heads

TOKENS = 4
LATENT = LatentConfig(tokens=TOKENS, iterations=2, keep_last_step=True)  # chains of these rows have one step


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    return TinyStudy(tmp_path_factory.mktemp("study"))


@pytest.fixture(scope="module")
def student(study):
    return LatentStudent.create(load_model(study.models["student"]), TOKENS, 2).eval()


def taught_by(*teachers, method="uniform", **changes):
    return KVConfig.model_validate(classic({"teachers": list(teachers), "select": {"method": method}} | changes))


def places(study, student, kv, frame=None, latent=LATENT):
    rows = pd.read_parquet(study.paths["val"]) if frame is None else frame
    teachers = study.teachers(kv) if kv else []
    return kept_places(
        student,
        load_tokenizer(study.models["student"]),
        LatentTeaching(training=TRAINING, latent=latent, kv=kv, teachers=teachers),
        rows,
    )


def chain_lengths(study, teacher):
    """Tokens of the teacher that end in the chain of each row."""
    store = KVStore(study.store(teacher))
    rows = pd.read_parquet(study.paths["val"])
    starts_ends = zip(rows["id"], rows["prompt_end"], rows["reasoning_end"], strict=True)
    return [sum(start < end <= stop for end in store.byte_end(row)) for row, start, stop in starts_ends]


@pytest.mark.parametrize("method", ["keep_first", "keep_last"])
def test_the_first_and_the_last_tokens_stand_where_they_must(study, student, method):
    table = places(study, student, taught_by("qwen3", method=method))
    lengths = chain_lengths(study, "qwen3")
    assert min(lengths) > TOKENS
    for slot in range(1, TOKENS + 1):
        ranks = [slot - 1 if method == "keep_first" else length - TOKENS + slot - 1 for length in lengths]
        expected = np.mean([(rank + 0.5) / length for rank, length in zip(ranks, lengths, strict=True)])
        part = table[table["slot"] == slot]
        assert (part["place"] * part["count"]).sum() / part["count"].sum() == pytest.approx(expected)
        assert set(part.groupby("layer")["count"].sum()) == {len(lengths) * model_kv_heads(study.models["qwen3"])}
    inside = table["place"].between(table["tenth"] / 10 - 1e-9, (table["tenth"] + 1) / 10 + 1e-9)
    assert inside.all()
    assert set(table["layer"]) == {0, 1, 2}
    assert set(table["chain_tokens"]) == {np.mean(lengths)}
    assert set(table["short"]) == {0.0}


def watched(monkeypatch, module):
    """The tokens that the module puts into slots: (layer, head, slot, rank in what was given) of every supervised slot."""
    seen, original = [], module.gather_slots

    def watch(kv, index, sample, ordinal):
        seen.append((index, sample, ordinal))
        return original(kv, index, sample, ordinal)

    monkeypatch.setattr(module, "gather_slots", watch)
    return seen


def mean_by_slot(table):
    weighted = (
        table.assign(weighted=table["place"] * table["count"]).groupby(["layer", "slot"])[["weighted", "count"]].sum()
    )
    return (weighted["weighted"] / weighted["count"]).to_dict()


@pytest.mark.parametrize("control", ["none", "shuffle_items"])
@pytest.mark.parametrize("method", ["rkv", "cosine", "random"])
def test_a_teachers_tokens_are_those_that_training_reads(study, student, monkeypatch, method, control):
    kv = taught_by("qwen3", "gpt2", method=method, control=control)
    table = places(study, student, kv)
    seen = watched(monkeypatch, latent_sources)
    rows = pd.read_parquet(study.paths["val"])
    heads = (2, [model_kv_heads(study.models[name]) for name in kv.teachers])
    true = taught_by("qwen3", "gpt2", method=method)
    tokenizer = load_tokenizer(study.models["student"])
    _, (built,) = latent_arm(
        student, tokenizer, heads, LatentArm(TRAINING, LATENT, true, 0), study.teachers(kv), [rows]
    )
    built.collate(range(len(rows)))
    for teacher, (index, sample, ordinal) in zip(kv.teachers, seen, strict=True):
        lengths = np.array(chain_lengths(study, teacher))
        expected = {}
        for row, slot in zip(sample.tolist(), ordinal.tolist(), strict=True):
            for layer, picked in enumerate(index[row, slot].tolist()):
                expected.setdefault((layer, slot + 1), []).extend((rank + 0.5) / lengths[row] for rank in picked)
        found = mean_by_slot(table[table["teacher"] == teacher])
        assert found == pytest.approx({key: np.mean(values) for key, values in expected.items()})


@pytest.mark.parametrize("method", ["rkv", "keep_last"])
def test_the_students_own_tokens_are_those_that_training_reads(study, student, monkeypatch, method):
    kv = taught_by("student", method=method, align={"map": "identity"})
    table = places(study, student, kv)
    seen = watched(monkeypatch, own_kv)
    rows = pd.read_parquet(study.paths["val"])
    tokenizer = load_tokenizer(study.models["student"])
    distiller, (built,) = latent_arm(student, tokenizer, (2, []), LatentArm(TRAINING, LATENT, kv, 0), [], [rows])
    batch = built.collate(range(len(rows)))
    distiller(**batch)
    ((index, sample, ordinal),) = seen
    expected = {}
    for row, slot in zip(sample.tolist(), ordinal.tolist(), strict=True):
        chain = batch["own_chain"][row].nonzero()[:, 0].tolist()
        for layer, picked in enumerate(index[row, slot].tolist()):
            expected.setdefault((layer, slot + 1), []).extend((chain.index(at) + 0.5) / len(chain) for at in picked)
    assert mean_by_slot(table) == pytest.approx({key: np.mean(values) for key, values in expected.items()})
    means = [
        np.mean([place for (_, one), place in mean_by_slot(table).items() if one == slot]) for slot in (1, 2, 3, 4)
    ]
    assert all(before < after for before, after in pairwise(means))


def test_short_and_absent_chains_are_counted_and_other_arms_have_no_table(study, student):
    rows = pd.read_parquet(study.paths["val"])
    gone = rows["id"].isin(rows["id"][:2])
    target = [text[text.index("\n") :] if absent else text for text, absent in zip(rows["target"], gone, strict=True)]
    frame = rows.assign(target=target, reasoning_end=rows["reasoning_end"].where(~gone, rows["prompt_end"]))
    table = places(study, student, taught_by("qwen3"), frame)
    assert (set(table["rows"]), set(table["short"])) == ({8}, {0.25})
    assert set(table.groupby(["layer", "slot"])["count"].sum()) == {6 * model_kv_heads(study.models["qwen3"])}
    many = LatentStudent.create(load_model(study.models["student"]), 60, 1).eval()
    wide = places(study, many, taught_by("qwen3"), latent=LatentConfig(tokens=60, iterations=1, keep_last_step=True))
    lengths = chain_lengths(study, "qwen3")
    assert set(wide["short"]) == {1.0}
    assert wide["slot"].max() == max(lengths)
    assert wide[wide["slot"] == max(lengths)]["count"].sum() < wide[wide["slot"] == 1]["count"].sum()
    for empty in (
        places(study, student, None),
        places(study, student, taught_by("qwen3"), latent=LATENT.model_copy(update={"keep_last_step": False})),
    ):
        assert list(empty.columns) == list(COLUMNS)
        assert empty.empty
