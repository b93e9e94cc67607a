"""The store gives back what was written, from disk as it is needed, notices damage, and survives killed extractions."""

import ctypes
import mmap
import multiprocessing
import os
import random
import signal
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
import transformers
from safetensors.torch import save_file
from tokenizers_for_tests import byte_level_bpe

from mtkv.config.models import ModelConfig
from mtkv.kv import extract, row_statistics, shards
from mtkv.kv.extract import StorePlan, extract_shard, read_kv, read_rows
from mtkv.kv.row_statistics import ROW_STATISTICS, next_entropy
from mtkv.kv.shards import StoredRow, write_mapped, write_shard
from mtkv.kv.store import KVStore, MappedStore, mapped_rows, write_index
from mtkv.models.tokenization import EncodedRow
from mtkv.provenance.digest import file_digest

GPT2 = ModelConfig(name="gpt2")
LENGTHS = [4, 1, 7, 3]
LAYERS = [0, 4]


def index(folder, count):
    paths = [folder / f"shard-{i:04d}.safetensors" for i in range(count)]
    return write_index(paths, folder / "index.parquet")


@pytest.fixture
def raw(tmp_path):
    rows = [
        StoredRow(
            f"row-{i}",
            torch.randn(n, 2, 2, 6).half(),
            np.arange(n, dtype=np.int32) + 1,
            np.arange(n, dtype=np.int32),
            {"likelihood": -0.5 * i, "entropy": 0.25 * i},
            torch.rand(n, 2, 3).half(),
        )
        for i, n in enumerate(LENGTHS)
    ]
    write_shard(tmp_path / "shard-0000.safetensors", rows[:3], LAYERS)
    write_shard(tmp_path / "shard-0001.safetensors", rows[3:], LAYERS)
    facts = index(tmp_path, 2)
    assert (facts["rows"], facts["tokens"]) == (4, sum(LENGTHS))
    return tmp_path, rows


def encoded_rows(lengths, targets=3):
    rng = np.random.default_rng(0)
    return [
        EncodedRow(
            rng.integers(3, 64, n),
            np.arange(n, dtype=np.int32) - 1,
            np.arange(n, dtype=np.int32),
            np.arange(n) >= n - targets,
        )
        for n in lengths
    ]


def test_every_row_comes_back(raw):
    folder, rows = raw
    opened = KVStore(folder, verify=True, statistics=["entropy", "likelihood"])
    assert opened.layers == LAYERS
    assert opened.width == 6
    for row in rows:
        assert row.id in opened
        assert opened.byte_start(row.id).tolist() == row.byte_start.tolist()
        assert opened.byte_end(row.id).tolist() == row.byte_end.tolist()
        assert opened.statistics(row.id) == row.statistics
        assert opened.importance(row.id).tolist() == row.importance.tolist()
        assert torch.equal(opened.read(row.id, np.arange(len(row.kv))), row.kv)
    picked = np.array([6, 0, 6])
    assert torch.equal(opened.read("row-2", picked), rows[2].kv[picked])
    batch = opened.read_batch(["row-3", "row-2"], [np.array([1]), picked])
    assert torch.equal(batch, torch.cat([rows[3].kv[[1]], rows[2].kv[picked]]))
    written = pd.read_parquet(folder / "index.parquet")[["likelihood", "entropy"]]
    assert written.to_dict("records") == [row.statistics for row in rows]


def test_what_was_not_stored_is_named(tmp_path):
    rows = [StoredRow("a", torch.zeros(2, 1, 2, 3), np.zeros(2, dtype=np.int32))]
    write_shard(tmp_path / "shard-0000.safetensors", rows, [0])
    index(tmp_path, 1)
    opened = KVStore(tmp_path)
    assert opened.statistics("a") == {}
    with pytest.raises(ValueError, match=f"store of teacher {tmp_path.name} has no entropy"):
        KVStore(tmp_path, statistics=["entropy"])
    with pytest.raises(ValueError, match="stored without importance"):
        opened.importance("a")
    with pytest.raises(ValueError, match="stored without byte_start"):
        opened.byte_start("a")
    with pytest.raises(ValueError, match="stored without position"):
        MappedStore(tmp_path).position("a")


def test_a_token_outside_the_row_is_refused(raw):
    opened = KVStore(raw[0])
    for token in (4, -1):
        with pytest.raises(IndexError, match="row-0 has 4"):
            opened.read("row-0", np.array([token]))
    assert "row-9" not in opened


