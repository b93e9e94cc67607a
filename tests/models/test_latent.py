"""The latent student against the same thing written out by hand, one question at a time (`latent_by_hand`)."""

import hashlib
import json

import latent_by_hand as by_hand
import pytest
import torch
from safetensors.torch import load_file, save_file

from mtkv.config.arms import LoraConfig
from mtkv.latent.model.interventions import Swapped, Truncated, Zeroed
from mtkv.latent.model.latent_tokens import LatentTokens, load_latents, table_statistics
from mtkv.latent.model.prefix_cache import can_reuse, read_questions, since
from mtkv.latent.model.student import LatentStudent
from mtkv.models.adapters import add_lora, merge_lora
from mtkv.models.paths import LATENT_FILE, is_latent

# mistral and gemma3 have windows of 4 tokens, shorter than most questions here.
FAMILIES = ["llama", "qwen2", "qwen3", "gemma3", "gpt2", "opt", "gpt_neox", "mistral", "phi3"]
SHAPES = {
    "usual": (3, 2, True, True),
    "plain latents": (3, 0, True, True),
    "bare": (4, 1, False, False),
    "sequential": (2, 3, True, False),
    "one": (1, 1, False, True),
}
QUESTIONS = [[5, 6, 7, 8, 9, 20, 30, 31, 32], [5, 6], [40, 3, 9, 13, 17]]
ANSWERS = [[10, 11], [12, 13, 14, 15], [16]]
NEW = 5


@pytest.fixture
def student(build_model):
    """A student whose random weights are large enough for its answers to differ."""

    def build(name="llama", shape="usual", **changes):
        wide = "init_std" if name == "opt" else "initializer_range"
        model = build_model(name, **({wide: 0.3} | changes))
        model.generation_config.eos_token_id = None
        torch.manual_seed(1)
        return LatentStudent.create(model, *SHAPES[shape])

    return build


def batch(rows, side="right"):
    """Ids and mask of rows padded on one side."""
    width = max(map(len, rows))
    gaps = [[0] * (width - len(row)) for row in rows]
    pairs = list(zip(rows, gaps, strict=True))
    ids = [gap + row if side == "left" else row + gap for row, gap in pairs]
    mask = [[*gap, *[1] * len(row)] if side == "left" else [1] * len(row) + gap for row, gap in pairs]
    return torch.tensor(ids), torch.tensor(mask)


def rows_of(student):
    rows = [student.layout(question, said) for question, said in zip(QUESTIONS, ANSWERS, strict=True)]
    return batch([ids for ids, _ in rows])[0], torch.tensor([start for _, start in rows])


def said(student, rows=QUESTIONS, side="left", as_list=True, **settings):
    ids, mask = batch(rows, side)
    found = student.generate(ids, mask, **({"max_new_tokens": NEW, "do_sample": False} | settings))
    return found.tolist() if as_list else found


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", FAMILIES)
def test_embed_is_what_is_written_by_hand(student, name, shape):
    one = student(name, shape)
    ids, starts = rows_of(one)
    embeds = one.embed(ids, starts)
    for row, (question, answer) in enumerate(zip(QUESTIONS, ANSWERS, strict=True)):
        expected = by_hand.inputs(one, question, answer)
        assert len(expected) == len(question) + one.slots + len(answer)
        torch.testing.assert_close(embeds[row, : len(expected)], expected, atol=2e-5, rtol=1e-4)
        first = len(question) + (one.latent.begin is not None)
        assert one.positions(starts)[row].tolist() == list(range(first, first + one.latent.tokens))


def told(model, ids, weights, **inputs):
    """A loss over all targets of both passes, so that every gradient is asked for: weighted log-probabilities of the next tokens."""
    following = ids[:, 1:]
    likely = model(**inputs).logits.log_softmax(-1)[:, : following.shape[1]]
    return (likely.gather(2, following[..., None])[..., 0] * weights[:, 1:]).sum()


