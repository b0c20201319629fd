"""Our OAuth client and validator against npm oidc-provider, an authorization server that others wrote."""

from __future__ import annotations

import asyncio
import base64
import json
import secrets
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from cryptography.hazmat.primitives.asymmetric import ed25519

from tests.interop.fleet import BILLING, PLANNER
from tests.interop.oidc_provider import ALGORITHMS, KEYS, OPAQUE, SCOPES, SECRET, Provider, Resource, audience, p256
from tests.interop.programs import needs
from trust.errors import (
    AuthorizationServerUnavailable,
    KeysUnavailable,
    ScopeNotGranted,
    TokenAlgorithmRefused,
    TokenAudienceWrong,
    TokenBoundElsewhere,
    TokenKeyUnknown,
    TokenNotBound,
    TokenRequestRefused,
    TokenWithoutCertificate,
    TokenWithoutProof,
)
from trust.oauth.client.authentication import ClientSecret, PrivateKeyJWT, TLSCertificate
from trust.oauth.dpop import Proof, make_proof, verify_proof
from trust.oauth.keys import SigningKey
from trust.oauth.keys.remote import FRESH
from trust.oauth.metadata import CLIENT_CREDENTIALS

pytestmark = needs("node", "npm")

SECOND = timedelta(seconds=1)


@pytest.fixture(scope="module")
def started(js: Path, plain: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Provider]:
    provider = Provider(js, tmp_path_factory.mktemp("oidc-provider"), plain.ca)
    yield provider
    provider.kill()


@pytest.fixture
def provider(started: Provider) -> Provider:
    """As it was at first, whatever another test did to it."""
    if started.process.poll() is not None:
        started.start()
    started.change_keys(*KEYS)
    return started


@pytest.mark.parametrize("alg", ALGORITHMS)
def test_its_tokens_are_taken_from_their_holder_alone(alg: str, provider: Provider) -> None:
    async def main() -> None:
        async with provider.http() as http:
            token = await provider.tokens(http, audience(alg)).token()
            billing = provider.validator(http, audience(alg))
            access = await billing.validate(token.value)
            assert (access.subject, access.client_id, set(access.scopes)) == (PLANNER, PLANNER, set(SCOPES))
            assert header_of(token.value) == {"alg": alg, "typ": "at+jwt", "kid": header_of(token.value)["kid"]}
            with pytest.raises(TokenBoundElsewhere):
                await billing.validate(token.value, peer=provider.peer(provider.other))
            with pytest.raises(TokenWithoutCertificate):
                await billing.validate(token.value, peer=None)
            with pytest.raises(TokenAudienceWrong):
                await provider.validator(http, BILLING).validate(token.value)

    asyncio.run(main())


def test_rs256_is_taken_only_where_it_is_asked_for(provider: Provider) -> None:
    async def main() -> None:
        async with provider.http() as http:
            token = await provider.tokens(http, audience("RS256")).token()
            assert header_of(token.value)["alg"] == "RS256"
            with pytest.raises(TokenAlgorithmRefused):
                await provider.validator(http, audience("RS256")).validate(token.value)
            await provider.validator(http, audience("RS256"), unsafe_rs256=True).validate(token.value)

    asyncio.run(main())


def test_scopes_that_it_drops_without_a_word(provider: Provider) -> None:
    async def main() -> None:
        async with provider.http() as http:
            with pytest.raises(ScopeNotGranted, match="also agent:admin"):
                await provider.tokens(http, scopes=["agent:execute", "agent:admin"]).token()
            # Where it drops all of them it does not say so: an answer without scopes means that they are those asked
            # for (RFC 6749 section 5.1). The token itself may nothing, and that is what a resource goes by.
            token = await provider.tokens(http, scopes=["agent:admin"]).token()
            assert (await provider.validator(http).validate(token.value)).scopes == ()

    asyncio.run(main())


