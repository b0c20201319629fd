"""Several processes behind one address: each follows the files, and all of them stop politely."""

from __future__ import annotations

import asyncio
import os
import pickle
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from uvicorn.config import STARTUP_FAILURE
from uvicorn.supervisors.multiprocess import SIGNALS

from tests.trust.tls import served
from tests.trust.tls.parts import FORGE, SERVER, client, port_of, until
from trust.bundles import TrustBundles
from trust.credentials import Credentials
from trust.errors import ConfigurationError
from trust.tls import peer_of_response, serve_workers, uvicorn_config
from trust.tls.server import TrustConfig
from trust.tls.workers import _Recipe, made

AGENT = "tests.trust.tls.served:agent"
PATIENCE = 60.0  # seconds: each worker imports everything anew


def write(folder: Path, credentials: Credentials) -> None:
    """As a renewal writes them: each file is replaced as a whole."""
    for name, content in (("key.pem", credentials.key_pem()), ("chain.pem", credentials.chain_pem)):
        new = folder / f"{name}.new"
        new.write_bytes(content)
        new.chmod(0o600)
        new.rename(folder / name)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    write(tmp_path, SERVER)
    (tmp_path / "bundle.json").write_text(TrustBundles.of(FORGE.bundle).to_json())
    monkeypatch.setenv(served.FOLDER, str(tmp_path))
    return tmp_path


@pytest.fixture
def signals() -> Iterator[None]:
    """The supervisor takes the signals of the process and does not give them back."""
    before = {number: signal.getsignal(number) for number in SIGNALS}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


async def ask(url: str, path: str = "/") -> httpx.Response:
    async with client() as agent:  # a new connection
        return await agent.get(url + path, timeout=PATIENCE)


async def story(url: str, folder: Path) -> None:
    served_by: dict[str, str] = {}  # the process, and the certificate that it showed last
    expected = SERVER

    async def everywhere() -> bool:
        response = await ask(url)
        served_by[response.text] = peer_of_response(response).thumbprint
        return len(served_by) == 2 and set(served_by.values()) == {expected.thumbprint}

    async with asyncio.timeout(PATIENCE):
        while not await everywhere():
            pass
        processes = set(served_by)
        assert str(os.getpid()) not in processes
        expected = FORGE.leaf("/server")
        write(folder, expected)
        while not await everywhere():
            await asyncio.sleep(0.05)
        assert set(served_by) == processes

    slow = [asyncio.ensure_future(ask(url, "/slow")) for _ in range(4)]
    await until(lambda: len(list(folder.glob("under-way-*"))) == len(slow), PATIENCE)
    os.kill(os.getpid(), signal.SIGTERM)
    for response in await asyncio.gather(*slow):
        assert response.status_code == 200 and response.text in processes


@pytest.mark.slow
def test_two_processes_serve(folder: Path, signals: None, capfd: pytest.CaptureFixture[str]) -> None:
    failed: list[BaseException] = []

    def tell() -> None:
        said = ""
        try:
            while "https://" not in said:
                said += capfd.readouterr().err
            url = said[said.index("https://") :].split()[0]
            assert port_of(url) > 0
            asyncio.run(story(url, folder))
        except BaseException as error:
            failed.append(error)
            os.kill(os.getpid(), signal.SIGTERM)

    thread = threading.Thread(target=tell)
    thread.start()
    serve_workers(AGENT, workers=2, port=0)
    thread.join()
    if failed:
        raise failed[0]


def test_workers_that_cannot_start_end_the_server(
    folder: Path, signals: None, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(ConfigurationError, match="workers did not start"):
        serve_workers("tests.trust.tls.served:broken", workers=1, port=0)
    said = capfd.readouterr().err
    assert "error: no certificate today; enrol\n" in said and "Traceback" not in said


def test_what_a_worker_makes(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for make in (AGENT, served.agent):
        config = pickle.loads(pickle.dumps(_Recipe(make, 3)))
        assert type(config) is TrustConfig and config.workers == 3
    for make, words in (
        (served.broken, "no certificate today"),
        (served.other, "got object, expected what trust.uvicorn_config(...) returns"),
        ("tests.trust.tls.served:nothing", 'Attribute "nothing" not found'),
        ("tests.trust.tls.nowhere:agent", "nowhere"),
    ):
        with pytest.raises(SystemExit) as caught:
            made(make, 3)
        assert caught.value.code == STARTUP_FAILURE
        assert words in capsys.readouterr().err


@pytest.mark.parametrize(
    "make",
    [lambda: None, "tests.trust.tls.served", ":agent", threading.Lock(), 5],
    ids=["lambda", "no function", "no module", "lock", "number"],
)
def test_what_cannot_be_handed_to_another_process(make: Any) -> None:
    with pytest.raises(ConfigurationError, match="workers cannot find"):
        serve_workers(make, workers=2)
    with pytest.raises(ConfigurationError, match="number of workers"):
        serve_workers(AGENT, workers=0)


def test_serve_names_the_way() -> None:
    with pytest.raises(ConfigurationError, match="serve_workers"):
        uvicorn_config(served.app, source=SERVER, bundles=FORGE.bundles, authorize=None, workers=2)  # type: ignore
