"""A latent student behind lm-eval's interface, against the same questions asked by hand, one at a time (`latent_by_hand`)."""

import latent_by_hand as by_hand
import pandas as pd
import pytest
import torch
from lm_eval.api.instance import Instance
from transformers import AutoModelForCausalLM, AutoTokenizer

from mtkv.config.evaluation import EvaluationConfig
from mtkv.evaluate import batch_size as memory
from mtkv.evaluate.lm_eval_model import EvaluationModel
from mtkv.evaluate.lm_eval_tasks import UnanswerableError
from mtkv.evaluate.predictions import read_predictions
from mtkv.latent.evaluation.lm_eval_model import LatentEvaluationModel
from mtkv.latent.model.interventions import Swapped, Truncated, Zeroed
from mtkv.latent.model.student import LatentStudent
from mtkv.stages.predict import ModelSource, evaluation_model, predict

# name: architecture, (M, T, projection, markers)
STUDENTS = {
    "llama": ("llama", (4, 2, True, True)),
    "gpt2": ("gpt2", (3, 1, False, True)),
    "no markers": ("llama", (4, 2, True, False)),
    "plain latents": ("llama", (4, 0, True, True)),
    "windows": ("mistral", (3, 2, True, True)),
}
NEW = 7
QUESTIONS = [
    "Question: 3+4?\nAnswer:",
    "Unit 7?\nAnswer:",
    "Question: Tom has 12 apples and buys 30 more. How many?\nAnswer:",
]
CHOICES = [" newton", " joule", " two words", " 42"]


@pytest.fixture(scope="module")
def tokenizer(model_folders):
    return AutoTokenizer.from_pretrained(model_folders["llama"])


@pytest.fixture
def student(build_model, tokenizer):
    """Random weights, large enough for answers to differ; `windows`: four tokens, shorter than every question."""

    def build(which="llama"):
        architecture, shape = STUDENTS[which]
        context = {"n_positions": 512} if architecture == "gpt2" else {"max_position_embeddings": 512}
        model = build_model(architecture, vocab_size=len(tokenizer), initializer_range=0.3, eos_token_id=1, **context)
        torch.manual_seed(1)
        return LatentStudent.create(model, *shape)

    return build


def requests(kind, arguments):
    return [Instance(kind, {}, each, place) for place, each in enumerate(arguments)]


def asked(model, questions=QUESTIONS, until=("\n\n",)):
    settings = {"until": list(until), "max_gen_toks": NEW, "do_sample": False}
    return model.generate_until(requests("generate_until", [(text, dict(settings)) for text in questions]))


def scored(model, questions=QUESTIONS, choices=CHOICES):
    return model.loglikelihood(requests("loglikelihood", [(text, choice) for text in questions for choice in choices]))


def expected_answers(student, tokenizer, questions=QUESTIONS, change=None, penalty=1.0):
    """Texts and their numbers of tokens, eos counted."""
    found = [by_hand.answer(student, tokenizer(text)["input_ids"], NEW, change, penalty) for text in questions]
    texts = [tokenizer.decode([token for token in ids if token != 1]).split("\n\n")[0] for ids in found]
    return texts, [len(ids) for ids in found]


def expected_scores(student, tokenizer, questions=QUESTIONS, choices=CHOICES, change=None):
    found = []
    for text in questions:
        ids = tokenizer(text)["input_ids"]
        for choice in choices:
            whole = tokenizer(text + choice)["input_ids"]
            assert whole[: len(ids)] == ids
            found.append(by_hand.log_likelihood(student, ids, whole[len(ids) :], change))
    return found


def same_scores(found, expected):
    assert [greedy for _, greedy in found] == [greedy for _, greedy in expected]
    assert [log for log, _ in found] == pytest.approx([log for log, _ in expected], abs=1e-3)


@pytest.mark.parametrize("batch_size", [1, 3])
@pytest.mark.parametrize("which", STUDENTS)
def test_answers_are_those_given_by_hand(student, tokenizer, which, batch_size):
    one = student(which)
    model = LatentEvaluationModel(one, tokenizer, batch_size)
    texts, lengths = expected_answers(one, tokenizer)
    assert len(set(texts)) == len(texts)
    assert asked(model) == texts
    assert model.generated_tokens == sum(lengths)
    assert model.question_passes == sum(one.latent.iterations + length for length in lengths)
    if batch_size == 1:
        assert model.forward_passes == model.question_passes


