"""What a card says, and who may say it."""

from __future__ import annotations

import ipaddress
from typing import Any

import pytest
from cryptography import x509

from tests.cards import CARD, FORGE, KEYS, agent_of
from tests.forge import NOW, spiffe
from trust.errors import CardAsksForLess, CardMalformed, CardOfAnother
from trust.signing.card_claims import agent_url, check_interfaces, check_requirements, check_speaker

MTLS = {"mtlsSecurityScheme": {"description": "TLS."}}
BEARER = {"httpAuthSecurityScheme": {"scheme": "Bearer"}}


def interfaces(*urls: Any, binding: str = "JSONRPC") -> list[Any]:
    return check_interfaces({"supportedInterfaces": [{"url": url, "protocolBinding": binding} for url in urls]})


def test_interfaces() -> None:
    assert [url.host for url in interfaces("https://a.example/x?y", "https://[2001:db8::1]:8443")] == [
        "a.example",
        "2001:db8::1",
    ]
    assert [(url.host, url.port) for url in interfaces("a.example:50051", binding="GRPC")] == [("a.example", 50051)]


@pytest.mark.parametrize(
    "url",
    [
        "http://a.example",
        "HTTP://a.example",
        "ws://a.example",
        "a.example:50051",
        "//a.example",
        "https:///x",
        "https://user@a.example",
        "https://a b.example",
        "https://a.example:x",
        "https://[a",
        "https://xn--a/",
        "https://xn--a.example",
        5,
        "",
        None,
        "file:///etc/passwd",
    ],
)
def test_interfaces_without_tls(url: Any) -> None:
    with pytest.raises(CardMalformed):
        interfaces("https://a.example", url)


@pytest.mark.parametrize("url", ["", None, "http://a.example", "user@a.example", "dns:///a.example", "xn--a:1"])
def test_interfaces_of_grpc_have_tls_too(url: Any) -> None:
    with pytest.raises(CardMalformed):
        interfaces(url, binding="GRPC")


@pytest.mark.parametrize("card", [{}, {"supportedInterfaces": []}, {"supportedInterfaces": None}])
def test_there_is_an_interface(card: dict[str, Any]) -> None:
    with pytest.raises(CardMalformed):
        check_interfaces(card)


def requiring(*alternatives: list[str], schemes: dict[str, Any] | None = None) -> dict[str, Any]:
    return {
        "securitySchemes": schemes or {"mtls": MTLS, "bearer": BEARER},
        "securityRequirements": [{"schemes": {name: {} for name in names}} for names in alternatives],
    }


@pytest.mark.parametrize(
    ("card", "mtls"),
    [
        (CARD, True),
        (requiring(["mtls", "bearer"]), True),
        (requiring(["mtls"], ["mtls", "bearer"]), True),
        (requiring(["mtls"], ["bearer"]), False),
        ({}, False),
        ({"securitySchemes": None, "securityRequirements": None}, False),
        (
            {**requiring(["mtls"]), "skills": [{"securityRequirements": [{"schemes": {"mtls": {}, "bearer": {}}}]}]},
            True,
        ),
    ],
)
def test_requirements_that_hold_together(card: dict[str, Any], mtls: bool) -> None:
    check_requirements(card, mtls=mtls)


@pytest.mark.parametrize(
    ("card", "mtls"),
    [
        ({}, True),
        (requiring(["mtls"], ["bearer"]), True),
        (requiring(["bearer"], schemes={"bearer": BEARER}), True),
        (requiring(["mtls", "bearer"], []), True),
        (requiring(["mtls"]), False),
        (requiring(["mtls", "bearer", "other"]), False),
        (requiring(["mtls"], schemes={"mtls": {"mtlsSecurityScheme": None}}), True),
        (requiring(schemes={"mtls": MTLS}), False),
        ({**requiring(["mtls"], schemes={"mtls": MTLS}), "skills": [{"securityRequirements": [{}]}]}, True),
        ({"skills": [{"securityRequirements": [{"schemes": {"mtls": {}}}]}], "securitySchemes": {"mtls": MTLS}}, True),
    ],
)
def test_requirements_that_ask_for_less(card: dict[str, Any], mtls: bool) -> None:
    with pytest.raises(CardAsksForLess):
        check_requirements(card, mtls=mtls)


def peer(*names: str, addresses: tuple[str, ...] = ()) -> Any:
    sans = [
        spiffe("spiffe://fleet.example/billing"),
        *map(x509.DNSName, names),
        *(x509.IPAddress(ipaddress.ip_address(address)) for address in addresses),
    ]
    return KEYS.verify(FORGE.leaf("/billing", sans=sans).chain_der, now=NOW, usage="server")


A = "https://a.example/card.json"


@pytest.mark.parametrize(
    ("wanted", "names", "urls"),
    [
        (A, ["a.example"], ["https://A.example:8443/x"]),
        (A, ["A.EXAMPLE", "b.example"], ["https://b.example", "https://a.example"]),
        ("https://192.0.2.1/", ["192.0.2.1"], ["https://192.0.2.1:1"]),
        ("https://[2001:db8:0::1]/", ["2001:db8::1"], ["https://[2001:DB8::1]"]),
    ],
)
def test_who_has_the_names_speaks(wanted: str, names: list[str], urls: list[str]) -> None:
    hosts = [name for name in names if not name[0].isdigit()]
    signer = peer(*hosts, addresses=tuple(name for name in names if name[0].isdigit()))
    check_speaker(agent_url(wanted), signer, interfaces(*urls))


@pytest.mark.parametrize(
    ("names", "urls"),
    [
        ([], ["https://a.example"]),
        (["b.example"], ["https://b.example"]),
        (["a.example"], ["https://b.example"]),
        (["a.example"], ["https://a.example", "https://a.example.b.example"]),
        (["*.example"], ["https://a.example"]),
        (["a.example"], ["https://192.0.2.1"]),
    ],
)
def test_who_does_not_have_them_does_not(names: list[str], urls: list[str]) -> None:
    with pytest.raises(CardOfAnother):
        check_speaker(agent_url(A), peer(*names), interfaces(*urls))


def test_an_agent_known_by_its_id_says_where_it_is() -> None:
    agent = agent_of("/billing")
    signer = KEYS.verify(agent.chain_der, now=NOW, usage="server")
    check_speaker(agent.agent_id, signer, interfaces("https://anywhere.example"))
    with pytest.raises(CardOfAnother):
        check_speaker(agent_of("/other").agent_id, signer, interfaces("https://anywhere.example"))
