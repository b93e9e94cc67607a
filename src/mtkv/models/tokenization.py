"""Turn rows of text into one model's own token ids, with the byte at which each token ends.

Every model reads the same characters through its own tokenizer; byte ends are what two tokenizations have in common
(method.md §2). Offsets come from the fast tokenizer, never from decoding token by token. A tokenizer from `load_tokenizer` has the
attribute `reading`: whether its model gets rows plain or in its chat template, and its limits (`mtkv.models.tokenizer_limits`). In a chat
template the prompt is the user's message, the target the beginning of the answer; byte offsets still count in the row's own text.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from functools import cache

import numpy as np
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from mtkv.models.tokenizer_limits import check_ids, check_lengths, check_text, leading_ids, reading_of

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

    def own(self, offsets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Of tokens at `offsets` [time, 2] of `text`: their offsets in the row's own text, (0, 0) where any of a token is the template's;
        and whether a token covers any character of the row's own text, [time]."""
        start, end = offsets.T
        own, touches = np.zeros_like(offsets), np.zeros(len(offsets), dtype=bool)
        for first, last, begins in self.pieces:
            inside = (first <= start) & (start < end) & (end <= last)
            own[inside] = offsets[inside] - first + begins
            touches |= np.maximum(start, first) < np.minimum(end, last)
        return own, touches


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


NOT_A_BOUNDARY = -1
AT_ONCE = 1000  # rows tokenised together: what the tokenizer returns takes ten times the memory of the rows


@dataclass(frozen=True)
class EncodedRow:
    """One row as one model reads it. All arrays have shape [time].

    `byte_end`: UTF-8 byte of the row's own text (prompt + target) at which the token ends, or −1 where nothing may be compared:
    special tokens, those of a chat template, the first token (attention sink) and a token that ends inside a multi-byte character.
    `byte_start`: end of the last boundary before it, so that the spans of a row neither overlap nor leave gaps; −1 wherever `byte_end`
    is. For example, `Hello`, ` wor`, `ld`, eos have byte_start [−1, 5, 9, −1] and byte_end [−1, 9, 11, −1].
    `is_target`: tokens of the target part and the token that ends it, on which the cross-entropy is taken.
    """

    input_ids: np.ndarray
    byte_start: np.ndarray
    byte_end: np.ndarray
    is_target: np.ndarray


def encode_rows(
    tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str], targets: Sequence[str], max_length: int | None = None
) -> list[EncodedRow]:
    """Encode each row as the tokenizer's model reads it: `[bos] + prompt + target + eos`, with the bos that the tokenizer itself puts
    before texts, or for `prompt: chat` `template(prompt) + target + end of turn`.

    Raises ValueError for a tokenizer without offsets, without eos or (chat) without a template, for a row longer than `max_length`
    or the model's context (nothing is truncated silently), with a token the model has no embedding for, or whose tokens do not
    decode to its text.
    """
    if not tokenizer.is_fast:
        raise ValueError(f"tokenizer {tokenizer.name_or_path}: needs a fast tokenizer, only those report offsets")
    if tokenizer.eos_token_id is None:
        raise ValueError(f"tokenizer {tokenizer.name_or_path}: has no eos token, so an answer could never end")
    frame = frame_of(tokenizer)
    if len(prompts) != len(targets):
        raise ValueError(f"{len(prompts)} prompts, but {len(targets)} targets")
    rows: list[EncodedRow] = []
    for start in range(0, len(prompts), AT_ONCE):
        part = slice(start, start + AT_ONCE)
        rows += _encode_part(tokenizer, frame, prompts[part], targets[part], start)
    check_lengths(tokenizer, [row.input_ids for row in rows], max_length)
    check_ids(tokenizer, [row.input_ids for row in rows])
    return rows


def _encode_part(
    tokenizer: PreTrainedTokenizerBase, frame: "PromptFrame", prompts: Sequence[str], targets: Sequence[str], first: int
) -> list[EncodedRow]:
    """`encode_rows` of rows that are tokenised together; `first`: number of the first of them, for error messages."""
    written = [frame.write(prompt, target) for prompt, target in zip(prompts, targets, strict=True)]
    encoded = tokenizer(
        [row.text for row in written],
        add_special_tokens=False,
        return_offsets_mapping=True,
        return_attention_mask=False,
    )
    rows = []
    for number, (given, found, row) in enumerate(
        zip(encoded["input_ids"], encoded["offset_mapping"], written, strict=True)
    ):
        ids, offsets = np.array(given, dtype=np.int64), np.array(found, dtype=np.int64).reshape(-1, 2)
        text, (own, touches) = prompts[number] + targets[number], row.own(offsets)
        check_text(tokenizer, text, ids[touches].tolist(), first + number)
        rows.append(_encode_row(ids, own, offsets[:, 1] > row.target_start, text, frame))
    return rows


