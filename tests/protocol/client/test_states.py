import pytest

from protocol.client.errors import ClientClosed
from protocol.client.states import TRANSITIONS, Closed, Connecting, Online, StateBox, Waiting

STATES = [Connecting(2), Online("alice", "d", "n"), Waiting(1.0, "why"), Closed("why", True)]


@pytest.mark.parametrize("before", STATES)
@pytest.mark.parametrize("after", STATES)
async def test_only_what_the_table_allows(before, after) -> None:
    seen = []
    box = StateBox(seen.append)
    box.state = before
    if type(after) in TRANSITIONS[type(before)]:
        box.change(after)
        assert seen == [after]
    else:
        with pytest.raises(AssertionError, match="no way from"):
            box.change(after)
        assert box.state is before


async def test_the_first_reason_to_close_is_the_one_told() -> None:
    seen = []
    box = StateBox(seen.append)
    box.close(ClientClosed("first"), by_user=False)
    box.close(ClientClosed("second"), by_user=True)
    assert seen == [Closed("first", False)]
    with pytest.raises(ClientClosed, match="first"):
        await box.wait_online()
