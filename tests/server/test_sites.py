import pytest
from starlette.datastructures import Headers

from foreframe_server.settings import HttpSettings, SettingsError
from foreframe_server.sites import CrossSite, Sites, UnknownHost, is_same_site


def sites_of(*, has_keys=False, **settings):
    return Sites.read(HttpSettings(**settings), has_keys=has_keys)


def headers_of(*hosts, origins=()):
    named = [(b"host", host.encode()) for host in hosts]
    return Headers(raw=[*named, (b"accept", b"*/*"), *((b"origin", origin.encode()) for origin in origins)])


@pytest.mark.parametrize(
    ("origin", "host", "is_same"),
    [
        ("http://robot:8000", "robot:8000", True),
        ("http://Robot:8000", "rObot:8000", True),
        ("http://robot", "robot:80", True),
        ("https://robot:443", "robot", True),
        ("https://[::1]:8000", "[::1]:8000", True),
        ("http://robot:8001", "robot:8000", False),
        ("http://robot:443", "robot", False),
        ("http://user@robot", "robot", False),
        ("http://robot.evil", "robot", False),
        ("ftp://robot", "robot", False),
        ("http://", "", False),
        ("", "", False),
        ("null", "null", False),
    ],
)
def test_the_same_site_is_the_same_name_and_port(origin, host, is_same):
    assert is_same_site(origin, host) is is_same


@pytest.mark.parametrize(
    "host",
    ["localhost", "LocalHost:8000", "127.0.0.1", "127.0.0.1:8000", "127.3.2.1:1", "[::1]", "[::1]:8000",
     "[0:0:0:0:0:0:0:1]:8000"],
)  # fmt: skip
def test_without_keys_this_machine_s_own_names_are_answered_on_any_port(host):
    sites_of().check(headers_of(host))


@pytest.mark.parametrize(
    "host",
    ["rebound.example", "rebound.example:8000", "localhost.rebound.example", "127.0.0.1.rebound.example", "192.168.1.7",
     "0.0.0.0:8000", "[::]:8000", "[::ffff:192.168.1.7]", "::1", "localhost:", "localhost:x", "localhost:123456",
     "user@localhost", "localhost/", "localhost,rebound.example", " localhost", "unix:/run/foreframe.sock", "",
     "l\u00f6calhost"],
)  # fmt: skip
def test_without_keys_no_other_name_is_answered(host):
    with pytest.raises(UnknownHost, match="FOREFRAME_HTTP__HOSTS") as refused:
        sites_of().check(headers_of(host))
    assert "rebound" not in refused.value.detail


def test_no_host_and_two_hosts_are_no_name():
    for hosts in ((), ("localhost", "localhost"), ("localhost", "rebound.example")):
        with pytest.raises(UnknownHost):
            sites_of().check(headers_of(*hosts))


def test_configured_names_are_answered_too():
    sites = sites_of(hosts="Robots.example, 10.0.0.7,[fd00::7]")
    for host in ("robots.example", "robots.example:443", "10.0.0.7:8000", "[fd00::7]:8000", "localhost:8000"):
        sites.check(headers_of(host))
    for host in ("robots.example.net", "a.robots.example", "10.0.0.8"):
        with pytest.raises(UnknownHost):
            sites.check(headers_of(host))


def test_keys_make_every_name_do_and_no_other_site():
    sites = sites_of(has_keys=True)
    for hosts in (("robots.example",), (), ("a", "b")):
        sites.check(headers_of(*hosts))
    with pytest.raises(CrossSite):
        sites.check(headers_of("robots.example", origins=["https://elsewhere.example"]))


def test_every_origin_of_a_request_has_to_be_right():
    own, other = "http://localhost:8000", "http://localhost:3000"
    sites_of().check(headers_of("localhost:8000", origins=[own, own]))
    for origins in ([other], [own, other], [other, own], [f"{own} {other}"], [""], ["null"]):
        with pytest.raises(CrossSite, match="FOREFRAME_HTTP__ORIGINS"):
            sites_of().check(headers_of("localhost:8000", origins=origins))


def test_an_origin_is_not_the_server_s_own_where_it_has_two_hosts():
    with pytest.raises(CrossSite):
        sites_of(has_keys=True).check(headers_of("a", "b", origins=["http://a"]))


def test_configured_sites_may_ask():
    sites = sites_of(origins="https://Robots.example:443, http://10.0.0.7:3000,app://viewer")
    for origin in ("https://robots.example", "http://10.0.0.7:3000", "app://viewer"):
        sites.check(headers_of("127.0.0.1:8000", origins=[origin]))
    for origin in ("http://robots.example", "https://robots.example:8443", "http://10.0.0.7", "null"):
        with pytest.raises(CrossSite):
            sites.check(headers_of("127.0.0.1:8000", origins=[origin]))


@pytest.mark.parametrize("hosts", ["robots.example:8000", "http://robots.example", "*", "fd00::7", "a b"])
def test_what_is_no_name_stops_the_start(hosts):
    with pytest.raises(SettingsError, match=r"FOREFRAME_HTTP__HOSTS: .*without a port$"):
        sites_of(hosts=hosts)


@pytest.mark.parametrize("origins", ["robots.example", "null", "*", "https://robots.example/", "https://a https://b"])
def test_what_is_no_origin_stops_the_start(origins):
    with pytest.raises(SettingsError, match="FOREFRAME_HTTP__ORIGINS"):
        sites_of(origins=origins)
