"""Which URLs an agent may live at: the rule itself, without a database."""

import contextlib
import ipaddress
import socket
import urllib.parse

import pytest
from hypothesis import given, settings
from hypothesis import strategies as some

from twofold_chassis.refusals import InvalidField
from twofold_chassis.urls import Home, UrlPolicy, plain_url

STRICT = UrlPolicy(suffixes=("svc.cluster.local",), allow_loopback=False)
DEVELOPMENT = UrlPolicy(suffixes=("svc.cluster.local",), allow_loopback=True)
# What a careless tenant could allow itself.
CARELESS = ("local", "internal", "localhost", "metadata", "com", "localdomain", "goog", "nip.io")


def admitted(url: str, policy: UrlPolicy = STRICT, suffixes: tuple[str, ...] = (), namespace: str = "") -> str:
    plain = plain_url(url, "url")
    policy.admit(plain, Home(suffixes, namespace), "url")
    return plain


def refuses(url: str, policy: UrlPolicy = STRICT, suffixes: tuple[str, ...] = (), namespace: str = "") -> bool:
    try:
        admitted(url, policy, suffixes, namespace)
    except InvalidField:
        return True
    return False


@pytest.mark.parametrize(
    ("url", "plain"),
    [
        ("http://a.svc.cluster.local", "http://a.svc.cluster.local"),
        ("http://svc.cluster.local", "http://svc.cluster.local"),
        ("HTTP://A.Svc.CLUSTER.local/Path", "http://a.svc.cluster.local/Path"),
        ("https://a.b.svc.cluster.local:443/", "https://a.b.svc.cluster.local:443"),
        ("https://a.svc.cluster.local:00080/x//y", "https://a.svc.cluster.local:80/x//y"),
        ("http://a.svc.cluster.local/v2/%7Eme;p=1,2/@x:y", "http://a.svc.cluster.local/v2/%7Eme;p=1,2/@x:y"),
        ("http://xn--bcher-kva.svc.cluster.local", "http://xn--bcher-kva.svc.cluster.local"),
        ("http://0x7f.svc.cluster.local", "http://0x7f.svc.cluster.local"),
    ],
)
def test_plain_urls_below_an_allowed_suffix_are_admitted(url: str, plain: str) -> None:
    assert admitted(url) == plain


@pytest.mark.parametrize(
    "url",
    [
        # schemes and shapes
        "", "a.svc.cluster.local", "//a.svc.cluster.local", "ftp://a.svc.cluster.local", "http:a.svc.cluster.local",
        "http:/a.svc.cluster.local", "http:///a.svc.cluster.local", "javascript://a.svc.cluster.local", "http://",
        "file:///etc/passwd", " http://a.svc.cluster.local", "http://a.svc.cluster.local ",
        "h\u017fttp://a.svc.cluster.local",
        "http\u017f://a.svc.cluster.local", "http://a.svc.cluster.local\n", "http://a.svc.cluster.local\\@evil.com",
        "http://a.svc.cluster.local/" + "x" * 2048,
        # users and passwords
        "http://user@a.svc.cluster.local", "http://user:pass@a.svc.cluster.local", "http://@a.svc.cluster.local",
        "http://a.svc.cluster.local@evil.com", "http://evil.com\\.a.svc.cluster.local",
        "http://evil.com%2f.svc.cluster.local",
        # query and fragment
        "http://a.svc.cluster.local?", "http://a.svc.cluster.local#", "http://a.svc.cluster.local/?q=1",
        "http://evil.com#.svc.cluster.local", "http://evil.com?.svc.cluster.local", "http://evil.com/.svc.cluster.local",
        # ports
        "http://a.svc.cluster.local:", "http://a.svc.cluster.local:0", "http://a.svc.cluster.local:65536",
        "http://a.svc.cluster.local:-1", "http://a.svc.cluster.local:8o", "http://a.svc.cluster.local:99999999999",
        "http://a.svc.cluster.local:80:80", "http://a.svc.cluster.local:\u0661",
        # names
        "http://a.svc.cluster.local.", "http://a..svc.cluster.local", "http://.svc.cluster.local",
        "http://-a.svc.cluster.local",
        "http://a-.svc.cluster.local", "http://a_b.svc.cluster.local", "http://%61.svc.cluster.local",
        "http://*.svc.cluster.local",
        "http://b\u00fccher.svc.cluster.local", "http://a\u3002svc.cluster.local", "http://a.svc.cluster.\u24dbocal",
        "http://a.svc.cluster.loc\u212aal", "http://" + "a" * 64 + ".svc.cluster.local",
        "http://" + "a." * 120 + "svc.cluster.local",
        # suffixes match by label
        "http://evilsvc.cluster.local", "http://a.svc.cluster.local.evil.com", "http://cluster.local", "http://evil.com",
        "http://a.svc.cluster.localx",
        # paths
        "http://a.svc.cluster.local/a b", "http://a.svc.cluster.local/%zz", "http://a.svc.cluster.local/../x",
        "http://a.svc.cluster.local/./x", "http://a.svc.cluster.local/<", "http://a.svc.cluster.local/\u00e9",
    ],
)  # fmt: skip
def test_everything_that_could_be_read_in_two_ways_is_refused(url: str) -> None:
    with pytest.raises(InvalidField) as refusal:
        admitted(url)
    assert refusal.value.field == "url"


