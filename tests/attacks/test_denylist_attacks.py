"""The signed list of revoked tokens, attacked: one valid list, one mutation a row, the exact refusal in the row.

Whoever is in the way, or holds Redis, can keep agents from having a list, and then they refuse all tokens. None of them
can make a token that was revoked be taken.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from jwcrypto.jwk import JWK

from tests.authority import BILLING, ISSUER, PLANNER, Authority, ask
from tests.forge import NOW, Forge
from tests.redis_server import RedisServer
from trust.errors import (
    AlgorithmRefused,
    CriticalHeaderRefused,
    DenylistIssuerWrong,
    DenylistMalformed,
    DenylistOutdated,
    DenylistUnavailable,
    HeaderMalformed,
    SignatureMalformed,
    SignatureTooLarge,
    SignatureWrong,
    TokenKeyUnknown,
    TokenTypeWrong,
    TrustError,
    TypeWrong,
)
from trust.oauth.claims import sign_access_token
from trust.oauth.denylist.copies import FAILURE_REST, RedisDenylist, RemoteDenylist
from trust.oauth.denylist.document import (
    LIST_SECONDS,
    MAX_LIST_BYTES,
    MAX_LIST_SECONDS,
    MEDIA_TYPE,
    TYPE,
    key_id,
    verified_list,
)
from trust.oauth.denylist.redis_list import SharedList
from trust.oauth.keys import SigningKey, StaticKeys, public_jwks
from trust.oauth.server.introspection import sign_introspection
from trust.oauth.tokens import TokenValidator
from trust.signing import jws
from trust.signing.jws import MAX_COMPACT_BYTES

SECONDS = int(NOW.timestamp())
KEY = SigningKey.generate()
KEYS = StaticKeys(public_jwks([KEY]))
GOOD: dict[str, Any] = {
    "iss": ISSUER,
    "iat": SECONDS,
    "exp": SECONDS + LIST_SECONDS,
    "seq": 7,
    "revoked": {"stolen": SECONDS + 600},
}
ACCESS_TOKEN = {
    "sub": PLANNER,
    "client_id": PLANNER,
    "aud": BILLING,
    "jti": "x",
    "scope": "agent:execute",
    "cnf": {"x5t#S256": "A" * 43},
}


def signed(text: str | bytes, key: SigningKey = KEY, typ: str = TYPE) -> str:
    payload = text.encode() if isinstance(text, str) else text
    header = {"alg": key.alg, "typ": typ, "kid": key.kid}
    return jws.sign_compact(payload, key=key.private_key, header=header, max_bytes=MAX_LIST_BYTES)


def listed(**changes: Any) -> str:
    """A list with other members, signed by the issuer; None leaves one out."""
    members = {**GOOD, **changes}
    return signed(json.dumps({name: value for name, value in members.items() if value is not None}))


def with_header(**changes: Any) -> str:
    """The good list under a header of one's own making, with a signature that the key really made over it."""
    header = {"alg": KEY.alg, "typ": TYPE, "kid": KEY.kid, **changes}
    header = {name: value for name, value in header.items() if value is not None}
    parts = [jws.encode(json.dumps(header).encode()), jws.encode(json.dumps(GOOD).encode())]
    assert isinstance(KEY.private_key, ec.EllipticCurvePrivateKey)
    r, s = decode_dss_signature(KEY.private_key.sign(".".join(parts).encode(), ec.ECDSA(hashes.SHA256())))
    return ".".join([*parts, jws.encode(r.to_bytes(32) + s.to_bytes(32))])


def tampered() -> str:
    protected, payload, signature = listed().split(".")
    emptied = jws.encode(jws.decode(payload).replace(b"stolen", b"nobody"))
    return f"{protected}.{emptied}.{signature}"


def resigned(signature: Callable[[str], str]) -> str:
    protected, payload, last = listed().split(".")
    return f"{protected}.{payload}.{signature(last)}"


def of_messages() -> str:
    """Signed by the key of the authorization server's certificate, as its messages are."""
    return signed(json.dumps(GOOD), SigningKey.of(Forge().leaf("spiffe://fleet.example/authority").private_key))


