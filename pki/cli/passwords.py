"""Where the command line finds the CA's password: a file, the environment, a file beside the folder, a prompt."""

from __future__ import annotations

import itertools
import os
import secrets
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import typer

from pki.errors import PKIError, WrongPassword
from pki.keys import MAX_PASSWORD_BYTES
from trust.credentials import read_bounded, sync_folder, write_atomically, write_new

VARIABLE = "A2A_PKI_PASSWORD"
NEW_VARIABLE = "A2A_PKI_NEW_PASSWORD"
MAX_BYTES = MAX_PASSWORD_BYTES + 2  # and the end of its line
GENERATED_BYTES = 24  # 192 bits: nobody guesses it, scrypt or not


def existing(where: str, file: Path | None) -> str | None:
    """The password of an existing CA; None where there is no CA, for that is what `open` will say."""
    if file is not None:
        return _read(file)
    if (password := _variable(VARIABLE)) is not None:
        return password
    if "://" not in where:
        if (kept := beside(where)).is_file():
            return _read(kept)
        if not Path(where).is_dir():
            return None
    return _asked("Password of the CA", VARIABLE, "--password-file", confirm=False)


def new(where: str, file: Path | None, generate: bool) -> tuple[str, bool]:
    """The password of a new CA, and whether it was generated."""
    if generate and file is not None:
        raise PKIError("--generate-password with --password-file", expected="one of them", do="leave one out")
    if file is not None:
        return _read(file), False
    if not generate and (password := _variable(VARIABLE)) is not None:
        return password, False
    if "://" in where or (not generate and sys.stdin.isatty()):  # of a database there is nothing beside
        return _asked("Password of the new CA", VARIABLE, "--password-file", confirm=True), False
    return secrets.token_urlsafe(GENERATED_BYTES), True


def changed(file: Path | None) -> str:
    """The password that is to follow the one of before."""
    if file is not None:
        return _read(file)
    if password := _variable(NEW_VARIABLE):
        return password
    return _asked("New password of the CA", NEW_VARIABLE, "--new-password-file", confirm=True)


@contextmanager
def former_named(where: str) -> Iterator[None]:
    """Where a password is wrong, and `passwd` has kept former ones, say so: a backup of before is opened by one."""
    try:
        yield
    except WrongPassword as error:
        old = "" if "://" in where else f"{beside(where)}.old"
        if not old or not Path(old).is_file():
            raise
        text = f"{error}; what is of before `a2a-pki passwd` is opened by the former one: --password-file {old}"
        raise WrongPassword(text) from None


def kept(where: str, password: str) -> Path | None:
    """The file beside the CA's folder, if it is there and holds that password."""
    if "://" in where or not (file := beside(where)).is_file():
        return None
    return file if _read(file) == password else None


def keep(folder: str, password: str) -> Path:
    """Write a new CA's password beside its folder, and say where.

    Raises:
        PKIError: there is something already, which may be the password of another CA or of the same one, made at the
            same moment by somebody else. It is not touched.
            Or it cannot be written there.
    """
    file = beside(folder)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        # Made, and never replaced: of two that do this at once, one is told to stop before it makes a CA.
        write_new(file, password.encode() + b"\n", mode=0o600)
    except FileExistsError:
        if os.path.lexists(file):  # else what exists is a file where a folder would have to be
            raise PKIError(f"{file} exists already", expected="no password of another CA", do="move it away") from None
        raise _not_kept(file, "a file where a folder must be") from None
    except OSError as error:
        raise _not_kept(file, error.strerror) from None
    sync_folder(file.parent)
    return file


def replace(file: Path, former: str, password: str) -> Path:
    """Write a changed password into the kept file; returns the new file that keeps the former one.

    Backups of before are opened by that, so it is never lost, not the one before it either.
    """
    numbered = (file.with_name(f"{file.name}.old{'' if n == 1 else n}") for n in itertools.count(1))
    for old in numbered:
        try:
            write_new(old, former.encode() + b"\n", mode=0o600)
            break
        except FileExistsError:
            continue
    write_atomically(file, password.encode() + b"\n", mode=0o600)
    return old


def _variable(name: str) -> str | None:
    """Of the environment, where any bytes may stand."""
    value = os.environ.get(name)
    try:
        _ = (value or "").encode()
    except UnicodeEncodeError:
        raise WrongPassword(name, got="other bytes", expected="a password in UTF-8") from None
    return value


def _asked(what: str, variable: str, option: str, *, confirm: bool) -> str:
    """From the keyboard, where somebody is there."""
    if not sys.stdin.isatty():
        raise WrongPassword(what, got="none", expected="a password", do=f"set {variable} or give {option}")
    # On stderr, so that `--json` and `bundle >file` stay clean.
    return str(typer.prompt(what, hide_input=True, confirmation_prompt=confirm, err=True))


def _not_kept(file: Path, why: str | None) -> PKIError:
    return PKIError(f"cannot write {file}", got=why, expected="a place for a CA and its password", do="choose another")


def beside(folder: str) -> Path:
    """Beside the folder and not in it: whoever copies the folder does not copy the password with the keys."""
    absolute = Path(folder).absolute()
    return absolute.with_name(absolute.name + ".password")


def _read(file: Path) -> str:
    try:
        password = read_bounded(file, MAX_BYTES).decode().removesuffix("\n").removesuffix("\r")
    except UnicodeDecodeError:
        raise WrongPassword(f"{file}", got="other bytes", expected="a password in UTF-8") from None
    if not password:
        raise WrongPassword(f"{file}", got="nothing", expected="a password")
    return password
