"""Settings about what stands between clients and the node: networks of load balancers, and certificates."""

import pytest

from gateway.config_load import ConfigError, load


@pytest.mark.parametrize("network", ["10.0.0.0/8", "192.0.2.7", "2001:db8::/32", "::1"])
def test_a_network_of_load_balancers_is_taken(network: str) -> None:
    assert load({"proxy_protocol_from": (network,)}, {}).proxy_protocol_from == [network]


@pytest.mark.parametrize("network", ["10.0.0.1/8", "10.0.0.0/33", "lb.example", "300.0.0.1", "*"])
def test_what_is_no_network_is_named_with_its_source(network: str) -> None:
    with pytest.raises(ConfigError, match="proxy_protocol_from") as caught:
        load({}, {"TIDEGATE_PROXY_PROTOCOL_FROM": f"127.0.0.1,{network}"})
    assert repr(network) in str(caught.value)
    assert "TIDEGATE_PROXY_PROTOCOL_FROM" in str(caught.value)
    assert "10.0.0.0/8" in str(caught.value)


def test_a_key_without_a_certificate_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"tls_key .*tls_cert"):
        load({"tls_key": "key.pem"}, {})
    assert load({"tls_cert": "both.pem"}, {}).tls_key == ""


@pytest.mark.parametrize(
    "origin",
    ["https://chat.example", "http://localhost:3000", "https://[2001:db8::7]:8443", "tauri://localhost", "null"],
)
def test_an_origin_as_browsers_send_it_is_taken(origin: str) -> None:
    assert load({"allowed_origins": [origin]}, {}).allowed_origins == [origin]


@pytest.mark.parametrize(
    "origin",
    ["chat.example", "*", "https://*", "https://chat.example/", "https://chat.example/app", "https://Chat.example", ""],
)
def test_what_no_browser_sends_as_origin_is_named_with_its_source(origin: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load({"allowed_origins": ["https://a.example", origin]}, {})
    assert f"allowed_origins has {origin!r} (from --allowed-origins)" in str(caught.value)
    assert "such as https://chat.example" in str(caught.value)
