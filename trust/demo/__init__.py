"""The whole journey on real parts: a CA, an authorization server, two A2A agents, and fourteen attacks.

Nothing here is simulated: certificates come from `pki`, every call crosses a real socket with mutual TLS, the agents
are a2a-sdk agents, and each attack is sent to the same servers that answered the honest calls. It is the one room of
`trust` that may import `pki`, and it needs the extra `a2a`.
"""

from trust.demo.fleet import Step
from trust.demo.journey import CHAPTERS, journey

__all__ = ["CHAPTERS", "Step", "journey"]
