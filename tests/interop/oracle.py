"""Node as a judge: what its library `jose` says to a JWS, and how ECMAScript itself writes a JSON text by RFC 8785."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.interop.programs import node_modules

JS = Path(__file__).parent / "js"


class Oracle:
    """One process that answers one question after the other."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        assert process.stdin is not None and process.stdout is not None
        self._questions, self._answers = process.stdin, process.stdout

    def ask(self, **question: Any) -> dict[str, Any]:
        self._questions.write(json.dumps(question).encode() + b"\n")
        self._questions.flush()
        line = self._answers.readline()
        assert line, "node ended"
        answer: dict[str, Any] = json.loads(line)
        return answer


@contextmanager
def oracle(folder: Path, script: str = "oracle.mjs") -> Iterator[Oracle]:
    """Of a folder that `with_modules` has made."""
    with subprocess.Popen(["node", folder / script], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        try:
            yield Oracle(process)
        finally:
            process.kill()


def with_modules(folder: Path) -> Path:
    """The scripts of `js/`, copied, and the packages of the very versions that its lock names."""
    for file in JS.iterdir():
        shutil.copy(file, folder)
    (folder / "node_modules").symlink_to(node_modules(JS), target_is_directory=True)
    return folder
