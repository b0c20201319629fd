"""Post-quantum signatures with an implementation of ML-DSA that shares no code with ours, in both directions."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import mldsa

from tests.interop.programs import needs
from trust.errors import SignatureWrong
from trust.signing import jws

pytestmark = [pytest.mark.slow, needs("node", "npm")]

SEED = bytes(range(32))
KEYS = {
    "ML-DSA-44": mldsa.MLDSA44PrivateKey.from_seed_bytes(SEED),
    "ML-DSA-65": mldsa.MLDSA65PrivateKey.from_seed_bytes(SEED),
}
PAYLOAD = b'{"pay":100}'


def ask(js: Path, *questions: dict[str, Any]) -> list[Any]:
    done = subprocess.run(
        ["node", js / "ml_dsa.mjs"], input=json.dumps(questions), capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    answers: list[Any] = json.loads(done.stdout)
    assert len(answers) == len(questions)
    return answers


def test_what_we_sign_verifies_there(js: Path) -> None:
    questions = []
    for alg, key in KEYS.items():
        protected, _, signature = jws.sign_detached(PAYLOAD, key=key, header={"typ": "t"}, in_body=True).split(".")
        data = jws.encode(f"{protected}.{jws.encode(PAYLOAD)}".encode())
        pub = jws.encode(key.public_key().public_bytes_raw())
        question = {"alg": alg, "pub": pub, "data": data, "signature": signature}
        questions += [question, {**question, "data": jws.encode(b"else")}]
    assert ask(js, *questions) == [True, False] * 2


def test_what_is_signed_there_verifies_here(js: Path) -> None:
    protected = {alg: jws.encode(json.dumps({"alg": alg, "typ": "t"}).encode()) for alg in KEYS}
    answers = ask(
        js,
        *(
            {"alg": alg, "seed": jws.encode(SEED), "data": jws.encode(f"{text}.{jws.encode(PAYLOAD)}".encode())}
            for alg, text in protected.items()
        ),
    )
    for (alg, key), answer in zip(KEYS.items(), answers, strict=True):
        assert jws.decode(answer["pub"]) == key.public_key().public_bytes_raw()
        token = f"{protected[alg]}..{answer['signature']}"
        verify: dict[str, Any] = {"key": key.public_key(), "algorithms": [alg], "typ": "t", "in_body": True}
        assert jws.verify_detached(token, PAYLOAD, **verify) == {"alg": alg, "typ": "t"}
        with pytest.raises(SignatureWrong):
            jws.verify_detached(token, PAYLOAD + b" ", **verify)
