"""Wrap the text of a row in the chat template of a model's own tokenizer.

The prompt is the user's message, the target the beginning of the answer; byte offsets still count in the row's own text.
"""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from functools import cache

from transformers import PreTrainedTokenizerBase

from mtkv.models.tokenizer_limits import reading_of

MARK = "\ue000"  # placeholder for a message while the template is taken apart; a private-use character that no text has
STRFTIME = ("-d", "-m", "-H", "-I", "-j", *"aAbBcdDeFHIjmMpSTuUwWxXyY")  # what stands behind % in formats of a time
CUTS: tuple[Callable[[str], str], ...] = (str, str.rstrip, str.strip)  # what templates do to a message's text


@dataclass(frozen=True)
class Written:
    """A row as it is given to the tokenizer. `pieces` are the parts of `text` that are the row's own, as (start in `text`, end in `text`,
    start in the row's own text), in characters; the rest is the template's. `target_start`: where in `text` the target begins."""

    text: str
    pieces: tuple[tuple[int, int, int], ...]
    target_start: int

    def own_offset(self, start: int, end: int) -> tuple[int, int]:
        """(start, end) in the row's own text of a token at `start:end` of `text`; (0, 0) if any of it is the template's."""
        for first, last, own in self.pieces:
            if first <= start < end <= last:
                return start - first + own, end - first + own
        return 0, 0

    def touches(self, start: int, end: int) -> bool:
        """Whether a token at `start:end` of `text` covers any character of the row's own text."""
        return any(max(start, first) < min(end, last) for first, last, _ in self.pieces)


@dataclass(frozen=True)
class ChatTemplate:
    """A template taken apart: the text before the prompt, the text between prompt and answer, and the token that ends an answer."""

    tokenizer: PreTrainedTokenizerBase
    before: str
    between: str
    end_id: int

    def write(self, prompt: str, target: str) -> Written:
        """The row in the template. Raises ValueError where the template changes the prompt's words."""
        rendered = render(self.tokenizer, [("user", prompt)], answer_follows=True)
        for cut in CUTS:
            if rendered == self.before + cut(prompt) + self.between:
                start, skipped = len(self.before), len(prompt) - len(prompt.lstrip()) if cut is str.strip else 0
                of_prompt = (start, start + len(cut(prompt)), skipped)
                of_target = (len(rendered), len(rendered) + len(target), len(prompt))
                return Written(rendered + target, (of_prompt, of_target), len(rendered))
        raise ValueError(
            f"{self.tokenizer.name_or_path}: its chat template changes the words of the prompt {prompt[:40]!r}, so its tokens could "
            "not be compared with those of other models; use prompt: plain"
        )


def write_plain(prompt: str, target: str) -> Written:
    """The row as it stands."""
    return Written(prompt + target, ((0, len(prompt) + len(target), 0),), len(prompt))


def chat_template(tokenizer: PreTrainedTokenizerBase) -> ChatTemplate:
    """The tokenizer's own template. Raises ValueError for a tokenizer without one and for one that cannot be taken apart.

    An answer ends with the special token that the template puts after it (`<end_of_turn>`, `<|im_end|>`), else with eos.
    """
    if not tokenizer.chat_template:
        raise ValueError(
            f"{tokenizer.name_or_path}: its tokenizer has no chat template, as a base model's has not; use prompt: plain"
        )
    before, found, between = render(tokenizer, [("user", MARK)], answer_follows=True).partition(MARK)
    if not found or MARK in between:
        raise ValueError(
            f"{tokenizer.name_or_path}: its chat template does not show the user's turn once; use prompt: plain"
        )
    whole = render(tokenizer, [("user", MARK), ("assistant", MARK)], answer_follows=False)
    after = tokenizer(whole.rpartition(MARK)[2], add_special_tokens=False)["input_ids"][:1]
    ends = after and after[0] in tokenizer.added_tokens_decoder and tokenizer.added_tokens_decoder[after[0]].special
    return ChatTemplate(tokenizer, before, between, int(after[0]) if ends else int(tokenizer.eos_token_id))


def render(tokenizer: PreTrainedTokenizerBase, turns: list[tuple[str, str]], answer_follows: bool) -> str:
    """Messages (role, text) as the template writes them; `answer_follows` adds the beginning of an answer."""
    messages = [{"role": role, "content": text} for role, text in turns]
    template = dated_template(tokenizer, reading_of(tokenizer).date)
    written = tokenizer.apply_chat_template(
        messages, chat_template=template, tokenize=False, add_generation_prompt=answer_follows
    )
    return str(written)


def dated_template(tokenizer: PreTrainedTokenizerBase, date: str) -> str:
    """The tokenizer's template with its clock fixed at a day (YYYY-MM-DD), so that prompts do not change from day to day: Llama 3 reads
    `date_string`, others call `strftime_now`, for which transformers gives the current time. Raises ValueError without a template."""
    return _stopped_clock(date) + tokenizer.get_chat_template()


@cache
def _stopped_clock(date: str) -> str:
    """Jinja source that defines both names, because a template can be given text but no functions. trim_blocks removes its last newline."""
    day = datetime.fromisoformat(date)
    written = "".join(f" | replace('%{code}', '{day.strftime('%' + code)}')" for code in STRFTIME)
    return (
        f"{{% set date_string = '{day.strftime('%d %b %Y')}' %}}"
        f"{{% macro strftime_now(format) %}}{{{{ format{written} }}}}{{% endmacro %}}\n"
    )
