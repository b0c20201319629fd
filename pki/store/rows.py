"""Between the values of `pki.records` and the rows of the tables. What is read is distrusted: see `database.intact`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

from cryptography import x509

from pki.records import (
    IssuerRecord,
    LedgerRow,
    ListRow,
    PendingKey,
    Record,
    SealedHead,
    Settings,
    State,
    TokenRecord,
)


def hex_of(serial: int) -> str:
    return f"{serial:040x}"


def seconds(moment: datetime) -> int:
    return int(moment.timestamp())


def moment(value: int) -> datetime:
    return datetime.fromtimestamp(value, UTC)


def _optional(value: int | None) -> datetime | None:
    return None if value is None else moment(value)


def settings_row(settings: Settings) -> dict[str, Any]:
    return {
        "id": 1,
        "trust_domain": settings.trust_domain,
        "crl_base_url": settings.crl_base_url,
        "public_url": settings.public_url,
        "name_constraint": settings.name_constraint,
        "bundle_sequence": 1,
    }


def settings_of(row: Mapping[Any, Any]) -> Settings:
    return Settings(
        trust_domain=_text(row["trust_domain"]),
        crl_base_url=optional_text(row["crl_base_url"]),
        public_url=optional_text(row["public_url"]),
        name_constraint=bool(row["name_constraint"]),
    )


def record_row(record: Record, position: int) -> dict[str, Any]:
    return {
        "position": position,
        "serial": f"{record.serial:040x}",
        "kind": record.kind,
        "issuer": record.issuer,
        "shard": record.shard,
        "spiffe_id": record.spiffe_id,
        "thumbprint": record.thumbprint,
        "not_before": int(record.not_before.timestamp()),
        "not_after": int(record.not_after.timestamp()),
        "der": record.der,
    }


def record_of(row: Mapping[Any, Any]) -> Record:
    reason = row["reason"]
    return Record(
        serial=int(row["serial"], 16),
        kind=_text(row["kind"]),
        issuer=_text(row["issuer"]),
        spiffe_id=_text(row["spiffe_id"]),
        thumbprint=_text(row["thumbprint"]),
        not_before=moment(row["not_before"]),
        not_after=moment(row["not_after"]),
        der=_bytes(row["der"]),
        shard=int(row["shard"]),
        revoked_at=_optional(row["revoked_at"]),
        reason=None if reason is None else x509.ReasonFlags(reason),
        position=row["position"],
        revoked_position=row["revoked_position"],
    )


def issuer_row(issuer: IssuerRecord, position: int) -> dict[str, Any]:
    return {
        "key_id": issuer.key_id,
        "kind": issuer.kind,
        "parent": issuer.parent,
        "state": issuer.state.value,
        "since": seconds(issuer.since),
        "serial": hex_of(issuer.serial),
        "der": issuer.der,
        "key_pem": issuer.key_pem,
        "key_uri": issuer.key_uri,
        "position": position,
    }


def issuer_of(row: Mapping[Any, Any]) -> IssuerRecord:
    return IssuerRecord(
        key_id=_text(row["key_id"]),
        kind=_text(row["kind"]),
        parent=_text(row["parent"]),
        state=State(row["state"]),
        since=moment(row["since"]),
        serial=int(row["serial"], 16),
        der=_bytes(row["der"]),
        key_pem=_optional_bytes(row["key_pem"]),
        key_uri=optional_text(row["key_uri"]),
        position=row["position"],
    )


def pending_row(key: PendingKey) -> dict[str, Any]:
    return {
        "key_id": key.key_id,
        "since": seconds(key.since),
        "csr": key.csr,
        "key_pem": key.key_pem,
        "key_uri": key.key_uri,
    }


def pending_of(row: Mapping[Any, Any]) -> PendingKey:
    return PendingKey(
        key_id=_text(row["key_id"]),
        since=moment(row["since"]),
        csr=_bytes(row["csr"]),
        key_pem=_optional_bytes(row["key_pem"]),
        key_uri=optional_text(row["key_uri"]),
    )


def token_row(token: TokenRecord) -> dict[str, Any]:
    return {
        "id": token.id,
        "digest": token.digest,
        "spiffe_id": token.spiffe_id,
        "dns_names": json.dumps(token.dns_names),
        "lifetime": int(token.lifetime.total_seconds()),
        "created_at": seconds(token.created_at),
        "expires_at": seconds(token.expires_at),
        "used_at": None if token.used_at is None else seconds(token.used_at),
        "used_by": token.used_by,
        "serial": None if token.serial is None else hex_of(token.serial),
        "seal": token.seal,
    }


def token_of(row: Mapping[Any, Any]) -> TokenRecord:
    names = json.loads(row["dns_names"])
    if not isinstance(names, list):
        raise ValueError("dns_names is no list")
    return TokenRecord(
        id=row["id"],
        digest=_bytes(row["digest"]),
        spiffe_id=_text(row["spiffe_id"]),
        dns_names=tuple(_text(name) for name in names),
        lifetime=timedelta(seconds=row["lifetime"]),
        created_at=moment(row["created_at"]),
        expires_at=moment(row["expires_at"]),
        used_at=_optional(row["used_at"]),
        used_by=_optional_bytes(row["used_by"]),
        serial=None if row["serial"] is None else int(row["serial"], 16),
        seal=_text(row["seal"]),
    )


def list_of(row: Mapping[Any, Any]) -> ListRow:
    return ListRow(
        issuer=_text(row["issuer"]),
        shard=int(row["shard"]),
        number=int(row["number"]),
        position=int(row["position"]),
        stale=bool(row["stale"]),
        der=_bytes(row["der"]),
        base_number=int(row["base_number"]),
        base_position=int(row["base_position"]),
        delta_der=_optional_bytes(row["delta_der"]),
    )


def ledger_row_of(row: Mapping[Any, Any]) -> LedgerRow:
    return LedgerRow(position=int(row["position"]), entry=_bytes(row["entry"]), leaf=_bytes(row["leaf"]))


def head_of(row: Mapping[Any, Any]) -> SealedHead:
    return SealedHead(
        size=int(row["size"]),
        root=_bytes(row["root"]),
        time=moment(row["time"]),
        frontier=_bytes(row["frontier"]),
        jws=optional_text(row["jws"]),
    )


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{type(value).__name__} where text was written")
    return value


def optional_text(value: object) -> str | None:
    return None if value is None else _text(value)


def _bytes(value: object) -> bytes:
    if not isinstance(value, bytes):
        raise TypeError(f"{type(value).__name__} where bytes were written")
    return value


def _optional_bytes(value: object) -> bytes | None:
    return None if value is None else _bytes(value)
