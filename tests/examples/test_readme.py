"""What the README shows a newcomer exists, and its client works as it stands there."""

import random
import re
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio

from gateway.cli.main import COMMANDS
from protocol import client as sdk
from protocol.frames import EntryKind
from tests.fakes.node import FakeNode

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")


async def test_the_client_works_as_it_stands_there(autojump_clock, monkeypatch: pytest.MonkeyPatch) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
    assert len(code.splitlines()) <= 16
    ran: list[Any] = []
    monkeypatch.setattr(trio, "run", ran.append)
    async with trio.open_nursery() as nursery:
        node = FakeNode(nursery)
        node.user = "echo"
        monkeypatch.setattr(sdk, "connect", partial(sdk.connect, opener=node.opener, rng=random.Random(1)))
        exec(code, {})
        (main,) = ran
        nursery.start_soon(main)
        await node.connected()
        await trio.sleep(1)
        await node.say("c", "hello")
        await trio.sleep(1)
        nursery.cancel_scope.cancel()
    said = [(entry.sender, entry.body) for entry in node.logs["c"] if entry.kind == EntryKind.MESSAGE]
    assert said == [("bob", "hello"), ("echo", "hello")]


def test_every_command_is_told_of() -> None:
    assert set(re.findall(r"^\|.*?`tidegate (\w+)", TEXT, re.MULTILINE)) | {"restore"} == set(COMMANDS)
    assert "`tidegate restore " in TEXT


def test_its_links_and_targets_exist() -> None:
    links = re.findall(r"\]\(([^)#]+)\)", TEXT)
    assert "docs/images/chat.png" in links
    assert "bench/plots/density-10000.png" in links
    assert [link for link in links if not (ROOT / link).exists()] == []
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = re.findall(r"(?:`|^)make ([a-z-]+)", TEXT, re.MULTILINE)
    assert {"run", "test"} <= set(targets)
    assert [target for target in targets if f"\n{target}:" not in makefile] == []
