"""Signing and verifying one JWS beside the raw primitive and general libraries of JOSE, at three sizes.

Ours checks more than they do. The header of the others is without `crit`, which not all of them know.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from jwcrypto import jwk
from jwcrypto import jws as jwcrypto_jws

from tests.benchmarks.harness import GROUPS, Row, medians
from tests.interop.oracle import oracle, with_modules
from trust.signing import jws

SIZES = {"1 KiB": 1 << 10, "64 KiB": 64 << 10, "1 MiB": 1 << 20}
HEADER = {"alg": "ES256", "typ": "a2a-req+jws", "a2a": {"v": 1, "jti": "x" * 22}}
CRITICAL = {**HEADER, "crit": ["a2a"]}
RAW = "raw primitive"
NODE_SECONDS = 0.05  # of one of its rounds

KEY = ec.generate_private_key(ec.SECP256R1())
PUBLIC = KEY.public_key()
Calls = tuple[Callable[[], object], Callable[[], object]]  # sign, verify


def rows() -> list[Row]:
    made = []
    for label, size in SIZES.items():
        payload = b"x" * size
        peers = {RAW: _raw(payload), "jwcrypto": _jwcrypto(payload)}
        peers |= {peer: make(payload) for peer, (name, make) in OPTIONAL.items() if importlib.util.find_spec(name)}
        node = _node(size)
        for number, what in enumerate(("sign", "verify")):
            ours, *theirs = medians(_ours(payload)[number], *(calls[number] for calls in peers.values()))
            seconds = {**dict(zip(peers, theirs, strict=True)), **({"Node jose": node[what]} if node else {})}
            for name, figure in seconds.items():
                made.append(
                    Row(
                        name=f"{what} ES256, {label}",
                        ours=ours,
                        peer_name=name,
                        peer=figure,
                        goal=_goal(what, label, name),
                    )
                )
    return made


def _goal(what: str, label: str, peer: str) -> str:
    if peer != RAW:
        return "< 1x"
    return {"sign": "<= 1.4x", "verify": "<= 1.2x"}[what] if label == "1 KiB" else "-"


def _ours(payload: bytes) -> Calls:
    token = jws.sign_detached(payload, key=KEY, header=CRITICAL)
    return (
        lambda: jws.sign_detached(payload, key=KEY, header=CRITICAL),
        lambda: jws.verify_detached(token, payload, key=PUBLIC, algorithms=("ES256",), typ="a2a-req+jws"),
    )


def _raw(payload: bytes) -> Calls:
    """Over the very bytes that a JWS signs."""
    data = f"{jws.encode(json.dumps(HEADER).encode())}.{jws.encode(payload)}".encode()
    signing, verifying = ec.ECDSA(hashes.SHA256(), deterministic_signing=True), ec.ECDSA(hashes.SHA256())
    signature = KEY.sign(data, signing)
    return lambda: KEY.sign(data, signing), lambda: PUBLIC.verify(signature, data, verifying)


def _jwcrypto(payload: bytes) -> Calls:
    registry = {"a2a": jwcrypto_jws.JWSEHeaderParameter("a2a", False, True, None)}  # type: ignore[attr-defined]  # not in its stubs
    private, public, header = jwk.JWK.from_pyca(KEY), jwk.JWK.from_pyca(PUBLIC), json.dumps(HEADER)

    def sign() -> str:
        made = jwcrypto_jws.JWS(payload, header_registry=registry)
        made.add_signature(private, protected=header)
        return str(made.serialize(compact=True))

    token = sign()
    return sign, lambda: jwcrypto_jws.JWS(header_registry=registry).deserialize(token, public)


def _joserfc(payload: bytes) -> Calls:
    library, keys = importlib.import_module("joserfc.jws"), importlib.import_module("joserfc.jwk")
    private, public = keys.ECKey.import_key(_pem()), keys.ECKey.import_key(_public_pem())
    registry = library.JWSRegistry(algorithms=["ES256"], strict_check_header=False)
    registry.max_payload_length = 2 << 20  # its own limit is 128,000

    def sign() -> Any:
        return library.serialize_compact(HEADER, payload, private, registry=registry)

    token = sign()
    return sign, lambda: library.deserialize_compact(token, public, registry=registry)


def _pyjwt(payload: bytes) -> Calls:
    library = importlib.import_module("jwt").PyJWS()
    headers = {name: value for name, value in HEADER.items() if name != "alg"}

    def sign() -> Any:
        return library.encode(payload, KEY, algorithm="ES256", headers=headers)

    token = sign()
    return sign, lambda: library.decode(token, PUBLIC, algorithms=["ES256"])


# Of the extra `dev`: the package to import, and its calls.
OPTIONAL: dict[str, tuple[str, Callable[[bytes], Calls]]] = {"joserfc": ("joserfc", _joserfc), "PyJWT": ("jwt", _pyjwt)}


def _pem() -> bytes:
    return KEY.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def _public_pem() -> bytes:
    return PUBLIC.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


def _node(size: int) -> dict[str, float]:
    """Seconds of each of its verbs, by its own clock of CPU time; empty where it is not installed."""
    if shutil.which("npm") is None:
        return {}
    with tempfile.TemporaryDirectory() as folder, oracle(with_modules(Path(folder)), "speed.mjs") as node:

        def rounds(what: str) -> Iterator[float]:
            seconds = 0.001
            for _ in range(GROUPS + 1):
                times = max(1, round(NODE_SECONDS / seconds))
                seconds = node.ask(what=what, bytes=size, times=times)["seconds"]
                yield seconds

        return {what: min(rounds(what)) for what in ("sign", "verify")}