@pytest.mark.parametrize("questions", [QUESTIONS, [[5], [6], [7]]], ids=["padded", "one token"])
@pytest.mark.parametrize("shape", [name for name, shape in SHAPES.items() if shape[1]])
@pytest.mark.parametrize("name", FAMILIES)
def test_a_question_read_once_gives_the_same_loss_and_gradients(student, name, shape, questions):
    """Against whole rows read anew in every iteration, and whole rows with their chain."""
    one = student(name, shape).double()
    assert can_reuse(one)
    rows = [one.layout(question, said) for question, said in zip(questions, ANSWERS, strict=True)]
    ids, mask = batch([ids for ids, _ in rows])
    starts = torch.tensor([start for _, start in rows])
    chains = [[21, 22, 23], [24], [25, 26, 27, 28, 29]]
    text, text_mask = batch([question + chain for question, chain in zip(questions, chains, strict=True)])
    chain_starts = torch.tensor([len(question) for question in questions])
    weight = (mask * (torch.arange(ids.shape[1]) >= (starts + one.slots - one.latent.before)[:, None])).double()
    text_weight = (text_mask * (torch.arange(text.shape[1]) >= chain_starts[:, None])).double()
    parameters = dict(one.named_parameters())
    weight, text_weight = weight * torch.rand_like(weight), text_weight * torch.rand_like(text_weight)
    whole = told(one.model, ids, weight, inputs_embeds=one.embed(ids, starts), use_cache=False)
    whole = whole + told(one.model, text, text_weight, input_ids=text, use_cache=False)
    expected = torch.autograd.grad(whole, list(parameters.values()), allow_unused=True)
    read = read_questions(one, ids, starts)
    first = chain_starts - 1
    found = told(
        one.model, since(text, first, 0), since(text_weight, first, 0), **read.chain_inputs(text, chain_starts)
    )
    found = found + told(one.model, since(ids, starts, 0), since(weight, starts, 0), **read.answer_inputs(ids, starts))
    torch.testing.assert_close(found, whole, rtol=1e-5, atol=1e-5)
    gradients = torch.autograd.grad(found, list(parameters.values()), allow_unused=True)
    for parameter, theirs, ours in zip(parameters, expected, gradients, strict=True):
        assert (theirs is None) == (ours is None), parameter
        if theirs is not None:
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5, msg=parameter)


def test_checkpointed_activations_and_plain_latents_read_whole_rows(student):
    assert not can_reuse(student(shape="plain latents"))
    one = student()
    one.model.gradient_checkpointing_enable()
    assert not can_reuse(one)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", FAMILIES)
def test_generation_with_a_cache_is_full_recomputation(student, name, shape):
    """On either padding side, in a batch and alone."""
    one = student(name, shape)
    expected = [by_hand.answer(one, question, NEW) for question in QUESTIONS]
    one.forward_passes = 0
    assert said(one) == expected
    assert one.forward_passes == one.passes(NEW) == one.latent.iterations + NEW
    assert said(one, side="right") == expected
    assert [said(one, [question])[0] for question in QUESTIONS] == expected


@pytest.mark.parametrize("name", FAMILIES)
def test_no_latents_is_the_text_student_to_the_last_bit(student, build_model, name):
    one = LatentStudent.create(student(name).model, 0, 3)
    ids, starts = rows_of(one)
    assert one.slots == 0
    assert sum(parameter.numel() for parameter in one.latent.parameters()) == 0
    logits = one.model(inputs_embeds=one.embed(ids, starts)).logits
    assert torch.equal(logits, one.model(input_ids=ids).logits)
    ids, mask = batch(QUESTIONS, "left")
    plain = one.model.generate(input_ids=ids, attention_mask=mask, max_new_tokens=NEW, do_sample=False)
    assert torch.equal(one.generate(ids, mask, max_new_tokens=NEW, do_sample=False), plain[:, ids.shape[1] :])


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@pytest.mark.parametrize("name", ["llama", "gemma3"])
def test_attention_implementations_agree(student, name, implementation):
    one = student(name)
    expected = [by_hand.answer(one, question, NEW) for question in QUESTIONS]
    one.model.set_attn_implementation(implementation)
    assert said(one) == expected