ADDRESSES = [
    "127.0.0.1", "127.1", "127.0.1", "2130706433", "0x7f000001", "0x7f.1", "0177.0.0.1", "017700000001", "127.0.0.1.",
    "0", "0x0", "0.0.0.0", "10.0.0.1", "169.254.169.254", "2852039166", "0xa9fea9fe", "100.100.100.200", "192.168.1.1",
    "[::1]", "[::]", "[::ffff:127.0.0.1]", "[::ffff:7f00:1]", "[fe80::1]", "[fd00:ec2::254]", "[64:ff9b::7f00:1]",
    "[2001:db8::1]", "[::127.0.0.1]", "[::ffff:0:127.0.0.1]", "[64:ff9b::169.254.169.254]", "[64:ff9b:1::a9fe:a9fe]",
    "[2002:7f00:1::]", "[2002:a9fe:a9fe::1]", "[fe80::1%eth0]", "[ff02::1]", "[2001:0:7f00:1::]", "%31%32%37.0.0.1",
    "127%2e0.0.1",
    "127.0.0.1%00.svc.cluster.local", "\uff11\uff12\uff17.0.0.1", "127\u30020\u30020\u30021", "\u2460\u2461\u2466.0.0.1",
    "127.0.0.0x1", "0x7f.0x0.0x0.0x1", "00000177.0.0.1", "3232235777", "[::1%25lo]", "[::1", "::1", "1.2.3.4.5",
    "256.256.256.256", "08.8.8.8", "1.2.3.0x4", "[127.0.0.1]",
]  # fmt: skip


@pytest.mark.parametrize("host", ADDRESSES)
def test_no_form_of_an_ip_address_is_admitted(host: str) -> None:
    for port in ("", ":80"):
        with pytest.raises(InvalidField):
            admitted(f"http://{host}{port}/", suffixes=CARELESS)


@pytest.mark.parametrize(
    "host",
    [
        "localhost", "LOCALHOST", "a.localhost", "localhost.localdomain", "ip6-localhost", "metadata", "metadata.goog",
        "Metadata.Google.Internal", "instance-data.ec2.internal", "host.docker.internal", "metadata.tencentyun.com",
    ],
)  # fmt: skip
def test_names_of_the_machine_itself_and_of_metadata_services_are_refused_even_if_a_suffix_allows_them(host: str) -> None:
    with pytest.raises(InvalidField):
        admitted(f"http://{host}/", suffixes=CARELESS)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.9.1", "localhost", "a.localhost", "[::1]", "[::ffff:127.0.0.1]"])
def test_development_admits_loopback(host: str) -> None:
    assert admitted(f"http://{host}:8000", DEVELOPMENT) == f"http://{host}:8000"


@pytest.mark.parametrize(
    "host", [host for host in ADDRESSES if host not in ("127.0.0.1", "[::1]", "[::ffff:127.0.0.1]", "[::ffff:7f00:1]")]
)
def test_development_admits_no_other_address(host: str) -> None:
    with pytest.raises(InvalidField):
        admitted(f"http://{host}/", DEVELOPMENT, CARELESS)
    with pytest.raises(InvalidField):
        admitted("http://metadata.google.internal", DEVELOPMENT, CARELESS)


