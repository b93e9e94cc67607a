"""A row with a chain taken apart: the steps of a chain, and where question, chain and answer begin."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from latent_setting import ROWS

from mtkv.latent.training.chain_of_thought import chain_rows, without_last_step

CHAINS = {
    "equations with full stops": (" 3*4=12. 12+2=14.", " 3*4=12."),
    "three equations": (" 3*4=12. 12-3=9. 9-2=7.", " 3*4=12. 12-3=9."),
    "one equation": (" 3*4=12.", ""),
    "calculations": ("<<3*4=12>> <<12+2=14>>", "<<3*4=12>>"),
    "one calculation": (" <<3*4=12>>", ""),
    "calculations in words": (
        "He buys 3*4=<<3*4=12>>12 pens. So he has 12+2=<<12+2=14>>14.",
        "He buys 3*4=<<3*4=12>>12 pens.",
    ),
    "decimals": ("It costs 3.50 a piece. Two cost 7.00 dollars.", "It costs 3.50 a piece."),
    "abbreviations": (
        "Mr. Lee buys 3 pens, e.g. blue ones. At 5 p.m. he has Dr. Kim's pen and vs. his own, 4.",
        "Mr. Lee buys 3 pens, e.g. blue ones.",
    ),
    "questions and quotes": ('How many? He said "four!" So it is 4.', 'How many? He said "four!"'),
    "no full stop at the end": ("First 3+4=7. Then 14", "First 3+4=7."),
    "no full stop at all": ("3+4=7", ""),
    "lines": ("3+4=7\n7*2=14\nso 14", "3+4=7\n7*2=14\n"),
    "Chinese": ("先买3个。再买4个。一共7个。", "先买3个。再买4个。"),
    "Chinese, one": ("7+3=10。", ""),
    "Chinese, quotes": ("他说“三个！”所以是3个。", "他说“三个！”"),
    "empty": ("", ""),
}


@pytest.mark.parametrize(("chain", "kept"), CHAINS.values(), ids=CHAINS)
def test_the_last_step_is_left_out(chain, kept):
    assert without_last_step(chain) == kept


numbers = st.integers(0, 999)
equations = st.builds(lambda a, b: f"{a}+{b}={a + b}", numbers, numbers)
WRITTEN = {
    "calculations": lambda steps: " ".join(f"<<{step}>>" for step in steps),
    "sentences": lambda steps: " ".join(f"{step}." for step in steps),
    "Chinese": lambda steps: "".join(f"{step}。" for step in steps),
}


@given(st.lists(equations, min_size=1, max_size=5), st.sampled_from(list(WRITTEN)))
def test_all_but_the_last_of_any_steps_are_kept(steps, how):
    assert without_last_step(WRITTEN[how](steps)) == WRITTEN[how](steps[:-1])


def test_the_parts_are_those_of_the_row():
    for keep in (True, False):
        for part, row in zip(chain_rows(ROWS, keep), ROWS.itertuples(), strict=True):
            start, end = part.chain_bytes
            text = (part.prompt + part.trace).encode()
            assert (text[:start].decode(), text[start:end].decode()) == (row.prompt, part.chain)
            assert (row.target == part.trace) == keep
            assert part.answer.startswith(part.announced)
            assert part.announced.rstrip()[-1] in ":："
            assert part.announced + row.answer == part.answer


def test_without_the_answer_its_announcement_ends_behind_the_last_colon():
    (part,) = chain_rows(ROWS.drop(columns="answer").iloc[:1], False)
    assert part.announced == "\nAnswer: "


def test_rows_that_do_not_say_where_their_chain_is_are_refused():
    with pytest.raises(ValueError, match="rows without reasoning_end"):
        chain_rows(ROWS.drop(columns="reasoning_end"), False)
