"""What an Agent Card says about where and how its agent is called, and who may say so.

Pure. Whoever asks has verified the card's signature, or is about to make it.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from typing import Any

import httpx
from cryptography import x509

from trust.errors import CardAsksForLess, CardMalformed, CardOfAnother, ConfigurationError
from trust.identity import AgentID, PeerIdentity
from trust.signing.card_form import requirements


def check_interfaces(card: Mapping[str, Any]) -> list[httpx.URL]:
    """The URLs of a card's interfaces.

    Raises:
        CardMalformed: there is none, or one that is not https. gRPC may be named by host and port alone.
    """
    urls = []
    for interface in card.get("supportedInterfaces") or ():
        text = interface.get("url")
        if interface.get("protocolBinding") == "GRPC" and text and "/" not in text:
            text = f"https://{text}"
        urls.append(_url(text, CardMalformed))
    if not urls:
        raise CardMalformed("card has no interface", expected="supportedInterfaces")
    return urls


def check_requirements(card: Mapping[str, Any], *, mtls: bool) -> None:
    """Whether the requirements hold together, and with `mtls`, whether each alternative has mutual TLS.

    The SDKs sign neither an mTLS scheme without a description nor a requirement without scopes. What is left where one
    of them was taken out is a requirement without its scheme, or a scheme that nothing requires; nothing is to be seen
    where the scheme is required elsewhere too, or was taken out together with all that required it.

    Raises:
        CardAsksForLess: a requirement names a scheme that is not there, a scheme is required nowhere, or an
            alternative lets callers in without mTLS.
    """
    schemes = card.get("securitySchemes") or {}
    alternatives = requirements(card)
    for path, names in alternatives:
        for name in names:
            if name not in schemes:
                raise CardAsksForLess(path, got=name, expected="a scheme of securitySchemes")
        if mtls and not any(schemes[name].get("mtlsSecurityScheme") is not None for name in names):
            raise CardAsksForLess(f"{path} can be satisfied without mutual TLS", expected="an mtlsSecurityScheme in it")
    if mtls and not card.get("securityRequirements"):
        raise CardAsksForLess("card requires nothing of its callers", expected="securityRequirements with mutual TLS")
    required = {name for _, names in alternatives for name in names}
    for name in schemes:
        if name not in required:
            raise CardAsksForLess(
                "security scheme is required nowhere",
                got=name,
                expected="a requirement that names it",
                do="leave the scheme out if it is not needed; SDKs' signatures let its requirement be taken away",
            )


def check_speaker(wanted: AgentID | httpx.URL, signer: PeerIdentity | None, interfaces: list[httpx.URL]) -> None:
    """Whether a card with these interfaces may be said by this signer for the agent that is wanted.

    Args:
        wanted: its SPIFFE ID, which must be the signer's; or a URL, whose host, like that of every interface, must be
            among the signer's names.
        signer: None where the card is signed with a key that is pinned for the agent. It then speaks for that SPIFFE
            ID, or for the origin of that URL alone.

    Raises:
        CardOfAnother: it is not.
    """
    if isinstance(wanted, AgentID):
        if signer is not None and signer.agent_id != wanted:
            raise CardOfAnother("card is signed by another agent", got=signer.agent_id, expected=str(wanted))
    elif signer is None:
        for url in interfaces:
            if (url.raw_host, url.port) != (wanted.raw_host, wanted.port):
                raise CardOfAnother("interface is elsewhere", got=url, expected=f"{wanted.host}, whose keys are pinned")
    else:
        names = _names(signer)
        for url in (wanted, *interfaces):
            if _host(url) not in names:
                raise CardOfAnother(
                    "card is signed by an agent of another host",
                    got=f"{signer.agent_id} for {url.host}",
                    expected=f"one of {', '.join(sorted(names)) or 'no names'}",
                )


def _names(signer: PeerIdentity) -> set[str]:
    """The DNS names and addresses in a verified certificate. Wildcards stand for themselves only."""
    certificate = x509.load_der_x509_certificate(signer.chain[0])
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    hosts = {name.lower() for name in names.get_values_for_type(x509.DNSName)}
    return hosts | {str(address) for address in names.get_values_for_type(x509.IPAddress)}


def _host(url: httpx.URL) -> str:
    host = url.raw_host.decode("ascii").lower()
    try:
        return str(ipaddress.ip_address(host))
    except ValueError:
        return host


def _url(text: object, error: type[CardMalformed | ConfigurationError]) -> httpx.URL:
    try:
        url = httpx.URL(text if isinstance(text, str) else "")
        host = url.host
    except (httpx.InvalidURL, ValueError):  # ValueError: a lone surrogate, or an xn-- label that is no IDN
        url, host = httpx.URL(""), ""
    # What cannot be in a host, httpx percent-encodes.
    if url.scheme != "https" or not host or "%" in host or url.userinfo:
        raise error("URL of an agent", got=text, expected="https://host[:port]/...")
    return url


def agent_url(text: str) -> httpx.URL:
    """The URL that an agent is known by.

    Raises:
        ConfigurationError: not an https URL.
    """
    return _url(text, ConfigurationError)
