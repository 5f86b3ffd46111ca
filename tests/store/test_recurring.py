"""Trouble that comes again and again is logged when it begins, now and then, and when it is over."""

import structlog
import trio
from trio.testing import MockClock

from store.recurring import LOG_AGAIN_S, Recurring


async def test_it_is_logged_when_it_begins_now_and_then_and_when_it_is_over(autojump_clock: MockClock) -> None:
    trouble = Recurring("store not read", "store read again")
    with structlog.testing.capture_logs() as lines:
        for _ in range(int(2.5 * LOG_AGAIN_S * 4)):
            trouble.came(error="no quorum")
            await trio.sleep(0.25)
        assert trouble.lasts
        trouble.over()
        trouble.over()
    assert not trouble.lasts
    first, *again, last = lines
    assert first == {"event": "store not read", "error": "no quorum", "log_level": "warning"}
    assert [(line["event"], line["error"], line["times"], line["lasted_s"]) for line in again] == [
        ("store not read", "no quorum", 241, 60.0),
        ("store not read", "no quorum", 481, 120.0),
    ]
    assert (last["event"], last["times"], last["lasted_s"]) == ("store read again", 600, 150.0)


async def test_what_was_over_begins_anew(autojump_clock: MockClock) -> None:
    trouble = Recurring("away", "back", "still away")
    with structlog.testing.capture_logs() as lines:
        trouble.over()
        trouble.came()
        trouble.over("back, in other words", reason="why")
        trouble.came()
        await trio.sleep(LOG_AGAIN_S)
        trouble.came()
    assert [line["event"] for line in lines] == ["away", "back, in other words", "away", "still away"]
    assert lines[1]["reason"] == "why"