@pytest.mark.parametrize("batch_size", [1, 3])
@pytest.mark.parametrize("which", STUDENTS)
def test_choices_are_scored_as_by_hand(student, tokenizer, which, batch_size):
    one = student(which)
    model = LatentEvaluationModel(one, tokenizer, batch_size)
    same_scores(scored(model), expected_scores(one, tokenizer))
    each = len(QUESTIONS) if model._can_share(100) else len(QUESTIONS) * len(CHOICES)
    assert model.question_passes == each * (one.latent.iterations + 1)


@pytest.mark.parametrize("which", ["llama", "gpt2", "no markers"])
def test_a_long_common_beginning_is_read_once(student, tokenizer, which):
    """Also for the same question asked twice, whose beginnings are alike up to the last column."""
    one = student(which)
    examples = "Example: " + "1+2=3. " * 50
    questions = [examples + text for text in [QUESTIONS[0], QUESTIONS[0], QUESTIONS[1]]]
    model = LatentEvaluationModel(one, tokenizer, 4)
    lengths = []

    def note(_module, args, given):
        found = [*args[:1], given.get("inputs_embeds"), given.get("input_ids")]
        lengths.append(next(tuple(read.shape[:2]) for read in found if read is not None))

    hook = one.model.base_model.register_forward_pre_hook(note, with_kwargs=True)
    assert asked(model, questions) == expected_answers(one, tokenizer, questions)[0]
    assert asked(model, questions[:2]) == expected_answers(one, tokenizer, questions[:2])[0]
    same_scores(scored(model, questions), expected_scores(one, tokenizer, questions))
    hook.remove()
    assert max(columns for _, columns in lengths) > 256
    if which != "no markers":
        assert {rows for rows, columns in lengths if columns > 256} == {1}


def test_a_penalty_counts_the_tokens_of_the_question(student, tokenizer):
    one = student()
    one.model.generation_config.repetition_penalty = 0.2  # what was read becomes likelier
    model = LatentEvaluationModel(one, tokenizer, 3)
    assert asked(model) == expected_answers(one, tokenizer, penalty=0.2)[0] != expected_answers(one, tokenizer)[0]


@pytest.mark.parametrize("which", ["llama", "no markers"])
def test_interventions(student, tokenizer, which):
    one = student(which)
    changes = {
        "zeroed": (Zeroed(), torch.zeros_like),
        "first": (Truncated(1), lambda latents: latents[:1]),
        "none": (Truncated(0), lambda latents: latents[:0]),
    }
    plain = expected_answers(one, tokenizer)[0]
    for change, by_formula in changes.values():
        model = LatentEvaluationModel(one, tokenizer, 3, change)
        assert asked(model) == expected_answers(one, tokenizer, change=by_formula)[0] != plain
        if which == "llama":
            same_scores(scored(model), expected_scores(one, tokenizer, change=by_formula))
        else:
            with pytest.raises(NotImplementedError, match="plain attention"):
                scored(model)
    refined = [by_hand.refined(one, tokenizer(text)["input_ids"])[1] for text in QUESTIONS]
    found = asked(LatentEvaluationModel(one, tokenizer, 3, Swapped()))
    for text, said in zip(QUESTIONS, found, strict=True):
        own = QUESTIONS.index(text)
        others = [expected_answers(one, tokenizer, [text], lambda _, z=z: z)[0][0] for z in refined]
        assert said in others[:own] + others[own + 1 :]
        assert said != plain[own]


def test_running_out_of_memory_halves_the_batch(student, tokenizer, monkeypatch):
    one = student()
    model = LatentEvaluationModel(one, tokenizer, 3)
    real, sizes = one.model.base_model.forward, []

    def forward(*args, **given):
        embeds = given.get("inputs_embeds")
        sizes.append(len(embeds if embeds is not None else given["input_ids"]))
        if sizes[-1] > 1:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return real(*args, **given)

    monkeypatch.setattr(one.model.base_model, "forward", forward)
    answers, scores = asked(model), scored(model)
    monkeypatch.undo()
    assert max(sizes) > 1
    assert answers == expected_answers(one, tokenizer)[0]
    same_scores(scores, expected_scores(one, tokenizer))


