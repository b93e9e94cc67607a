"""Sentences that remember their template and facts."""

import json

from hypothesis import given
from hypothesis import strategies as st

from mtkv.stats.translatable import Sentence, both, listed, no_result, packed, tell


def filled(parts):
    """The text of packed parts, by a second formula."""
    if isinstance(parts, str):
        return parts
    text = parts["template"]
    for name, fact in parts["facts"].items():
        text = text.replace("{" + name + "}", filled(fact))
    return text


@given(st.lists(st.text(alphabet="ab ;,", min_size=1), min_size=1, max_size=6))
def test_lists_read_as_joined_and_are_packed_whole(texts):
    assert listed(texts) == "; ".join(texts)
    assert both(texts) == " and ".join(texts)
    for sentence in (listed(texts), both(texts)):
        assert filled(json.loads(packed(sentence))) == sentence


def test_facts_keep_their_own_template():
    inner = no_result("sft", tell("no scores file"))
    outer = tell("Data are missing: {missing}.", missing=inner)
    assert outer == "Data are missing: sft has no result (no scores file)."
    assert json.loads(packed(outer))["facts"]["missing"]["template"] == "{arm} has no result ({gap})"
    assert json.loads(packed(tell("{n} items", n=3))) == {"template": "{n} items", "facts": {"n": "3"}}
    assert packed(None) is None
    assert json.loads(packed("plain")) == "plain"
    assert not isinstance(outer + "", Sentence)
