"""Keys beside certificates: public keys that belong to an agent because the configuration says so.

For agents outside every trust domain, and for those whose certificates we have no root for. The keys of one agent are a
`PinnedKeys`: `trust.oauth.keys.StaticKeys` holds JWKs, `trust.oauth.keys.RemoteKeys` the JWKS at a URL. Both come from
the configuration. A `jku`, `x5u` or `jwk` in what was signed is never looked at, so nobody chooses the key that his own
signature is verified with.

A pinned key has no expiry and no revocation list: it is good until it is taken out of the configuration or the JWKS.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Protocol

from trust.errors import ConfigurationError, HeaderMalformed, IdentityError, SignerUnknown, TokenKeyUnknown
from trust.identity import AgentID
from trust.signing.algorithms import PublicKey

MAX_KID_CHARACTERS = 256


class PinnedKeys(Protocol):
    """The public keys of one agent, by configuration."""

    def find(self, kid: str, alg: str, *, now: datetime) -> PublicKey:
        """The key with this ID for this algorithm, without IO.

        Raises:
            TokenKeyUnknown: there is no such key.
            KeysUnavailable: the keys of a URL have not been fetched, or too long ago.
        """

    async def prepare(self, kid: str | None, *, now: datetime) -> None:
        """Fetch what `find` needs, where that takes a fetch."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PinnedSigner:
    """Who signed with a pinned key: the agent is the one that the configuration has beside the key."""

    agent_id: AgentID
    kid: str
    public_key: PublicKey = field(repr=False, compare=False)


class PinnedAgents:
    """Agents with their pinned keys: in the place of a `PeerVerifier`, for messages signed inside JSON.

    What they sign names its key by `kid`, and no certificate. The `iss` of a message decides only whose keys are asked.
    An agent is looked for in its own keys alone, so one agent's keys can neither stand in for those of another nor, by
    the same `kid`, make them ambiguous.

        partners = PinnedAgents({"spiffe://partner.example/planner": RemoteKeys("https://partner.example/jwks", http)})
        await partners.prepare(now=now)
        verify_message(message, "Message", verifier=partners, ...)

    Args:
        keys: of each agent, by its SPIFFE ID.

    Raises:
        ConfigurationError: no agent, or one twice.
        IdentityError: a malformed SPIFFE ID.
    """

    def __init__(self, keys: Mapping[AgentID | str, PinnedKeys]) -> None:
        self._keys: dict[AgentID, PinnedKeys] = {}
        for name, pinned in keys.items():
            agent = name if isinstance(name, AgentID) else AgentID.parse(name)
            if agent in self._keys:
                raise ConfigurationError("pinned keys", got=f"{agent} twice", expected="one set of keys for each agent")
            self._keys[agent] = pinned
        if not self._keys:
            raise ConfigurationError("pinned keys", got="of no agent", expected="at least one agent with its keys")
        self._away: set[AgentID] = set()
        self._beside: dict[AgentID, asyncio.Task[None]] = {}

    async def prepare(self, *, now: datetime) -> None:
        """Fetch the keys that are at URLs, where they are not fresh; to be called before messages are verified.

        One agent whose keys cannot be had is no reason to refuse another: `KeysUnavailable` comes when its own message
        is verified. Nor to hold it up: after a failure its keys are fetched beside, and nobody waits until they are
        there; keys that are good still serve until newer ones are there. NOT covered: the first time, and where there
        are none that are good still, every agent waits for it: with `RemoteKeys` 3 s.
        """
        waited = []
        for agent in self._keys:
            if agent not in self._away:
                waited.append(self._fetch(agent, now))
            elif agent not in self._beside or self._beside[agent].done():
                self._beside[agent] = asyncio.create_task(self._fetch(agent, now))
        await asyncio.gather(*waited)

    async def _fetch(self, agent: AgentID, now: datetime) -> None:
        try:
            await self._keys[agent].prepare(None, now=now)
        except Exception:  # whatever it is: `find` says what is wrong, to whom it concerns
            self._away.add(agent)
        else:
            self._away.discard(agent)

    def signer(self, header: Mapping[str, Any], alg: str, *, now: datetime) -> PinnedSigner:
        """Whom the header of a signature claims to be by; the key says whether it is.

        Raises:
            HeaderMalformed: it names a certificate too, or no key, or nobody.
            SignerUnknown: the agent has no pinned keys, or not this one for this algorithm.
            KeysUnavailable: the keys of its URL have not been fetched.
        """
        for name in ("x5t#S256", "x5c"):
            if name in header:  # which of the two signed would be for each reader to choose
                raise HeaderMalformed("signature names a key and a certificate", got=name, expected="kid alone")
        kid = kid_of(header)
        try:
            agent = AgentID.parse(header["a2a"]["iss"])
        except (IdentityError, KeyError, TypeError):
            raise HeaderMalformed("a2a.iss of the signature", expected="a SPIFFE ID") from None
        keys = self._keys.get(agent)
        if keys is None:
            raise SignerUnknown("no keys are pinned for the signer", got=agent, expected="an agent that is configured")
        return PinnedSigner(agent_id=agent, kid=kid, public_key=find(keys, kid, alg, now=now))


def kid_of(header: Mapping[str, Any]) -> str:
    """The ID of the key that a header names.

    Raises:
        HeaderMalformed: there is none, or it is too long.
    """
    kid = header.get("kid")
    if not isinstance(kid, str) or not 0 < len(kid) <= MAX_KID_CHARACTERS:
        raise HeaderMalformed("kid of the signature", got=kid, expected=f"1 to {MAX_KID_CHARACTERS} characters")
    return kid


def find(keys: PinnedKeys, kid: str, alg: str, *, now: datetime) -> PublicKey:
    """The pinned key; as `PinnedKeys.find`, but that an unknown key is an unknown signer.

    Raises:
        SignerUnknown: there is no such key for this algorithm.
    """
    try:
        return keys.find(kid, alg, now=now)
    except TokenKeyUnknown:
        raise SignerUnknown(
            "signature is by an unknown key", got=f"{kid} for {alg}", expected="a pinned key of the agent, for its alg"
        ) from None
