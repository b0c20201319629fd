"""The face of the library, pinned: a name that users import does not disappear by accident."""

from __future__ import annotations

import pytest

import trust

TRUST = (
    "AgentID AuditLog Caller CedarPolicy ChainedTokens Credentials FederatedBundles Gate Live MemoryDenylist "
    "MessageSigner Partner PartnerHealth PeerIdentity PushReceiver RedisDenylist RemoteDenylist RemoteKeys "
    "RevocationLists SkillScopes TokenSource TokenValidator TokenValidators TrustBundle TrustBundles TrustError "
    "WatchedBundles WatchedCredentials WatchedRevocationLists WebPKI WorkloadSource agent_client all_of any_of "
    "client_context exactly httpx2_agent_client invoke_scope members_of peer_of push_client serve serve_workers "
    "server_context serving sync_agent_client unsafe_allow_any_peer uvicorn_config verify_peer"
)


def test_trust_exports_exactly_these() -> None:
    assert trust.__all__ == TRUST.split() == sorted(trust.__all__)
    assert all(hasattr(trust, name) for name in trust.__all__)


def test_the_names_are_there_once_and_others_are_not() -> None:
    assert [name for name in dir(trust) if name in trust.__all__] == trust.__all__
    with pytest.raises(AttributeError, match="module 'trust' has no attribute 'mistaken'"):
        trust.mistaken  # noqa: B018
