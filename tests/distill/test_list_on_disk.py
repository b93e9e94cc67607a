"""Rows on disk instead of in memory: the same batches, the same training, to the bit, and memory that does not grow with them."""

import gc
import os
import re
import tempfile
import tracemalloc
from dataclasses import fields
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from forked import Forked
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from tiny_study import TRAINING, TinyStudy, job, kv, same, weights
from tokenizers_for_tests import byte_level_bpe

from mtkv.align.closed_form_maps import KVMap
from mtkv.checkpointing.store import Checkpoint
from mtkv.config.errors import ConfigError
from mtkv.config.study import load_study
from mtkv.data.rows import RowFile, check_files, check_rows
from mtkv.distill import list_on_disk
from mtkv.distill.controls import partners
from mtkv.distill.dataset import DistillationRows
from mtkv.distill.list_on_disk import ListOnDisk
from mtkv.distill.teacher_kv import open_sources
from mtkv.models.load import load_tokenizer
from mtkv.provenance.files import write_parquet
from mtkv.stages import train, train_worker
from mtkv.training import launcher as launch
from mtkv.training import resume
from mtkv.training.checkpointing import CheckpointPolicy
from mtkv.training.data_parallel import collate_share
from mtkv.training.world_layout import WorldLayout

ON_DISK = WorldLayout(stream=True)
CONFIG = Path(__file__).parents[2] / "config" / "config.yaml"
SHORT = TRAINING.model_copy(update={"steps": 4, "eval_steps": 3, "eval_rows": 4, "logging_steps": 3})
ARMS = {
    "sft": None,
    "two teachers": kv(),
    "overlap": kv(align={"time": "overlap"}),
    "resample": kv(align={"time": "resample"}),
    "shuffle_items": kv(control="shuffle_items"),
    "shuffle_time": kv(control="shuffle_time"),
    "gaussian": kv(control="gaussian"),
    "rkv": kv(select={"method": "rkv", "budget": 5}),
    "random": kv(select={"method": "random", "budget": 0.5}, control="shuffle_items"),
}


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    return TinyStudy(tmp_path_factory.mktemp("study"))


def both_ways(study, arm, tier="raw", path=None, piece=5, limit=None, seed=7):
    """The rows of an arm in memory and on disk; each with sources of its own."""
    tokenizer = load_tokenizer(study.models["student"])
    path = path or study.paths["train"]
    frame = pd.read_parquet(path).head(limit or 10**6)
    found = []
    for rows in (frame, RowFile(path, None, limit, piece)):
        files = study.teachers(arm, tier) if arm else []
        sources = open_sources(files, [KVMap.load(file.map) for file in files], arm, frame, 4)
        found.append(DistillationRows(tokenizer, rows, sources, arm.control if arm else "none", seed, None))
    return found


def same_tables(one, other):
    tables = ("training.parquet", "routing.parquet")
    return all(pd.read_parquet(one / name).equals(pd.read_parquet(other / name)) for name in tables)


def assert_equal(one, other):
    """Tensors, arrays, lists of them and plain values: the same types, shapes and bits."""
    assert type(one) is type(other)
    if isinstance(one, torch.Tensor):
        assert one.dtype == other.dtype
        assert torch.equal(one.nan_to_num(-7), other.nan_to_num(-7))
    elif isinstance(one, np.ndarray):
        assert (one.dtype, one.shape, one.tobytes()) == (other.dtype, other.shape, other.tobytes())
    elif isinstance(one, dict):
        assert one.keys() == other.keys()
        for name in one:
            assert_equal(one[name], other[name])
    elif isinstance(one, list):
        assert len(one) == len(other)
        for mine, theirs in zip(one, other, strict=True):
            assert_equal(mine, theirs)
    else:
        assert one == other


def assert_same_rows(memory, disk):
    assert len(memory) == len(disk) > 0
    assert list(memory.ids) == list(disk.ids)
    assert list(memory.datasets) == list(disk.datasets)
    assert list(memory.lengths) == list(disk.lengths)
    assert list(memory.supervised) == list(disk.supervised)
    for kind in ("encoded", "matches"):
        assert len(getattr(memory, kind)) == len(getattr(disk, kind))
        for mine, theirs in zip(getattr(memory, kind), getattr(disk, kind), strict=True):
            for field in fields(mine):
                assert_equal(getattr(mine, field.name), getattr(theirs, field.name))
    for source, other in zip(memory.sources, disk.sources, strict=True):
        assert getattr(source, "seen", None) == getattr(other, "seen", None)