@pytest.mark.parametrize("name", FAMILIES)
def test_gradients_reach_every_part(student, name):
    """A loss on the row's first answer position; trained inputs count unless the last T latents' (see the module)."""
    one = student(name)
    for block in one.model.modules():
        if isinstance(block, torch.nn.Dropout):
            block.p = 0.0
    ids, starts = rows_of(one)
    logits = one.model(inputs_embeds=one.embed(ids, starts), use_cache=False).logits
    torch.stack([logits[row, start + 3].logsumexp(0) for row, start in enumerate(starts)]).sum().backward()
    missing = [path for path, p in one.named_parameters() if p.grad is None or not p.grad.abs().sum()]
    assert [path for path in missing if not is_dead(path)] == []
    grad = one.latent.latents.grad.abs().sum(1)
    assert grad[0] > 0
    assert grad[1:].sum() == 0


def is_dead(path):
    """Softmax does not see what all keys have in common: a bias of the keys alone; rows of the table that nothing reads are others'."""
    return path.endswith(("k_proj.bias",))


def test_gradients_flow_through_every_iteration(student):
    """Numerically: the derivative by one number of the first latent's trained input, T = 2, float64 (Llama's norms are not)."""
    one = student("gpt2").double()
    ids, starts = rows_of(one)

    def value():
        return one.model(inputs_embeds=one.embed(ids, starts)).logits[0, int(starts[0]) + 3, 7]

    value().backward()
    analytic = float(one.latent.latents.grad[0, 4])
    step = 1e-6
    with torch.no_grad():
        one.latent.latents[0, 4] += step
        up = float(value())
        one.latent.latents[0, 4] -= 2 * step
        down = float(value())
    assert analytic == pytest.approx((up - down) / (2 * step), rel=1e-4)
    assert abs(analytic) > 1e-6


def test_adapters_train_with_the_latents_and_merge_into_a_plain_folder(student, tmp_path, tokenizer):
    one = student("llama")
    add_lora(one.model, LoraConfig(rank=2, alpha=4))
    ids, starts = rows_of(one)
    trained = [p for p in one.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(trained, lr=0.1)
    for _ in range(2):
        optimizer.zero_grad()
        one.model(inputs_embeds=one.embed(ids, starts)).logits.logsumexp(-1).mean().backward()
        optimizer.step()
    assert all(p.grad is not None for p in trained)
    before = said(one)
    merge_lora(one.model)
    one.save(tmp_path, tokenizer)
    assert said(one) == before == said(quiet(LatentStudent.load(tmp_path)))


def quiet(student):
    student.model.generation_config.eos_token_id = None
    return student.eval()


@pytest.fixture
def tokenizer():
    from tokenizers_for_tests import byte_level_bpe

    return byte_level_bpe()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", SHAPES)
def test_saved_and_loaded_it_answers_the_same(student, tmp_path, tokenizer, shape, dtype):
    made = student("qwen2", shape)
    made.save(tmp_path / "first", tokenizer)
    one = quiet(LatentStudent.load(tmp_path / "first", dtype=dtype))
    one.save(tmp_path / "second", tokenizer)
    other = quiet(LatentStudent.load(tmp_path / "second"))
    assert is_latent(tmp_path / "second")
    assert other.model.dtype == dtype
    assert other.latent.settings() == one.latent.settings()
    for (path, mine), (_, theirs) in zip(one.named_parameters(), other.named_parameters(), strict=True):
        assert torch.equal(mine, theirs), path
        assert mine.dtype == theirs.dtype, path
    assert said(other) == said(one)
    assert dtype != torch.float32 or said(one) == said(made)
    assert len({tuple(row) for row in said(one)}) > 1


def test_the_same_latents_give_the_same_bytes(student, tmp_path, tokenizer):
    made = student("llama")
    digests = set()
    for number in range(4):
        made.save(tmp_path / str(number), tokenizer)
        digests.add(hashlib.sha256((tmp_path / str(number) / LATENT_FILE).read_bytes()).hexdigest())
    assert len(digests) == 1


def test_a_spoilt_file_is_refused_by_name(student, tmp_path, tokenizer):
    with pytest.raises(FileNotFoundError, match="no latent student"):
        load_latents(tmp_path)
    one, path = student("llama"), tmp_path / LATENT_FILE
    one.save(tmp_path, tokenizer)
    good = load_file(path)
    settings = {name: int(value) for name, value in one.latent.settings().items()} | {"format": 2}
    spoilt = {
        "latents has shape": (good | {"latents": good["latents"][:2].clone()}, settings),
        "it is missing": ({name: good[name] for name in good if name != "end"}, settings),
        "no such tensor": (good | {"more": torch.zeros(1)}, settings),
        "format 9, this version reads 2": (good, settings | {"format": 9}),
        "format None": (good, {}),
        "do not say iterations": (good, {name: settings[name] for name in settings if name != "iterations"}),
    }
    for message, (tensors, metadata) in spoilt.items():
        save_file(tensors, path, metadata={"latent": json.dumps(metadata)})
        with pytest.raises(ValueError, match=message):
            LatentStudent.load(tmp_path)
    save_file(good, path, metadata={"latent": "{"})
    with pytest.raises(ValueError, match="not a sound safetensors file"):
        LatentStudent.load(tmp_path)
    path.write_bytes(b"not safetensors")
    with pytest.raises(ValueError, match="not a sound safetensors file"):
        LatentStudent.load(tmp_path)
    with pytest.raises(ValueError, match="8 wide"):
        LatentStudent(one.model, LatentTokens(8, 3, 2))
    with pytest.raises(ValueError, match=r"latent.tokens: -1"):
        LatentTokens(8, -1, 2)
    with pytest.raises(ValueError, match="markers: true"):
        student("llama", "bare").layout([], [1])


@pytest.mark.parametrize("name", ["llama", "gemma3"])
def test_it_begins_as_large_as_words(build_model, name):
    """Latents, markers and what the projection gives for any hidden state, measured on what enters the model (Gemma scales it)."""
    model = build_model(name)
    torch.manual_seed(0)
    one = LatentStudent.create(model, 400, 1)
    words = model.get_input_embeddings()(torch.arange(model.config.vocab_size)).detach()
    for mine, theirs in zip(table_statistics(model), (words.mean(0), words.std(0)), strict=True):
        torch.testing.assert_close(mine, theirs)
    projected = one.latent.next_inputs(torch.randn(4, 400, 32))
    for values in (one.latent.latents, projected.flatten(0, 1)):
        assert float(values.detach().std()) == pytest.approx(float(words.std()), rel=0.1)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["llama", "gemma3", "gpt2"])
