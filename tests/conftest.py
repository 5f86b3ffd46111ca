"""Makes the real servers of ``tests/servers`` fixtures of every test."""

pytest_plugins = ["tests.servers.fixtures"]
