"""Values narrowed to a type are the same objects; another type is named."""

import pytest

from qwen3_model.command import narrow
from qwen3_model.errors import FormatError


@pytest.mark.parametrize(
    ("function", "value"),
    [
        (narrow.as_text, ""), (narrow.as_flag, False), (narrow.as_int, -1), (narrow.as_number, 3),
        (narrow.as_number, 0.5), (narrow.as_list, []), (narrow.as_list, (1,)), (narrow.as_section, {"a": 1}),
    ],
)  # fmt: skip
def test_a_value_of_the_type_is_returned_itself(function, value):
    assert function(value) is value
    assert narrow.optional(function, value) is value
    assert narrow.optional(function, None) is None


@pytest.mark.parametrize(
    ("function", "value", "message"),
    [
        (narrow.as_text, 1, "1 is not a text"),
        (narrow.as_flag, 1, "1 is not true or false"),
        (narrow.as_int, True, "True is not a whole number"),
        (narrow.as_int, 1.0, "1.0 is not a whole number"),
        (narrow.as_number, True, "True is not a number"),
        (narrow.as_number, "1", "'1' is not a number"),
        (narrow.as_list, "ab", "'ab' is not a list"),
        (narrow.as_section, {1: 2}, "{1: 2} is not a section with keys"),
        (narrow.as_texts, ["a", None], "None is not a text"),
        (narrow.as_ints, [1, False], "False is not a whole number"),
        (narrow.as_sections, [{}, []], r"\[\] is not a section with keys"),
        (narrow.as_text, ["x" * 100], r"\['x{75}\.\.\. is not a text"),
    ],
)
def test_another_type_is_named(function, value, message):
    with pytest.raises(FormatError, match=f"^{message}$"):
        function(value)


def test_values_are_handed_over_as_keyword_arguments():
    assert narrow.build(dict, {"a": 1}) == {"a": 1}


def test_a_value_at_a_key_is_narrowed_and_its_fault_names_the_key():
    assert narrow.at_key({"a": 1}, "a", narrow.as_int) == 1
    with pytest.raises(FormatError, match=r"^b is missing$"):
        narrow.at_key({"a": 1}, "b", narrow.as_int)
    with pytest.raises(FormatError, match=r"^a: b: None is not a whole number$"):
        narrow.at_key({"a": {"b": None}}, "a", lambda inner: narrow.at_key(inner, "b", narrow.as_int))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), 10**400, -(10**400)])
def test_what_no_float_can_hold_is_not_finite(value):
    assert narrow.is_number(value)
    assert not narrow.is_finite(value)
    assert not narrow.is_above_zero(value)


def test_a_number_above_zero_is_no_bool():
    assert [narrow.is_above_zero(value) for value in (1, 0.5, 0, -1, True, "1")] == [True, True, *[False] * 4]


def test_an_absent_key_has_its_default_and_one_of_another_type_has_not():
    assert narrow.at_key({}, "a", narrow.as_int, 0) == 0
    assert narrow.at_key({"a": 1}, "a", narrow.as_int, 0) == 1
    with pytest.raises(FormatError, match=r"^a: None is not a whole number$"):
        narrow.at_key({"a": None}, "a", narrow.as_int, 0)
