import sqlite3
from pathlib import Path

import pytest
import trio

from protocol.client.errors import StateFileError
from protocol.client.state_file import Changes, SavedMessage, StateFile


def message(name: str, attempts: int = 0) -> SavedMessage:
    return SavedMessage(name, "c", f"body of {name}", {"k": "v"}, attempts, 0)


async def test_what_was_committed_is_there_after_reopening_in_order(tmp_path: Path) -> None:
    path = tmp_path / "state"
    file = await StateFile.open(path)
    await file.commit(Changes(messages={"b": message("b"), "a": message("a")}, facts={"user": "alice"}))
    await file.commit(Changes(messages={"b": message("b", 3), "z": message("z")}, cursors={"c": 7, "d": 8}))
    await file.commit(Changes(dropped_messages={"a"}, dropped_cursors={"d"}))
    await file.aclose()
    file = await StateFile.open(path)
    saved = await file.load()
    await file.aclose()
    assert saved.messages == [message("b", 3), message("z")]
    assert saved.cursors == {"c": 7}
    assert saved.facts["user"] == "alice"


async def test_it_holds_bodies_and_so_is_private(tmp_path: Path) -> None:
    path = tmp_path / "state"
    await (await StateFile.open(path)).aclose()
    assert path.stat().st_mode & 0o777 == 0o600


async def test_a_second_user_of_the_file_is_told(tmp_path: Path) -> None:
    file = await StateFile.open(tmp_path / "state")
    with pytest.raises(StateFileError, match="in use by another process"):
        await StateFile.open(tmp_path / "state")
    await file.aclose()


async def test_other_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("no database, but long enough to look like one " * 20)
    with pytest.raises(StateFileError, match="cannot be used: file is not a database"):
        await StateFile.open(tmp_path / "text")
    with pytest.raises(StateFileError, match="cannot be used"):
        await StateFile.open(tmp_path / "missing" / "state")


async def test_a_newer_format_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "state"
    await (await StateFile.open(path)).aclose()
    database = sqlite3.connect(path)
    database.execute("UPDATE facts SET value = '2' WHERE name = 'format'")
    database.commit()
    database.close()
    with pytest.raises(StateFileError, match="format 2, this version reads format 1"):
        await StateFile.open(path)


async def test_a_failed_commit_writes_nothing(tmp_path: Path) -> None:
    file = await StateFile.open(tmp_path / "state")
    bad = SavedMessage("x", None, "body", None, 0, 0)  # type: ignore[arg-type]  # breaks NOT NULL
    with pytest.raises(StateFileError):
        await file.commit(Changes(messages={"a": message("a"), "x": bad}))
    assert (await file.load()).messages == []
    await file.aclose()


async def test_a_cancelled_commit_is_done_all_the_same(tmp_path: Path) -> None:
    file = await StateFile.open(tmp_path / "state")
    with trio.CancelScope() as scope:
        scope.cancel()
        await file.commit(Changes(cursors={"c": 7}))
    assert (await file.load()).cursors == {"c": 7}
    await file.aclose()


async def test_what_is_dropped_and_put_in_one_commit_is_there(tmp_path: Path) -> None:
    file = await StateFile.open(tmp_path / "state")
    await file.commit(Changes(messages={"a": SavedMessage("a", "c", "old", None, 1, 5)}, cursors={"c": 1}))
    again = SavedMessage("a", "c", "new", None, 0, 0)
    await file.commit(Changes(messages={"a": again}, dropped_messages={"a"}, cursors={"c": 7}, dropped_cursors={"c"}))
    saved = await file.load()
    assert (saved.messages, saved.cursors) == ([again], {"c": 7})
    await file.aclose()


def test_later_changes_have_the_last_word() -> None:
    def message(name: str, body: str) -> SavedMessage:
        return SavedMessage(name, "c", body, None, 0, 0)

    first = Changes({"a": message("a", "1"), "b": message("b", "1")}, {"d"}, {"c": 1, "x": 1}, {"y"}, {"user": "u"})
    later = Changes({"b": message("b", "2"), "d": message("d", "2")}, {"a"}, {"c": 2}, {"x"}, {"begun": "yes"})
    assert first.before(later) == Changes(
        {"b": message("b", "2"), "d": message("d", "2")}, {"a", "d"}, {"c": 2}, {"x", "y"},
        {"user": "u", "begun": "yes"},
    )  # fmt: skip