def test_a_damaged_shard_is_named_with_the_fix(raw):
    folder, _ = raw
    shard = folder / "shard-0001.safetensors"
    whole = shard.read_bytes()
    shard.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(ValueError, match=r"shard-0001.*sha256.*delete it and run"):
        KVStore(folder, verify=True)
    for broken in (whole[:-5], whole[:20], b""):
        shard.write_bytes(broken)
        with pytest.raises(ValueError, match=r"shard-0001.*damaged.*delete it and run"):
            KVStore(folder)
        with pytest.raises(ValueError, match=r"shard-0001.*damaged.*delete it and run"):
            index(folder, 2)
    shard.unlink()
    with pytest.raises(ValueError, match=r"shard-0001.*missing.*delete it and run"):
        KVStore(folder)


def test_rows_in_two_shards_and_unlike_shards_are_refused(raw):
    folder, rows = raw
    twice = folder / "shard-0002.safetensors"
    write_shard(twice, rows[:1], LAYERS)
    with pytest.raises(ValueError, match="row-0"):
        index(folder, 3)
    other = StoredRow("new", torch.zeros(2, 2, 2, 6).half(), np.zeros(2, dtype=np.int32), statistics=rows[0].statistics)
    less = replace(other, statistics={"likelihood": -1.0})
    for row, layers, dtype in (
        (other, [0, 5], "float16"),
        (other, LAYERS, "int8"),
        (other, LAYERS, "int4"),
        (less, LAYERS, "float16"),
    ):
        write_shard(twice, [row], layers, dtype)
        with pytest.raises(ValueError, match=r"shard-0002.*differ from shard-0000"):
            index(folder, 3)


def test_appending_leaves_old_shards_and_open_readers_alone(raw):
    folder, rows = raw
    reader = KVStore(folder)
    before = {path: (path.stat().st_mtime_ns, file_digest(path)) for path in folder.glob("*.safetensors")}
    new = StoredRow("new", torch.ones(2, 2, 2, 6).half(), np.zeros(2, dtype=np.int32), statistics=rows[0].statistics)
    write_shard(folder / "shard-0002.safetensors", [new], LAYERS)
    index(folder, 3)
    assert {path: (path.stat().st_mtime_ns, file_digest(path)) for path in before} == before
    assert torch.equal(reader.read("row-2", np.arange(7)), rows[2].kv)
    appended = KVStore(folder, verify=True)
    assert torch.equal(appended.read("new", np.arange(2)), new.kv)
    assert torch.equal(appended.read("row-2", np.arange(7)), rows[2].kv)


def test_unlike_widths_are_refused_even_when_they_fill_as_many_bytes(tmp_path):
    for i, width in enumerate((5, 6)):
        row = StoredRow(f"row-{i}", torch.ones(2, 1, 2, width), np.zeros(2, dtype=np.int32))
        write_shard(tmp_path / f"shard-{i:04d}.safetensors", [row], [0], "int4")
    with pytest.raises(ValueError, match=r"shard-0001.*differ from shard-0000"):
        index(tmp_path, 2)


@pytest.mark.parametrize("width", [6, 5])
@pytest.mark.parametrize("dtype", ["int8", "float8_e4m3fn", "int4"])
def test_a_quantised_shard_leaves_sinks_out_of_its_grid(tmp_path, dtype, width):
    bias = torch.linspace(-50, 50, width)
    rows = [
        StoredRow(f"row-{i}", torch.randn(n, 2, 2, width) + bias, np.arange(n, dtype=np.int32))
        for i, n in enumerate(LENGTHS)
    ]
    for row in rows:
        row.kv[0] *= 1000
    rows[1].kv[0, 0] = np.nan
    write_shard(tmp_path / "shard-0000.safetensors", rows, LAYERS, dtype)
    index(tmp_path, 1)
    opened = KVStore(tmp_path)
    assert opened.width == width
    kept = torch.cat([row.kv[1:] for row in rows]).double().numpy()
    mean, largest = kept.mean(0), np.abs(kept - kept.mean(0)).max(0)
    reach = np.minimum(largest, 2.5 * kept.std(0)) if dtype == "int4" else largest
    for row in rows:
        back = opened.read(row.id, np.arange(len(row.kv)))
        assert back.dtype == torch.float32
        away = row.kv[1:].numpy() - mean
        near = np.clip(away, -reach, reach)
        allowed = {
            "int8": reach / 127 * 0.5,
            "int4": reach / 7 * 0.5,
            "float8_e4m3fn": reach / 44800 + np.abs(away) / 15.9,
        }
        assert (np.abs(back[1:].numpy() - mean - near) <= allowed[dtype] + 1e-4).all()
        assert (np.abs(back[:1].numpy() - mean) <= reach * 1.0001 + 1e-4).all()
        odd = np.arange(len(row.kv) - 1, 0, -2)
        assert torch.equal(opened.read(row.id, odd), back[odd])


