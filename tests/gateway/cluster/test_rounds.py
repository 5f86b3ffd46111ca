"""Which rounds of forwarded commands go back to their sender."""

from msgspec import msgpack

from gateway.cluster.rounds import Rounds


def test_all_of_a_round_goes_back_once_one_of_it_did_and_the_next_round_does_not() -> None:
    rounds = Rounds()
    assert rounds.admit("b", 7, 1)
    assert rounds.admit("b", 7, 2)
    rounds.refuse("b", 7)
    assert not rounds.admit("b", 7, 1)
    assert not rounds.admit("b", 7, 2)
    assert rounds.admit("b", 7, 3)
    assert rounds.admit("b", 8, 2), "another slot"
    assert rounds.admit("c", 7, 2), "another sender"
    assert rounds.admit("b", 7, 0), "of no round"


def test_another_process_refuses_what_this_one_did() -> None:
    rounds, heir = Rounds(), Rounds()
    rounds.admit("b", 7, 5)
    rounds.refuse("b", 7)
    rounds.admit("c", 7, 5)
    heir.restore(msgpack.decode(msgpack.encode(rounds.state()), type=list[tuple[str, int, int, int]]))
    assert not heir.admit("b", 7, 5)
    assert heir.admit("b", 7, 6)
    assert heir.admit("c", 7, 5)
    heir.refuse("c", 7)
    assert not heir.admit("c", 7, 5), "the newest round of before is known"


def test_who_ended_is_forgotten() -> None:
    rounds = Rounds()
    for sender in "bc":
        rounds.admit(sender, 7, 5)
        rounds.refuse(sender, 7)
    rounds.forget(["c"])
    assert rounds.state() == [("c", 7, 5, 5)]
