"""One real node for all tests that do not harm it."""

from collections.abc import Iterator

import pytest

from bench.processes import NodeProcess


@pytest.fixture(scope="session")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NodeProcess]:
    """A node with short deadlines, shared by the whole session; at its end it has to drain without an error."""
    data_dir = tmp_path_factory.mktemp("node") / "data"
    with NodeProcess(
        data_dir, "--handshake-timeout-s", "3", "--commands-per-s-max", "0", "--log-format", "json"
    ) as node:
        yield node
        code = node.terminate()
        log = node.stderr_path.read_text(encoding="utf-8")
        assert code == 0, node.stderr_tail()
        assert "Traceback" not in log, log
        assert '"level":"error"' not in log.replace(" ", ""), log