@pytest.mark.parametrize("arm", ARMS)
def test_rows_matches_and_batches_are_those_in_memory(study, arm):
    memory, disk = both_ways(study, ARMS[arm])
    assert_same_rows(memory, disk)
    everything = list(range(len(memory)))
    for batch in (everything, everything[::-3], [5, 5, 0]):
        assert_equal(memory.collate(batch), disk.collate(batch))
        for process in range(3):
            assert_equal(collate_share(memory, process, 3, batch), collate_share(disk, process, 3, batch))


def test_the_mapped_tier_is_read_alike(study):
    memory, disk = both_ways(study, kv(), tier="mapped")
    assert_same_rows(memory, disk)
    assert_equal(memory.collate([3, 1, 20]), disk.collate([3, 1, 20]))


@pytest.mark.parametrize("piece", [1, 23, 24, 25])
def test_where_a_piece_ends_changes_nothing(study, piece):
    assert_same_rows(*both_ways(study, kv(control="shuffle_time"), piece=piece))


def test_rows_without_a_match_keep_to_themselves_in_the_wrong_items(study):
    memory, disk = both_ways(study, ARMS["shuffle_items"])
    counts = np.array(memory.supervised)
    rng = np.random.default_rng(3)
    unmatched = np.where(rng.random(50) < 0.4, 0, rng.integers(1, counts.max(), 50))
    partner = partners(unmatched, np.random.default_rng(9))
    usable = [index for index, count in enumerate(unmatched) if count]
    order = np.random.default_rng(9).permutation(usable)  # the draw that the control is documented to make
    assert {int(a): int(b) for a, b in zip(order, np.roll(order, 1), strict=True)} == {
        index: int(partner[index]) for index in usable
    }
    assert all(partner[index] == index for index in range(50) if not unmatched[index])
    assert all(partner[index] != index for index in usable)
    assert [match.row for match in disk.matches] == [match.row for match in memory.matches] != list(memory.ids)


def test_no_row_matched_is_said_as_in_memory(study, tmp_path):
    frame = pd.DataFrame({"id": ["train-0"], "dataset": ["a"], "prompt": [""], "target": ["Q"]})
    write_parquet(tmp_path / "rows.parquet", frame)
    arm = kv()
    files = study.teachers(arm)
    sources = open_sources(files, [KVMap.load(file.map) for file in files], arm, frame, 4)
    for rows in (frame, RowFile(tmp_path / "rows.parquet")):
        with pytest.raises(ValueError, match="no token of any row is matched"):
            DistillationRows(load_tokenizer(study.models["student"]), rows, sources, "none", 0, None)


@pytest.mark.parametrize("arm", ["sft", "shuffle_items", "rkv"])
def test_a_training_gives_the_same_model_log_and_facts(study, arm):
    fusion = {} if ARMS[arm] is None else {"fusion": {"strategy": "learnable"}}
    config = ARMS[arm] and ARMS[arm].model_validate(ARMS[arm].model_dump() | fusion)
    memory, facts = study.train(f"{arm}-memory", config)
    disk, same_facts = study.train(f"{arm}-disk", config, layout=ON_DISK)
    assert same(weights(memory), weights(disk))
    assert same_tables(memory, disk)
    assert facts | {"train_seconds": 0} == same_facts | {"train_seconds": 0}


class CutOffError(Exception):
    """What ends a training here where a signal would."""


def cut_off(self, args, state, control, **_):
    if state.global_step == 2:
        raise CutOffError


def test_a_training_that_was_cut_off_goes_on_to_the_same_model(study, tmp_path):
    arm = kv(control="shuffle_time")
    undisturbed, facts = study.train("undisturbed", arm, training=SHORT)

    def start():
        with Checkpoint(tmp_path, {"stage": "arms"}, {"study": "tiny", "stage": "arms"}) as checkpoint:
            return study.train("cut", arm, training=SHORT, policy=CheckpointPolicy(checkpoint, steps=1), layout=ON_DISK)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(resume.Pace, "on_step_begin", cut_off, raising=False)
        with pytest.raises(CutOffError):
            start()
    output, resumed_facts = start()
    assert resumed_facts["resumed_at"] == [2]
    assert same(weights(undisturbed), weights(output))
    assert same_tables(undisturbed, output)
    assert facts["supervised_share"] == resumed_facts["supervised_share"]


def test_arms_that_keep_their_rows_in_memory_are_refused(study):
    with pytest.raises(NotImplementedError, match=r"online .* resources.train.stream false"):
        study.train("online", kv(), tier="online", layout=ON_DISK)


