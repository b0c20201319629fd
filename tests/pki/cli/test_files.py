"""Files that somebody else has made, for people to look at."""

from __future__ import annotations

from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import BestAvailableEncryption, Encoding, PrivateFormat

from pki.cli.files import describe
from pki.errors import PKIError
from tests.pki import cpu
from tests.pki.judges import request

MIB = 1 << 20
BEGIN, END = b"-----BEGIN CERTIFICATE-----", b"-----END CERTIFICATE-----"


@pytest.mark.parametrize(
    "piece", [BEGIN, BEGIN + b"a", BEGIN + END[:-1], b"a-"], ids=["begins", "with a body", "with half an end", "dashes"]
)
def test_blocks_without_an_end_take_no_longer_than_others(piece: bytes, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(BEGIN + piece * (MIB // len(piece)))
    with cpu.within(30), pytest.raises(PKIError, match="file is not readable") as caught:
        describe(tmp_path / "file")
    assert type(caught.value) is PKIError


def test_a_block_with_headers_is_one(tmp_path: Path) -> None:
    """Keys that OpenSSL of old has encrypted begin with `Proc-Type: 4,ENCRYPTED`."""
    key, secret = ec.generate_private_key(ec.SECP256R1()), BestAvailableEncryption(b"secret")
    legacy = key.private_bytes(Encoding.PEM, PrivateFormat.TraditionalOpenSSL, secret)
    assert b"Proc-Type: 4" in legacy
    (tmp_path / "file").write_bytes(legacy + request(key=key, encoding=Encoding.PEM))
    asked, shown = describe(tmp_path / "file")
    assert asked["what"] == "certificate request"
    assert shown == {"what": "ec private key, not shown"}
