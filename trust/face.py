"""What `trust` shows: the names that users import from it."""

from trust.agent import (
    agent_client,
    httpx2_agent_client,
    push_client,
    serve,
    serve_workers,
    serving,
    sync_agent_client,
    uvicorn_config,
)
from trust.audit import AuditLog
from trust.authorize import all_of, any_of, exactly, members_of, unsafe_allow_any_peer
from trust.bundles import RevocationLists, TrustBundle, TrustBundles
from trust.credentials import Credentials
from trust.errors import TrustError
from trust.federation import FederatedBundles, PartnerHealth
from trust.files import WatchedBundles, WatchedCredentials, WatchedRevocationLists
from trust.identity import AgentID, Caller, PeerIdentity, peer_of
from trust.middleware import Gate
from trust.oauth.client import ChainedTokens, TokenSource
from trust.oauth.denylist import MemoryDenylist, RedisDenylist, RemoteDenylist
from trust.oauth.keys import RemoteKeys
from trust.oauth.operations import SkillScopes
from trust.oauth.policy import CedarPolicy
from trust.oauth.scopes import invoke_scope
from trust.oauth.tokens import TokenValidator, TokenValidators
from trust.partners import Partner
from trust.peers import verify_peer
from trust.signing.http import MessageSigner
from trust.signing.push_receiver import PushReceiver
from trust.sources import Live
from trust.tls.destinations import WebPKI
from trust.tls.engine import client_context, server_context
from trust.workload_api import WorkloadSource

__all__ = [
    "AgentID",
    "AuditLog",
    "Caller",
    "CedarPolicy",
    "ChainedTokens",
    "Credentials",
    "FederatedBundles",
    "Gate",
    "Live",
    "MemoryDenylist",
    "MessageSigner",
    "Partner",
    "PartnerHealth",
    "PeerIdentity",
    "PushReceiver",
    "RedisDenylist",
    "RemoteDenylist",
    "RemoteKeys",
    "RevocationLists",
    "SkillScopes",
    "TokenSource",
    "TokenValidator",
    "TokenValidators",
    "TrustBundle",
    "TrustBundles",
    "TrustError",
    "WatchedBundles",
    "WatchedCredentials",
    "WatchedRevocationLists",
    "WebPKI",
    "WorkloadSource",
    "agent_client",
    "all_of",
    "any_of",
    "client_context",
    "exactly",
    "httpx2_agent_client",
    "invoke_scope",
    "members_of",
    "peer_of",
    "push_client",
    "serve",
    "serve_workers",
    "server_context",
    "serving",
    "sync_agent_client",
    "unsafe_allow_any_peer",
    "uvicorn_config",
    "verify_peer",
]