def test_half_precision_runs(student, name, dtype):
    one = student(name)
    one.model.to(dtype)
    ids, starts = rows_of(one)
    embeds = one.embed(ids, starts)
    assert embeds.dtype == dtype
    assert one.latent.latents.dtype == torch.float32
    assert torch.isfinite(one.model(inputs_embeds=embeds).logits).all()
    embeds.float().sum().backward()
    assert one.latent.begin.grad.isfinite().all()
    assert all(len(row) == NEW for row in said(one))


@pytest.mark.parametrize("shape", SHAPES)
def test_scores_are_sums_of_log_probabilities(student, shape):
    one = student("llama", shape)
    questions = [*QUESTIONS, QUESTIONS[0]]
    continuations = [*ANSWERS, by_hand.answer(one, QUESTIONS[0], 3)]
    found = one.score(questions, continuations)
    for (log, greedy), question, continuation in zip(found, questions, continuations, strict=True):
        expected, likeliest = by_hand.log_likelihood(one, question, continuation)
        assert log == pytest.approx(expected, abs=1e-4)
        assert greedy is likeliest
    assert [greedy for _, greedy in found][-1] is True


@pytest.mark.parametrize(
    ("name", "shape"), [*[("llama", shape) for shape in SHAPES], ("gemma3", "usual"), ("gpt2", "usual")]
)
def test_interventions(student, name, shape):
    one = student(name, shape)
    refined = [by_hand.refined(one, question)[1] for question in QUESTIONS]
    expected = {
        "zeroed": [by_hand.answer(one, question, NEW, torch.zeros_like) for question in QUESTIONS],
        "swapped": [
            by_hand.answer(one, question, NEW, lambda _, other=other: other)
            for question, other in zip(QUESTIONS, [refined[2], refined[0], refined[1]], strict=True)
        ],
        "first": [by_hand.answer(one, question, NEW, lambda latents: latents[:1]) for question in QUESTIONS],
        "none": [by_hand.answer(one, question, NEW, lambda latents: latents[:0]) for question in QUESTIONS],
    }
    made = {"zeroed": Zeroed(), "swapped": Swapped(), "first": Truncated(1), "none": Truncated(0)}
    found = {what: said(one, intervene=change) for what, change in made.items()}
    assert found == expected
    assert said(one, intervene=Swapped(torch.tensor([2, 0, 1]))) == expected["swapped"]
    assert said(one, intervene=Truncated(one.latent.tokens)) == said(one)


