"""Classification of IP addresses as public, and the hosts that an operator allows."""

from ipaddress import ip_address

import pytest

from serve.net.ssrf_guard import AllowedHosts, is_public


@pytest.mark.parametrize(
    "address",
    [
        "0.0.0.0",
        "0.1.2.3",
        "10.0.0.1",
        "100.64.0.1",
        "100.100.100.200",
        "127.0.0.1",
        "127.255.0.1",
        "168.63.129.16",
        "169.254.169.254",
        "172.16.0.1",
        "172.31.255.255",
        "192.0.0.192",
        "192.0.2.1",
        "192.88.99.1",
        "192.168.1.1",
        "198.18.0.1",
        "198.51.100.1",
        "203.0.113.1",
        "224.0.1.1",
        "240.0.0.1",
        "255.255.255.255",
        "::",
        "::1",
        "::2",
        "::7f00:1",
        "::ffff:127.0.0.1",
        "::ffff:169.254.169.254",
        "::ffff:0:7f00:1",
        "64:ff9b::7f00:1",
        "64:ff9b::a9fe:a9fe",
        "64:ff9b:1::808:808",
        "100::1",
        "2001:0:7f00:1::",
        "2001:10::1",
        "2001:db8::1",
        "2002:7f00:1::",
        "2002:a9fe:a9fe::1",
        "3fff::1",
        "5f00::1",
        "fc00::1",
        "fd00:ec2::254",
        "fe80::1",
        "fe80::1%eth0",
        "fec0::1",
        "ff02::1",
        "ff0e::1",
    ],
)
def test_special_purpose_address_is_not_public(address: str) -> None:
    assert not is_public(ip_address(address))


@pytest.mark.parametrize(
    "address",
    ["8.8.8.8", "1.1.1.1", "172.32.0.1", "100.128.0.1", "2606:4700::1111", "::ffff:8.8.8.8", "64:ff9b::808:808"],
)
def test_internet_address_is_public(address: str) -> None:
    assert is_public(ip_address(address))


@pytest.mark.parametrize(
    ("entry", "host", "port", "covered"),
    [
        ("store.local", "store.local", 80, True),
        ("store.local", "STORE.local.", 9000, True),
        ("store.local", "evil.store.local", 80, False),
        ("store.local", "store.local.evil.com", 80, False),
        ("Store.Local:9000", "store.local", 9000, True),
        ("store.local:9000", "store.local", 9001, False),
        ("store.local:80", "store.local", 443, False),
        ("10.0.0.5", "10.0.0.5", 1234, True),
        ("10.0.0.5", "::ffff:10.0.0.5", 1234, True),
        ("10.0.0.5:80", "10.0.0.5", 81, False),
        ("10.0.0.5", "10.0.0.50", 80, False),
        ("::1", "::1", 80, True),
        ("::1", "0:0:0:0:0:0:0:1", 80, True),
        ("[::1]", "::1", 80, True),
        ("[::1]:8080", "::1", 8080, True),
        ("[::1]:8080", "::1", 80, False),
    ],
)
def test_allowed_host_covers_its_spellings_and_nothing_else(entry: str, host: str, port: int, covered: bool) -> None:
    assert AllowedHosts((entry,)).covers(host, port) is covered


@pytest.mark.parametrize(
    "entry", ["", "http://store.local", "store.local/images", "me@store.local", "store.local:http", "[::1", ":80"]
)
def test_invalid_allowed_hosts_entry_raises_value_error(entry: str) -> None:
    with pytest.raises(ValueError, match="allowed_hosts"):
        AllowedHosts((entry,))
