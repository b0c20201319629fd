"""Running a2a-pki in this process, and looking at its answers."""

from __future__ import annotations

import json
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

Run = Callable[..., "Answer"]


class Answer:
    def __init__(self, code: int, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err

    @property
    def json(self) -> Any:
        assert (self.code, self.err) == (0, ""), self.err
        return json.loads(self.out)


def one_line(answer: Answer, code: int = 1) -> str:
    assert answer.code == code
    assert answer.out == ""
    assert answer.err.startswith("a2a-pki: ")
    assert answer.err.endswith("\n")
    assert answer.err.count("\n") == 1, "one line, and no traceback"
    return answer.err


def mode(path: Path | str) -> int:
    return stat.S_IMODE(Path(path).stat().st_mode)