@settings(deadline=None)
@given(some.ip_addresses())
def test_no_ip_address_passes_however_wide_the_suffixes(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> None:
    forms = [f"[{address}]"] if address.version == 6 else [str(address), str(int(address)), hex(int(address))]
    for form in forms:
        with pytest.raises(InvalidField):
            admitted(f"http://{form}/", suffixes=CARELESS)


@settings(deadline=None)
@given(some.text(alphabet="abz019-.:/@?#%[]\\ _\u00e9Ktp", max_size=40))
def test_whatever_is_admitted_is_a_host_below_the_suffix(rest: str) -> None:
    try:
        url = admitted("http://" + rest + ".svc.cluster.local/x")
    except InvalidField:
        return
    assert url.removeprefix("http://").endswith(".svc.cluster.local/x")
    assert not set(url.removeprefix("http://").removesuffix("/x")) & set(":/@?#%[]\\ _")


@settings(deadline=None)
@given(some.text(max_size=60))
def test_any_text_is_either_admitted_or_refused_by_name(value: str) -> None:
    for url in (value, "http://" + value):
        try:
            plain = plain_url(url, "url")
        except InvalidField:
            continue
        assert plain_url(plain, "url") == plain


@pytest.mark.parametrize(
    "host",
    [
        "helper.acme.svc.cluster.local", "pod-0.helper.acme.svc.cluster.local", "helper.acme.svc",
        "helper.acme.agents.example",
        "agents.acme.test",
    ],
)  # fmt: skip
def test_a_workspace_with_a_namespace_has_its_agents_there_and_outside_the_cluster(host: str) -> None:
    policy = UrlPolicy(("svc.cluster.local", "agents.example"), allow_loopback=False)
    assert admitted(f"http://{host}", policy, ("acme.test", "acme.svc"), "acme")


@pytest.mark.parametrize(
    "host",
    [
        # another namespace, in every form that leads there
        "helper.globex.svc.cluster.local", "acme.globex.svc.cluster.local", "helper.acme.globex.svc.cluster.local",
        "helper.globex.svc", "helper.globex.agents.example", "acme.agents.example", "helper-acme.agents.example",
        "helper.globex.svc.agents.example", "helper.acme.svc.agents.example",
        # no service, or no namespace
        "acme.svc.cluster.local", "helper.svc.cluster.local",
        # names that only begin or end alike
        "helper.acme2.svc.cluster.local", "helper.xacme.svc.cluster.local",
    ],
)  # fmt: skip
def test_no_workspace_with_a_namespace_reaches_another_ones_services_whatever_it_allows_itself(host: str) -> None:
    policy = UrlPolicy(("svc.cluster.local", "agents.example"), allow_loopback=True)
    own = ("globex.svc.cluster.local", "globex.svc", "cluster.local", "agents.example", "globex.agents.example", host)
    assert refuses(f"http://{host}", policy, own, "acme")


def test_without_a_namespace_a_workspace_may_be_kept_out_of_the_cluster() -> None:
    lenient = UrlPolicy(("svc.cluster.local",), allow_loopback=False)
    strict = UrlPolicy(("svc.cluster.local",), allow_loopback=False, namespaces_required=True)
    assert admitted("http://helper.acme.svc.cluster.local", lenient)
    assert refuses("http://helper.acme.svc.cluster.local", strict)
    assert admitted("http://helper.acme.svc.cluster.local", strict, namespace="acme")
    assert admitted("http://agents.acme.test", strict, ("acme.test",))


@pytest.mark.parametrize(
    "host",
    [
        "kubernetes.default.svc.cluster.local", "kubernetes.default.svc", "kube-dns.kube-system.svc.cluster.local",
        "x.kube-public.svc", "10-0-0-1.acme.pod.cluster.local", "10-0-0-1.acme.pod", "10-0-0-1.acme.pod.cluster.test",
        "169-254-169-254.default.pod.cluster.local",
    ],
)  # fmt: skip
@pytest.mark.parametrize("namespace", ["", "acme", "default", "kube-system"])
def test_nobody_reaches_the_clusters_own_services_nor_pods_by_their_address(host: str, namespace: str) -> None:
    policy = UrlPolicy(("svc.cluster.local", "cluster.local", "svc.cluster.test"), allow_loopback=True)
    own = ("default.svc", "kube-public.svc", "acme.pod", "cluster.test", "pod.cluster.local")
    assert refuses(f"http://{host}", policy, own, namespace)


@pytest.mark.parametrize("host", ["redis", "memory.twofold", "kube-dns.kube-system", "a.com"])
def test_a_suffix_of_one_label_allows_nothing_as_it_may_be_a_namespace_where_names_are_searched(host: str) -> None:
    own = ("redis", "twofold", "kube-system", "com")
    assert refuses(f"http://{host}", suffixes=own)
    installed = UrlPolicy((host,), allow_loopback=False)  # the installation knows what it says
    assert admitted(f"http://{host}", installed)


@pytest.mark.parametrize(
    "label",
    ["\uff11\uff12\uff17", "\uff4cocalhost", "a\uff0eb", "a\uff0fb", "\u2460", "\uff41dmin", "a\u3002b"],
)
def test_a_label_that_some_reader_folds_into_plain_ascii_is_refused(label: str) -> None:
    assert refuses(f"http://xn--{label.encode('punycode').decode()}.svc.cluster.local")


@pytest.mark.parametrize("label", ["xn--", "xn--a", "xn---", "xn--99999999", "xn--a-"])
def test_a_label_that_is_no_punycode_or_stands_for_ascii_is_refused(label: str) -> None:
    assert refuses(f"http://{label}.svc.cluster.local")


# Pieces that addresses and hosts are made of, in all their spellings.
PIECES = [
    "127", "0", "1", "0x7f", "0177", "169", "254", "2130706433", "0xa9fea9fe", ".", ".", ".", ":", "::", "[", "]",
    "ffff", "64:ff9b::",
    "2002:", "%25", "%2e", "@", "\\", "/", "a", "svc", "cluster", "local", "pod", "acme", "localhost", "metadata",
    "xn--", "-", "_", "\uff11",
    "\u3002", "e1", "+", " ", "0x", "x",
]  # fmt: skip


@settings(deadline=None, max_examples=1000)
@given(
    some.lists(some.sampled_from(PIECES), min_size=1, max_size=14).map("".join),
    some.sampled_from(["", ".svc.cluster.local"]),
)
def test_nothing_that_is_admitted_is_an_address_to_any_reader(front: str, end: str) -> None:
    wide = ("0", "1", "local", "acme.local", "127.0", "0.1", "0x7f.1")  # even suffixes that no setting accepts
    try:
        url = admitted(f"http://{front}{end}", UrlPolicy((*wide, "svc.cluster.local"), allow_loopback=False), wide)
    except InvalidField:
        return
    host = urllib.parse.urlsplit(url).hostname
    assert host is not None
    assert url == f"http://{host}" or url.startswith((f"http://{host}/", f"http://{host}:"))
    for read in (ipaddress.ip_address, socket.inet_aton, lambda text: socket.inet_pton(socket.AF_INET6, text)):
        with contextlib.suppress(ValueError, OSError):
            raise AssertionError(f"{read} reads {host} as {read(host)!r}")
    assert not host.rpartition(".")[2].removeprefix("0x").isdigit()


@settings(deadline=None)
@given(some.ip_addresses(v=4))
def test_no_address_passes_inside_one_of_version_6(address: ipaddress.IPv4Address) -> None:
    number = int(address)
    for within in (
        number,
        number | 0xFFFF << 32,
        number | 0x64FF9B << 96,
        number << 80 | 0x2002 << 112,
        number | 0xFFFF << 48,
    ):
        assert refuses(f"http://[{ipaddress.IPv6Address(within)}]/", suffixes=CARELESS)
        assert refuses(f"http://[{ipaddress.IPv6Address(within).exploded}]/", suffixes=CARELESS)


NAMES = some.sampled_from(["acme", "globex", "default", "kube-system", "a", "svc", "pod", "local"])


@settings(deadline=None, max_examples=500)
@given(
    some.lists(NAMES, max_size=5), some.sampled_from(["svc.cluster.local", "svc", "cluster.local", "agents.example"]), NAMES
)
def test_what_is_admitted_in_the_cluster_is_in_the_namespace(labels: list[str], domain: str, namespace: str) -> None:
    policy = UrlPolicy(("svc.cluster.local", "agents.example"), allow_loopback=False)
    host = ".".join([*labels, domain])
    own = tuple(host.split(".", step)[-1] for step in range(len(labels) + 2))
    if refuses(f"http://{host}", policy, own, namespace):
        return
    for known in ("svc.cluster.local", "svc", "agents.example"):
        if host.endswith("." + known):
            assert host.removesuffix("." + known).split(".")[1:][-1] == namespace
            break
