"""Pydantic's validation errors as `Problem`s in the words of this project."""

import re
import types
from collections.abc import Callable, Mapping
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError

from mtkv.config.errors import Loc, Problem, hint, not_one_of, show

Detail = Mapping[str, Any]  # one entry of ValidationError.errors()

EXPECTED = {
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "finite_number": "a finite number",
    "string_type": "text",
    "bool_type": "true or false",
    "list_type": "a list",
    "dict_type": "a mapping",
    "model_type": "a mapping",
    "model_attributes_type": "a mapping",
}
LIMITS = {
    "greater_than": ("gt", "more than"),
    "greater_than_equal": ("ge", "at least"),
    "less_than": ("lt", "less than"),
    "less_than_equal": ("le", "at most"),
}


def problems_of(error: ValidationError, model: type[BaseModel]) -> list[Problem]:
    """One problem for each of pydantic's errors of validating `model`."""
    return [_problem(detail, model) for detail in error.errors(include_url=False)]


def config_loc(loc: Loc) -> Loc:
    """The `loc` of a pydantic error as a path of the config, without pydantic's own markers (`[key]`, the `kind` of a claim)."""
    parts = [part for part in loc if part != "[key]"]
    if parts[:1] == ["claims"] and len(parts) > 2 and "[key]" not in loc:
        del parts[2]
    return tuple(parts)


def _problem(detail: Detail, model: type[BaseModel]) -> Problem:
    loc, kind, context = config_loc(detail["loc"]), detail["type"], detail.get("ctx", {})
    if kind == "mtkv":
        return Problem(loc + tuple(context["at"]), context["message"])
    if kind == "extra_forbidden":
        keys = keys_at(model, detail["loc"][:-1])
        return Problem(loc, f"unknown key; allowed: {', '.join(keys)}{hint(loc[-1], keys)}")
    if kind.startswith("union_tag"):
        loc += (context["discriminator"].strip("'"),)
    if kind in EXPECTED:
        return Problem(loc, f"{show(detail['input'])} is not {EXPECTED[kind]}{_yaml_hint(detail)}")
    if kind in LIMITS:
        key, words = LIMITS[kind]
        return Problem(loc, f"{show(detail['input'])} is not allowed; allowed: {words} {context[key]:.10g}")
    describe = MESSAGES.get(kind, lambda detail, _: f"{show(detail['input'])}: {detail['msg']}")
    return Problem(loc, describe(detail, context))


def _missing(detail: Detail, context: Detail) -> str:
    return "is missing; it must be given"


def _literal(detail: Detail, context: Detail) -> str:
    return not_one_of(detail["input"], re.findall(r"'([^']*)'", context["expected"]))


def _tag(detail: Detail, context: Detail) -> str:
    return not_one_of(context["tag"], re.findall(r"'([^']*)'", context["expected_tags"]))


def _pattern(detail: Detail, context: Detail) -> str:
    return (
        f"{show(detail['input'])} is not a usable name; "
        "allowed: letters, digits and . _ - only, starting with a letter or digit"
    )


def _length(detail: Detail, context: Detail) -> str:
    bound = "min_length" if "min_length" in context else "max_length"
    words = "at least" if bound == "min_length" else "at most"
    units = ("character", "characters") if detail["type"].startswith("string") else ("entry", "entries")
    return f"{show(detail['input'])} is not allowed; allowed: {words} {context[bound]} {units[context[bound] != 1]}"


MESSAGES: dict[str, Callable[[Detail, Detail], str]] = {
    "missing": _missing,
    "literal_error": _literal,
    "union_tag_invalid": _tag,
    "union_tag_not_found": _missing,
    "string_pattern_mismatch": _pattern,
    "too_short": _length,
    "too_long": _length,
    "string_too_short": _length,
    "string_too_long": _length,
}


def _yaml_hint(detail: Detail) -> str:
    """A hint for values that YAML reads unexpectedly: 2e-5 is text (write 2.0e-5); unquoted, 2024_1 is 20241 and `on` is true."""
    value = detail["input"]
    if detail["type"] == "string_type" and isinstance(value, int | float):
        return "; put what was written in quotes, in a file for --configfile (--config strips them)"
    if isinstance(value, str) and re.fullmatch(r"[-+]?\d+[eE][-+]?\d+", value):
        mantissa, exponent = re.split("[eE]", value)
        sign = "" if exponent[0] in "+-" else "+"
        return f" (YAML reads it as text; write {mantissa}.0e{sign}{exponent})"
    return ""


def keys_at(annotation: Any, loc: Loc) -> list[str]:
    """Known keys of the model that stands at `loc` (as pydantic gives it) below `annotation`."""
    annotation = _member(annotation, loc)
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        if not loc:
            return list(annotation.model_fields)
        return keys_at(annotation.model_fields[str(loc[0])].annotation, loc[1:])
    if get_origin(annotation) in (dict, list):
        return keys_at(get_args(annotation)[-1], loc[1:])
    if get_origin(annotation) in (Union, types.UnionType):  # told apart by `kind`, which is the next part of loc
        tagged = {get_args(member.model_fields["kind"].annotation)[0]: member for member in get_args(annotation)}
        return keys_at(tagged[loc[0]], loc[1:])
    return []


def _member(annotation: Any, loc: Loc) -> Any:
    """The annotation without its Annotated wrapper and without `| None`."""
    while get_origin(annotation) is Annotated:
        annotation = get_args(annotation)[0]
    if get_origin(annotation) in (Union, types.UnionType):
        members = [member for member in get_args(annotation) if member is not type(None)]
        return _member(members[0], loc) if len(members) == 1 else annotation
    return annotation
