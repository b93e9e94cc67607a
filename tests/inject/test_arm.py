"""An injection arm from training to answers on tiny models, against the same student asked by hand (`injected_by_hand`)."""

import pandas as pd
import pytest
from injected_by_hand import correction_of, tail_logits
from lm_eval.api.instance import Instance
from safetensors.torch import load_file
from tiny_study import STEPS, TRAINING, TinyStudy, same, weights
from transformers import AutoModelForCausalLM, AutoTokenizer

from mtkv.config.arms import LoraConfig
from mtkv.config.evaluation import EvaluationConfig
from mtkv.config.kv import KVConfig
from mtkv.inject.fuser import KVFuser
from mtkv.inject.lm_eval_model import InjectedEvaluationModel
from mtkv.models.load import model_folder
from mtkv.stages.predict import ModelSource, evaluation_model

NEW = 6
LEARNING = TRAINING.model_copy(update={"learning_rate": 0.05})
PROMPTS = [
    "Question: Tom has 12 apples and buys 30 more. How many?\nReason:",
    "Question: Tom has 4 apples?\nReason:",
    "Question: Tom has 77 apples and buys 5 more. How many are there now?\nReason:",
]
CHOICES = [" 42", " nine", " 12+30=42."]


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    return TinyStudy(tmp_path_factory.mktemp("study"))


def kv(**changes):
    return KVConfig.model_validate({"teachers": ["qwen3", "gpt2"], "transfer": "inject"} | changes)


@pytest.fixture(scope="module")
def arm(study):
    """A trained arm's folder; each is trained once."""
    done = {}

    def trained(name, tier="raw", **changes):
        if name not in done:
            done[name] = study.train(name, kv(**changes), tier, training=LEARNING)
        return done[name]

    return trained


def asked(study, output, batch_size=2):
    given = {name: study.models[name] for name in ("qwen3", "gpt2")}
    source = ModelSource(output / "model", teachers=given)
    return evaluation_model(source, EvaluationConfig(batch_size=batch_size))


def requests(kind, arguments):
    return [Instance(kind, {}, each, place, ("sums", place, 1)) for place, each in enumerate(arguments)]


def answers(model):
    settings = {"until": ["\n\n"], "max_gen_toks": NEW, "do_sample": False}
    return model.generate_until(requests("generate_until", [(text, dict(settings)) for text in PROMPTS]))


def scores(model):
    return model.loglikelihood(requests("loglikelihood", [(text, choice) for text in PROMPTS for choice in CHOICES]))


def by_hand(study, output, given=None):
    """(student, tokenizer, text → ids and correction)."""
    folder = output / "model"
    student, tokenizer = AutoModelForCausalLM.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    fuser = KVFuser.load(folder, {name: study.models[name] for name in ("qwen3", "gpt2")}).eval()
    teachers = [
        (AutoModelForCausalLM.from_pretrained(place.name).eval(), AutoTokenizer.from_pretrained(place.name))
        for place in fuser.teachers
    ]
    return student, tokenizer, lambda text, other=None: correction_of(fuser, student, tokenizer, teachers, text, other)


@pytest.mark.parametrize("batch_size", [1, 3])
@pytest.mark.parametrize("name", ["one", "two", "routed"])
def test_answers_and_scores_are_those_given_by_hand(study, arm, name, batch_size):
    settings = {
        "one": {"teachers": ["gpt2"]},
        "two": {},
        "routed": {"fusion": {"strategy": "learnable"}, "fuser": {"head": "gated"}},
    }
    output, _ = arm(name, **settings[name])
    student, tokenizer, corrected = by_hand(study, output)
    model = asked(study, output, batch_size)
    said, logs, without = [], [], []
    for text in PROMPTS:
        ids, correction = corrected(text)
        new = []
        while len(new) < NEW and (not new or new[-1] != tokenizer.eos_token_id):
            new.append(int(tail_logits(student, ids[:-1], [ids[-1], *new], correction)[-1].argmax()))
        said.append(tokenizer.decode([token for token in new if token != tokenizer.eos_token_id]).split("\n\n")[0])
        for choice in CHOICES:
            more = tokenizer(text + choice)["input_ids"][len(ids) :]
            for found, change in ((logs, correction), (without, 0 * correction)):
                logits = tail_logits(student, ids[:-1], [ids[-1], *more[:-1]], change).log_softmax(-1)
                found.append(float(logits[range(len(more)), more].sum()))
    assert answers(model) == said
    found = [log for log, _ in scores(model)]
    assert found == pytest.approx(logs, abs=1e-4)
    assert max(abs(one - other) for one, other in zip(found, without, strict=True)) > 0.1  # the teachers are heard
    model._can_share = lambda longest: (
        longest == 1
    )  # as with windows shorter than the text: choices in rows of their own
    assert [log for log, _ in scores(model)] == pytest.approx(logs, abs=1e-4)


