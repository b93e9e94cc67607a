"""Answers of every source in one plain form, against sympy and Python's own number types."""

from fractions import Fraction

import pytest
import sympy
from hypothesis import given
from hypothesis import strategies as st

from mtkv.data.answers import AnswerError, as_fraction, as_text, boxed, number, text, without_calculations, yes_no


@pytest.mark.parametrize(
    ("written", "plain"),
    [
        ("1,000", "1000"),
        (" $1,234,567.50 ", "1234567.5"),
        (51.0, "51"),
        (7, "7"),
        ("-5", "-5"),
        ("−5", "-5"),
        ("+3", "3"),
        ("18.", "18"),
        (".5", "0.5"),
        ("007", "7"),
        ("0.0", "0"),
        ("-0", "0"),
        ("45%", "45%"),
        ("12.50％", "12.5%"),
        ("3/4", "3/4"),
        ("((1)/(2))", "1/2"),
        ("(1)/(2)", "1/2"),
        ("1，000", "1000"),
    ],
)
def test_numbers(written, plain):
    assert number(written) == plain


@pytest.mark.parametrize(
    "written", ["", "  ", "five", "1.2.3", "1/", "/2", None, True, "nan", "$", "1 2", "--1", ",", "."]
)
def test_what_is_no_number_is_refused(written):
    with pytest.raises(AnswerError, match="not a number"):
        number(written)


@given(st.decimals(allow_nan=False, allow_infinity=False, places=3, min_value=-(10**9), max_value=10**9))
def test_the_value_of_a_number_stays(value):
    assert Fraction(number(f"{value:,}")) == Fraction(value)
    assert number(number(f"{value:,}")) == number(f"{value:,}")


@pytest.mark.parametrize("written", ["7", "-2.5", "1/3", "45%", "-12.5%"])
def test_fractions_are_those_of_sympy(written):
    expected = sympy.Rational(written.rstrip("%")) / (100 if "%" in written else 1)
    assert as_fraction(written) == Fraction(int(expected.p), int(expected.q))


def test_no_fraction():
    assert as_fraction("x") is None
    assert as_fraction("1/0") is None


@pytest.mark.parametrize(("value", "plain"), [(True, "yes"), (False, "no"), ("True", "yes"), (" no ", "no")])
def test_yes_and_no(value, plain):
    assert yes_no(value) == plain
    with pytest.raises(AnswerError):
        yes_no(f"{value}?")


@pytest.mark.parametrize(
    ("solution", "answer"),
    [
        (r"so $\boxed{\frac{1}{2}}$.", r"\frac{1}{2}"),
        (r"$\boxed{0}$, no: $\boxed{\left\{1,\{2\}\right\}}$", r"\left\{1,\{2\}\right\}"),
        (r"$\boxed 5$ apples", "5"),
        (r"\fbox{ 3 }", "3"),
    ],
)
def test_the_last_box(solution, answer):
    assert boxed(solution) == answer


@pytest.mark.parametrize("solution", ["42", r"\boxed{1", ""])
def test_no_box(solution):
    with pytest.raises(AnswerError, match="boxed"):
        boxed(solution)


def test_texts():
    assert without_calculations("48/2 = <<48/2=24>>24 a.\nThen <<1+1=2>>2.") == "48/2 = 24 a.\nThen 2."
    assert text("  a\n b\t") == "a b"
    for empty in ("", " \n"):
        with pytest.raises(AnswerError, match="empty"):
            text(empty)


@pytest.mark.parametrize("value", [None, 12, 1.5, float("nan"), True, ["a"], b"a"])
def test_what_is_no_text_is_refused(value):
    with pytest.raises(AnswerError, match="is not text"):
        text(value)


@given(st.text(st.characters(codec=None, categories=None), max_size=6))
def test_text_is_what_can_be_written(value):
    """Against Python's own UTF-8: lone surrogates, which JSON may hold, cannot be written to any file."""
    try:
        value.encode()
    except UnicodeEncodeError:
        with pytest.raises(AnswerError, match="half a character"):
            as_text(value)
    else:
        assert as_text(value) is value
