"""The params of a past run by name, and what differs, from nothing but the texts that Snakemake keeps."""

from hypothesis import given
from hypothesis import strategies as st

from mtkv.ops.planned_jobs import Change
from mtkv.ops.rerun_reasons import changes, named, param_changes, read_back

LEAF = (
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=5)
)
TREE = st.recursive(
    LEAF,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text("abc", min_size=1, max_size=3), inner, max_size=3)
    ),
    max_leaves=8,
)
TRAIN = {
    "study": "pocket",
    "student": {"config": {"source": "pocket", "name": "student", "revision": None}, "content": "aa11"},
    "arm": {"training": {"steps": 150, "lora": None}, "kv": {"loss": {"beta": 0.1}, "teachers": ["a", "b"]}},
    "code": "0123456789abcdef",
}


def texts(params):
    """As Snakemake keeps them: sorted, nameless."""
    return sorted(map(repr, params.values()))


def replaced(tree, path, value):
    first, *rest = path
    return tree | {first: replaced(tree[first], rest, value) if rest else value}


@given(st.dictionaries(st.sampled_from(["code", "study", "arm", "limit", "student"]), TREE))
def test_unchanged_params_have_no_changes(params):
    assert named(texts(params), params) == params
    assert param_changes(texts(params), params) == []


@given(TREE)
def test_values_survive_their_text(value):
    assert repr(read_back(repr(value))) == repr(value)


def test_one_changed_field_is_named_with_both_values():
    for path, value in (
        (("arm", "kv", "loss", "beta"), 0.2),
        (("arm", "training", "steps"), 300),
        (("arm", "kv", "teachers"), ["a"]),
        (("student", "config", "revision"), "main"),
        (("student", "content"), "bb22"),
        (("study",), "other"),
        (("code",), "fedcba9876543210"),
    ):
        today = replaced(TRAIN, path, value)
        old = TRAIN
        for step in path:
            old = old[step]
        assert param_changes(texts(TRAIN), today) == [Change(".".join(path), old, value)]


def test_two_changed_params_are_told_apart():
    today = replaced(replaced(TRAIN, ("arm", "training", "steps"), 300), ("code",), "f" * 16)
    assert {change.path: change.new for change in param_changes(texts(TRAIN), today)} == {
        "arm.training.steps": 300,
        "code": "f" * 16,
    }


def test_fields_that_came_or_went_are_named():
    today = replaced(TRAIN, ("arm", "kv"), None)
    assert param_changes(texts(TRAIN), today) == [Change("arm.kv", TRAIN["arm"]["kv"], None)]
    newer = TRAIN | {"arm": TRAIN["arm"] | {"latent": {"tokens": 24}}}
    assert param_changes(texts(TRAIN), newer) == [Change("arm.latent", None, {"tokens": 24})]


def test_a_value_that_several_params_had_is_found_again():
    before = {"limit": None, "model": None, "code": "a" * 16}
    today = before | {"limit": 20}
    assert param_changes(texts(before), today) == [Change("limit", None, 20)]


def test_lists_of_mappings_are_compared_place_by_place():
    old = {"teachers": [{"name": "a"}, {"name": "b"}]}
    new = {"teachers": [{"name": "a"}, {"name": "c"}]}
    assert list(changes(old, new, "arm")) == [Change("arm.teachers[1].name", "b", "c")]
    assert list(changes([1, 2], [1, 3], "x")) == [Change("x", [1, 2], [1, 3])]
    assert list(changes(1, 1.0, "x")) == [Change("x", 1, 1.0)]
