"""Carrying out what `pki.rotation` plans: new CAs, changes of state, the ceremony with an offline root, compromise.

Every step is one transaction that names the CAs, and their states, from which it starts. Of two instances that do the
same step, one does it and the other sees `StateChanged`, looks again, and finds it done.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from typing import NoReturn

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from pki import ceremony, founding, keys, rotation
from pki.ceremony import ListRequest
from pki.errors import AuthorityNotValid, PKIError, StateChanged
from pki.issuers import Issuers, View
from pki.keys import Signer
from pki.ledger import sign_head
from pki.profiles import Issuer, RevokedSerial
from pki.records import IssuerRecord, PendingKey, Record, Settings, State
from pki.rotation import Action, Step
from pki.store import Store
from pki.store.appending import Seal
from trust.clock import shown

MAX_STEPS = 16  # of one call; a whole rotation of a root has four


class Succession:
    """The changes of one authority's CAs. The methods of `CertificateAuthority` say what they promise."""

    def __init__(self, store: Store, issuers: Issuers, settings: Settings, *, serials: Callable[[], int]) -> None:
        self._store = store
        self._issuers = issuers
        self._settings = settings
        self._serials = serials

    def plan(self, now: datetime) -> tuple[Step, ...]:
        return _planned(self._issuers.read(), now)

    def rotate(self, now: datetime, *, kind: str | None, force: bool) -> tuple[Step, ...]:
        done: list[Step] = []
        if force:
            done += self._attempt(lambda view: self._prepare_now(view, kind or "intermediate", now))
        for _ in range(MAX_STEPS):
            # Decided and carried out on one view: what changes in between makes the store refuse.
            view = self._issuers.read()
            due = [step for step in _planned(view, now) if _is_due(step, now) and kind in (None, step.kind)]
            if not due:
                break
            step = due[0]
            done += self._attempt(lambda _, view=view, step=step: self._carry_out(view, step, now))  # type: ignore[misc]
        return tuple(done)

    def taint(self, key_id: str, now: datetime) -> tuple[Step, ...]:
        record = self._issuers.read().record(key_id)
        if record.kind == "intermediate":
            return self._taint_intermediate(record, now)
        return (
            *self._attempt(lambda view: self._taint_root(view, record, now)),
            *self.rotate(now, kind=None, force=False),
        )

    def revoke(self, serial: int, reason: x509.ReasonFlags, now: datetime) -> Record:
        """Revoke a CA. In one transaction: it issues nothing from now on, and its root's next list has it."""
        (revoked,) = self._store.revoke([serial], reason=reason, now=now)
        self._issuers.read()
        return revoked

    def request_intermediate(self, now: datetime) -> bytes:
        view = self._issuers.read()
        pending = self._store.pending_key()
        if pending is None:
            pending = self._new_request(view, now)
            self._store.add_pending_key(pending, _keys(view))
        else:
            self._issuers.open_pending(pending)  # the root would certify whatever stands there
        # Asked again, it is the same key, or the certificate that is on its way would fit none.
        csr = x509.load_der_x509_csr(pending.csr).public_bytes(Encoding.PEM)
        return self._wanted_list(view.root, pending.since).to_text() + csr

    def accept_intermediate(self, pem: bytes, now: datetime) -> tuple[Step, ...]:
        pending, view = self._store.pending_key(), self._issuers.read()
        if pending is None:
            raise AuthorityNotValid(
                "no key waits for a certificate", expected="one", do="make a request first; or it was accepted already"
            )
        self._issuers.open_pending(pending)  # before anything is kept: it is to issue when this returns
        certificate = ceremony.accepted(pem, pending, view.root, self._settings, now)
        root = view.record(view.root.key_id)
        record = IssuerRecord(
            key_id=pending.key_id,
            kind="intermediate",
            parent=root.key_id,
            state=State.PREPARED,
            since=now,
            serial=certificate.serial_number,
            der=certificate.public_bytes(Encoding.DER),
            key_pem=pending.key_pem,
            key_uri=pending.key_uri,
        )
        if not root.online:
            # First: where it is not the right one, nothing has changed.
            self._keep_list(pem, view.root, pending.since)
        listed = founding.ca_record(self._settings, certificate, record)
        self._issuers.open(record)  # where the last intermediate was revoked, only this one can sign the ledger's head
        self._change(now, add=[(record, listed)], expect=_states(view), keys=_keys(view))
        return (_prepared(record, view, now), *self.rotate(now, kind="intermediate", force=False))

    def _new_request(self, view: View, now: datetime) -> PendingKey:
        beside = rotation.newest(view.records, "intermediate", State.ACTIVE) or view.record(view.root.key_id)
        key = self._issuers.new_key(beside)
        name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "agent intermediate CA, to be signed")])
        csr = keys.sign_csr(x509.CertificateSigningRequestBuilder(name), key.signer).public_bytes(Encoding.DER)
        ski = x509.SubjectKeyIdentifier.from_public_key(key.signer.public_key())
        return PendingKey(key_id=ski.digest.hex(), since=now, csr=csr, key_pem=key.pem, key_uri=key.uri)

    def _wanted_list(self, root: Issuer, since: datetime) -> ListRequest:
        """What the root's next revocation list would be. The store knows; nothing is written.

        Args:
            since: when the request was first made: what is wanted then has to be wanted still when it comes back.
        """
        found: list[ListRequest] = []

        def make(number: int, revoked: list[RevokedSerial]) -> NoReturn:
            found.append(ListRequest(root=root.key_id, number=number, revoked=tuple(revoked)))
            raise _OnlyLooked

        with suppress(_OnlyLooked):
            self._store.crl(root.key_id, 0, now=since, fresh=lambda _: False, make=make)
        return found[0]

    def _keep_list(self, pem: bytes, root: Issuer, since: datetime) -> None:
        def make(number: int, revoked: list[RevokedSerial]) -> x509.CertificateRevocationList:
            wanted = ListRequest(root=root.key_id, number=number, revoked=tuple(revoked))
            return ceremony.accepted_list(pem, wanted, root, self._settings)

        self._store.crl(root.key_id, 0, now=since, fresh=lambda _: False, make=make)

    def _carry_out(self, view: View, step: Step, now: datetime) -> list[Step]:
        if step.action is Action.PREPARE:
            return self._prepare(view, step.kind, now)
        assert step.key_id is not None  # noqa: S101 - only what exists is activated or withdrawn
        if step.action is Action.WITHDRAW:
            return self._withdraw(view, step.key_id, now)
        activate = self._activate_root if step.kind == "root" else self._activate
        return activate(view, step.key_id, now)

    def _prepare_now(self, view: View, kind: str, now: datetime) -> list[Step]:
        """For a forced rotation: what is prepared out of turn becomes active as soon as it may."""
        begun = rotation.begun(view.records, now)
        prepared = rotation.newest(begun, kind, State.PREPARED)
        if prepared is None:
            return self._prepare(view, kind, now)
        if rotation.may_activate_at(prepared) > now:
            return []
        if prepared.kind == "root":
            return self._activate_root(view, prepared.key_id, now)
        root = rotation.signing_root(begun)
        return self._activate(view, prepared.key_id, now) if root and prepared.parent == root.key_id else []

    def _prepare(self, view: View, kind: str, now: datetime) -> list[Step]:
        # Where the root that signs is not valid yet, a retiring one does so once more.
        beside = rotation.signing_root(rotation.begun(view.records, now)) or view.record(view.root.key_id)
        made = self._made(view, kind, beside, State.PREPARED, now)
        self._change(now, add=[made.pair], expect=_states(view), keys=_keys(view))
        return [_prepared(made.issuer, view, now)]

    def _activate(self, view: View, key_id: str, now: datetime) -> list[Step]:
        record = view.record(key_id)
        self._issuers.signer(key_id)  # it must open before it is the one that issues
        others = [o for o in view.records if o.kind == "intermediate" and o.state in _LIVE and o != record]
        states = {other.key_id: State.RETIRING for other in others}
        self._change(now, states={**states, key_id: State.ACTIVE}, expect=_states(view), keys=_keys(view))
        return [_step(now, Action.ACTIVATE, record, "is active")]

    def _activate_root(self, view: View, key_id: str, now: datetime) -> list[Step]:
        """The new root signs, and an intermediate of its own is prepared: in one transaction, or not at all.

        The intermediate below the old root goes on until the lists of the new one are known, or, where the key of the
        new root is offline already, until the ceremony has been held.
        """
        new = view.record(key_id)
        retiring = [other for other in view.records if other.kind == "root" and other.state in _LIVE and other != new]
        steps = [_step(now, Action.ACTIVATE, new, "is active")]
        add = []
        if new.online:
            add = [self._made(view, "intermediate", new, State.PREPARED, now).pair]
            steps.append(_step(now, Action.PREPARE, add[0][0], "is prepared"))
            former = [other for other in view.records if other.kind == "intermediate"]
            retiring += [other for other in former if other.state is State.PREPARED]  # below the old root
        states = {other.key_id: State.RETIRING for other in retiring}
        self._change(now, add=add, states={**states, key_id: State.ACTIVE}, expect=_states(view), keys=_keys(view))
        return steps

    def _withdraw(self, view: View, key_id: str, now: datetime) -> list[Step]:
        self._change(now, states={key_id: State.REVOKED}, expect=_states(view), keys=_keys(view))
        return [_step(now, Action.WITHDRAW, view.record(key_id), "left the bundle")]

    def _taint_intermediate(self, record: IssuerRecord, now: datetime) -> tuple[Step, ...]:
        """Revoked, and followed by another one, in one transaction: whoever renews meanwhile notices nothing.

        Where that cannot be, be it that there is no key for the next one, it is revoked all the same, and at once.
        """
        for _ in range(MAX_STEPS):
            view = self._issuers.read()
            if view.record(record.key_id).state is not State.ACTIVE:
                break
            try:
                return self._replace(view, record, now)
            except StateChanged:
                continue  # another instance was faster
            except PKIError:
                break
        self.revoke(record.serial, x509.ReasonFlags.ca_compromise, now)
        return self.rotate(now, kind="intermediate", force=False)

    def _replace(self, view: View, record: IssuerRecord, now: datetime) -> tuple[Step, ...]:
        begun = rotation.begun(view.records, now)
        root = rotation.signing_root(begun) or view.record(view.root.key_id)
        prepared = rotation.newest(begun, "intermediate", State.PREPARED)
        if prepared is not None and prepared.parent == root.key_id:
            following, signer, add = prepared, self._issuers.signer(prepared.key_id), []
        else:
            made = self._made(view, "intermediate", root, State.ACTIVE, now)
            following, signer, add = made.issuer, made.signer, [made.pair]
        states = {} if add else {following.key_id: State.ACTIVE}
        # The tree head is signed by the one that follows: nobody is to believe the other any more.
        self._change(
            now,
            add=add,
            states=states,
            expect=_states(view),
            keys=_keys(view),
            revoked=[record.serial],
            seal=lambda head: sign_head(head, signer, following.key_id),
        )
        self._issuers.keep(following.key_id, signer)
        steps = [_step(now, Action.PREPARE, following, "is prepared")] if add else []
        return (*steps, _step(now, Action.ACTIVATE, following, "is active"))

    def _taint_root(self, view: View, root: IssuerRecord, now: datetime) -> list[Step]:
        if root.state is State.PREPARED:  # nothing depends on it yet
            return self._distrust(root, now)
        if root.state is State.ACTIVE:
            add = []
            if rotation.newest(view.records, "root", State.PREPARED) is None:
                add = [self._made(view, "root", root, State.PREPARED, now).pair]
            # Without an active root the prepared one takes over as soon as it may, and not by the schedule.
            self._change(now, add=add, states={root.key_id: State.RETIRING}, expect=_states(view), keys=_keys(view))
            return [_step(now, Action.PREPARE, made, "is prepared, to follow the tainted one") for made, _ in add]
        issuing = rotation.newest(view.records, "intermediate", State.ACTIVE)
        if (
            root.state is State.REVOKED  # done already
            or rotation.newest(view.records, "root", State.ACTIVE) is None  # it waits for its successor
            or (issuing is not None and issuing.parent == root.key_id)  # and here, for the one of its successor
        ):
            return []
        return self._distrust(root, now)

    def _distrust(self, root: IssuerRecord, now: datetime) -> list[Step]:
        self.revoke(root.serial, x509.ReasonFlags.ca_compromise, now)
        return [_step(now, Action.WITHDRAW, root, "left the bundle")]

    def _made(self, view: View, kind: str, beside: IssuerRecord, state: State, now: datetime) -> _Made:
        """A new CA, not stored yet: a root, or an intermediate below the root `beside`, whose key is kept likewise."""
        parent_key = self._issuers.signer(beside.key_id) if kind == "intermediate" else None
        key, serial = self._issuers.new_key(beside), self._serials()
        if parent_key is None:
            pair = founding.made_root(self._settings, key, state=state, serial=serial, now=now)
        else:
            pair = founding.made_intermediate(
                self._settings,
                key,
                parent=Issuer.of(beside.certificate),
                parent_key=parent_key,
                state=state,
                serial=serial,
                now=now,
            )
        return _Made(pair=pair, signer=key.signer)

    def _change(
        self,
        now: datetime,
        *,
        add: Sequence[tuple[IssuerRecord, Record]] = (),
        states: Mapping[str, State] | None = None,
        expect: Mapping[str, State],
        keys: Mapping[str, bytes | None],
        revoked: Sequence[int] = (),
        seal: Seal | None = None,
    ) -> None:
        try:
            self._store.change_issuers(
                add=add, states=states or {}, expect=expect, keys=keys, now=now, revoked=revoked, seal=seal
            )
        finally:
            self._issuers.read()

    def _attempt(self, step: Callable[[View], list[Step]]) -> list[Step]:
        try:
            return step(self._issuers.read())
        except StateChanged:
            return []  # another instance was faster