@dataclass(frozen=True)
class PromptFrame:
    """What surrounds a row's text: token ids before it, the id that ends an answer, and `write(prompt, target)`, its template if any."""

    before: list[int]
    end_id: int
    write: Callable[[str, str], Written]


def frame_of(tokenizer: PreTrainedTokenizerBase) -> PromptFrame:
    """The frame that the tokenizer's `reading` asks for: with `prompt: plain` the row itself, behind bos where the tokenizer puts one, with
    `prompt: chat` the row in the tokenizer's chat template, which writes its own bos."""
    if reading_of(tokenizer).prompt == "chat":
        template = chat_template(tokenizer)
        return PromptFrame([], template.end_id, template.write)
    return PromptFrame(leading_ids(tokenizer), int(tokenizer.eos_token_id), write_plain)


def read_prompts_as_rows(tokenizer: PreTrainedTokenizerBase, chat: bool) -> PromptFrame:
    """Change a tokenizer, in place, so that it encodes a prompt as `encode_rows` encodes the prompt of a row: behind the same leading ids
    (none for `chat`, whose template writes its own bos), and without the eos that some tokenizers append. Returns the frame of rows."""
    tokenizer.reading = replace(reading_of(tokenizer), prompt="chat" if chat else "plain")
    frame = frame_of(tokenizer)
    before = tokenizer.convert_ids_to_tokens(frame.before)
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=[*before, "$0"], special_tokens=list(zip(before, frame.before, strict=True))
    )
    return frame


def end_answers(model: PreTrainedModel, end_id: int) -> None:
    """Let generation stop, in place, also at the token that ends a row's answer: that of a chat template is often not the model's eos."""
    given = model.generation_config.eos_token_id
    known = given if isinstance(given, list) else [] if given is None else [given]
    if end_id not in known:
        model.generation_config.eos_token_id = [*known, end_id]


def byte_ends(text: str, offsets: Sequence[tuple[int, int]] | np.ndarray) -> np.ndarray:
    """End of each token in UTF-8 bytes of `text`, [time]; −1 where the token is no boundary (see `EncodedRow`)."""
    sizes = [1] * len(text) if text.isascii() else [len(character.encode()) for character in text]
    start, end = np.array(offsets, dtype=np.int64).reshape(-1, 2).T
    ends = np.where(end > start, np.cumsum([0, *sizes])[end], NOT_A_BOUNDARY).astype(np.int32)
    # The offsets of a token with part of a character span the whole character: the next token covers it again, so this one is no boundary.
    spans = np.flatnonzero(end > start)
    ends[spans[:-1][start[spans[1:]] < end[spans[:-1]]]] = NOT_A_BOUNDARY
    return ends


def byte_starts(ends: np.ndarray) -> np.ndarray:
    """First byte of each token's span, [time]: the last end before it that is not −1 (else 0); −1 where `ends` is."""
    reached = np.maximum.accumulate(np.append(0, np.maximum(ends, 0)))[:-1]
    return np.where(ends == NOT_A_BOUNDARY, NOT_A_BOUNDARY, reached).astype(np.int32)


def _encode_row(ids: np.ndarray, own: np.ndarray, of_target: np.ndarray, text: str, frame: PromptFrame) -> EncodedRow:
    before = len(frame.before)
    ends = np.append(np.full(before, NOT_A_BOUNDARY, dtype=np.int32), byte_ends(text, own))
    starts = byte_starts(ends)
    starts[:1] = ends[:1] = NOT_A_BOUNDARY
    return EncodedRow(
        input_ids=np.concatenate([frame.before, ids, [frame.end_id]]).astype(np.int64),
        byte_start=np.append(starts, NOT_A_BOUNDARY).astype(np.int32),
        byte_end=np.append(ends, NOT_A_BOUNDARY).astype(np.int32),
        is_target=np.concatenate([np.zeros(before, dtype=bool), of_target, [True]]),
    )


def pad_batch(rows: Sequence[np.ndarray], fill: int) -> np.ndarray:
    """Right-pad 1-D arrays to [batch, longest] with `fill`."""
    padded = np.full((len(rows), max(len(row) for row in rows)), fill, dtype=rows[0].dtype)
    for index, row in enumerate(rows):
        padded[index, : len(row)] = row
    return padded