def test_swapping_goes_on_from_batch_to_batch(student):
    one = student("llama")
    change = Swapped()
    parts = [said(one, QUESTIONS[:2], intervene=change), said(one, QUESTIONS[2:], intervene=change)]
    refined = [by_hand.refined(one, question)[1] for question in QUESTIONS]
    others = [refined[1], refined[0], refined[1]]
    assert [*parts[0], *parts[1]] == [
        by_hand.answer(one, question, NEW, lambda _, other=other: other)
        for question, other in zip(QUESTIONS, others, strict=True)
    ]
    with pytest.raises(ValueError, match="cannot be swapped"):
        said(one, QUESTIONS[:1], intervene=Swapped())
    with pytest.raises(ValueError, match="between 0 and the student's 3"):
        said(one, intervene=Truncated(4))


@pytest.mark.parametrize(
    ("name", "shape"), [*[("llama", shape) for shape in SHAPES], ("gemma3", "usual"), ("opt", "usual")]
)
def test_what_latents_decode_to(student, name, shape):
    one = student(name, shape)
    for side in ("left", "right"):
        tokens, probabilities = one.decode_latents(*batch(QUESTIONS, side), k=4)
        assert tokens.shape == probabilities.shape == (len(QUESTIONS), one.latent.tokens, 4)
        for row, question in enumerate(QUESTIONS):
            first = len(question) + (one.latent.begin is not None)
            logits = by_hand.next_logits(one, by_hand.inputs(one, question))[first : first + one.latent.tokens]
            expected = logits.softmax(-1).sort(dim=-1, descending=True)
            assert tokens[row].tolist() == expected.indices[:, :4].tolist()
            torch.testing.assert_close(probabilities[row], expected.values[:, :4], atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", ["llama", "gemma3"])
def test_features_of_generate(student, name, shape):
    """Beams, several answers, scores, penalties on the question's tokens, eos, lengths: against generate without our cache, or by hand."""
    one = student(name, shape)
    question = QUESTIONS[0]
    row = by_hand.inputs(one, question)[None]
    beams = {"num_beams": 3, "num_return_sequences": 2, "max_new_tokens": NEW, "do_sample": False}
    assert said(one, [question], **beams) == one.model.generate(inputs_embeds=row, **beams).tolist()
    full = said(one, [question], output_scores=True, return_dict_in_generate=True, as_list=False)
    logits = by_hand.next_logits(one, row[0])[-1]
    torch.testing.assert_close(full.scores[0][0], logits, atol=1e-4, rtol=1e-4)
    punished = said(one, repetition_penalty=5.0)
    assert punished == [by_hand.answer(one, each, NEW, penalty=5.0) for each in QUESTIONS] != said(one)
    one.model.generation_config.eos_token_id = one.model.generation_config.pad_token_id = said(one)[0][2]
    ended = said(one)
    assert [each[: len(by_hand.answer(one, q, NEW))] for each, q in zip(ended, QUESTIONS, strict=True)] == [
        by_hand.answer(one, q, NEW) for q in QUESTIONS
    ]
    one.model.generation_config.eos_token_id = None
    whole = len(question) + one.slots + 4
    assert len(said(one, [question], max_new_tokens=None, max_length=whole)[0]) == 4
    one.model.generation_config.max_length = whole
    assert len(said(one, [question], max_new_tokens=None)[0]) == 4


def test_recurrent_models_are_refused(student):
    model = student("llama").model
    model._is_stateful = True
    with pytest.raises(NotImplementedError, match="recurrent"):
        LatentStudent.create(model, 2, 1)
    LatentStudent.create(model, 0, 0)
