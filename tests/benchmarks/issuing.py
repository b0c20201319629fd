"""`a2a-trust serve` without the limit on how often one client asks: a benchmark's client asks all the time."""

from functools import partial

from trust.cli import main
from trust.oauth.server import create_app, state

vars(state)["create_app"] = partial(create_app, requests_per_minute=1_000_000_000)

if __name__ == "__main__":
    main()
