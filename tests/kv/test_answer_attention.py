"""What a store keeps of the attention: that of the answer alone, in each KV head (KaVa, arXiv 2510.02312, section 3.2)."""

import pandas as pd
import pytest
import torch
from tokenizers_for_tests import byte_level_bpe, unigram

from mtkv.config.models import ModelConfig
from mtkv.kv.extract import StorePlan, answer_tokens, extract_shard
from mtkv.kv.store import KVStore, write_index
from mtkv.models.load import load_model, load_tokenizer
from mtkv.models.tokenization import encode_rows

PARTS = [  # prompt, reasoning, answer
    ("Question: Tom has 12 apples and buys 30 more. How many?\nReason:", " 12+30=42. 42-2=40.", "\nAnswer: 40"),
    ("Question: Tom has 3 apples?\nReason:", " 3.", "\nAnswer: 3"),
    ("Question: How many?\nAnswer:", "", " 42"),
    ("问题：小明有 5 个苹果，又买了 3 个。\n推理：", "5+3=8。", "\n答案：8"),
]
PROMPTS, REASONS, ANSWERS = zip(*PARTS, strict=True)
TARGETS = [reason + answer for _, reason, answer in PARTS]
ENDS = [len((prompt + reason).encode()) for prompt, reason, _ in PARTS]


@pytest.mark.parametrize("tokenizer", [byte_level_bpe(), unigram(), load_tokenizer(ModelConfig(name="gpt2"))])
def test_answer_tokens_write_the_answer_and_its_end(tokenizer):
    for i, row in enumerate(encode_rows(tokenizer, PROMPTS, TARGETS)):
        asking = answer_tokens(row, ENDS[i])
        written = tokenizer.decode(row.input_ids[asking], skip_special_tokens=True)
        assert written.strip() in (ANSWERS[i].strip(), ANSWERS[i].strip().replace("：", ""))  # unigram has no such mark
        assert row.input_ids[asking][-1] == tokenizer.eos_token_id
        assert not asking[: int(asking.argmax())].any()
        assert asking[int(asking.argmax()) :].all()


def test_a_row_without_an_answer_is_asked_by_all_of_its_target():
    (row,) = encode_rows(byte_level_bpe(), ["Question: How many?\nReason:"], [" 12+30=42."])
    row.is_target[-1] = False  # as where nothing ends a row
    assert (answer_tokens(row, 10_000) == row.is_target).all()
    assert row.is_target.any()


@pytest.mark.parametrize("name", ["qwen2", "gpt2"])
def test_a_store_keeps_the_answer_s_attention_in_every_head(tmp_path, name):
    """Against the attention that transformers gives out, one row at a time, of tokens found by decoding from the row's end."""
    teacher, layers = ModelConfig(name=name), [1, 3]
    tokenizer, model = load_tokenizer(teacher), load_model(teacher)
    frame = {"id": list("abcd"), "prompt": PROMPTS, "target": TARGETS, "reasoning_end": ENDS}
    pd.DataFrame(frame).to_parquet(tmp_path / "rows.parquet")
    shard = tmp_path / "shard-0000.safetensors"
    extract_shard(teacher, [tmp_path / "rows.parquet"], 0, StorePlan(layers, 1, "float16", 3, importance=True), shard)
    write_index([shard], tmp_path / "index.parquet")
    store = KVStore(tmp_path)
    model.set_attn_implementation("eager")
    heads = getattr(model.config, "num_key_value_heads", None) or model.config.num_attention_heads
    for i, row in enumerate(encode_rows(tokenizer, PROMPTS, TARGETS)):
        count = 1
        while tokenizer.decode(row.input_ids[-count:], skip_special_tokens=True).strip() != ANSWERS[i].strip():
            count += 1
        if tokenizer.decode(row.input_ids[-count - 1 :], skip_special_tokens=True).strip() == ANSWERS[i].strip():
            count += 1  # the blank or line break before it
        with torch.no_grad():
            attentions = model(torch.from_numpy(row.input_ids)[None], output_attentions=True).attentions
        found = torch.as_tensor(store.importance("abcd"[i])).float()
        assert found.shape == (len(row.input_ids), len(layers), heads)
        for place, layer in enumerate(layers):
            want = attentions[layer][0, :, -count:].unflatten(0, (heads, -1)).amax(1).mean(1).T
            torch.testing.assert_close(found[:, place], want, atol=1e-3, rtol=1e-3)
