"""Rounding by largest remainders."""

from pruneengine.common.budgets import largest_remainders, one_step_more


def test_the_largest_remainders_take_what_rounding_down_left():
    wishes = {"a": 1.2, "b": 2.7, "c": 0.6}
    assert largest_remainders(wishes, dict.fromkeys(wishes, 1), 5, dict.fromkeys(wishes, 9)) == {"a": 1, "b": 3, "c": 1}


def test_who_is_at_the_limit_takes_no_more():
    wishes = {"a": 1.2, "b": 2.7}
    assert largest_remainders(wishes, dict.fromkeys(wishes, 1), 4, {"a": 9, "b": 2}) == {"a": 2, "b": 2}


def test_a_wish_that_is_whole_but_for_rounding_is_whole():
    assert largest_remainders({"a": 3 - 1e-12}, {"a": 2}, 6, {"a": 5}) == {"a": 3}


def test_a_step_is_taken_where_half_of_it_is_left():
    assert one_step_more(["a", "b", "c"], {"a": 4, "b": 8, "c": 2}, 5) == ["a", "c"]