LISTS: dict[str, tuple[Callable[[], str], type[TrustError]]] = {
    # by whom
    "signed by a stranger": (lambda: signed(json.dumps(GOOD), SigningKey.generate()), TokenKeyUnknown),
    "signed by a stranger under our kid": (
        lambda: signed(
            json.dumps(GOOD), SigningKey(kid=KEY.kid, alg="ES256", private_key=SigningKey.generate().private_key)
        ),
        SignatureWrong,
    ),
    "signed by the key of messages": (of_messages, TokenKeyUnknown),
    "of another issuer": (lambda: listed(iss="https://other.example"), DenylistIssuerWrong),
    "of the issuer with a slash": (lambda: listed(iss=ISSUER + "/"), DenylistIssuerWrong),
    # the signature
    "unsigned": (lambda: resigned(lambda _: ""), SignatureMalformed),
    "alg none": (lambda: with_header(alg="none"), AlgorithmRefused),
    "alg HS256": (lambda: with_header(alg="HS256"), AlgorithmRefused),
    "alg of another key": (lambda: with_header(alg="ES384"), TokenKeyUnknown),
    "no alg": (lambda: with_header(alg=None), AlgorithmRefused),
    "entries changed": (tampered, SignatureWrong),
    "signature cut": (lambda: resigned(lambda last: last[:-4]), SignatureMalformed),
    "signature padded": (lambda: resigned(lambda last: last + "=="), SignatureMalformed),
    "signature huge": (lambda: resigned(lambda last: last * 200), SignatureMalformed),
    # the header
    "typ of an access token": (lambda: with_header(typ="at+jwt"), TypeWrong),
    "typ in other case": (lambda: with_header(typ=TYPE.upper()), TypeWrong),
    "no typ": (lambda: with_header(typ=None), TypeWrong),
    "no kid": (lambda: with_header(kid=None), DenylistMalformed),
    "kid a number": (lambda: with_header(kid=7), DenylistMalformed),
    "brings its key": (lambda: with_header(jwk=KEY.public_jwk), HeaderMalformed),
    "names the place of a key": (lambda: with_header(jku="https://evil.example/jwks"), HeaderMalformed),
    "header huge": (lambda: with_header(x="x" * MAX_COMPACT_BYTES), SignatureTooLarge),
    "crit": (lambda: with_header(crit=["exp"], exp=1), CriticalHeaderRefused),
    "b64": (lambda: with_header(b64=False, crit=["b64"]), CriticalHeaderRefused),
    # other documents of the same server
    "an access token": (
        lambda: sign_access_token({**ACCESS_TOKEN, "iss": ISSUER, "iat": SECONDS, "exp": SECONDS + 60}, KEY), TypeWrong
    ),
    "an introspection answer": (
        lambda: sign_introspection(GOOD, issuer=ISSUER, audience=PLANNER, now=NOW, key=KEY), TypeWrong
    ),
    "an assertion": (lambda: signed(json.dumps(GOOD), typ="JWT"), TypeWrong),
    # the text
    "empty": (lambda: "", SignatureMalformed),
    "two parts": (lambda: listed().rpartition(".")[0], SignatureMalformed),
    "four parts": (lambda: listed() + ".x", SignatureMalformed),
    "detached": (lambda: ".".join((listed().split(".")[0], "", listed().split(".")[2])), SignatureWrong),
    "too large": (lambda: "x" * (MAX_LIST_BYTES + 1), SignatureTooLarge),
    "not ASCII": (lambda: listed() + "\xe9", SignatureMalformed),
    "white space": (lambda: listed() + "\n", SignatureMalformed),
    "a page": (lambda: "<html>not found</html>", SignatureMalformed),
    # the members
    "no JSON": (lambda: signed("revoked"), DenylistMalformed),
    "a list": (lambda: signed("[]"), DenylistMalformed),
    "a member twice": (lambda: signed(json.dumps(GOOD)[:-1] + ', "revoked": {}}'), DenylistMalformed),
    "an entry twice": (
        lambda: signed(json.dumps(GOOD).replace('{"stolen"', '{"stolen": 1, "stolen"')), DenylistMalformed
    ),
    "NaN": (lambda: signed(json.dumps({**GOOD, "exp": float("nan")})), DenylistMalformed),
    **{f"no {name}": (partial(listed, **{name: None}), DenylistMalformed) for name in GOOD},
    "one member more": (lambda: listed(not_revoked=["stolen"]), DenylistMalformed),
    "iss a list": (lambda: listed(iss=[ISSUER]), DenylistMalformed),
    "iat a text": (lambda: listed(iat=str(SECONDS)), DenylistMalformed),
    "exp true": (lambda: listed(exp=True), DenylistMalformed),
    "exp a fraction": (lambda: listed(exp=SECONDS + 0.5), DenylistMalformed),
    "seq negative": (lambda: listed(seq=-1), DenylistMalformed),
    "seq true": (lambda: listed(seq=True), DenylistMalformed),
    "entries a list": (lambda: listed(revoked=["stolen"]), DenylistMalformed),
    "an entry's end a text": (lambda: listed(revoked={"stolen": "never"}), DenylistMalformed),
    "an entry's end true": (lambda: listed(revoked={"stolen": True}), DenylistMalformed),
    "an entry's end null": (lambda: listed(revoked={"stolen": None}), DenylistMalformed),
    "an entry nested": (lambda: listed(revoked={"stolen": {"exp": {}}}), DenylistMalformed),
    "an entry without a name": (lambda: listed(revoked={"": SECONDS}), DenylistMalformed),
    # its time
    "expired": (lambda: listed(iat=SECONDS - LIST_SECONDS, exp=SECONDS), DenylistOutdated),
    "of the future": (lambda: listed(iat=SECONDS + 11, exp=SECONDS + 60), DenylistOutdated),
    "for ever": (lambda: listed(exp=2**50), DenylistMalformed),
    "for too long": (lambda: listed(exp=SECONDS + MAX_LIST_SECONDS + 1), DenylistMalformed),
    "ends before it begins": (lambda: listed(exp=SECONDS - 1), DenylistMalformed),
}  # fmt: skip


