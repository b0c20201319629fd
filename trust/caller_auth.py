"""What Starlette and a2a-sdk see of a caller that the gate has let in: its scopes, and how they are asked for."""

from __future__ import annotations

from datetime import datetime

from starlette.authentication import AuthCredentials

from trust.errors import ScopeMalformed
from trust.gate import GatePolicy, needs_a_person
from trust.identity import Caller
from trust.oauth.operations import Operation
from trust.oauth.scopes import satisfies


class CallerCredentials(AuthCredentials):
    """Starlette's `request.auth`: `"agent:execute" in auth.scopes` asks whether the caller's token covers that scope.

    a2a-sdk hands it on as `context.state["auth"]`; `caller` is the whole of what the gate found. `operation` is what
    was asked for, with the skill that the scopes were compared for, where the gate's scope is a `SkillScopes`.
    """

    def __init__(
        self,
        caller: Caller,
        policy: GatePolicy,
        now: datetime,
        operation: Operation | None = None,
        approved: bool = False,
    ) -> None:
        super().__init__()
        self.caller = caller
        self.operation = operation
        self.scopes = _CoveredScopes(caller, policy, now, approved)


class _CoveredScopes(list[str]):
    """The granted scopes; containment is by `scopes.satisfies`, so wildcards and the catalogue count.

    Nothing that a person must approve is among them without.
    """

    def __init__(self, caller: Caller, policy: GatePolicy, now: datetime, approved: bool) -> None:
        super().__init__(caller.scopes)
        self._issued_at = caller.issued_at
        self._policy = policy
        self._now = now
        self._approved = approved

    def __contains__(self, required: object) -> bool:
        if required == "authenticated":  # Starlette's own word; whoever has come so far is
            return True
        try:
            return (
                isinstance(required, str)
                and satisfies(
                    tuple(self),
                    required,
                    self._policy.catalogue,
                    issued_at=self._issued_at,
                    now=self._now,
                    calendars=self._policy.calendars,
                )
                and (self._approved or not needs_a_person(required, self._policy))
            )
        except ScopeMalformed:  # a word outside the grammar is granted to nobody
            return False
