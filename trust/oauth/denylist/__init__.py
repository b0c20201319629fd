"""Which tokens were revoked before their time, where that is asked on every use of a token.

MemoryDenylist    what this process was told
RemoteDenylist    the authorization server's signed list (`document`), fetched from it
RedisDenylist     the same list, from a Redis server that it writes to (extra `redis`)
"""

from trust.oauth.denylist.copies import MemoryDenylist, RedisDenylist, RemoteDenylist

__all__ = ["MemoryDenylist", "RedisDenylist", "RemoteDenylist"]
