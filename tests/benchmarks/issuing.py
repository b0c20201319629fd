"""`a2a-trust serve` without the limit on how often one client asks: a benchmark's client asks all the time."""

from functools import partial

from trust.cli import main
from trust.oauth.server import state

state.create_app = partial(state.create_app, requests_per_minute=1_000_000_000)  # type: ignore[assignment]

if __name__ == "__main__":
    main()