@dataclass(frozen=True, slots=True, kw_only=True)
class _Made:
    """A CA that is not stored yet."""

    pair: tuple[IssuerRecord, Record]
    signer: Signer

    @property
    def issuer(self) -> IssuerRecord:
        return self.pair[0]


def _planned(view: View, now: datetime) -> tuple[Step, ...]:
    root = rotation.signing_root(view.records)
    return rotation.plan(view.records, now, online_root=root is not None and root.online)


def _is_due(step: Step, now: datetime) -> bool:
    return step.at <= now and step.action in _CARRIED_OUT


def _keys(view: View) -> dict[str, bytes | None]:
    return {record.key_id: record.key_pem for record in view.records}


def _states(view: View) -> dict[str, State]:
    """What is taken for granted: the CAs and their states. Whoever added or changed one has decided anew."""
    return {record.key_id: record.state for record in view.records}


def _step(now: datetime, action: Action, record: IssuerRecord, says: str) -> Step:
    says = f"{record.kind} {record.key_id[:16]} {says}"
    return Step(at=now, action=action, kind=record.kind, key_id=record.key_id, says=says)


def _prepared(record: IssuerRecord, view: View, now: datetime) -> Step:
    active = rotation.newest(rotation.begun(view.records, now), record.kind, State.ACTIVE)
    if record.kind == "intermediate" and not rotation.can_sign(active, now):
        return _step(now, Action.PREPARE, record, "is prepared")
    ready = shown(rotation.may_activate_at(record))
    where = "in the bundle" if record.kind == "root" else "its revocation lists are published"
    says = f"is prepared: {where} from now on, and active not before {ready}"
    return _step(now, Action.PREPARE, record, says)


_LIVE = (State.PREPARED, State.ACTIVE)
_CARRIED_OUT = (Action.PREPARE, Action.ACTIVATE, Action.WITHDRAW)


class _OnlyLooked(Exception):
    pass
