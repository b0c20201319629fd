"""The agent CA: an internal certificate authority whose certificates carry SPIFFE IDs."""

from typing import TYPE_CHECKING

from trust.lazy import face_of

if TYPE_CHECKING:
    from pki.face import *  # noqa: F403 - its __all__, for type checkers
else:
    __getattr__, __dir__ = face_of(__name__)
