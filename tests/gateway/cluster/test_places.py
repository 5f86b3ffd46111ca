"""Where large groups are, kept between entries: never older than what was reported, looked up only where it changed."""

from collections.abc import Collection, Mapping

from hypothesis import given
from hypothesis import strategies as st

from gateway.cluster.places import CHANGES_MAX, GROUP_MIN, GROUPED_USERS_MAX, Groups, Places, grouped

USERS = tuple(f"u{number}" for number in range(GROUP_MIN))
NODES = st.sampled_from([(), ("a",), ("b",), ("a", "b")])


def at(*incarnations: str) -> Places:
    return Places(dict.fromkeys(USERS, incarnations))


def sets_of(together: Mapping[tuple[str, ...], Collection[str]]) -> dict[tuple[str, ...], set[str]]:
    assert all(len(users) == len(set(users)) > 0 for users in together.values())
    return {incarnations: set(users) for incarnations, users in together.items()}


def test_a_group_that_was_found_is_known_until_one_of_it_may_have_moved() -> None:
    groups = Groups()
    assert groups.find(USERS) is None
    places = at("a")
    groups.keep(USERS, places, groups.changes)
    assert groups.find(USERS) == (places, set())
    groups.note(["somebody else", "u3", "u3", "u5"])
    assert groups.find(USERS) == (places, {"u3", "u5"})
    assert groups.find(USERS) == (places, {"u3", "u5"})  # until a look-up has said where they are
    groups.keep(USERS, places, groups.changes)
    assert groups.find(USERS) == (places, set())


def test_what_changed_while_it_was_looked_up_is_looked_up_again() -> None:
    groups = Groups()
    groups.keep(USERS, at("a"), groups.changes)
    begun = groups.changes
    groups.note(["u1"])
    groups.keep(USERS, at("b"), begun)
    assert groups.find(USERS) == (at("b"), {"u1"})


def test_nothing_is_kept_of_a_look_up_during_which_everybody_may_have_moved() -> None:
    groups = Groups()
    begun = groups.changes
    groups.forget()
    groups.keep(USERS, at("a"), begun)
    assert groups.find(USERS) is None
    begun = groups.changes
    groups.note(["u1"])  # nobody notes it, as there are no groups
    groups.keep(USERS, at("a"), begun)
    assert groups.find(USERS) is None


def test_a_group_that_was_long_not_asked_for_is_looked_up_as_a_whole() -> None:
    groups = Groups()
    groups.keep(USERS, at("a"), groups.changes)
    for number in range(CHANGES_MAX + 1):
        groups.note([f"other{number}"])
    assert groups.find(USERS) is None
    groups.keep(USERS, at("a"), groups.changes)
    groups.note(["u1"])
    assert groups.find(USERS) == (at("a"), {"u1"})


def test_small_groups_and_such_as_may_change_are_not_kept() -> None:
    groups = Groups()
    for users in (USERS[:-1], list(USERS)):
        groups.keep(users, at("a"), groups.changes)
        assert groups.find(users) is None


def test_an_equal_group_is_not_the_same() -> None:
    groups = Groups()
    groups.keep(USERS, at("a"), groups.changes)
    assert groups.find(tuple(user for user in USERS)) is None


def test_the_groups_kept_are_bounded_by_their_users() -> None:
    groups = Groups()
    large = [tuple(f"{number}-{user}" for user in range(GROUPED_USERS_MAX // 4)) for number in range(6)]
    for users in large:
        groups.keep(users, Places(), groups.changes)
    assert [groups.find(users) is not None for users in large] == [False, False, True, True, True, True]


@given(
    st.dictionaries(st.sampled_from(USERS), NODES),
    st.dictionaries(st.sampled_from(USERS), NODES),
    st.booleans(),
)
def test_changed_places_are_as_if_found_anew(before, news, asked):
    places = Places({**at("a"), **before})
    if asked:
        assert sets_of(places.together) == sets_of(grouped(places))
    unchanged = dict(places)
    changed = places.changed(news)
    assert changed == {**places, **news}
    assert sets_of(changed.together) == sets_of(grouped(changed))
    assert places == unchanged
    assert sets_of(places.together) == sets_of(grouped(unchanged))
