"""Which addresses may be dialled, whatever name led to them."""

import ipaddress

import pytest
from hypothesis import example, given
from hypothesis import strategies as some

from twofold_chassis.addresses import forbidden_address

NOWHERE = (
    "127.0.0.1", "127.255.255.254", "0.0.0.0", "0.1.2.3", "169.254.169.254", "169.254.170.2", "169.254.0.1",
    "100.100.100.200", "168.63.129.16", "192.0.0.192", "224.0.0.1", "239.1.2.3", "240.0.0.1", "255.255.255.255",
)  # fmt: skip
SOMEWHERE = ("10.96.0.17", "172.16.5.4", "192.168.1.9", "100.64.0.1", "93.184.215.14", "8.8.8.8", "100.100.100.201")


def within(address: str) -> list[str]:
    """The address inside one of version 6, in each way that leads to it."""
    number = int(ipaddress.IPv4Address(address))
    numbers = [
        number,  # compatible
        number | 0xFFFF << 32,  # mapped
        number | 0xFFFF << 48,  # translated
        number | 0x64FF9B << 96,  # NAT64
        number << 80 | 0x2002 << 112,  # 6to4
        number | 0x5EFE << 32 | 0x20010DB8 << 96,  # ISATAP
        number | 0x02005EFE << 32 | 0x20010DB8 << 96,
    ]
    return [str(ipaddress.IPv6Address(each)) for each in numbers if each > 1] + [f"::ffff:{address}"]


@pytest.mark.parametrize("address", NOWHERE)
def test_nothing_is_sent_to_an_address_where_no_agent_lives_however_it_is_wrapped(address: str) -> None:
    assert forbidden_address(address)
    assert [each for each in within(address) if not forbidden_address(each)] == []


@pytest.mark.parametrize("address", SOMEWHERE)
def test_services_have_private_and_public_addresses(address: str) -> None:
    assert forbidden_address(address) is None
    assert [each for each in within(address) if forbidden_address(each)] == []


@pytest.mark.parametrize(
    "address",
    [
        "::1", "::", "fe80::1", "fe80::1%eth0", "febf::1", "fec0::1", "ff02::1", "ff0e::1", "fd00:ec2::254", "fd00:ec2::23",
        "fd20:ce::254", "fd00:42::42", "fd00:c1::a9fe:a9fe", "::ffff:7f00:1", "0:0:0:0:0:ffff:127.0.0.1", "64:ff9b:1::a00:1",
        "64:ff9b:1:7f00:0:100::", "2001:0:4136:e378:8000:63bf:3fff:fdd2", "2001:db8::1%eth0",
    ],
)  # fmt: skip
def test_the_same_holds_of_version_6(address: str) -> None:
    assert forbidden_address(address)


@pytest.mark.parametrize("address", ["2606:2800:21f:cb07:6820:80da:af6b:8b2c", "fd12:3456:789a::1", "fc00::1"])
def test_services_have_addresses_of_version_6(address: str) -> None:
    assert forbidden_address(address) is None


@pytest.mark.parametrize(
    "text",
    [
        "", "0177.0.0.1", "010.0.0.1", "2130706433", "0x7f000001", "0x7f.1", "127.1", "10.1", "127.0.0.1.", "10.0.0.1.",
        "[::1]", "[fd12::1]", "10.0.0.1:80", "10.0.0.1/32", " 10.0.0.1", "10.0.0.1\n", "localhost", "a.svc.cluster.local",
        "\u0661\u0660.0.0.1", "10.0.0.256", "1.2.3.4.5", "::ffff:0177.0.0.1",
    ],
)  # fmt: skip
def test_what_is_no_address_in_its_plain_form_is_not_dialled(text: str) -> None:
    assert forbidden_address(text)


@pytest.mark.parametrize("address", ["127.0.0.1", "127.8.8.8", "::1", "::ffff:127.0.0.1"])
def test_while_developing_agents_live_on_the_machine_itself(address: str) -> None:
    assert forbidden_address(address, allow_loopback=True) is None


@pytest.mark.parametrize("address", ["0.0.0.0", "::", "169.254.169.254", "::ffff:169.254.169.254", "fd00:ec2::254", "127.1"])
def test_while_developing_everything_else_stays_forbidden(address: str) -> None:
    assert forbidden_address(address, allow_loopback=True)


@given(some.ip_addresses(v=4))
@example(ipaddress.IPv4Address("169.254.169.254"))
def test_wrapping_an_address_changes_nothing(address: ipaddress.IPv4Address) -> None:
    if int(address) <= 1:  # "::" and "::1" are addresses of their own
        return
    problem = forbidden_address(str(address))
    assert {forbidden_address(each) for each in within(str(address))} == {problem}


@given(some.text(max_size=40))
def test_any_text_is_judged(text: str) -> None:
    problem = forbidden_address(text)
    assert problem is None or problem
