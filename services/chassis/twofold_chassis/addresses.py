"""IP addresses that no agent has: looked at when it is dialled, since a name may resolve to anything, and to something else
than a moment ago. Private addresses are not among them: the services of a cluster have those."""

import ipaddress

Address = ipaddress.IPv4Address | ipaddress.IPv6Address

# What hands out credentials, or rules the machine, at addresses that look like any other's.
_METADATA = tuple(
    ipaddress.ip_network(network)
    for network in (
        "100.100.100.200/32",  # Alibaba
        "168.63.129.16/32",  # Azure
        "192.0.0.192/32",  # Oracle
        "fd00:ec2::/32",  # Amazon
        "fd20:ce::254/128",  # Google
        "fd00:42::42/128",  # Scaleway
        "fd00:c1::a9fe:a9fe/128",  # Oracle
    )
)
_THIS_NETWORK = ipaddress.ip_network("0.0.0.0/8")
_SITE_LOCAL = ipaddress.ip_network("fec0::/10")
# What leads to an IPv4 address that is not always written at the same place, or is scrambled.
_TUNNELS = tuple(ipaddress.ip_network(network) for network in ("2001::/32", "64:ff9b:1::/48"))
# Networks whose last 32 bits are an IPv4 address: mapped, compatible, translated, NAT64.
_LAST_BITS = tuple(
    ipaddress.ip_network(network) for network in ("::ffff:0:0/96", "::/96", "::ffff:0:0:0/96", "64:ff9b::/96")
)
_ISATAP = (0x00005EFE, 0x02005EFE)


def forbidden_address(ip: str, *, allow_loopback: bool = False) -> str | None:
    """Why nothing may be sent to this address, as a resolver gives it; None if something may.

    Addresses that stand inside one of version 6 count like themselves, and what is no address in its plain form (octal, a
    single number, with a dot, a port or brackets) is forbidden: who knows what a library reads in it.
    """
    try:
        address = ipaddress.ip_address(ip)
    except ValueError:
        return "is not an IP address in its plain form"
    if isinstance(address, ipaddress.IPv6Address) and address.scope_id:
        return "is an address of one link"
    return _problem(address, allow_loopback=allow_loopback)


def _problem(address: Address, *, allow_loopback: bool) -> str | None:
    if address.is_loopback:
        return None if allow_loopback else "is the machine itself"
    if address.is_unspecified or address in _THIS_NETWORK:
        return "is no address of anybody"
    if any(address in network for network in _METADATA):
        return "is a metadata service"
    if address.is_link_local or address in _SITE_LOCAL:
        return "is an address of one link"
    if address.is_multicast:
        return "is an address of many"
    if isinstance(address, ipaddress.IPv4Address):
        return "is a reserved address" if address.is_reserved else None
    if any(address in network for network in _TUNNELS):
        return "leads through a tunnel"
    within = _within(address)
    if within is not None:
        return _problem(within, allow_loopback=allow_loopback)
    return "is a reserved address" if address.is_reserved else None


def _within(address: ipaddress.IPv6Address) -> ipaddress.IPv4Address | None:
    """The address of version 4 that this one stands for."""
    number = int(address)
    if address.sixtofour is not None:
        return address.sixtofour
    if any(address in network for network in _LAST_BITS) or (number >> 32) & 0xFFFFFFFF in _ISATAP:
        return ipaddress.IPv4Address(number & 0xFFFFFFFF)
    return None
