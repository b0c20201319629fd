"""Agents that speak A2A know which agent is calling, what it may do, and that nobody altered what it said."""

from typing import TYPE_CHECKING

from trust.lazy import face_of

if TYPE_CHECKING:
    from trust.face import *  # noqa: F403 - its __all__, for type checkers
else:
    __getattr__, __dir__ = face_of(__name__)