# How it is asked for


def launched(study, folder, monkeypatch, **asked):
    """One run of SFT through the launch of a study; other processes are forks, and rows in memory an error where `stream` is asked for."""
    if asked.get("stream"):
        monkeypatch.setattr(train, "rows_of", None)
    monkeypatch.chdir(folder)
    monkeypatch.setattr(launch, "start", lambda command, variables: Forked(command, variables, folder / "words.txt"))
    of_study = job(
        params={"study": "t", "code": "0", "arm": "sft"},
        wildcards={"arm": "sft", "seed": "42"},
        input=[str(study.paths["train"])],
        output=[str(folder / "model")],
        log=[str(folder / "log")],
        resources=asked,
    )
    return folder, train_worker.train(of_study, study.run(folder, training=SHORT))


def test_the_resource_reaches_one_process_and_several(study, tmp_path, monkeypatch):
    plain, facts = study.train("plain", training=SHORT)
    for name, asked in {"one": {}, "two": {"strategy": "ddp", "workers": 2}}.items():
        (tmp_path / name).mkdir()
        output, streamed = launched(study, tmp_path / name, monkeypatch, stream=1, **asked)
        assert streamed["tokens"] == facts["tokens"]
        for tensor, value in weights(plain).items():
            torch.testing.assert_close(weights(output)[tensor], value, rtol=0, atol=1e-5 if asked else 0)


def study_with(stream, arm, mode="stored"):
    config = yaml.safe_load(CONFIG.read_text(encoding="utf-8"))
    training = {"steps": 5, "styles": ["cot"]}
    config["arms"] = {"sft": {"training": training}, "new": {"training": training} | arm}
    config["teachers"]["mode"] = mode
    config["resources"] = {"train": {"stream": stream}}
    return config | {"comparison": {"baseline": "sft"}, "claims": {}}


@pytest.mark.parametrize(
    ("arm", "mode", "word"),
    [
        ({"student_view": "latent"}, "stored", "latent"),
        ({"kv": {"teachers": ["qwen2"]}}, "online", "read along"),
    ],
)
def test_a_study_that_cannot_be_streamed_is_refused_before_it_begins(arm, mode, word):
    assert not load_study(study_with(False, arm, mode)).resources.train.stream
    assert load_study(study_with(True, {"kv": {"teachers": ["qwen2"]}})).resources.train.stream
    with pytest.raises(ConfigError, match=rf"resources.train.stream: true, but arm 'new' .*{word}.*allowed: false"):
        load_study(study_with(True, arm, mode))


# What is read


def test_a_file_is_read_in_pieces_of_its_styles_up_to_a_limit(tmp_path):
    rng = np.random.default_rng(0)
    frame = pd.DataFrame({"id": [f"r{i}" for i in range(40)], "style": rng.choice(["cot", "direct", "other"], 40)})
    frame["prompt"], frame["target"], frame["question"] = "q", "a", "not needed"
    write_parquet(tmp_path / "rows.parquet", frame)
    for styles in (None, ["cot"], ["cot", "other"], []):
        chosen = frame if styles is None else frame[frame["style"].isin(styles)]
        for limit in (None, 1, 7, 12, 99):
            pieces = list(RowFile(tmp_path / "rows.parquet", styles, limit, 6).pieces())
            wanted = list(chosen["id"])[: limit or 99]
            assert [row for piece in pieces for row in piece["id"]] == wanted
            assert all(0 < len(piece) <= 6 and list(piece.index) == list(range(len(piece))) for piece in pieces)
            assert all("question" not in piece for piece in pieces)


@pytest.mark.parametrize("change", [{"id": {3: "v0"}}, {"id": {15: "t1"}}, {"target": {11: " \n"}}, {}])
def test_rows_are_checked_over_pieces_and_files_as_they_are_together(tmp_path, change):
    frame = pd.DataFrame({"id": [f"t{i}" for i in range(16)], "prompt": "q", "target": "a"})
    for column, values in change.items():
        for place, value in values.items():
            frame.loc[place, column] = value
    other = pd.DataFrame({"id": ["v0", "v1"], "prompt": "q", "target": "a"})
    for name, rows in (("t", frame), ("v", other)):
        write_parquet(tmp_path / name, rows)
    files = [RowFile(tmp_path / name, piece=4) for name in "tv"]
    try:
        check_rows(pd.concat([frame, other]), "here")
    except ValueError as error:
        with pytest.raises(ValueError, match=f"^{re.escape(str(error))}$"):
            check_files(files, "here")
    else:
        assert not change
        check_files(files, "here")


