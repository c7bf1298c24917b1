"""Host names, as they may stand in settings and URLs: plain ASCII, lower case, no tricks."""

import ipaddress
import re
import unicodedata
from collections.abc import Iterable
from typing import NamedTuple

from twofold_chassis.addresses import Address

HOST_BYTES_MAX = 253

_LABEL = r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?"
_NAME = re.compile(rf"{_LABEL}(?:\.{_LABEL})*").fullmatch
_is_label = re.compile(_LABEL).fullmatch
# What browsers and libraries read as an IPv4 address: its last part is a number, decimal, octal or hexadecimal.
_is_number = re.compile(r"[0-9]+|0x[0-9a-f]*").fullmatch
_LOOPBACK = frozenset(
    {
        "localhost",
        "localhost.localdomain",
        "localhost4",
        "localhost6",
        "localhost4.localdomain4",
        "localhost6.localdomain6",
        "ip6-localhost",
        "ip6-loopback",
        "host.docker.internal",
        "gateway.docker.internal",
        "kubernetes.docker.internal",
        "host.containers.internal",
    }
)
_METADATA = frozenset(
    {
        "metadata",
        "metadata.google.internal",
        "metadata.goog",
        "metadata.azure.internal",
        "metadata.packet.net",
        "metadata.platformequinix.com",
        "metadata.tencentyun.com",
        "instance-data",
        "instance-data.ec2.internal",
    }
)
_CLUSTER_DOMAINS = ("svc.cluster.local", "svc")
"""Below them the label in front is a namespace, whatever the installation calls its domains."""


class ClusterPlace(NamedTuple):
    """What a host below a domain of the cluster names: <service>.<namespace>.<domain>. Empty is what it does not name."""

    service: str
    namespace: str
    domain: str

    @property
    def is_reserved(self) -> bool:
        """Whether it belongs to the cluster itself: its API, its DNS."""
        return self.namespace.startswith("kube-") or (self.service, self.namespace) == ("kubernetes", "default")


def is_label(value: str) -> bool:
    """Whether this is one DNS label in lower case."""
    return _is_label(value) is not None


def is_name(value: str) -> bool:
    """Whether this is a DNS name in lower case, without a dot at its end, that nobody can read as an IP address."""
    if len(value) > HOST_BYTES_MAX or _NAME(value) is None or looks_like_address(value):
        return False
    return not any(label.startswith("xn--") and _is_trick(label) for label in value.split("."))


def _is_trick(label: str) -> bool:
    # What some reader folds into plain ASCII (full-width digits and letters) or into several labels stands for another name.
    try:
        folded = unicodedata.normalize("NFKC", label.removeprefix("xn--").encode().decode("punycode"))
    except UnicodeError:
        return True
    return folded.isascii() or not folded.isprintable() or not {".", "/", ":", "@", "\u3002"}.isdisjoint(folded)


def looks_like_address(value: str) -> bool:
    """Whether some resolver reads this name as an IPv4 address: 127.1, 0x7f000001, 0177.0.0.1, 2130706433."""
    return _is_number(value.rpartition(".")[2]) is not None


def is_loopback_name(value: str) -> bool:
    """Whether this name means the machine itself."""
    return value in _LOOPBACK or value.endswith((".localhost", ".localhost.localdomain"))


def is_metadata_name(value: str) -> bool:
    """Whether a cloud's metadata service, which hands out credentials, answers to this name."""
    return value in _METADATA


def is_pod_name(value: str, domains: Iterable[str]) -> bool:
    """Whether this name holds the address of a pod: 10-0-0-1.<namespace>.pod.<domain>, which resolves to any address."""
    parents = {domain.removeprefix("svc.") for domain in domains if domain.startswith("svc.")} | {"cluster.local"}
    return is_below(value, "pod") or any(is_below(value, f"pod.{parent}") for parent in parents)


def cluster_place(value: str, domains: Iterable[str]) -> ClusterPlace | None:
    """Where below the domains of the cluster this host is: those of Kubernetes, or `domains`. None outside."""
    for known in (_CLUSTER_DOMAINS, sorted(domains, key=len, reverse=True)):
        for domain in known:
            if value == domain:
                return None
            if is_below(value, domain):
                rest, _, namespace = value.removesuffix("." + domain).rpartition(".")
                return ClusterPlace(rest.rpartition(".")[2], namespace, domain)
    return None


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