def test_a_value_the_format_cannot_hold_is_refused_except_in_a_sink(tmp_path):
    row = StoredRow("a", torch.ones(3, 1, 2, 3), np.zeros(3, dtype=np.int32))
    row.kv[0, 0, 0, 0] = 1e6
    write_shard(tmp_path / "shard-0000.safetensors", [row], [0], "float16")
    index(tmp_path, 1)
    assert KVStore(tmp_path).read("a", np.arange(3)).isfinite().all()
    row.kv[1, 0, 0, 0] = 1e6
    with pytest.raises(ValueError, match="row a has values that float16 cannot hold"):
        write_shard(tmp_path / "shard-0000.safetensors", [row], [0], "float16")
    write_shard(tmp_path / "shard-0000.safetensors", [row], [0], "bfloat16")


def resident_memory(kind):
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    line = next(line for line in lines if line.startswith(kind))
    return int(line.split()[1]) // 1024


@pytest.fixture(params=[("float16", 2048), ("int4", 8192)], ids=lambda param: param[0], scope="module")
def large(tmp_path_factory, request):
    """A shard of 64 MiB, 64 rows of 1 MiB, which is only read."""
    folder, (dtype, width) = tmp_path_factory.mktemp("large"), request.param
    rows = [
        StoredRow(f"row-{i}", torch.tensor(float(i)).expand(128, 1, 2, width), np.zeros(128, dtype=np.int32))
        for i in range(64)
    ]
    write_shard(folder / "shard-0000.safetensors", rows, [0], dtype)
    index(folder, 1)
    return folder


@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="needs Linux")
def test_reading_does_not_load_the_shard(large):
    ctypes.CDLL(None).malloc_trim(0)  # else a copy could hide in memory that the fixture freed
    own, mapped = resident_memory("RssAnon"), resident_memory("RssFile")
    opened = KVStore(large)
    error = 0 if opened.width == 2048 else 31.5 / 7 / 2
    for i in (3, 40):
        assert ((opened.read(f"row-{i}", np.arange(0, 128, 7)) - i).abs() <= error).all()
    assert resident_memory("RssAnon") - own < 8
    assert resident_memory("RssFile") - mapped < 16


