"""Host names, as the registry lets them stand in settings and URLs: plain ASCII, lower case, no tricks."""

import ipaddress
import re

HOST_BYTES_MAX = 253
Address = ipaddress.IPv4Address | ipaddress.IPv6Address

_LABEL = r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?"
_NAME = re.compile(rf"{_LABEL}(?:\.{_LABEL})*").fullmatch
_is_label = re.compile(_LABEL).fullmatch
# What browsers and libraries read as an IPv4 address: its last part is a number, decimal, octal or hexadecimal.
_is_number = re.compile(r"[0-9]+|0x[0-9a-f]*").fullmatch
_LOOPBACK = frozenset({"localhost", "ip6-localhost", "ip6-loopback", "localhost.localdomain", "localhost6"})
_METADATA = frozenset(
    {
        "metadata",
        "metadata.google.internal",
        "metadata.goog",
        "metadata.azure.internal",
        "metadata.packet.net",
        "instance-data",
        "instance-data.ec2.internal",
    }
)


def is_label(value: str) -> bool:
    """Whether this is one DNS label in lower case."""
    return _is_label(value) is not None


def is_name(value: str) -> bool:
    """Whether this is a DNS name in lower case, without a dot at its end, that nobody can read as an IP address."""
    return len(value) <= HOST_BYTES_MAX and _NAME(value) is not None and not looks_like_address(value)


def looks_like_address(value: str) -> bool:
    """Whether some resolver reads this name as an IPv4 address: 127.1, 0x7f000001, 0177.0.0.1, 2130706433."""
    return _is_number(value.rpartition(".")[2]) is not None


def is_loopback_name(value: str) -> bool:
    """Whether this name means the machine itself."""
    return value in _LOOPBACK or value.endswith((".localhost", ".localhost.localdomain"))


def is_metadata_name(value: str) -> bool:
    """Whether a cloud's metadata service, which hands out credentials, answers to this name."""
    return value in _METADATA


def address(value: str) -> Address | None:
    """The IP address that this host is, in its one canonical form; None for everything else."""
    try:
        if value.startswith("[") and value.endswith("]"):
            version_6 = ipaddress.IPv6Address(value[1:-1])
            return None if version_6.scope_id else version_6.ipv4_mapped or version_6
        return ipaddress.IPv4Address(value)
    except ValueError:
        return None


def is_below(value: str, suffix: str) -> bool:
    """Whether the name is the suffix or stands below it, label by label."""
    return value == suffix or value.endswith("." + suffix)