@pytest.mark.parametrize("name", LISTS)
def test_a_list_that_is_not_the_issuers_is_refused(name: str) -> None:
    made, expected = LISTS[name]
    assert verified_list(listed(), issuer=ISSUER, keys=KEYS, now=NOW).tokens == GOOD["revoked"]
    with pytest.raises(TrustError) as caught:
        text = made()
        key_id(text)
        verified_list(text, issuer=ISSUER, keys=KEYS, now=NOW)
    assert type(caught.value) is expected


def test_what_the_rows_sign_by_hand_is_good_where_nothing_is_changed() -> None:
    assert verified_list(with_header(), issuer=ISSUER, keys=KEYS, now=NOW).sequence == 7
    assert verified_list(resigned(lambda last: last), issuer=ISSUER, keys=KEYS, now=NOW).sequence == 7


def test_a_list_is_no_access_token(tmp_path: Path) -> None:
    validator = TokenValidator(issuer=ISSUER, audience=BILLING, keys=KEYS)
    peer = Authority(tmp_path).peer(PLANNER)
    with pytest.raises(TrustError) as caught:
        validator.validate(listed(), peer=peer, now=NOW)
    assert type(caught.value) is TokenTypeWrong


class Hostile:
    """Whatever answers at the issuer's address."""

    def __init__(self) -> None:
        self.answer: Callable[[], httpx.Response] = lambda: of(listed())
        self.now = NOW
        self.asked = 0
        self.http = httpx.AsyncClient(transport=httpx.MockTransport(self._answer))
        self.denied = RemoteDenylist(ISSUER, self.http, keys=KEYS, clock=lambda: self.now)

    def _answer(self, request: httpx.Request) -> httpx.Response:
        assert (request.method, str(request.url)) == ("GET", f"{ISSUER}/revoked")
        assert "authorization" not in request.headers
        self.asked += 1
        return self.answer()

    async def later(self, seconds: float = FAILURE_REST) -> None:
        """A use of a token, that much later, and the fetch that it causes."""
        self.now += timedelta(seconds=seconds)
        await self.denied.prepare()
        if (task := self.denied._flight.under_way) is not None:
            await asyncio.wait([task], timeout=20)


def of(text: str | bytes, *, status: int = 200, **headers: str) -> httpx.Response:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return httpx.Response(status, content=text, headers={"content-type": MEDIA_TYPE, **named})


ANSWERS: dict[str, Callable[[], httpx.Response]] = {
    "forged": lambda: of(signed(json.dumps({**GOOD, "seq": 9, "revoked": {}}), SigningKey.generate())),
    "of another issuer": lambda: of(listed(iss="https://other.example", seq=9, revoked={})),
    "older sequence": lambda: of(listed(seq=6, revoked={})),
    "expired": lambda: of(listed(iat=SECONDS - 120, exp=SECONDS - 60, seq=9, revoked={})),
    "an entry malformed": lambda: of(listed(seq=9, revoked={"x": "y"})),
    "too large": lambda: of(b"x" * (MAX_LIST_BYTES + 1)),
    "empty": lambda: of(b""),
    "status 404": lambda: of(listed(seq=9, revoked={}), status=404),
    "status 500": lambda: of(listed(seq=9, revoked={}), status=500),
    "redirect": lambda: of(b"", status=302, location="https://evil.example/revoked"),
    "another type": lambda: of(listed(seq=9, revoked={}), content_type="text/html"),
    "compressed": lambda: of(b"\x1f\x8b", content_encoding="gzip"),
}


@pytest.mark.parametrize("name", ANSWERS)
def test_no_answer_takes_an_entry_from_the_copy_and_without_a_copy_all_is_refused(name: str) -> None:
    async def work() -> None:
        here = Hostile()
        await here.later(0)
        assert here.denied.contains(ISSUER, "stolen")
        here.answer = ANSWERS[name]
        await here.later(10)
        assert here.asked == 2
        assert here.denied.contains(ISSUER, "stolen")
        await here.later(LIST_SECONDS)
        with pytest.raises(DenylistUnavailable):
            here.denied.contains(ISSUER, "x")
        fresh = Hostile()
        fresh.answer = ANSWERS[name]
        await fresh.later(0)
        if name != "older sequence":  # of which one who has just started knows nothing
            with pytest.raises(DenylistUnavailable):
                fresh.denied.contains(ISSUER, "x")
        await here.http.aclose()
        await fresh.http.aclose()

    asyncio.run(work())


