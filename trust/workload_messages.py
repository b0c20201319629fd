"""What the SPIFFE Workload API says: one answer of its X.509 stream, from bytes to values. Pure.

It comes from a program that is trusted with our private key, and that may still be broken, or of another opinion about
what a certificate is: an answer is read as a whole, or refused.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import load_der_private_key
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

from trust.bundles import MAX_ROOTS, RevocationLists, TrustBundle, TrustBundles
from trust.credentials import Credentials
from trust.errors import TrustError, WorkloadAPIRefused

MAX_MESSAGE_BYTES = 4 << 20  # grpc's own default; an identity with a few roots is below 10 KiB
MAX_IDENTITIES = 64
MAX_DOMAINS = 1024  # federated with ours
MAX_CHAIN = 8
MAX_LISTS = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """An X509SVIDResponse that can be used."""

    credentials: tuple[Credentials, ...]
    bundles: TrustBundles
    crls: RevocationLists


def read(data: bytes) -> Answer:
    """An X509SVIDResponse, every part of it (SPIFFE Workload API, sections 4.5 and 5.2.1).

    Raises:
        WorkloadAPIRefused: by the first part that cannot be used.
    """
    try:
        response = _message_class().FromString(data)
    except Exception:  # protobuf has an error of its own for each of its implementations
        raise _refused("something else", "an X509SVIDResponse") from None
    _bounded("identities", len(response.svids), range(1, MAX_IDENTITIES + 1))
    _bounded("federated trust domains", len(response.federated_bundles), range(MAX_DOMAINS + 1))
    _bounded("revocation lists", len(response.crl), range(MAX_LISTS + 1))
    try:
        credentials = tuple(_credentials(svid) for svid in response.svids)
        own = ((one.agent_id.trust_domain, svid.bundle) for one, svid in zip(credentials, response.svids, strict=True))
        bundles = _bundles(own, response.federated_bundles)
        lists = tuple(x509.load_der_x509_crl(der) for der in response.crl)
    except WorkloadAPIRefused:
        raise
    except (TrustError, ValueError, x509.InvalidVersion, UnsupportedAlgorithm) as error:
        raise _refused(error, "certificates, keys and lists as X.509 has them") from None
    # Which CA has a list there, nobody says: one that has none is not held against its agents.
    return Answer(credentials=credentials, bundles=bundles, crls=RevocationLists(lists, required_in=frozenset()))


def _credentials(svid: Any) -> Credentials:
    chain = _certificates(svid.x509_svid, MAX_CHAIN)
    try:
        key = load_der_private_key(svid.x509_svid_key, None)
    except (ValueError, TypeError, UnsupportedAlgorithm):  # not what was wrong with it: it is a secret
        raise _refused("a private key that cannot be read", "PKCS#8 without a password") from None
    made = Credentials.of(chain, key)  # type: ignore[arg-type] # which looks at the kind of key
    if svid.spiffe_id != str(made.agent_id):
        raise _refused(f"the certificate of {made.agent_id} as {svid.spiffe_id!r}", "an identity under its own name")
    return made


def _bundles(own: Iterable[tuple[str, bytes]], federated: Mapping[str, bytes]) -> TrustBundles:
    found: dict[str, TrustBundle] = {}
    for domain, der in own:
        roots = _certificates(der, MAX_ROOTS)
        if not roots:
            raise _refused(f"no roots of {domain}", "the bundle of our own trust domain")
        bundle = TrustBundle(trust_domain=domain, roots=roots)
        if found.setdefault(domain, bundle) != bundle:
            raise _refused(f"two bundles of {domain}", "one")
    for name, der in federated.items():
        domain = name.removeprefix("spiffe://")
        if domain in found:
            raise _refused(f"two bundles of {domain}", "one")
        found[domain] = TrustBundle(trust_domain=domain, roots=_certificates(der, MAX_ROOTS))
    return TrustBundles(found)


def _certificates(data: bytes, limit: int) -> tuple[x509.Certificate, ...]:
    """Certificates in DER, one after the other."""
    found: list[x509.Certificate] = []
    while data:
        if len(found) == limit:
            raise _refused(f"more than {limit} certificates in a row", f"at most {limit}")
        size = _der_size(data)
        found.append(x509.load_der_x509_certificate(data[:size]))
        data = data[size:]
    return tuple(found)


def _der_size(data: bytes) -> int:
    """The size of the element that these bytes begin with; the parser says whether that is right."""
    if len(data) < 2 or data[1] < 0x80:
        return 2 + (data[1] if len(data) > 1 else 0)
    octets = data[1] & 0x7F
    return 2 + octets + int.from_bytes(data[2 : 2 + min(octets, 4)])


def _bounded(what: str, count: int, allowed: range) -> None:
    if count not in allowed:
        raise _refused(f"{count} {what}", f"{allowed.start} to {allowed.stop - 1}")


def _refused(got: object, expected: str) -> WorkloadAPIRefused:
    return WorkloadAPIRefused("answer of the Workload API", got=got, expected=expected)


@lru_cache(maxsize=1)
def _message_class() -> Any:
    """The message class, from the published definition. In a pool of its own: other programs register it, too."""
    Field = descriptor_pb2.FieldDescriptorProto
    file = descriptor_pb2.FileDescriptorProto(name="workload.proto", syntax="proto3")

    def message(where: Any, name: str, **fields: tuple[int, int, int, str]) -> Any:
        made = where.add(name=name)
        for field, (number, kind, label, type_name) in fields.items():
            made.field.add(name=field, number=number, type=kind, label=label, type_name=type_name or None)
        return made

    one, many = Field.LABEL_OPTIONAL, Field.LABEL_REPEATED
    response = message(
        file.message_type,
        "X509SVIDResponse",
        svids=(1, Field.TYPE_MESSAGE, many, ".X509SVID"),
        crl=(2, Field.TYPE_BYTES, many, ""),
        federated_bundles=(3, Field.TYPE_MESSAGE, many, ".X509SVIDResponse.FederatedBundlesEntry"),
    )
    entry = message(
        response.nested_type,
        "FederatedBundlesEntry",
        key=(1, Field.TYPE_STRING, one, ""),
        value=(2, Field.TYPE_BYTES, one, ""),
    )
    entry.options.map_entry = True
    message(
        file.message_type,
        "X509SVID",
        spiffe_id=(1, Field.TYPE_STRING, one, ""),
        x509_svid=(2, Field.TYPE_BYTES, one, ""),
        x509_svid_key=(3, Field.TYPE_BYTES, one, ""),
        bundle=(4, Field.TYPE_BYTES, one, ""),
        hint=(5, Field.TYPE_STRING, one, ""),
    )
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("X509SVIDResponse"))
