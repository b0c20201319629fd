"""`python -m tests.fuzz jws|canonical [SECONDS | FILE]`: coverage-guided fuzzing by atheris (the extra `fuzz`).

For so many seconds (60), or one FILE that it has left, again. Node, where it is installed, is one of the judges. What
it has learned, and what it finds, are in the folder that it prints; the tests have none of it.
"""

from __future__ import annotations

import random
import shutil
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path

import atheris  # type: ignore[import-untyped]  # of an extra, and without types

INSTRUMENTED = [
    "trust.signing.jws",
    "trust.signing.canonical",
    "trust.signing.algorithms",
    "trust.json_text",
    "jwcrypto",
]
MAX_BYTES = 1_024  # of an input: what there is to find is small

with atheris.instrument_imports(include=INSTRUMENTED):
    from tests.fuzz.targets import SEEDS, TARGETS, mutated
    from tests.interop.oracle import Oracle, oracle, with_modules


def main(name: str, what: str) -> None:
    target, folder = TARGETS[name], Path(tempfile.mkdtemp(prefix=f"a2a-trust-fuzz-{name}-"))
    with ExitStack() as stack:
        node = _node(stack)
        if Path(what).is_file():
            print(target(Path(what).read_bytes(), node))
            return
        corpus = folder / "corpus"
        corpus.mkdir()
        for number, seed in enumerate(SEEDS[name]):
            (corpus / f"seed-{number}").write_bytes(seed)
        print(f"{name} for {int(what)} s, beside {'Node' if node else 'no Node'}, in {folder}", flush=True)
        limits = [f"-max_total_time={int(what)}", f"-max_len={MAX_BYTES}"]
        places = [f"-artifact_prefix={folder}/", str(corpus)]

        def mutate(data: bytes, limit: int, seed: int) -> bytes:
            chance = random.Random(seed)
            return (mutated(name, data, chance) if chance.random() < 0.5 else atheris.Mutate(data, limit))[:limit]

        atheris.Setup([sys.argv[0], *limits, *places], lambda data: target(data, node), custom_mutator=mutate)
        atheris.Fuzz()  # ends the process


def _node(stack: ExitStack) -> Oracle | None:
    if shutil.which("npm") is None:
        return None
    folder = stack.enter_context(tempfile.TemporaryDirectory(ignore_cleanup_errors=True))
    return stack.enter_context(oracle(with_modules(Path(folder))))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2] if len(sys.argv) > 2 else "60")