def pages_in_cache(path):
    """For each page of a file, whether the kernel holds it in memory (mincore(2))."""
    size = path.stat().st_size
    with open(path, "r+b") as file, mmap.mmap(file.fileno(), size, prot=mmap.PROT_READ | mmap.PROT_WRITE) as pages:
        held = (ctypes.c_ubyte * (-(-size // mmap.PAGESIZE)))()
        view = ctypes.c_char.from_buffer(pages)
        assert ctypes.CDLL(None).mincore(ctypes.c_void_p(ctypes.addressof(view)), ctypes.c_size_t(size), held) == 0
        del view
        return np.frombuffer(held, dtype=np.uint8) & 1


@pytest.mark.skipif(not hasattr(os, "posix_fadvise"), reason="needs Linux")
def test_prefetch_reads_the_pages_of_its_rows_and_of_no_others(large):
    opened = KVStore(large)
    path = large / "shard-0000.safetensors"
    file = os.open(path, os.O_RDONLY)
    os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(file)
    pages = 2**20 // mmap.PAGESIZE
    row_pages = {row: slice(row * pages + 64, (row + 1) * pages) for row in (20, 35, 50)}  # columns and grid come first
    if any(pages_in_cache(path)[row_pages[row]].any() for row in (20, 50)):
        pytest.skip("this file system does not drop pages from memory")
    opened.prefetch(["row-20", "row-50"])
    deadline = time.monotonic() + 5
    while not all(pages_in_cache(path)[row_pages[row]].all() for row in (20, 50)) and time.monotonic() < deadline:
        time.sleep(0.01)
    held = pages_in_cache(path)
    assert held[row_pages[20]].all()
    assert held[row_pages[50]].all()
    assert not held[row_pages[35]].any()


def test_mapped_rows_are_the_weighted_and_mapped_teacher_tokens(raw, tmp_path):
    folder, rows = raw
    rng = np.random.default_rng(0)
    weight = torch.randn(6, 5, dtype=torch.float64)
    matches = []
    for row in rows:
        n = len(row.kv) - 1
        mixed = rng.random((n, 2))
        tokens = rng.integers(0, len(row.kv), (n, 2))
        mixed[: n // 2, 1], tokens[: n // 2, 1] = 0, -1  # no second token
        matches.append((row.id, SimpleNamespace(position=np.arange(n) + 2, tokens=tokens, weight=mixed)))
    made = list(mapped_rows(KVStore(folder), matches, lambda x: (x.double() @ weight).float()[:, [1, 0, 1]]))
    write_mapped(tmp_path / "mapped" / "shard-0000.safetensors", made[:2], "int8")
    write_mapped(tmp_path / "mapped" / "shard-0001.safetensors", made[2:], "int8")
    assert index(tmp_path / "mapped", 2)["tokens"] == sum(LENGTHS) - len(LENGTHS)
    opened = MappedStore(tmp_path / "mapped", verify=True)
    assert (opened.layers, opened.width) == ([0, 1, 2], 5)
    opened.prefetch(["row-1", "row-2"])
    for row, (_, match) in zip(rows, matches, strict=True):
        want = torch.zeros(len(match.position), 3, 2, 5)
        for n in range(len(match.position)):
            kv = sum(
                match.weight[n, k] * row.kv[match.tokens[n, k]].double() for k in range(2) if match.weight[n, k] > 0
            )
            for student_layer, teacher_place in enumerate([1, 0, 1]):
                want[n, student_layer] = (kv[teacher_place] @ weight).float()
        assert opened.position(row.id).tolist() == match.position.tolist()
        assert opened.read(row.id).shape == want.shape
        limit = 2 * max(float(kv.abs().max()) for _, _, kv in made if len(kv)) / 127
        torch.testing.assert_close(opened.read(row.id), want, atol=limit * 0.51, rtol=0)
    assert torch.equal(opened.read_batch(["row-3", "row-0"]), torch.cat([opened.read("row-3"), opened.read("row-0")]))


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_batched_reading_equals_one_row_at_a_time(build_model, name):
    model = build_model(name)
    rows = encoded_rows((5, 9, 3, 9, 1))
    batched = list(read_kv(model, rows, [0, 2], 4))
    for row, got in zip(rows, batched, strict=True):
        (alone,) = read_kv(model, [row], [0, 2], 1)
        assert got.shape == (len(row.input_ids), 2, 2, alone.shape[-1])
        torch.testing.assert_close(got, alone, atol=1e-5, rtol=1e-4)


COHERE = {
    "vocab_size": 64,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 48,
}


@pytest.mark.parametrize("chunk", [1, 4, 256])
@pytest.mark.parametrize("name", ["llama", "gpt2", "opt", "gemma3", "cohere", "granite"])
def test_likelihood_and_entropy_are_those_of_the_models_own_logits(build_model, monkeypatch, name, chunk):
    monkeypatch.setattr(row_statistics, "HEAD_CHUNK", chunk)
    classes = {"cohere": ("CohereConfig", {"logit_scale": 0.3}), "granite": ("GraniteConfig", {"logits_scaling": 0.2})}
    if name in classes:
        class_name, arguments = classes[name]
        config = getattr(transformers, class_name)(**COHERE, **arguments, pad_token_id=0)
        torch.manual_seed(0)
        model = transformers.AutoModelForCausalLM.from_config(config).eval()
    else:
        model = build_model(name, **({"final_logit_softcapping": 0.1} if name == "gemma3" else {}))
    model.get_output_embeddings().weight.data.mul_(8)
    rows = encoded_rows((5, 9, 4, 9))
    rows.append(encoded_rows((6,), targets=0)[0])
    heads = []
    model.get_output_embeddings().register_forward_hook(lambda module, args, output: heads.append(output.shape))
    found = {number: reading.statistics for number, reading in read_rows(model, rows, [0], 3, list(ROW_STATISTICS))}
    alone = {number: reading.statistics for number, reading in read_rows(model, rows, [0], 1, ["entropy"])}
    assert sum(shape[0] for shape in heads) == 2 * 4 * 3  # once for both
    assert max(shape[0] for shape in heads) <= chunk
    for number, row in enumerate(rows):
        logits = model(input_ids=torch.from_numpy(row.input_ids)[None]).logits[0].double()
        each = []
        for t in np.flatnonzero(row.is_target):
            next_token = torch.distributions.Categorical(logits=logits[t - 1])
            each.append((next_token.log_prob(torch.tensor(row.input_ids[t])).item(), next_token.entropy().item()))
        want = np.mean(each, 0) if each else [float("nan")] * 2
        assert [found[number][name] for name in ("likelihood", "entropy")] == pytest.approx(want, abs=1e-5, nan_ok=True)
        assert alone[number] == {"entropy": pytest.approx(found[number]["entropy"], abs=1e-5, nan_ok=True)}


@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma3"])
def test_a_reading_has_the_layers_asked_for(build_model, name):
    model = build_model(name)
    rows = encoded_rows((5, 9, 4))
    everything = dict(read_rows(model, rows, [0, 1, 2], 2))
    some = dict(read_rows(model, rows, [2, 1], 2))
    for number, reading in everything.items():
        assert not torch.equal(reading.kv[:, 0], reading.kv[:, 2])
        assert torch.equal(some[number].kv, reading.kv[:, [2, 1]])


def test_the_entropy_does_not_depend_on_what_follows_and_the_likelihood_does(build_model):
    model, (row,) = build_model("llama"), encoded_rows((9,))
    other = replace(row, input_ids=np.where(np.arange(9) == 8, row.input_ids[8] ^ 1, row.input_ids))
    one, two = (reading.statistics for _, reading in read_rows(model, [row, other], [0], 2, list(ROW_STATISTICS)))
    assert one["entropy"] == pytest.approx(two["entropy"], rel=1e-6)
    assert one["likelihood"] != pytest.approx(two["likelihood"], rel=1e-2)


def test_the_entropy_at_its_limits_and_without_more_memory_than_the_cross_entropy():
    """Sure of one token, of half of them, of none; masked logits count nothing. Bytes are all that torch allocates on the way."""
    logits = torch.zeros(3, 4096)
    logits[0, 7], logits[1, ::2] = 1e4, -torch.inf
    torch.testing.assert_close(
        next_entropy(logits, torch.zeros(3, dtype=torch.long)), torch.tensor([0.0, 2048.0, 4096.0]).clamp_min(1).log()
    )
    taken = {}
    for name, statistic in ROW_STATISTICS.items():
        large = torch.randn(256, 4096)
        with torch.profiler.profile(profile_memory=True) as profile, torch.no_grad():
            statistic(large, torch.zeros(256, dtype=torch.long))
        taken[name] = sum(max(0, event.self_cpu_memory_usage) for event in profile.key_averages())
    assert large.nbytes < taken["entropy"] <= taken["likelihood"] + 256 * 64


def test_a_model_without_a_head_has_no_statistics(build_model):
    headless = build_model("llama").model
    ((_, reading),) = read_rows(headless, encoded_rows((5,)), [0], 1, list(ROW_STATISTICS))
    assert np.isnan([reading.statistics[name] for name in ROW_STATISTICS]).all()


@pytest.mark.parametrize("name", ["llama", "llama_yarn", "gpt2", "mistral", "qwen3", "gemma3"])
def test_importance_is_the_attention_that_the_model_reports(build_model, name):
    model = build_model(name)
    rows = encoded_rows((5, 9, 12))
    answers = [row.is_target & (np.arange(len(row.is_target)) % 2 == 0) for row in rows]
    found = dict(read_rows(model, rows, [2, 0], 3, asking=answers))
    plain = dict(read_rows(model, rows, [2, 0], 3))
    implementation = model.config._attn_implementation
    model.set_attn_implementation("eager")
    for number, row in enumerate(rows):
        attentions = model(input_ids=torch.from_numpy(row.input_ids)[None], output_attentions=True).attentions
        kv_heads = getattr(model.config, "num_key_value_heads", None) or model.config.num_attention_heads
        for place, layer in enumerate([2, 0]):
            attention = attentions[layer][0][:, answers[number]]
            group = len(attention) // kv_heads
            want = torch.stack([attention[h * group : (h + 1) * group].amax(0).mean(0) for h in range(kv_heads)], -1)
            torch.testing.assert_close(found[number].importance[:, place].float(), want, atol=1e-3, rtol=1e-3)
        assert torch.equal(found[number].kv, plain[number].kv)
        assert plain[number].importance is None
    assert implementation == "sdpa"


SHARDS = 5


@pytest.fixture(scope="module")
def extraction(tmp_path_factory):
    """`extraction(folder)` runs, in this process, every shard that is not there yet; its reference lies in `.reference`."""
    folder = tmp_path_factory.mktemp("teacher")
    tokenizer = byte_level_bpe()
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=64,
        num_hidden_layers=4,
        num_attention_heads=4,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    patch = pytest.MonkeyPatch()
    patch.setattr(extract, "load_model", lambda config, placement="single": model)
    patch.setattr(extract, "load_tokenizer", lambda config: tokenizer)
    frame = pd.DataFrame({"id": [f"row-{i}" for i in range(200)]})
    frame["prompt"] = [f"Question: Tom has {i} apples and buys {i * 3} more. How many?\nAnswer:" for i in range(200)]
    frame["target"] = [f" {i * 4}" for i in range(200)]
    frame["reasoning_end"] = frame["prompt"].str.len()
    frame.to_parquet(folder / "rows.parquet")

    def run(output):
        for shard in range(SHARDS):
            path = output / f"shard-{shard:04d}.safetensors"
            if not path.exists():
                extract_shard(GPT2, [folder / "rows.parquet"], shard, StorePlan([0, 3], SHARDS, "int8", 8, True), path)

    run.reference = folder / "reference"
    start = time.monotonic()
    run(run.reference)
    run.seconds = time.monotonic() - start
    yield run
    patch.undo()


def die_while_writing(part):
    """A `save_file` that writes a part of the second file it is asked for and takes the whole process down."""
    calls = []

    def save(tensors, path, metadata):
        save_file(tensors, path, metadata=metadata)
        calls.append(path)
        if len(calls) == 2:
            os.truncate(path, int(path.stat().st_size * part))
            os.kill(os.getpid(), signal.SIGKILL)

    return save


def in_child(run, output, part):
    if part is not None:
        shards.save_file = die_while_writing(part)
    run(output)


def test_a_killed_extraction_redoes_at_most_one_shard(extraction, tmp_path):
    """SIGKILL in the middle of writing and at random moments; what is complete is never touched, half files never show."""
    fork = multiprocessing.get_context("fork")
    seed = random.Random(0)
    reference = {path.name: file_digest(path) for path in extraction.reference.glob("*.safetensors")}
    assert len(reference) == SHARDS
    complete: dict[str, tuple[int, str]] = {}
    moments: list[float | None] = [None, None, *(seed.uniform(0, extraction.seconds) for _ in range(6))]
    for kill, moment in enumerate(moments):
        child = fork.Process(target=in_child, args=(extraction, tmp_path, (0.5, 1.0)[kill] if moment is None else None))
        child.start()
        child.join(moment)
        child.kill()
        child.join()
        assert moment is not None or child.exitcode == -signal.SIGKILL
        visible = {
            path.name: (path.stat().st_mtime_ns, file_digest(path))
            for path in tmp_path.iterdir()
            if path.name[0] != "."
        }
        assert complete.items() <= visible.items()
        assert {name: digest for name, (_, digest) in visible.items()}.items() <= reference.items()
        if moment is None:
            assert len(visible) == len(complete) + 1
        complete = visible
    extraction(tmp_path)
    index(tmp_path, SHARDS)
    KVStore(tmp_path, verify=True)
    assert {path.name: file_digest(path) for path in tmp_path.glob("*.safetensors")} == reference
    assert {name: (tmp_path / name).stat().st_mtime_ns for name in complete} == {n: t for n, (t, _) in complete.items()}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["index.parquet", *sorted(reference)]


def test_more_shards_than_rows_are_refused(extraction, tmp_path):
    pd.DataFrame({"id": ["a"], "prompt": ["b"], "target": ["c"]}).to_parquet(tmp_path / "rows.parquet")
    with pytest.raises(ValueError, match="1 rows cannot fill 2 shards"):
        extract_shard(GPT2, [tmp_path / "rows.parquet"], 0, StorePlan([0], 2, "float16", 8), tmp_path / "shard")