WAYS: dict[str, tuple[str, str, Any]] = {
    "tls_client_auth": (PLANNER, "planner", TLSCertificate()),
    "self_signed_tls_client_auth": ("by-certificate", "impostor", TLSCertificate(self_signed=True)),
    "private_key_jwt": ("by-key", "planner", PrivateKeyJWT()),
    "client_secret_basic": ("by-secret", "planner", ClientSecret(lambda: SECRET)),
}
NO_WAYS: dict[str, tuple[str, str, Any]] = {
    "another agent's certificate": (PLANNER, "other", TLSCertificate()),
    "a certificate of another CA": (PLANNER, "impostor", TLSCertificate()),
    "another certificate than the registered": ("by-certificate", "planner", TLSCertificate(self_signed=True)),
    "an assertion by another key": ("by-key", "planner", PrivateKeyJWT(SigningKey.generate())),
    "a wrong secret": ("by-secret", "planner", ClientSecret(lambda: SECRET + "x")),
    "a secret instead of the certificate": (PLANNER, "planner", ClientSecret(lambda: SECRET)),
}


@pytest.mark.parametrize(("name", "who", "way"), WAYS.values(), ids=WAYS)
def test_each_way_to_prove_who_we_are(name: str, who: str, way: Any, provider: Provider) -> None:
    async def main() -> None:
        source = getattr(provider, who)
        async with provider.http(source) as http:
            token = await provider.tokens(http, client_id=name, source=source, authentication=way).token()
            claims = json.loads(decoded(token.value.split(".")[1]))
            assert (claims["client_id"], claims["cnf"]) == (name, {"x5t#S256": source.thumbprint})

    asyncio.run(main())


@pytest.mark.parametrize(("name", "who", "way"), NO_WAYS.values(), ids=NO_WAYS)
def test_who_does_not_prove_it_gets_its_refusal(name: str, who: str, way: Any, provider: Provider) -> None:
    async def main() -> None:
        source = getattr(provider, who)
        async with provider.http(source) as http:
            with pytest.raises(TokenRequestRefused) as caught:
                await provider.tokens(http, client_id=name, source=source, authentication=way).token()
            assert caught.value.error == "invalid_client"
            assert SECRET not in str(caught.value)

    asyncio.run(main())


def test_its_keys_change_while_it_runs(provider: Provider) -> None:
    """Published before use, used, withdrawn."""
    old, new = p256(), p256()

    async def main() -> None:
        now = datetime.now(UTC)
        async with provider.http() as http:
            billing = provider.validator(http)

            async def fresh() -> str:
                return (await provider.tokens(http).token()).value

            provider.change_keys(old)
            first = await fresh()
            await billing.validate(first)
            provider.change_keys(old, new)
            await billing.validate(await fresh())
            provider.change_keys(new, old)
            second = await fresh()
            assert (header_of(first)["kid"], header_of(second)["kid"]) == (old["kid"], new["kid"])
            await billing.validate(second)  # its key was not there: fetched
            await billing.validate(first)
            provider.change_keys(new)
            await billing.validate(first, now=now + FRESH + SECOND)  # starts the fetch after which it is refused
            async with asyncio.timeout(20):
                while await taken(billing, first, now + FRESH + SECOND):
                    await asyncio.sleep(0.01)
            await billing.validate(second, now=now + FRESH + SECOND)

    asyncio.run(main())


async def taken(billing: Resource, token: str, now: datetime) -> bool:
    try:
        await billing.validate(token, now=now)
    except TokenKeyUnknown:
        return False
    return True


def test_it_is_killed_and_comes_back(provider: Provider) -> None:
    """Tokens that are there go on, and keys that are there; new ones are to be had again afterwards."""

    async def main() -> None:
        now = start = datetime.now(UTC)
        async with provider.http() as http:
            tokens = provider.tokens(http, clock=lambda: now)
            kept, billing = await tokens.token(), provider.validator(http)
            await billing.validate(kept.value)
            provider.kill()
            for late in (SECOND, FRESH + SECOND, kept.expires_at - start - SECOND):  # the last: it should be renewed
                now = start + late
                assert (await tokens.token()).value == kept.value
                await billing.validate(kept.value, now=now)
            with pytest.raises(AuthorizationServerUnavailable):
                await provider.tokens(http, scopes=SCOPES[:1]).token()
            now = kept.expires_at
            with pytest.raises(AuthorizationServerUnavailable):
                await tokens.token()
            with pytest.raises(KeysUnavailable):
                await provider.validator(http).validate(kept.value)
            provider.start()
            now = datetime.now(UTC)
            new = await provider.tokens(http).token()
            await billing.validate(new.value, now=start + FRESH + SECOND * 2)

    asyncio.run(main())


