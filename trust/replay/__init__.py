"""Once, and only once: remembers message identifiers until their messages can no longer be valid.

    MemoryReplayGuard    one process
    SQLiteReplayGuard    the processes of one host: a file
    RedisReplayGuard     several hosts: a Redis server (extra `redis`)

Where agents of one name run in several processes they share one guard, or each of them admits a message once.

Keys are never made from a signature or a token: ECDSA signatures and base64 are malleable, so the same message could
come again under another key. They are made from the signed (issuer, audience, jti).
"""

from trust.replay.guard import ReplayGuard, replay_key
from trust.replay.loop import OffTheLoop
from trust.replay.memory import MemoryReplayGuard
from trust.replay.redis import RedisReplayGuard
from trust.replay.sqlite import SQLiteReplayGuard

__all__ = [
    "MemoryReplayGuard",
    "OffTheLoop",
    "RedisReplayGuard",
    "ReplayGuard",
    "SQLiteReplayGuard",
    "replay_key",
]
