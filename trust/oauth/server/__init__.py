"""The embedded authorization server: `create_app` makes it."""

from trust.oauth.server.app import create_app

__all__ = ["create_app"]
