"""URLs of agents: one plain form that every reader understands alike, and the rule of where agents may live.

The rule is asked when a URL is written, and again when it is given out. It says nothing about what a name resolves to: who
dials asks `forbidden_address` of the address that it dials.
"""

import re
from dataclasses import dataclass

from twofold_chassis import addresses, hosts
from twofold_chassis.refusals import InvalidField

URL_BYTES_MAX = 2048
# RFC 3986 without userinfo, query and fragment, narrower where readers of URLs differ from one another.
_URL = re.compile(
    r"(?P<scheme>https?)://(?P<host>\[[0-9a-f:.]+\]|[a-z0-9.-]+)(?::(?P<port>[0-9]{1,5}))?(?P<path>(?:/.*)?)",
    re.IGNORECASE | re.ASCII,  # without ASCII, "K" would be matched by the sign for kelvin
).fullmatch
_PATH = re.compile(r"(?:/(?:[A-Za-z0-9._~!$&'()*+,;=:@-]|%[0-9A-Fa-f]{2})*)*").fullmatch
_PORT_MAX = 65535


@dataclass(frozen=True, slots=True)
class Home:
    """What a workspace adds to the rule: suffixes of its own, and its Kubernetes namespace (empty for none)."""

    suffixes: tuple[str, ...] = ()
    namespace: str = ""


@dataclass(frozen=True, slots=True)
class UrlPolicy:
    """Where agents may live: `suffixes` are the installation's; loopback is for development only.

    `namespaces_required`: who has no Kubernetes namespace has no agents in the cluster.
    """

    suffixes: tuple[str, ...]
    allow_loopback: bool
    namespaces_required: bool = False

    def admit(self, url: str, home: Home, field: str) -> None:
        """Refuses a URL, unless it has the form that `plain_url` gives it and leads where agents of this workspace live."""
        problem = self.problem(url, home)
        if problem:
            raise InvalidField(field, problem)

    def problem(self, url: str, home: Home | None) -> str | None:
        """Why a URL may not be an agent's of this workspace; None if it may.

        Without a home, because nobody knows it, what depends on the workspace is not asked.
        """
        try:
            is_plain = plain_url(url, "url") == url
        except InvalidField as refusal:
            return refusal.problem
        match = _URL(url)
        if match is None or not is_plain:
            return "is not written in its plain form"
        return self._problem(match["host"], home)

    def forbidden_address(self, ip: str) -> str | None:
        """Why this address, which the host of an admitted URL resolves to, may not be dialled; None if it may."""
        return addresses.forbidden_address(ip, allow_loopback=self.allow_loopback)

    def _problem(self, host: str, home: Home | None) -> str | None:
        address = hosts.address(host)
        if address is not None:
            return None if self.allow_loopback and address.is_loopback else "must name a host, not an IP address"
        if hosts.is_loopback_name(host):
            return None if self.allow_loopback else "must not lead to the machine itself"
        if hosts.is_metadata_name(host):
            return "must not lead to a metadata service"
        if home is not None and not self._is_allowed(host, home):
            return f"the host {host} is not below a suffix that the installation or the workspace allows"
        return self._elsewhere_in_the_cluster(host, home)

    def _is_allowed(self, host: str, home: Home) -> bool:
        # A suffix of one label ("com", or a namespace, which is a domain where names are searched) allows nothing by itself.
        own = [suffix for suffix in home.suffixes if "." in suffix]
        return any(hosts.is_below(host, suffix) for suffix in (*self.suffixes, *own))

    def _elsewhere_in_the_cluster(self, host: str, home: Home | None) -> str | None:
        # Whichever suffix allows the host: no workspace allows itself another one's namespace.
        if hosts.is_pod_name(host, self.suffixes):
            return "must name a service, not a pod by its address"
        place = hosts.cluster_place(host, self.suffixes)
        if place is None:
            return None
        if place.is_reserved:
            return "must not lead to the cluster's own services"
        if home is None:
            return None
        if not home.namespace:
            return "needs a workspace with a Kubernetes namespace" if self.namespaces_required else None
        if not place.service or place.namespace != home.namespace:
            return f"must name a service in the workspace's own namespace: <service>.{home.namespace}.{place.domain}"
        return None


def plain_url(value: str, field: str) -> str:
    """The URL in lower case (but its path) and without a slash at its end, if every reader understands it alike."""
    if not value:
        raise InvalidField(field, "is required")
    if len(value) > URL_BYTES_MAX:
        raise InvalidField(field, f"is longer than {URL_BYTES_MAX} bytes")
    match = _URL(value)
    if match is None:
        raise InvalidField(field, _why_no_url(value))
    host = match["host"].lower()
    if hosts.address(host) is None and not hosts.is_name(host):
        raise InvalidField(field, "its host is neither a DNS name nor a plainly written IP address")
    if match["port"] is not None and not 1 <= int(match["port"]) <= _PORT_MAX:
        raise InvalidField(field, f"its port must be 1 to {_PORT_MAX}")
    if not _PATH(match["path"]) or not {".", ".."}.isdisjoint(match["path"].split("/")):
        raise InvalidField(field, "its path holds characters or steps that are not allowed")
    port = "" if match["port"] is None else f":{int(match['port'])}"
    return f"{match['scheme'].lower()}://{host}{port}{match['path'].rstrip('/')}"


def _why_no_url(value: str) -> str:
    scheme, colon, rest = value.partition("://")
    authority = rest.partition("/")[0]
    if not value.isascii() or not value.isprintable():
        return "must be printable ASCII: write a host in its xn-- form, and percent-encode a path"
    if not colon or scheme.lower() not in ("http", "https"):
        return "must begin with http:// or https://"
    if "@" in authority:
        return "must not hold a user or password"
    if "?" in rest or "#" in rest:
        return "must not hold a query or fragment"
    return "its host or port is not valid"
