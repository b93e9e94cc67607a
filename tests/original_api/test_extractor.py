"""The extractor of the original design: KV of texts without padding, equal to the model's own projections; files that restore."""

import subprocess
import sys

import pytest
import torch
from conftest import COMMON
from kv_references import outputs, projected_kv
from tokenizers_for_tests import byte_level_bpe

from mtkv.kv import KVCapture, KVInjection, TeacherKVExtractor
from mtkv.original_api.extractor import TextKV, load_kvs, save_kvs

TEXTS = ["Tom has 12 apples.", "答案:8", "A much longer text about 42 apples, twice! 🙂", "x", "Answer: 42"]


def make_extractor(model, batch_size=2):
    return TeacherKVExtractor(batch_size=batch_size, model=model, tokenizer=byte_level_bpe())


def ids_of(extractor, text):
    return torch.tensor([extractor.tokenizer(text)["input_ids"]])


@pytest.mark.parametrize("name", ["gpt2", "llama", "qwen3", "opt"])
def test_every_text_has_the_kv_of_its_own_forward(build_model, name):
    extractor = make_extractor(build_model(name, vocab_size=320))
    kvs = extractor.extract_kvs(TEXTS)
    assert len(kvs) == len(TEXTS)
    for text, kv in zip(TEXTS, kvs, strict=True):
        input_ids = ids_of(extractor, text)
        assert torch.equal(kv.input_ids, input_ids[0])
        assert len(kv.keys) == len(kv.values) == 3
        for kind, want in zip(
            ("keys", "values"), projected_kv(extractor.model, input_ids, kv.keys[0].shape[-1]), strict=True
        ):
            for got, reference in zip(getattr(kv, kind), want, strict=True):
                torch.testing.assert_close(got, reference[0], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(("name", "leaf", "head_dim"), [("bert", "key", 8), ("t5", "k", 12)])
def test_an_encoder_and_the_encoder_of_an_encoder_decoder(build_encoder, name, leaf, head_dim):
    extractor = make_extractor(build_encoder(name, vocab_size=320), batch_size=3)
    reader = extractor.model.encoder if name == "t5" else extractor.model
    for text, kv in zip(TEXTS, extractor.extract_kvs(TEXTS), strict=True):
        want = outputs(reader, {leaf}, lambda text=text: reader(ids_of(extractor, text)))
        assert len(kv.keys) == len(want) == 3
        for got, reference in zip(kv.keys, want, strict=True):
            expected = reference[0].unflatten(-1, (4, head_dim)).transpose(0, 1)
            torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-4)


def test_the_batch_size_changes_nothing(build_model):
    model = build_model("llama", vocab_size=320)
    one, five = (make_extractor(model, size).extract_kvs(TEXTS) for size in (1, 5))
    for a, b in zip(one, five, strict=True):
        for x, y in zip(a.keys + a.values, b.keys + b.values, strict=True):
            torch.testing.assert_close(x, y, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", ["gpt2", "t5"])
def test_a_folder_is_loaded_by_name_without_head(build_model, build_encoder, tmp_path, name):
    model = build_model(name, vocab_size=320) if name == "gpt2" else build_encoder(name, vocab_size=320)
    model.save_pretrained(tmp_path)
    byte_level_bpe().save_pretrained(tmp_path)
    by_name = TeacherKVExtractor(str(tmp_path), batch_size=4).extract_kvs(TEXTS)
    for a, b in zip(by_name, make_extractor(model).extract_kvs(TEXTS), strict=True):
        assert torch.equal(a.input_ids, b.input_ids)
        for x, y in zip(a.keys + a.values, b.keys + b.values, strict=True):
            torch.testing.assert_close(x, y, atol=1e-5, rtol=1e-4)


def test_saved_kvs_come_back_to_the_bit(build_model, tmp_path):
    extractor = make_extractor(build_model("llama", vocab_size=320).bfloat16())
    kvs, path = extractor.extract_kvs(TEXTS), tmp_path / "folder" / "kvs.safetensors"
    extractor.save_kvs(kvs, path)
    assert [entry.name for entry in path.parent.iterdir()] == ["kvs.safetensors"]
    restored = load_kvs(path)
    assert len(restored) == len(kvs)
    for a, b in zip(kvs, restored, strict=True):
        assert torch.equal(a.input_ids, b.input_ids)
        assert len(a.keys) == len(b.keys) == len(a.values) == len(b.values) == 3
        for x, y in zip(a.keys + a.values, b.keys + b.values, strict=True):
            assert x.dtype == y.dtype == torch.bfloat16
            assert torch.equal(x, y)
    save_kvs([], path)
    assert load_kvs(path) == []


def test_a_failed_save_leaves_the_old_file(tmp_path):
    path = tmp_path / "kvs.safetensors"
    good = TextKV(torch.tensor([1]), [torch.ones(1, 1, 2)], [torch.ones(1, 1, 2)])
    save_kvs([good], path)
    with pytest.raises(AttributeError):
        save_kvs([TextKV(torch.tensor([1]), ["no tensor"], [])], path)
    assert torch.equal(load_kvs(path)[0].keys[0], good.keys[0])


def test_what_cannot_be_read_is_said(build_model):
    extractor = make_extractor(build_model("gpt2", vocab_size=320))
    assert extractor.extract_kvs([]) == []
    with pytest.raises(TypeError, match="list of texts"):
        extractor.extract_kvs("one text")
    with pytest.raises(ValueError, match="text 1 has 0 tokens"):
        extractor.extract_kvs(["x", ""])
    with pytest.raises(ValueError, match=r"text 0 has .* tokens; the model reads 1 to 64"):
        extractor.extract_kvs(["x y z " * COMMON["max_position_embeddings"]])
    with pytest.raises(ValueError, match="either a name"):
        TeacherKVExtractor("gpt2", model=extractor.model, tokenizer=extractor.tokenizer)
    with pytest.raises(ValueError, match="either a name"):
        TeacherKVExtractor()
    with pytest.raises(ValueError, match="batch_size 0"):
        make_extractor(extractor.model, batch_size=0)


def test_the_package_is_cheap_to_import_and_names_its_classes():
    code = "import sys, mtkv.kv; assert 'transformers' not in sys.modules and 'torch' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
    assert {KVCapture.__module__, KVInjection.__module__} == {"mtkv.kv.capture", "mtkv.kv.patch"}
    with pytest.raises(ImportError):
        from mtkv.kv import Nothing  # noqa: F401