def test_slots_take_room_in_the_context(student, tokenizer):
    one = student()
    longest = max(len(tokenizer(text)["input_ids"]) for text in QUESTIONS)
    one.model.config.max_position_embeddings = longest + one.slots + NEW
    assert asked(LatentEvaluationModel(one, tokenizer, 3)) == expected_answers(one, tokenizer)[0]
    one.model.config.max_position_embeddings -= 1
    with pytest.raises(UnanswerableError, match=f"has {longest + one.slots} tokens"):
        asked(LatentEvaluationModel(one, tokenizer, 3))


def test_predict_reads_a_latent_folder(tmp_path, data_folder, student, tokenizer, study_tools):
    """Generation and choices from disk; the card says what a question costs."""
    one = student()
    one.save(tmp_path / "model", tokenizer)
    names = ["pocket_bbh", "pocket_gpqa"]
    outputs = {name: tmp_path / f"{name}.parquet" for name in names}
    config = study_tools.config(max_new_tokens=NEW, limit=4)
    facts = predict(ModelSource(tmp_path / "model"), data_folder, config, outputs)
    said, chosen = (read_predictions(outputs[name])[0] for name in names)
    items = pd.read_parquet(data_folder / "test" / "pocket_bbh.parquet").head(4)
    prompts = [study_tools.expected_prompt("pocket_bbh", question) for question in items["question"]]
    texts, lengths = expected_answers(one, tokenizer, prompts)
    assert [output.strip() for output in said["output"]] == [text.strip() for text in texts]
    assert facts["datasets"]["pocket_bbh"]["passes_per_question"] == pytest.approx(2 + sum(lengths) / 4)
    assert facts["datasets"]["pocket_gpqa"]["passes_per_question"] == 3
    items = pd.read_parquet(data_folder / "test" / "pocket_gpqa.parquet").head(4)
    for (_, item), found in zip(items.iterrows(), chosen["loglikelihoods"], strict=True):
        prompt = study_tools.expected_prompt("pocket_gpqa", item["question"])
        expected = expected_scores(one, tokenizer, [prompt], [f" {choice}" for choice in item["choices"]])
        assert list(found) == pytest.approx([log for log, _ in expected], abs=1e-3)


def test_no_latents_give_the_files_of_the_plain_folder(tmp_path, data_folder, model_folders, study_tools, tokenizer):
    model = AutoModelForCausalLM.from_pretrained(model_folders["llama"])
    LatentStudent.create(model, 0, 3).save(tmp_path / "latent", tokenizer)
    names = ["pocket_bbh", "pocket_gpqa"]
    config = study_tools.config(limit=5)
    written = {}
    for what, folder in {"plain": model_folders["llama"], "latent": tmp_path / "latent"}.items():
        outputs = {name: tmp_path / f"{what}-{name}.parquet" for name in names}
        predict(ModelSource(folder), data_folder, config, outputs)
        written[what] = [path.read_bytes() for path in outputs.values()]
    assert written["plain"] == written["latent"]


def test_the_backend_takes_the_class_that_fits(tmp_path, student, tokenizer, model_folders):
    student().save(tmp_path, tokenizer)
    made = evaluation_model(ModelSource(tmp_path), EvaluationConfig(batch_size=3))
    assert isinstance(made, LatentEvaluationModel)
    plain = evaluation_model(ModelSource(model_folders["llama"]), EvaluationConfig(batch_size=3))
    assert type(plain) is EvaluationModel
    with pytest.raises(ValueError, match=r"evaluation.backend: 'vllm' cannot run the latent student"):
        evaluation_model(ModelSource(tmp_path), EvaluationConfig(backend="vllm"))


def test_memory_is_asked_for_rows_with_their_slots(student, tokenizer, monkeypatch):
    one = student("windows")
    lengths = []
    real = memory.rows_at_once
    monkeypatch.setattr(memory, "rows_at_once", lambda *given: lengths.append(given[2]) or real(*given))
    scored(LatentEvaluationModel(one, tokenizer, 3))
    longest = max(len(tokenizer(text + choice)["input_ids"]) for text in QUESTIONS for choice in CHOICES)
    assert lengths == [longest + one.slots]


@pytest.mark.parametrize("which", ["llama", "no markers", "windows"])  # the last by lm-eval's own loop
def test_a_student_of_nan_says_nothing(student, tokenizer, which):
    model = LatentEvaluationModel(student(which), tokenizer, 2)
    model.model.get_output_embeddings().weight.data.fill_(float("nan"))
    with pytest.raises(UnanswerableError, match="logits are not finite"):
        asked(model)
