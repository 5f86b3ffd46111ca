"""Makes the real servers of ``tests/servers`` fixtures of every test, and keeps Hypothesis from measuring time."""

from hypothesis import HealthCheck, settings

pytest_plugins = ["tests.servers.fixtures"]

# A busy machine generates slowly: that says nothing about the code.
settings.register_profile("untimed", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("untimed")
