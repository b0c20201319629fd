"""The authorization server's memory, in one database. Only this folder of `trust` knows SQLAlchemy.

The default is one SQLite file (write-ahead log); any other database goes by its URL. Every change is durable before the
method returns: a revocation that a power cut undid would let a thief back in.
"""

from trust.oauth.server.store.approvals import Approval, Asked, use_approval
from trust.oauth.server.store.assertions import UsedAssertion, use_assertion
from trust.oauth.server.store.database import Store
from trust.oauth.server.store.decisions import Operator
from trust.oauth.server.store.tokens import Issued

__all__ = ["Approval", "Asked", "Issued", "Operator", "Store", "UsedAssertion", "use_approval", "use_assertion"]
