"""A text that does not fit into the model's context is never cut."""

from mtkv.evaluate.tasks import UnanswerableError


def check_room(context: int, longest: int, new: int = 0) -> None:
    """Raises UnanswerableError when a text of `longest` tokens and `new` more are longer than the context."""
    if longest + new > context:
        raise UnanswerableError(
            f"the longest text has {longest} tokens; with {new} new ones that is more than the model's "
            f"context of {context}: lower evaluation.max_new_tokens or evaluation.num_fewshot"
        )