def test_a_task_gives_back_its_tokens(provider: Provider) -> None:
    """Opaque ones: those that it signs it neither introspects nor revokes, and says so."""

    async def active(http: httpx.AsyncClient, token: str) -> bool:
        form = {"client_id": PLANNER, "token": token}
        answer = (await http.post(f"{provider.issuer}/token/introspection", data=form)).json()
        if answer["active"]:
            assert answer["cnf"] == {"x5t#S256": provider.planner.thumbprint}
        return bool(answer["active"])

    async def main() -> None:
        async with provider.http() as http:
            tokens = provider.tokens(http, OPAQUE)
            ours = await tokens.token()
            async with tokens.for_task() as task:
                its = await task.token()
                assert its.value != ours.value
                assert await active(http, its.value)
            assert not await active(http, its.value)
            assert await active(http, ours.value)
            await tokens.revoke(ours)
            assert not await active(http, ours.value)
            signed = provider.tokens(http)
            with pytest.raises(TokenRequestRefused) as caught:
                await signed.revoke(await signed.token())
            assert caught.value.error == "unsupported_token_type"

    asyncio.run(main())


def test_billing_exchanges_the_planners_token_for_its_own(provider: Provider) -> None:
    async def main() -> None:
        async with provider.http() as first, provider.http(provider.billing) as second:
            subject = await provider.tokens(first).token()
            tokens = provider.tokens(second, source=provider.billing)
            scopes = SCOPES[1:]
            token = await tokens.exchange(subject.value, resource=audience("ES384"), scopes=scopes)
            ledger = provider.validator(second, audience("ES384"))
            access = await ledger.validate(token.value, peer=provider.peer(provider.billing))
            assert (access.subject, access.client_id, access.actors) == (PLANNER, BILLING, (BILLING,))
            assert access.scopes == scopes
            with pytest.raises(TokenBoundElsewhere):
                await ledger.validate(token.value)
            narrow = await provider.tokens(first, scopes=SCOPES[:1]).token()
            with pytest.raises(ScopeNotGranted):
                await tokens.exchange(narrow.value, resource=audience("ES384"), scopes=SCOPES)
            provider.change_keys(p256())  # it does not know its own token any more
            with pytest.raises(TokenRequestRefused) as caught:
                await tokens.exchange(subject.value, resource=audience("ES256"), scopes=scopes)
            assert caught.value.error == "invalid_request"

    asyncio.run(main())


@pytest.mark.parametrize(
    "key", [SigningKey.generate(), SigningKey.of(ed25519.Ed25519PrivateKey.generate())], ids=["P-256", "Ed25519"]
)
def test_it_takes_our_proofs_of_a_key(key: SigningKey, provider: Provider) -> None:
    """DPoP (RFC 9449): it binds the token to the key of our proof, and our validator wants a proof of that key."""

    async def main() -> None:
        form = {"grant_type": CLIENT_CREDENTIALS, "client_id": "by-proof", "resource": audience("ES256")}
        url, at, now = f"{provider.issuer}/token", "https://billing.fleet.example/rpc", datetime.now(UTC)

        def proven(holder: SigningKey, token: str) -> Proof:
            header = make_proof(holder, method="POST", url=at, now=now, jti=secrets.token_urlsafe(), token=token)
            return verify_proof(header, method="POST", url=at, now=now, token=token)

        async with provider.http() as http:
            proof = make_proof(key, method="POST", url=url, now=now, jti=secrets.token_urlsafe())
            answer = await http.post(url, data=form, headers={"dpop": proof})
            token = str(answer.json()["access_token"])
            assert answer.json()["token_type"] == "DPoP"
            again = await http.post(url, data=form, headers={"dpop": proof})
            assert again.status_code == 400  # each once
            billing = provider.validator(http, bindings=["dpop"])
            access = await billing.validate(token, proof=proven(key, token))
            assert (access.key_thumbprint, access.thumbprint) == (key.kid, "")
            with pytest.raises(TokenBoundElsewhere):
                await billing.validate(token, proof=proven(SigningKey.generate(), token))
            with pytest.raises(TokenWithoutProof):
                await billing.validate(token)
            with pytest.raises(TokenNotBound):  # where certificates are asked for, a key is none
                await provider.validator(http).validate(token, proof=proven(key, token))

    asyncio.run(main())


def header_of(token: str) -> Any:
    return json.loads(decoded(token.partition(".")[0]))


def decoded(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "==")