def test_prediction_is_what_training_computed(study, arm):
    """The cross-entropy that training logs on validation rows last, from stored KV, and that of the same targets when they are asked."""
    output, _ = arm("one", teachers=["gpt2"])
    log = pd.read_parquet(output / "training.parquet")
    last = log[(log["split"] == "val") & (log["term"] == "ce") & (log["step"] == STEPS)]["value"].item()
    model = asked(study, output)
    rows = pd.read_parquet(study.paths["val"])
    end = model.tokenizer.eos_token
    texts = [(prompt, target + end) for prompt, target in zip(rows["prompt"], rows["target"], strict=True)]
    total = sum(logs for logs, _ in model.loglikelihood(requests("loglikelihood", texts)))
    tokens = sum(len(model.tokenizer(target + end)["input_ids"]) for target in rows["target"])
    assert -total / tokens == pytest.approx(last, abs=2e-3)  # the store is float16


def test_a_frozen_student_stays_as_it_was_and_its_fuser_learns(study, arm):
    output, facts = arm("two")
    raw = load_file(f"{study.models['student'].name}/model.safetensors")
    assert same(weights(output), raw)
    assert facts["steps"] == STEPS
    log = pd.read_parquet(output / "training.parquet")
    ce = log[(log["split"] == "val") & (log["term"] == "ce")].set_index("step")["value"]
    assert ce[STEPS] < ce[0] - 0.05
    plain, _ = study.train("sft", training=LEARNING)
    start = (
        pd.read_parquet(plain / "training.parquet")
        .query("split == 'val' and term == 'ce' and step == 0")["value"]
        .item()
    )
    assert ce[0] == pytest.approx(start, rel=1e-6)


def test_adapters_are_trained_beside_the_fuser_and_merged(study):
    training = LEARNING.model_copy(update={"lora": LoraConfig(rank=2)})
    output, _ = study.train("lora", kv(), training=training)
    raw = load_file(f"{study.models['student'].name}/model.safetensors")
    found = weights(output)
    assert found.keys() == raw.keys()
    assert not same(found, raw)
    assert len(answers(asked(study, output))) == len(PROMPTS)


def test_online_teachers_train_the_same_fuser_but_for_the_stores_rounding(study, arm):
    stored, online = (arm(f"tier {tier}", tier)[0] for tier in ("raw", "online"))
    one, other = (
        pd.read_parquet(output / "training.parquet").query("term == 'ce'").set_index(["split", "step"])["value"]
        for output in (stored, online)
    )
    assert one.min() < one["val", 0] - 0.05
    pd.testing.assert_series_equal(one, other, rtol=0, atol=2e-3)


def test_another_questions_kv_when_it_is_asked_too(study, arm):
    output, _ = arm("shuffled", control="shuffle_items", teachers=["gpt2"])
    model, right = asked(study, output), asked(study, arm("one", teachers=["gpt2"])[0])
    found = [log for log, _ in scores(model)]
    whose = [PROMPTS.index(match.row) for match in model._rows.matches]
    assert sorted(whose) == [0, 1, 2]
    assert all(place != own for own, place in enumerate(whose))
    scores(right)
    assert [match.row for match in right._rows.matches] == PROMPTS
    student, tokenizer, corrected = by_hand(study, output)
    expected = []
    for text, other in zip(PROMPTS, whose, strict=True):
        ids, correction = corrected(text, PROMPTS[other])
        for choice in CHOICES:
            more = tokenizer(text + choice)["input_ids"][len(ids) :]
            logits = tail_logits(student, ids[:-1], [ids[-1], *more[:-1]], correction).log_softmax(-1)
            expected.append(float(logits[range(len(more)), more].sum()))
    assert found == pytest.approx(expected, abs=1e-4)


def test_noise_is_the_same_when_a_prediction_is_made_again(study, arm):
    output, _ = arm("noise", control="gaussian")
    assert scores(asked(study, output)) == scores(asked(study, output))


def test_the_teachers_cost_is_counted(study, arm):
    output, _ = arm("one", teachers=["gpt2"])
    model = asked(study, output)
    answers(model)
    tokenizer = AutoTokenizer.from_pretrained(study.models["gpt2"].name)
    read = sum(len(tokenizer(text, add_special_tokens=False)["input_ids"]) for text in PROMPTS)
    assert read <= model.cost["teacher_tokens"] <= read + 2 * len(PROMPTS)  # with what the tokenizer puts around
    assert model.cost["teacher_flops"] == 2 * model.teachers[0][0].num_parameters() * model.cost["teacher_tokens"]
    assert model.cost["kv_bytes"] > 0


def test_what_is_refused(study, arm):
    output, _ = arm("one", teachers=["gpt2"])
    with pytest.raises(ValueError, match=r"reads the KV of gpt2, but gpt2 .* is not given"):
        evaluation_model(ModelSource(output / "model"), EvaluationConfig())
    with pytest.raises(ValueError, match="plain text"):
        evaluation_model(ModelSource(output / "model", chat="2024-07-26"), EvaluationConfig())
    with pytest.raises(ValueError, match="cannot run the injected student"):
        evaluation_model(ModelSource(output / "model"), EvaluationConfig(backend="vllm"))
    with pytest.raises(ValueError, match="reads its teachers' KV"):
        model_folder(study.models["student"].model_copy(update={"name": str(output / "model")}))
    with pytest.raises(ValueError, match="'bert' is an encoder"):
        study.train("encoder", kv(teachers=["bert"]))
    model = asked(study, output)
    model.model.generation_config.num_beams = 2
    with pytest.raises(NotImplementedError, match="greedy"):
        answers(model)
    assert isinstance(model, InjectedEvaluationModel)
