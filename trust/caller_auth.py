"""What Starlette and a2a-sdk see of a caller that the gate has let in: its scopes, and how they are asked for."""

from __future__ import annotations

from datetime import datetime

from starlette.authentication import AuthCredentials

from trust.errors import ScopeError
from trust.gate import check_granted
from trust.gate_policy import GatePolicy
from trust.identity import Caller
from trust.oauth.operations import Operation


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
        if not isinstance(required, str):
            return False
        try:
            check_granted(
                required,
                self._policy,
                scopes=tuple(self),
                issued_at=self._issued_at,
                approved=self._approved,
                now=self._now,
            )
        except ScopeError:  # not granted; or a word outside the grammar, which is granted to nobody
            return False
        return True