def test_a_row_that_cannot_be_read_is_found_in_its_file(tmp_path):
    frame = pd.DataFrame({"id": [f"t{i}" for i in range(9)], "dataset": "d", "prompt": "q", "target": "a" * 3})
    frame.loc[7, "target"] = "a b c " * 20
    write_parquet(tmp_path / "rows", frame)
    with pytest.raises(ValueError, match=r"row number 1 has .* tokens") as caught:
        DistillationRows(byte_level_bpe(300), RowFile(tmp_path / "rows", piece=3), [], "none", 0, 40)
    assert "from number 6 of" in caught.value.__notes__[0]
    assert "'t6'" in caught.value.__notes__[0]


# Where it lies

RECORDS = st.dictionaries(
    st.text("abc.01", min_size=1),
    arrays.arrays(
        st.sampled_from([np.int64, np.int32, np.float32, np.float64, np.bool_, np.uint8]),
        arrays.array_shapes(min_dims=1, max_dims=3, min_side=0, max_side=4),
    ),
    min_size=1,
    max_size=4,
)


@settings(max_examples=40)
@given(st.lists(RECORDS, max_size=5), st.randoms())
def test_arrays_come_back_in_any_order_to_the_bit(records, random):
    transposed = [{name: value.T for name, value in record.items()} for record in records[1::2]]
    found = ListOnDisk()
    for part in (records, [], transposed):
        found.extend(iter(part))
    wanted = [*records, *transposed]
    assert len(found) == len(wanted)
    assert [each.keys() for each in found] == [each.keys() for each in wanted]
    for number in random.sample(range(len(wanted)), len(wanted)):
        for name, value in wanted[number].items():
            assert_equal(found[number][name], value)
            assert found[number][name].flags.writeable


def test_more_items_than_are_written_at_once(monkeypatch):
    monkeypatch.setattr(list_on_disk, "BATCH", 3)
    found = ListOnDisk()
    for first in (0, 7):
        found.extend(range(first, first + 7))
    assert list(found) == list(range(14))
    assert found[-1] == 13
    with pytest.raises(IndexError):
        found[14]


def test_the_file_has_no_name_and_goes_with_its_list(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    found = ListOnDisk()
    found.extend([np.zeros(1000)])
    assert len(found) == 1
    assert list(tmp_path.iterdir()) == []
    descriptor = found._file.fileno()
    assert os.fstat(descriptor).st_size > 8000
    del found
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(descriptor)


def test_a_full_disk_is_said(monkeypatch):
    with open("/dev/full", "wb", buffering=0) as full:
        monkeypatch.setattr(tempfile, "TemporaryFile", lambda prefix: full)
        with pytest.raises(OSError, match="No space left"):
            ListOnDisk().extend([np.zeros(100_000)])


def test_forked_readers_do_not_disturb_each_other():
    found = ListOnDisk()
    found.extend(np.full(50, number) for number in range(200))
    assert len(found) == 200
    loader = torch.utils.data.DataLoader(range(200), num_workers=2, batch_size=1, collate_fn=lambda i: found[i[0]])
    assert [int(array[0]) for array in loader] == list(range(200))


def test_memory_does_not_grow_with_the_tokens_of_the_rows(study, tmp_path):
    """Bytes that numpy and Python hold for each row."""
    base = pd.read_parquet(study.paths["train"])
    held = {}
    for count in (60, 260):
        frame = pd.concat([base] * (count // len(base) + 1), ignore_index=True).head(count)
        frame["id"] = [f"row-{i}" for i in range(count)]
        write_parquet(tmp_path / "rows.parquet", frame)
        for way, rows in (("memory", frame), ("disk", RowFile(tmp_path / "rows.parquet", piece=30))):
            tokenizer = load_tokenizer(study.models["student"])
            gc.collect()
            tracemalloc.start()
            made = DistillationRows(tokenizer, rows, [], "none", 0, None)
            gc.collect()
            held[way, count] = tracemalloc.get_traced_memory()
            tracemalloc.stop()
            assert len(made) == count
            del made
    grown = {
        way: [(more - less) / 200 for more, less in zip(held[way, 260], held[way, 60], strict=True)]
        for way in ("memory", "disk")
    }
    assert (
        max(grown["disk"]) < 150
    )  # bytes a row, afterwards and at the peak: its place, length and dataset, and some noise
    assert min(grown["memory"]) > 1000
