"""Write `tests/vectors/http.json` anew: `python -m tests.vectors`."""

from tests.vectors import FILE, make

FILE.write_bytes(make())
