"""Signed Agent Cards (A2A 1.0 section 8.4): what is signed is what is served, and a card speaks for its own agent only.

A signature is a detached JWS over the RFC 8785 form of the card without its `signatures`, in the card as `{protected,
signature}`. Its header has `alg`, `kid`, `typ: "JOSE"`, and ours has `x5c` and `x5t#S256` too. Cards that are signed
here verify in the SDKs, and those of the SDKs here.

What the SDKs' verifiers let through is refused: members that no signature covers (`card_form`), a card that another
host hands out, an algorithm or a key that the signer chose (`jku` is never looked at), keys that are expired or
revoked, heaps of signatures, and a card from which a security requirement was taken.

A card remains what its agent *says*: a server enforces its own configuration, and `trust.oauth.cards.check_card`
compares what a card asks for with the policy of the client.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from trust.clock import Clock, utc, wall_clock
from trust.credentials import Credentials
from trust.errors import (
    CardAsksForLess,
    CardMalformed,
    CardNotCovered,
    ConfigurationError,
    HeaderMalformed,
    PeerError,
    SignatureError,
    SignatureMissing,
    SignatureWrong,
)
from trust.identity import AgentID, PeerIdentity
from trust.peers import PeerVerifier
from trust.signing import jws as strict_jws
from trust.signing.algorithms import PublicKey
from trust.signing.canonical import canonicalize_value
from trust.signing.card_claims import agent_url, check_interfaces, check_requirements, check_speaker
from trust.signing.card_form import Finding, covered, prepare, read
from trust.signing.envelope import DEFAULT_ALGORITHMS, chain_of
from trust.signing.http import MessageSigner
from trust.signing.pinned import PinnedKeys, find, kid_of

TYP = "JOSE"
MAX_SIGNATURES = 8  # of one card; a rotation needs two, and each costs a verification or two


@dataclass(frozen=True, slots=True, kw_only=True)
class SignedCard:
    """A card to serve."""

    card: dict[str, Any] = field(repr=False)  # with its `signatures`
    changes: tuple[Finding, ...]  # what had to be changed in it to be signed whole

    @property
    def text(self) -> bytes:
        """The JSON text. Whatever re-writes it must keep every member and add none."""
        return canonicalize_value(self.card)


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifiedCard:
    """What was signed of a card: use this, and not the document that it came in."""

    card: dict[str, Any] = field(repr=False)  # without `signatures`, and without what no signature covers
    kid: str  # of the signature that verified
    signer: PeerIdentity | None = field(repr=False)  # None where the key was pinned
    uncovered: tuple[str, ...]  # paths of the members that were left out; empty unless `sdk_form` was allowed


def sign_card(card: bytes | Mapping[str, Any], *, credentials: Credentials | Sequence[Credentials]) -> SignedCard:
    """Sign an Agent Card for the agent of these credentials, in the one form of which every verifier sees each member.

    Signing is idempotent: earlier signatures are replaced. During a rotation, give the old credentials and the new
    ones, for a signature by each.

    Not checked: whether the URLs of the card are the agent's. A verifier that knows the agent by its URL wants the
    hosts of all interfaces among the DNS names of its certificate.
    Nor can it be seen what a server adds afterwards: that of a2a-sdk repeats a card in the words of A2A 0.3 where it
    lists an interface of that version, and no signature covers those words.

    Args:
        card: A2A 1.0, as JSON text or as a value.

    Raises:
        ConfigurationError: what `prepare` cannot mend, what `verify_card` would refuse, or a key that cannot sign.
        CardMalformed: not the JSON of an Agent Card.
    """
    signers = [credentials] if isinstance(credentials, Credentials) else list(credentials)
    if not 0 < len(signers) <= MAX_SIGNATURES:
        raise ConfigurationError("signers of a card", got=len(signers), expected=f"1 to {MAX_SIGNATURES}")
    content = read(card)
    content.pop("signatures", None)
    content, findings = prepare(content)
    problems = [finding for finding in findings if not finding.mended]
    if problems:
        path, problem, _ = problems[0]
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        raise ConfigurationError(f"card cannot be signed: {path} {problem}{more}", do="run a2a-trust card lint")
    try:
        check_interfaces(content)
        check_requirements(content, mtls=False)
    except (CardMalformed, CardAsksForLess) as error:
        raise ConfigurationError(f"no verifier would accept this card: {error}") from None
    payload = canonicalize_value(content)
    signatures = []
    for signer in signers:
        x5c = [base64.b64encode(der).decode() for der in signer.chain_der]
        header = {"typ": TYP, "kid": signer.thumbprint, "x5t#S256": signer.thumbprint, "x5c": x5c}
        jws = strict_jws.sign_detached(payload, key=signer.private_key, header=header, in_body=True)
        protected, _, signature = jws.split(".")
        signatures.append({"protected": protected, "signature": signature})
    signed = SignedCard(card={**content, "signatures": signatures}, changes=tuple(findings))
    try:
        read(signed.text)  # a number such as 1e16 was an acceptable one only until it was written in the form above
    except CardMalformed as error:
        raise ConfigurationError(f"no verifier would accept this card: {error}") from None
    return signed


def verify_card(
    card: bytes | Mapping[str, Any],
    *,
    keys: PeerVerifier | PinnedKeys,
    agent: AgentID | str,
    now: datetime,
    algorithms: Collection[str] = DEFAULT_ALGORITHMS,
    mtls: bool = True,
    sdk_form: bool = False,
) -> VerifiedCard:
    """Verify an Agent Card, and that it speaks for the agent that is meant; one good signature is enough.

    (0) The document is strict JSON, at most 256 KiB and 32 levels, with 1 to 8 signatures.
    (1) Its members have the types of A2A 1.0.
    For each signature, until one passes:
    (2) `alg` is allowed, `typ` is JOSE, there is a `kid`, and nothing in the header is critical or brings a key.
    (3) The key: the chain in `x5c` verifies now and is not revoked, or `kid` is one of the pinned keys.
    (4) The signature verifies over the document as received.
    (5) The interfaces are https. The signer is the agent, or has the names of its host and of every interface.
    (6) Every alternative of the security requirements has mTLS; they name schemes that the card has, and no scheme
        that it has is required nowhere: that is mostly what is left of a card from which the SDKs' signatures let a
        scheme or a requirement be taken.

    Not checked: that the card asks for no less than our policy, mTLS apart (`trust.oauth.cards.check_card`); how old
    it is, for cards have no time. Nor can it be seen that, out of a card that an SDK has signed, somebody took a
    requirement without scopes whose scheme is required elsewhere too, or a scheme without content together with all
    that required it; with `mtls`, mTLS is not lost that way. `sign_card` leaves neither in a card.

    Args:
        card: the document as it was received. Of a value that others have parsed, duplicate members are gone unseen.
        keys: a `PeerVerifier`, for signers with certificates of trusted domains; or the keys pinned for this agent
            (`trust.signing.pinned`), those of a URL after `await keys.prepare(None, now=now)`.
        agent: for whom the card must speak. The SPIFFE ID of the connected peer, or of the agent that is looked for;
            or, where only that is known, the https URL that the card was fetched from. For keys pinned for a URL,
            every interface must have that URL's origin.
        mtls: False for an agent that can be called without a client certificate.
        sdk_form: accept also what verifies only in the form that the SDKs sign. Members outside of it are left out of
            the result and named in `uncovered`; where one of them is about security, the card is refused.

    Raises:
        CardMalformed: (0), (1), or an interface that is not https.
        SignatureMissing: the card is not signed.
        CardNotCovered: a signature is good, and does not cover all of the document.
        CardOfAnother, CardAsksForLess: (5) and (6).
        SignatureError, PeerError: of the first signature, where none passes.
        KeysUnavailable: the pinned keys of a URL have not been fetched.
        ConfigurationError: `agent` is neither a SPIFFE ID nor an https URL.
    """
    now = utc(now)
    wanted = agent if isinstance(agent, AgentID) else agent_url(agent)
    # (0)
    document = read(card)
    signatures = document.pop("signatures", None)
    if not signatures:
        raise SignatureMissing("card is not signed", expected="at least one signature")
    if not isinstance(signatures, list) or len(signatures) > MAX_SIGNATURES:
        raise CardMalformed("signatures of the card", expected=f"a list of at most {MAX_SIGNATURES}")
    # (1)
    content = _Content(document)
    failures: list[SignatureError | PeerError] = []
    for entry in signatures:
        try:
            # (2)
            parsed = _parse(entry, algorithms)
            # (3)
            signer, key = _key(parsed, keys, now)
            # (4)
            signed, uncovered = content.verified(parsed, key, sdk_form)
            # (5)
            check_speaker(wanted, signer, check_interfaces(signed))
            # (6)
            check_requirements(signed, mtls=mtls)
            return VerifiedCard(card=signed, kid=parsed.header["kid"], signer=signer, uncovered=uncovered)
        except (SignatureError, PeerError) as error:
            failures.append(error)
    raise failures[0]


def verifier_for_a2a(
    *,
    keys: PeerVerifier | PinnedKeys,
    agent: AgentID | str,
    algorithms: Collection[str] = DEFAULT_ALGORITHMS,
    mtls: bool = True,
    signer: MessageSigner | None = None,
    clock: Clock = wall_clock,
) -> Callable[[Any], None]:
    """What a2a-sdk takes as `signature_verifier=`: `verify_card` of the card as the SDK has read it.

    The SDK drops members that it does not know before it asks; all that is left of the card must be covered.

    Args:
        keys, agent, algorithms, mtls: as of `verify_card`.
        signer: what will sign our requests to the agent: the card must say that it takes its signatures.

    Raises (from the SDK's call):
        TrustError: as `verify_card` and `MessageSigner.check_card`; the card is not used then.
    """

    def verify(card: Any) -> None:
        from google.protobuf.json_format import MessageToDict  # comes with a2a-sdk, which alone calls this

        verified = verify_card(
            MessageToDict(card), keys=keys, agent=agent, now=clock(), algorithms=algorithms, mtls=mtls
        )
        if signer is not None:
            signer.check_card(verified.card)

    return verify


def lint_card(card: bytes | Mapping[str, Any], *, mtls: bool = True) -> list[Finding]:
    """What `sign_card` would change in a card, and what it, or `verify_card`, would refuse (there nothing is `mended`).

    Args:
        card: A2A 1.0, as JSON text or as a value.
        mtls: as `verify_card` has it.

    Raises:
        CardMalformed: not the JSON of an Agent Card.
    """
    content = read(card)
    content.pop("signatures", None)
    mended, findings = prepare(content)
    form, _ = covered(mended)
    for check in (check_interfaces, lambda form: check_requirements(form, mtls=mtls), read):
        try:
            check(form)
        except (CardMalformed, CardAsksForLess) as error:
            findings.append(Finding("card", f"would be refused: {error}", ""))
    return findings


class _Content:
    """A card without its signatures, in the two forms that signatures are over."""

    def __init__(self, document: dict[str, Any]) -> None:
        self.document = document
        self.form, self.left_out = covered(document)
        self._direct = canonicalize_value(document)
        self._form = canonicalize_value(self.form) if self.left_out else self._direct

    def verified(
        self, parsed: strict_jws.Parsed, key: PublicKey, sdk_form: bool
    ) -> tuple[dict[str, Any], tuple[str, ...]]:
        """Step (4): what is signed, and the paths of what is not."""
        try:
            parsed.verify_payload(key, self._direct)
        except SignatureWrong:
            if self._form == self._direct:
                raise
            parsed.verify_payload(key, self._form)
        else:
            return self.document, ()
        # Also a description of a scheme, a role, and the names that A2A 0.3 and protobuf have for these members.
        about_security = [path for path in self.left_out if "security" in path.lower()]
        if about_security or not sdk_form:
            raise CardNotCovered(
                "signature does not cover the whole card",
                got=", ".join(about_security or self.left_out),
                expected="a signature over the document as it is served",
                do="sign it with a2a-trust card sign",
            )
        return self.form, self.left_out


def _parse(entry: object, algorithms: Collection[str]) -> strict_jws.Parsed:
    """Step (2). The unprotected header may be there; it decides nothing, and repeats nothing of the protected one."""
    if not isinstance(entry, Mapping) or not entry.keys() <= {"protected", "signature", "header"}:
        raise HeaderMalformed("signature of the card", expected="an object with protected, signature and header")
    protected, signature, unprotected = entry.get("protected"), entry.get("signature"), entry.get("header")
    unprotected = {} if unprotected is None else unprotected
    if not isinstance(protected, str) or not isinstance(signature, str) or not isinstance(unprotected, Mapping):
        raise HeaderMalformed("signature of the card", expected="protected and signature as text")
    parsed = strict_jws.parse_detached(
        f"{protected}..{signature}", algorithms=algorithms, typ=TYP, understood=(), passed_over=("jku",), in_body=True
    )
    if not unprotected.keys().isdisjoint(parsed.header):  # RFC 7515 section 7.2.1
        raise HeaderMalformed("unprotected header of the card", expected="nothing that the protected one has")
    kid_of(parsed.header)
    return parsed


def _key(
    parsed: strict_jws.Parsed, keys: PeerVerifier | PinnedKeys, now: datetime
) -> tuple[PeerIdentity | None, PublicKey]:
    """Step (3). What the header says is only ever a question to what is configured here."""
    if isinstance(keys, PeerVerifier):
        signer = keys.verify(chain_of(parsed.header, None), now=now, usage="server")
        return signer, signer.public_key  # type: ignore[return-value]  # the signature's step refuses other kinds
    return None, find(keys, kid_of(parsed.header), parsed.alg, now=now)
