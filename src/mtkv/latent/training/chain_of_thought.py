"""A row with a chain of thought, taken apart: question, the part of the chain that teaches, and the answer.

The chain's last step gives the answer away, so it is left out of the trace that a latent student learns from (KaVa, arXiv 2510.02312,
as CODI, arXiv 2502.21074, before it) unless config keeps it.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

_CALCULATION = re.compile(r"<<[^<>]*>>")
# The end of a sentence: a full stop that is no decimal point and ends no abbreviation, its Chinese kin, or a line break.
_ABBREVIATION = r"(?<!\bMr)(?<!\bMs)(?<!\bDr)(?<!\bSt)(?<!\bvs)(?<!\bMrs)(?<!\bi\.e)(?<!\be\.g)(?<!\ba\.m)(?<!\bp\.m)"
_SENTENCE = re.compile(rf"{_ABBREVIATION}[.!?]+[\"')\]]*(?=\s|$)|[。！？]+[”」』）]*|\n+")
_ANNOUNCED = re.compile(r".*[:：]\s*", re.DOTALL)


@dataclass(frozen=True)
class ChainRow:
    """One row's parts as text. `chain`: the steps that teach; `answer`: with the words that announce it, `announced` of them, up to
    the value itself, with the blank before it."""

    id: str
    prompt: str
    chain: str
    answer: str
    announced: str

    @property
    def trace(self) -> str:
        """What follows the question where the chain is read."""
        return self.chain + self.answer

    @property
    def chain_bytes(self) -> tuple[int, int]:
        """First byte of the chain in prompt + trace, and the byte after it."""
        start = len(self.prompt.encode())
        return start, start + len(self.chain.encode())


def chain_rows(rows: Any, keep_last_step: bool) -> list[ChainRow]:
    """The parts of `rows` (id, prompt, target, prompt_end, reasoning_end and, where there is one, answer).

    Raises ValueError when the rows do not say where their chain is.
    """
    if absent := [name for name in ("prompt_end", "reasoning_end") if name not in rows]:
        raise ValueError(f"rows without {', '.join(absent)}: student_view latent needs to know where the chain is")
    values: Iterable[str | None] = rows["answer"] if "answer" in rows else [None] * len(rows)
    columns = (rows[name] for name in ("id", "prompt", "target", "prompt_end", "reasoning_end"))
    return [
        _chain_row(row, prompt, target, int(end) - int(start), value, keep_last_step)
        for (row, prompt, target, start, end), value in zip(zip(*columns, strict=True), values, strict=True)
    ]


def without_last_step(chain: str) -> str:
    """The chain up to the end of the step before the last; empty for one step.

    Steps are `<<…>>` where the chain is made of those (GSM8k-AUG), else sentences, English or Chinese, or lines.
    """
    steps = [match.end() for match in _CALCULATION.finditer(chain)]
    if not steps or _CALCULATION.sub("", chain).strip():
        steps = [match.end() for match in _SENTENCE.finditer(chain)]
    before = [end for end in steps if chain[end:].strip()]
    return chain[: before[-1]] if before else ""


def _chain_row(row: str, prompt: str, target: str, length: int, value: str | None, keep_last_step: bool) -> ChainRow:
    written = target.encode()
    chain, answer = written[:length].decode(), written[length:].decode()
    return ChainRow(
        row, prompt, chain if keep_last_step else without_last_step(chain), answer, _announced(answer, value)
    )


def _announced(answer: str, value: str | None) -> str:
    if value and answer.endswith(value):
        return answer.removesuffix(value)
    found = _ANNOUNCED.match(answer)
    return found.group() if found else ""
