"""The examples of RFC 7515, 7520, 7797 and 8037: each verifies in jwcrypto, and what our profile says to each.

None has a `typ` of ours, so none passes as it stands. What else is in the way is seen with a `typ` put into its header;
where nothing is, the signature itself is verified, bare and detached (RFC 7515 appendix F).
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import pytest
from jwcrypto import jws as other
from jwcrypto.jwk import JWK

from trust.errors import (
    AlgorithmRefused,
    CriticalHeaderRefused,
    SignatureError,
    SignatureMalformed,
    SignatureWrong,
    TypeWrong,
)
from trust.signing import algorithms, jws

JOE = "eyJpc3MiOiJqb2UiLA0KICJleHAiOjEzMDA4MTkzODAsDQogImh0dHA6Ly9leGFtcGxlLmNvbS9pc19yb290Ijp0cnVlfQ"
FRODO = (
    "SXTigJlzIGEgZGFuZ2Vyb3VzIGJ1c2luZXNzLCBGcm9kbywgZ29pbmcgb3V0IHlvdXIgZG9vci4gWW91IHN0ZXAgb250byB0aGUgcm9hZCwgYW5k"
    "IGlmIHlvdSBkb24ndCBrZWVwIHlvdXIgZmVldCwgdGhlcmXigJlzIG5vIGtub3dpbmcgd2hlcmUgeW91IG1pZ2h0IGJlIHN3ZXB0IG9mZiB0by4"
)
JOES = {"kty": "oct", "k": "AyM1SysPpbyDfgZld3umj1qzKObwVMkoqQ-EstJQLr_T-1qS0gZH75aKtMN3Yj0iPS4hcgUuTwjAzZr1Z9CAow"}
RSA = {
    "kty": "RSA",
    "e": "AQAB",
    "n": "ofgWCuLjybRlzo0tZWJjNiuSfb4p4fAkd_wWJcyQoTbji9k0l8W26mPddxHmfHQp-Vaw-4qPCJrcS2mJPMEzP1Pt0Bm4d4QlL-yRT-SFd2lZS"
    "-pCgNMsD1W_YpRPEwOWvG6b32690r2jZ47soMZo9wGzjb_7OMg0LOL-bSf63kpaSHSXndS5z5rexMdbBYUsLA9e-KXBdQOS-UTo7WTBEMa2R2CapHg6"
    "65xsmtdVMTBQY4uDZlxvb3qCo5ZwKh9kG4LT6_I5IhlJH7aGhyxXFvUK-DWNmoudF8NAco9_h9iaGNj8q2ethFkMLs91kzk2PAcDTW9gb54h4FRWyuX"
    "poQ",
}
RSA_SIGNED = (
    "cC4hiUPoj9Eetdgtv3hF80EGrhuB__dzERat0XF9g2VtQgr9PJbu3XOiZj5RZmh7AAuHIm4Bh-0Qc_lF5YKt_O8W2Fp5jujGbds9uJdbF9CUAr7t1dnZ"
    "cAcQjbKBYNX4BAynRFdiuB--f_nZLgrnbyTyWzO75vRK5h6xBArLIARNPvkSjtQBMHlb1L07Qe7K0GarZRmB_eSN9383LcOLn6_dO--xi12jzDwusC-e"
    "OkHWEsqtFZESc6BfI7noOPqvhJ1phCnvWh6IeYI2w9QOYEUipUTI8np6LbgGY9Fs98rqVt5AXLIhWkWywlVmtVrBp0igcN_IoypGlUPQGe77Rw"
)
P256_SIGNED = "DtEhU3ljbEg8L38VWAfUAqOyKAM6-Xx-F4GawxaepmXFCgfTjDxw5djxLa8ISlSApmWQxfKTUJqPP3-Kg6NU1Q"
P256 = {
    "kty": "EC",
    "crv": "P-256",
    "x": "f83OJ3D2xF1Bg8vub9tLe1gHMzV76e8Tus9uPHvRVEU",
    "y": "x_FEzRu9m36HLN_tue659LNpXW6pCyStikYjKIWI5a0",
}
P521 = {
    "kty": "EC",
    "crv": "P-521",
    "x": "AekpBQ8ST8a8VcfVOTNl353vSrDCLLJXmPk06wTjxrrjcBpXp5EOnYG_NjFZ6OvLFV1jSfS9tsz4qUxcWceqwQGk",
    "y": "ADSmRA43Z1DSNx_RvcLI87cdL07l6jQyyBXMoxVg_l2Th-x3S1WDhjDly79ajL4Kkd0AZMaZmh9ubmf63e3kyMj2",
}
BILBO_RSA = {
    "kty": "RSA",
    "e": "AQAB",
    "n": "n4EPtAOCc9AlkeQHPzHStgAbgs7bTZLwUBZdR8_KuKPEHLd4rHVTeT-O-XV2jRojdNhxJWTDvNd7nqQ0VEiZQHz_AJmSCpMaJMRBSFKrKb2wq"
    "VwGU_NsYOYL-QtiWN2lbzcEe6XC0dApr5ydQLrHqkHHig3RBordaZ6Aj-oBHqFEHYpPe7Tpe-OfVfHd1E6cS6M1FZcD1NNLYD5lFHpPI9bTwJlsde3"
    "uhGqC0ZCuEHg8lhzwOHrtIQbS0FVbb9k3-tVTU4fg_3L_vniUFAKwuCLqKnS2BYwdq_mzSnbLY7h_qixoR7jig3__kRhuaxwUkRz5iaiQkqgc5gHdr"
    "NP5zw",
}
BILBO_EC = {
    "kty": "EC",
    "crv": "P-521",
    "x": "AHKZLLOsCOzz5cY97ewNUajB957y-C-U88c3v13nmGZx6sYl_oJXu9A5RkTKqjqvjyekWF-7ytDyRXYgCF5cj0Kt",
    "y": "AdymlHvOiLxXkEhayXQnNCvDX4h9htZaCJN34kfmC6pV5OhQHiraVySsUdaQkAgDPrwQrJmbnX9cwlGfP-HqHZR1",
}
SHARED = {"kty": "oct", "k": "hJtXIZ2uSN5kbQfbtTNWbpdmhkV8FJG-Onbc6mxCcYg"}
ED25519 = {"kty": "OKP", "crv": "Ed25519", "x": "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}
SHARED_KID = "eyJhbGciOiJIUzI1NiIsImtpZCI6IjAxOGMwYWU1LTRkOWItNDcxYi1iZmQ2LWVlZjMxNGJjNzAzNyJ9"


@dataclass(frozen=True, kw_only=True)
class Example:
    compact: str
    key: dict[str, str]
    payload: str = ""  # base64url, where it is not in the middle
    refused: type[SignatureError] | None = None  # besides for its typ
    only_tokens: bool = False  # its algorithm is for tokens of foreign issuers, and for no message


EXAMPLES = {
    "RFC 7515 A.1, HS256": Example(
        compact=f"eyJ0eXAiOiJKV1QiLA0KICJhbGciOiJIUzI1NiJ9.{JOE}.dBjftJeZ4CVP-mB92K27uhbUJU1p1r_wW1gFWFOEjXk",
        key=JOES,
        refused=AlgorithmRefused,
    ),
    "RFC 7515 A.2, RS256": Example(compact=f"eyJhbGciOiJSUzI1NiJ9.{JOE}.{RSA_SIGNED}", key=RSA, only_tokens=True),
    "RFC 7515 A.3, ES256": Example(compact=f"eyJhbGciOiJFUzI1NiJ9.{JOE}.{P256_SIGNED}", key=P256),
    "RFC 7515 F, detached": Example(compact=f"eyJhbGciOiJFUzI1NiJ9..{P256_SIGNED}", payload=JOE, key=P256),
    "RFC 7515 A.4, ES512": Example(
        compact="eyJhbGciOiJFUzUxMiJ9.UGF5bG9hZA.AdwMgeerwtHoh-l192l60hp9wAHZFVJbLfD_UxMi70cwnZOYaRI1bKPWROc-mZZqwqT2"
        "SI-KGDKB34XO0aw_7XdtAG8GaSwFKdCAPZgoXD2YBJZCPEX3xKpRwcdOO8KpEHwJjyqOgzDO7iKvU8vcnwNrmxYbSW9ERBXukOXolLzeO_Jn",
        key=P521,
        refused=AlgorithmRefused,
    ),
    "RFC 7520 4.1, RS256": Example(
        compact=f"eyJhbGciOiJSUzI1NiIsImtpZCI6ImJpbGJvLmJhZ2dpbnNAaG9iYml0b24uZXhhbXBsZSJ9.{FRODO}.MRjdkly7_-oTPTS3AXP"
        "41iQIGKa80A0ZmTuV5MEaHoxnW2e5CZ5NlKtainoFmKZopdHM1O2U4mwzJdQx996ivp83xuglII7PNDi84wnB-BDkoBwA78185hX-Es4JIwm"
        "DLJK3lfWRa-XtL0RnltuYv746iYTh_qHRD68BNt1uSNCrUCTJDt5aAE6x8wW1Kt9eRo4QPocSadnHXFxnt8Is9UzpERV0ePPQdLuW3IS_de3"
        "xyIrDaLGdjluPxUAhb6L2aXic1U12podGU0KLUQSE_oI-ZnmKJ3F4uOZDnd6QZWJushZ41Axf_fcIe8u9ipH84ogoree7vjbU5y18kDquDg",
        key=BILBO_RSA,
        only_tokens=True,
    ),
    "RFC 7520 4.2, PS384": Example(
        compact=f"eyJhbGciOiJQUzM4NCIsImtpZCI6ImJpbGJvLmJhZ2dpbnNAaG9iYml0b24uZXhhbXBsZSJ9.{FRODO}.cu22eBqkYDKgIlTpzDX"
        "GvaFfz6WGoz7fUDcfT0kkOy42miAh2qyBzk1xEsnk2IpN6-tPid6VrklHkqsGqDqHCdP6O8TTB5dDDItllVo6_1OLPpcbUrhiUSMxbbXUvdv"
        "WXzg-UD8biiReQFlfz28zGWVsdiNAUf8ZnyPEgVFn442ZdNqiVJRmBqrYRXe8P_ijQ7p8Vdz0TTrxUeT3lm8d9shnr2lfJT8ImUjvAA2Xez2"
        "Mlp8cBE5awDzT0qI0n6uiP1aCN_2_jLAeQTlqRHtfa64QQSUmFAAjVKPbByi7xho0uTOcbH510a6GYmJUAfmWjwZ6oD4ifKo8DYM-X72Eaw",
        key=BILBO_RSA,
        refused=AlgorithmRefused,
    ),
    "RFC 7520 4.3, ES512": Example(
        compact=f"eyJhbGciOiJFUzUxMiIsImtpZCI6ImJpbGJvLmJhZ2dpbnNAaG9iYml0b24uZXhhbXBsZSJ9.{FRODO}.AE_R_YZCChjn4791jSQ"
        "CrdPZCNYqHXCTZH0-JZGYNlaAjP2kqaluUIIUnC9qvbu9Plon7KRTzoNEuT4Va2cmL1eJAQy3mtPBu_u_sDDyYjnAMDxXPn7XrT0lw-kvAD8"
        "90jl8e2puQens_IEKBpHABlsbEPX6sFY8OcGDqoRuBomu9xQ2",
        key=BILBO_EC,
        refused=AlgorithmRefused,
    ),
    "RFC 7520 4.4, HS256": Example(
        compact=f"{SHARED_KID}.{FRODO}.s0h6KThzkfBBBkLspW1h84VsJZFTsPPqMDA7g1Md7p0",
        key=SHARED,
        refused=AlgorithmRefused,
    ),
    "RFC 7520 4.5, detached": Example(
        compact=f"{SHARED_KID}..s0h6KThzkfBBBkLspW1h84VsJZFTsPPqMDA7g1Md7p0",
        payload=FRODO,
        key=SHARED,
        refused=AlgorithmRefused,
    ),
    "RFC 7797 4.1, b64 true": Example(
        compact="eyJhbGciOiJIUzI1NiJ9.JC4wMg.5mvfOroL-g7HyqJoozehmsaqmvTYGEq5jTI1gVvoEoQ",
        key=JOES,
        refused=AlgorithmRefused,
    ),
    "RFC 7797 4.2, b64 false": Example(
        compact="eyJhbGciOiJIUzI1NiIsImI2NCI6ZmFsc2UsImNyaXQiOlsiYjY0Il19..A5dxf2s96_n5FLueVuW1Z_vh161FwXZC4YLPff6dmDY",
        payload="JC4wMg",
        key=JOES,
        refused=AlgorithmRefused,
    ),
    "RFC 8037 A.4, EdDSA": Example(
        compact="eyJhbGciOiJFZERTQSJ9.RXhhbXBsZSBvZiBFZDI1NTE5IHNpZ25pbmc"
        ".hgyY0il_MGCjP0JzlnLWG1PPOt7-09PGcvMg3AIbQR6dWbhijcNR4ki4iylGjg5BhVsPt9g7sVvpAr_MuM0KAg",
        key=ED25519,
    ),
}
ALL = tuple(algorithms.READABLE)


@pytest.mark.parametrize("name", EXAMPLES)
def test_jwcrypto_verifies_the_example(name: str) -> None:
    """So that the text here is that of the RFC."""
    example = EXAMPLES[name]
    protected, middle, signature = example.compact.split(".")
    if json.loads(jws.decode(protected)).get("b64") is False:
        core = other.JWSCore("HS256", JWK(**example.key), jws.decode(protected).decode(), jws.decode(example.payload))
        assert core.verify(jws.decode(signature))
        return
    token = other.JWS()
    token.allowed_algs = ["HS256", "RS256", "PS384", "ES256", "ES512", "EdDSA"]
    token.deserialize(f"{protected}.{middle or example.payload}.{signature}", JWK(**example.key))
    assert token.is_valid


@pytest.mark.parametrize("name", EXAMPLES)
def test_what_we_say_to_the_example(name: str) -> None:
    example = EXAMPLES[name]
    protected, middle, signature = example.compact.split(".")
    parse = jws.parse_compact if middle else jws.parse_detached
    header = json.loads(jws.decode(protected))
    with pytest.raises(TypeWrong):
        parse(example.compact, algorithms=ALL, typ="a2a-req+jws")

    with_typ = jws.encode(json.dumps({**header, "typ": "t"}).encode())
    if example.refused is not None:
        with pytest.raises(example.refused) as caught:
            parse(f"{with_typ}.{middle}.{signature}", algorithms=(*ALL, header["alg"]), typ="t")
        assert type(caught.value) is example.refused
        return
    algorithms = ALL
    if example.only_tokens:  # and there only for who asks for it by name
        for refusing, text in ((jws.parse_compact, middle), (jws.parse_detached, "")):
            with pytest.raises(AlgorithmRefused):
                refusing(f"{with_typ}.{text}.{signature}", algorithms=ALL, typ="t")
        algorithms = (*ALL, header["alg"])
        with pytest.raises(AlgorithmRefused):
            jws.parse_detached(f"{with_typ}..{signature}", algorithms=algorithms, typ="t")
    parse(f"{with_typ}.{middle}.{signature}", algorithms=algorithms, typ="t")  # only its typ was in the way
    key = JWK(**example.key).get_op_key("verify")
    middle = middle or example.payload
    payload = jws.decode(middle)
    parsed = jws.Parsed(header, header["alg"], payload, jws.decode(signature), protected.encode(), middle.encode())
    assert parsed.verify(key) == parsed.verify_payload(key, payload) == payload
    for wrong in (payload + b" ", payload[:-1], b""):
        with pytest.raises(SignatureWrong):
            parsed.verify_payload(key, wrong)


def test_b64_false_is_refused_with_an_algorithm_of_ours_too() -> None:
    header = json.loads(jws.decode(EXAMPLES["RFC 7797 4.2, b64 false"].compact.split(".")[0]))
    protected = jws.encode(json.dumps({**header, "alg": "ES256", "typ": "t"}).encode())
    with pytest.raises(CriticalHeaderRefused):
        jws.parse_detached(f"{protected}..AA", algorithms=ALL, typ="t", understood=("b64",))


# RFC 7515 A.6 and A.7 and RFC 7520 4.6 and 4.7 are JSON, in which what is not signed has a say.
DOCUMENTS: dict[str, tuple[dict[str, Any], dict[str, str]]] = {
    "RFC 7515 A.6, two signatures": (
        {
            "payload": JOE,
            "signatures": [
                {"protected": "eyJhbGciOiJSUzI1NiJ9", "header": {"kid": "2010-12-29"}, "signature": RSA_SIGNED},
                {"protected": "eyJhbGciOiJFUzI1NiJ9", "header": {"kid": "e9bc097a"}, "signature": P256_SIGNED},
            ],
        },
        P256,
    ),
    "RFC 7515 A.7, flattened": (
        {
            "payload": JOE,
            "protected": "eyJhbGciOiJFUzI1NiJ9",
            "header": {"kid": "e9bc097a"},
            "signature": P256_SIGNED,
        },
        P256,
    ),
    "RFC 7520 4.6, kid not protected": (
        {
            "payload": FRODO,
            "protected": "eyJhbGciOiJIUzI1NiJ9",
            "header": {"kid": "018c0ae5-4d9b-471b-bfd6-eef314bc7037"},
            "signature": "bWUSVaxorn7bEF1djytBd0kHv70Ly5pvbomzMWSOr20",
        },
        SHARED,
    ),
    "RFC 7520 4.7, nothing protected": (
        {
            "payload": FRODO,
            "header": {"alg": "HS256", "kid": "018c0ae5-4d9b-471b-bfd6-eef314bc7037"},
            "signature": "xuLifqLGiblpv9zBpuZczWhNj1gARaLV3UxvxhJxZuk",
        },
        SHARED,
    ),
}


@pytest.mark.parametrize("name", DOCUMENTS)
def test_the_json_serialisations_are_no_jws_here(name: str) -> None:
    document, key = DOCUMENTS[name]
    token = other.JWS()
    token.allowed_algs = ["HS256", "ES256"]
    token.deserialize(json.dumps(document), JWK(**key))
    assert token.is_valid  # to jwcrypto, and of two signatures one is enough
    for parse in (jws.parse_compact, jws.parse_detached):
        with pytest.raises(SignatureMalformed):
            parse(json.dumps(document), algorithms=ALL, typ="t")


def test_the_unsecured_jws_of_rfc_7515_a_5() -> None:
    with pytest.raises(TypeWrong):
        jws.parse_compact(f"eyJhbGciOiJub25lIn0.{JOE}.", algorithms=(*ALL, "none"), typ="t")
    none = jws.encode(b'{"alg":"none","typ":"t"}')
    with pytest.raises(AlgorithmRefused):
        jws.parse_compact(f"{none}.{JOE}.", algorithms=(*ALL, "none"), typ="t")


def test_an_unknown_critical_header_of_rfc_7515_appendix_e() -> None:
    """An extension that must be understood, and is not."""
    header = {"alg": "ES256", "typ": "t", "crit": ["http://example.invalid/UNDEFINED"]}
    header["http://example.invalid/UNDEFINED"] = True  # type: ignore[assignment]
    with pytest.raises(CriticalHeaderRefused):
        jws.parse_compact(f"{jws.encode(json.dumps(header).encode())}.RkFJTA.", algorithms=ALL, typ="t")
