"""How well a model answers the pocket test: a small evaluation loop of the recipe's own, independent of lm-eval.

Generation datasets: greedy text after the chain-of-thought prompt, the word after the last "Answer:" is the answer.
Multiple choice: the option with the highest log-likelihood after the direct prompt.
"""

import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from mtkv.data.items import Task
from mtkv.data.pocket import TASKS
from mtkv.data.rows import STYLES, Question
from mtkv.data.splits import draw_questions
from mtkv.models.tokenization import encode_rows, pad_batch

ANSWER = re.compile(r"Answer:\s*(\S+)")
NEW_TOKENS = 48
BATCH = 100


def measure(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, test_items: int = 200, seed: int = 0
) -> dict[str, float]:
    """Accuracy per dataset on the test questions that the default study draws with `seed`, and their mean as `macro`."""
    accuracy = {}
    for name, task in TASKS.items():
        questions = draw_questions(task, seed, {"test": test_items})["test"]
        correct = [MEASURES[task.answering](model, tokenizer, task, part) for part in _parts(questions)]
        accuracy[name] = float(np.concatenate(correct).mean())
    return accuracy | {"macro": float(np.mean(list(accuracy.values())))}


@torch.no_grad()
def generated_correct(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, task: Task, questions: Sequence[Question]
) -> np.ndarray:
    """1.0 where the generated answer is the right one, [questions]."""
    prompts = [STYLES[task.language, "cot"].prompt.format(question=question.item.question) for question in questions]
    batch = tokenizer(prompts, return_tensors="pt", padding=True, padding_side="left", return_token_type_ids=False)
    generate: Any = model.generate
    out = generate(**batch, max_new_tokens=NEW_TOKENS, do_sample=False)
    texts = tokenizer.batch_decode(out[:, batch["input_ids"].shape[1] :], skip_special_tokens=True)
    answers = [(ANSWER.findall(text) or [""])[-1] for text in texts]
    return np.array([answer == q.item.answer for answer, q in zip(answers, questions, strict=True)], dtype=float)


@torch.no_grad()
def chosen_correct(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, task: Task, questions: Sequence[Question]
) -> np.ndarray:
    """1.0 where the right option is the likeliest continuation, [questions]. The end of text is not scored.

    Rows are padded right, where causal attention does not look, so no mask is needed.
    """
    style = STYLES[task.language, "direct"]
    pairs = [
        (style.prompt.format(question=question.item.question), style.answer.format(answer=choice))
        for question in questions
        for choice in question.item.choices
    ]
    rows = encode_rows(tokenizer, [prompt for prompt, _ in pairs], [target for _, target in pairs])
    ids = torch.from_numpy(pad_batch([row.input_ids for row in rows], tokenizer.eos_token_id))
    scored = torch.from_numpy(pad_batch([_without_end(row.is_target) for row in rows], False))
    likely = torch.log_softmax(model(input_ids=ids).logits[:, :-1], dim=-1)
    each = likely.gather(-1, ids[:, 1:, None])[..., 0].masked_fill(~scored[:, 1:], 0.0).sum(-1)
    best = each.view(len(questions), -1).argmax(-1).tolist()
    return np.array([choice == q.item.gold for choice, q in zip(best, questions, strict=True)], dtype=float)


MEASURES = {"generation": generated_correct, "choice": chosen_correct}


def _without_end(is_target: np.ndarray) -> np.ndarray:
    scored = is_target.copy()
    scored[-1] = False
    return scored


def _parts(questions: Sequence[Question]) -> list[Sequence[Question]]:
    return [questions[start : start + BATCH] for start in range(0, len(questions), BATCH)]
