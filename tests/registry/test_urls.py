"""Which URLs an agent may live at: the rule itself, without a database."""

import ipaddress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as some

from twofold_chassis.refusals import InvalidField
from twofold_registry.urls import Home, UrlPolicy, plain_url

STRICT = UrlPolicy(suffixes=("svc.cluster.local",), allow_loopback=False)
DEVELOPMENT = UrlPolicy(suffixes=("svc.cluster.local",), allow_loopback=True)
# What a careless tenant could allow itself.
CARELESS = ("local", "internal", "localhost", "metadata", "com", "localdomain", "goog", "nip.io")


def admitted(url: str, policy: UrlPolicy = STRICT, suffixes: tuple[str, ...] = ()) -> str:
    plain = plain_url(url, "url")
    policy.admit(plain, Home(suffixes), "url")
    return plain


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
        "file:///etc/passwd", " http://a.svc.cluster.local", "http://a.svc.cluster.local ", "h\u017fttp://a.svc.cluster.local",
        "http\u017f://a.svc.cluster.local", "http://a.svc.cluster.local\n", "http://a.svc.cluster.local\\@evil.com",
        "http://a.svc.cluster.local/" + "x" * 2048,
        # users and passwords
        "http://user@a.svc.cluster.local", "http://user:pass@a.svc.cluster.local", "http://@a.svc.cluster.local",
        "http://a.svc.cluster.local@evil.com", "http://evil.com\\.a.svc.cluster.local", "http://evil.com%2f.svc.cluster.local",
        # query and fragment
        "http://a.svc.cluster.local?", "http://a.svc.cluster.local#", "http://a.svc.cluster.local/?q=1",
        "http://evil.com#.svc.cluster.local", "http://evil.com?.svc.cluster.local", "http://evil.com/.svc.cluster.local",
        # ports
        "http://a.svc.cluster.local:", "http://a.svc.cluster.local:0", "http://a.svc.cluster.local:65536",
        "http://a.svc.cluster.local:-1", "http://a.svc.cluster.local:8o", "http://a.svc.cluster.local:99999999999",
        "http://a.svc.cluster.local:80:80", "http://a.svc.cluster.local:\u0661",
        # names
        "http://a.svc.cluster.local.", "http://a..svc.cluster.local", "http://.svc.cluster.local", "http://-a.svc.cluster.local",
        "http://a-.svc.cluster.local", "http://a_b.svc.cluster.local", "http://%61.svc.cluster.local", "http://*.svc.cluster.local",
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
    "[2001:db8::1]", "[::1%25lo]", "[::1", "::1", "1.2.3.4.5", "256.256.256.256", "08.8.8.8", "1.2.3.0x4", "[127.0.0.1]",
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
        "Metadata.Google.Internal", "instance-data.ec2.internal",
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
