"""What the service sends, parsed: nothing but our errors, whatever the bytes."""

from __future__ import annotations

import asyncio
import base64
from datetime import UTC, datetime

import httpx
import pytest
from cryptography.hazmat.primitives.serialization import Encoding, pkcs7
from hypothesis import given
from hypothesis import strategies as st

from pki.client import est
from pki.client.answers import clocks, explained
from pki.client.est import Answer, Wire
from pki.errors import AnswerRefused, AuthorityUnreachable, EnrolmentFailed
from tests.forge import NOW
from tests.pki.client.fake import FORGE
from trust.errors import CertificateExpired, PeerNotAllowed

CHAIN = [FORGE.root, FORGE.intermediate]
DER = pkcs7.serialize_certificates(CHAIN, Encoding.DER)
NOON = datetime(2027, 3, 1, 12, tzinfo=UTC)


def answer(body: bytes, content_type: str = "application/pkcs7-mime", status: int = 200) -> Answer:
    return Answer(status=status, content_type=content_type, body=body, date=None, peer=None)


@pytest.mark.parametrize(
    "form", [base64.b64encode, base64.encodebytes, lambda d: base64.encodebytes(d).replace(b"\n", b"\r\n")]
)
def test_certificates_with_and_without_line_breaks(form: object) -> None:
    assert set(est._certificates(answer(form(DER)))) == set(CHAIN)  # type: ignore[operator]


@given(st.binary(max_size=200) | st.binary(max_size=200).map(base64.b64encode))
def test_whatever_the_bytes(body: bytes) -> None:
    with pytest.raises(AnswerRefused):
        est._certificates(answer(body))


@given(st.integers(0, len(DER) - 1), st.integers(1, 255))
def test_whatever_is_changed_in_certificates(position: int, change: int) -> None:
    damaged = bytearray(DER)
    damaged[position] ^= change
    try:
        found = est._certificates(answer(base64.b64encode(bytes(damaged))))
    except AnswerRefused:
        return
    assert len(found) <= est.MAX_CERTIFICATES


@given(st.binary(max_size=300) | st.text(max_size=100).map(lambda text: f'{{"check": "{text}"}}'.encode()))
def test_whatever_a_refusal_says(body: bytes) -> None:
    error = est._refusal(answer(body, "application/json", 403), "secret-token")
    assert type(error) is EnrolmentFailed
    assert "secret-token" not in str(error) and "\n" not in str(error) and len(str(error)) < 1000


def test_a_renewal_is_not_refused_for_a_token() -> None:
    body = answer(b'{"check": "pki.policy.id"}', "application/json", 403)
    assert "the token is for another agent" in str(est._refusal(body, "secret-token"))
    assert "the CA's policy refuses this agent" in str(est._refusal(body, ""))


@pytest.mark.parametrize("verified", [False, True])
def test_a_port_that_speaks_plain_http(verified: bool) -> None:
    """As `enrol` begins, and as `renew` does."""

    async def main() -> None:
        async def plain(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.read(100)
            writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
            writer.close()

        async with await asyncio.start_server(plain, "127.0.0.1", 0) as server:
            url = f"https://127.0.0.1:{server.sockets[0].getsockname()[1]}"
            wire = (
                Wire.verified(url, FORGE.domain, FORGE.bundles, FORGE.leaf("/billing"), lambda: NOW)
                if verified
                else Wire.unverified(url)
            )
            async with wire:
                with pytest.raises(AuthorityUnreachable, match=r"plain HTTP: is it the --http-port\?"):
                    await wire.cacerts()

    asyncio.run(main())


@given(st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=40))
def test_whatever_the_date(text: str) -> None:
    date = est._date(httpx.Response(200, headers={"date": text}))
    assert date is None or date.tzinfo is UTC


def test_dates() -> None:
    assert est._date(httpx.Response(200, headers={"date": "Mon, 01 Mar 2027 12:00:00 GMT"})) == NOON
    assert est._date(httpx.Response(200)) is None


def test_clocks_are_shown_where_they_matter() -> None:
    other = PeerNotAllowed("peer")
    assert explained(other, NOON, NOON) is other
    expired = CertificateExpired("certificate has expired")
    assert "the CA's is not known" in clocks(NOON, None)
    assert "look at the clocks" in str(explained(expired, NOON, None))
    assert explained(expired, NOON, NOON.replace(second=20)) is expired
    for change, apart in (({"day": 4}, "3 days"), ({"hour": 15}, "3 hours"), ({"minute": 3}, "3 minutes")):
        assert f"{apart} apart" in str(explained(expired, NOON, NOON.replace(**change)))
    assert "59 seconds apart" in str(explained(expired, NOON, NOON.replace(second=59)))
