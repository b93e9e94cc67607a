"""Multimodal checkpoints: their text model is a teacher and a student like any other, what sees images is neither read nor trained."""

import pytest
import torch
import transformers
from kv_references import projected_kv, tokens
from lm_eval.api.instance import Instance
from safetensors.torch import load_file
from tiny_study import TRAINING, TinyStudy, kv
from tokenizers_for_tests import byte_level_bpe

from mtkv.config.arms import TrainingConfig
from mtkv.config.models import ModelConfig
from mtkv.evaluate.lm_eval_model import EvaluationModel, load_folder
from mtkv.kv.capture import KVCapture, read
from mtkv.latent.model.student import LatentStudent
from mtkv.models.load import load_model, load_tokenizer
from mtkv.stages.train import trainable_student

TEXT = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 48,
}
TEXT |= {"vocab_size": 310, "max_position_embeddings": 128, "head_dim": 8, "bos_token_id": None}
SIGHT = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32, "patch_size": 4}
SIGHT |= {"image_size": 16}
TURNED = {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 1e4}
IDS = {"image_token_id": 301, "video_token_id": 302, "vision_start_token_id": 303, "vision_end_token_id": 304}
FORMS = {
    "Gemma3": lambda: transformers.Gemma3Config(
        text_config=TEXT, vision_config=SIGHT, mm_tokens_per_image=4, image_token_index=301
    ),
    "Qwen2_5_VL": lambda: transformers.Qwen2_5_VLConfig(
        text_config={name: value for name, value in TEXT.items() if name != "head_dim"} | {"rope_parameters": TURNED},
        vision_config={"depth": 1, "hidden_size": 32, "num_heads": 2, "intermediate_size": 32, "out_hidden_size": 32},
        **IDS,
    ),
    "Mistral3": lambda: transformers.Mistral3Config(
        text_config=transformers.MistralConfig(**TEXT).to_dict(),
        vision_config=SIGHT | {"model_type": "pixtral", "head_dim": 16},
        image_token_index=301,
    ),
}


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    made = TinyStudy(tmp_path_factory.mktemp("study"))
    tokenizer = byte_level_bpe(300)
    for form, config in FORMS.items():
        torch.manual_seed(0)
        model = transformers.AutoModelForImageTextToText.from_config(config())
        model.generation_config.eos_token_id = tokenizer.eos_token_id
        model.save_pretrained(made.folder / form)
        tokenizer.save_pretrained(made.folder / form)
        made.models[form] = ModelConfig(source="path", name=str(made.folder / form))
    return made


@pytest.mark.parametrize("form", FORMS)
def test_its_kv_are_those_of_its_text_model(study, form):
    tokenizer, model = load_tokenizer(study.models[form]), load_model(study.models[form])
    assert tokenizer.reading.context == 128
    assert type(model).__name__ == f"{form}ForConditionalGeneration"
    ids = tokens()
    with torch.no_grad(), KVCapture(model) as capture:
        read(model, input_ids=ids)
    for got, want in zip((capture.keys(), capture.values()), projected_kv(model.get_decoder(), ids, 8), strict=True):
        assert len(got) == len(want) == 2
        for mine, theirs in zip(got, want, strict=True):
            torch.testing.assert_close(mine, theirs, atol=2e-6, rtol=1e-5)


@pytest.mark.parametrize("lora", [None, {"rank": 2, "targets": ["q_proj", "v_proj"]}])
@pytest.mark.parametrize("form", FORMS)
def test_what_sees_images_has_no_gradient_and_all_else_has(study, form, lora):
    training = TrainingConfig.model_validate(TRAINING.model_dump() | {"lora": lora})
    model = trainable_student(study.models[form], training, quantized=False)
    model(input_ids=tokens(), labels=tokens()).loss.backward()
    trained = {name for name, weight in model.named_parameters() if weight.requires_grad}
    assert trained == {name for name, weight in model.named_parameters() if weight.grad is not None}
    assert len(trained) > 4
    assert not [name for name in trained if _sees(name)]


def _sees(name: str) -> bool:
    return "visi" in name or "visual" in name or "projector" in name


@pytest.mark.parametrize("form", FORMS)
def test_it_is_trained_saved_and_evaluated_and_what_sees_images_stays(study, form, monkeypatch):
    arm = kv(teachers=["gpt2"])
    monkeypatch.setitem(study.models, "student", study.models[form])
    maps = study.folder / "maps"
    if maps.exists():  # of another student
        maps.rename(study.folder / f"maps-before-{form}")
    output, _ = study.train(form, arm, training=TRAINING)
    before, after = (
        load_file(study.folder / form / "model.safetensors"),
        load_file(output / "model" / "model.safetensors"),
    )
    assert before.keys() == after.keys()
    moved = {name for name, weight in after.items() if not torch.equal(weight, before[name])}
    sight = set(filter(_sees, after))
    assert sight
    assert not moved & sight
    assert {name for name in after if "k_proj.weight" in name} - sight <= moved
    model, tokenizer = load_folder(output / "model")
    evaluated = EvaluationModel(model, tokenizer, 2)
    asked = [("Question: 1", " 42"), ("Question: 1 2 3 4", " 7")]
    found = evaluated.loglikelihood([Instance("loglikelihood", {}, pair, 0) for pair in asked])
    for (question, answer), (total, _) in zip(asked, found, strict=True):
        ids = tokenizer(question + answer, return_tensors="pt")["input_ids"]
        start = len(tokenizer(question)["input_ids"])
        with torch.no_grad():
            said = model(input_ids=ids).logits.log_softmax(-1)[0, :-1].gather(1, ids[0, 1:, None])[start - 1 :]
        assert total == pytest.approx(float(said.sum()), abs=1e-3)
    settings = {"until": ["\n"], "max_gen_toks": 3, "do_sample": False}
    together = evaluated.generate_until([Instance("generate_until", {}, (text, settings), 0) for text, _ in asked])
    for (question, _), said in zip(asked, together, strict=True):
        ids = tokenizer(question, return_tensors="pt")["input_ids"]
        for _ in range(3):
            with torch.no_grad():
                ids = torch.cat([ids, model(input_ids=ids).logits[:, -1:].argmax(-1)], 1)
        assert tokenizer.decode(ids[0]).removeprefix(question).split("\n")[0].startswith(said)


def test_with_latents_it_is_saved_and_read_again(study, tmp_path):
    student = LatentStudent.create(load_model(study.models["Mistral3"]), tokens=2, iterations=1)
    student.save(tmp_path, load_tokenizer(study.models["Mistral3"]))
    there, _ = load_folder(tmp_path)
    start = torch.tensor([5, 5])
    with torch.no_grad():
        torch.testing.assert_close(there.embed(tokens(), start), student.embed(tokens(), start))


def test_heads_of_the_vision_model_are_no_layers():
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(FORMS["Gemma3"]())
    assert "MultiheadAttention" in {type(module).__name__ for module in model.modules()}
    assert len(KVCapture(model).layers) == 2