def test_what_a_hostile_server_says_is_one_line_of_the_log(caplog: pytest.LogCaptureFixture) -> None:
    async def work() -> None:
        here = Hostile()
        here.answer = lambda: of(listed(), content_type="\x1b[2Jtext/" + "x" * 9000)
        await here.later(0)
        await here.http.aclose()

    asyncio.run(work())
    [told] = [record.getMessage() for record in caplog.records if "list of revoked tokens" in record.message]
    assert told.isprintable()
    assert len(told) < 500


def test_an_old_list_that_is_sent_again_and_again_does_not_last_longer() -> None:
    async def work() -> None:
        here = Hostile()
        old = listed()
        here.answer = lambda: of(old)
        for _ in range(5):
            await here.later(10)
            assert here.denied.contains(ISSUER, "stolen")
        await here.later(10)
        with pytest.raises(DenylistUnavailable):
            here.denied.contains(ISSUER, "stolen")
        await here.http.aclose()

    asyncio.run(work())


def test_a_key_that_the_issuer_does_not_publish_is_not_taken_though_it_is_of_the_same_kind() -> None:
    strong = rsa.generate_private_key(65537, 2048)
    jwk = {**JWK.from_pyca(strong.public_key()).export_public(as_dict=True), "kid": "rsa", "use": "sig"}
    keys = StaticKeys({"keys": [jwk, *public_jwks([KEY])["keys"]]})
    with pytest.raises(AlgorithmRefused):
        verified_list(with_header(alg="PS256", kid="rsa"), issuer=ISSUER, keys=keys, now=NOW)


def test_a_token_that_was_revoked_stays_so_whatever_the_holder_does(tmp_path: Path) -> None:
    """Its text may be spelled in another way, and the signature of ECDSA in two: the identifier inside decides."""

    async def work() -> None:
        server = Authority(tmp_path)
        token = await server.token(PLANNER, ask())
        claims = json.loads(jws.decode(token.split(".")[1]))
        key = StaticKeys(public_jwks([server.key]))
        here = Hostile()
        here.denied = RemoteDenylist(ISSUER, here.http, keys=key, clock=lambda: NOW)
        here.answer = lambda: of(
            signed(json.dumps({**GOOD, "revoked": {claims["jti"]: claims["exp"]}}), server.key)
        )  # fmt: skip
        validator = TokenValidator(issuer=ISSUER, audience=BILLING, keys=key, denylist=here.denied)
        protected, payload, signature = token.split(".")
        n = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551
        raw = jws.decode(signature)
        other = raw[:32] + (n - int.from_bytes(raw[32:])).to_bytes(32)
        for spelled in (token, f"{protected}.{payload}.{jws.encode(other)}"):
            await validator.prepare(spelled, now=NOW)
            with pytest.raises(TrustError) as caught:
                validator.validate(spelled, peer=server.peer(PLANNER), now=NOW)
            assert caught.value.check == "token.revoked"
        await here.http.aclose()

    asyncio.run(work())


def test_who_holds_redis_makes_no_token_valid(tmp_path: Path) -> None:
    """Not with a list of another's making, nor with the number by which the server would not write over it."""
    now = [NOW]

    async def work() -> None:
        denied, fresh = (RedisDenylist(redis.url, issuer=ISSUER, keys=KEYS, clock=lambda: now[0]) for _ in range(2))
        shared.write(listed(), sequence=7)
        await denied.prepare()
        assert denied.contains(ISSUER, "stolen")
        forged = signed(json.dumps({**GOOD, "seq": 99, "revoked": {}}), SigningKey.generate())
        redis.command("SET", f"a2a-trust:revoked:{ISSUER}", f"99 {forged}")
        now[0] += timedelta(seconds=RedisDenylist.REFRESH_SECONDS)
        shared.write(listed(), sequence=7)
        for follower in (denied, fresh):
            await follower.prepare()
        assert denied.contains(ISSUER, "stolen")
        now[0] += timedelta(seconds=LIST_SECONDS)
        for follower in (denied, fresh):
            await follower.prepare()
            with pytest.raises(DenylistUnavailable):
                follower.contains(ISSUER, "anything")
            follower.close()

    with RedisServer(tmp_path) as redis:
        shared = SharedList(redis.url, ISSUER)
        asyncio.run(work())
        shared.close()
