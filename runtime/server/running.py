"""The process: listens, loads, serves, and ends in order."""

import asyncio
import contextlib
import logging
import signal
import socket
from collections.abc import Iterator

import uvicorn

from runtime import manifest as manifests
from runtime.errors import Esm2Error, OutputError
from runtime.server.app import app_of
from runtime.server.service import Service
from runtime.server.settings import EngineChoice, Limits

logger = logging.getLogger(__name__)

# Connections that wait to be accepted; more than clients open at once.
BACKLOG = 2048


# Seconds that an idle connection is kept: longer than proxies keep theirs (60 with nginx and AWS),
# for who closes first loses no request. uvicorn's 5 lost some.
KEEP_ALIVE = 75


class _Server(uvicorn.Server):
    """Leaves signals to ``serve``: uvicorn would stop listening before what waits is answered."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Takes none."""
        yield


def serve(choice: EngineChoice, limits: Limits, host: str, port: int, root_path: str) -> None:
    """Serves until SIGTERM or Ctrl-C; then answers what was accepted.

    Raises:
        Esm2Error: the artifact cannot be loaded, or is not right on this machine.
        OutputError: the address cannot be listened at.
    """
    manifests.read(choice.artifact, check_files=False)
    with _listening(host, port) as listener:
        asyncio.run(_serve(Service(choice, limits), listener, root_path))


@contextlib.contextmanager
def _listening(host: str, port: int) -> Iterator[socket.socket]:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # Named, for asyncio sends small answers at once (TCP_NODELAY) where it reads "TCP" alone: else
    # a client that keeps its connection waits 40 ms for each.
    with socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((host, port))
            listener.listen(BACKLOG)
        except OSError as error:
            raise OutputError(
                f"cannot listen at {host}, port {port}: {error.strerror or error}. Give another "
                "--host or --port"
            ) from None
        yield listener


async def _serve(service: Service, listener: socket.socket, root_path: str) -> None:
    server = _Server(
        uvicorn.Config(
            app_of(service), log_config=None, access_log=False, lifespan="off",
            server_header=False, root_path=root_path, timeout_graceful_shutdown=5,
            timeout_keep_alive=KEEP_ALIVE,
        )
    )  # fmt: skip
    loop = asyncio.get_running_loop()
    ending = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, ending.set)
    reloads: set[asyncio.Task[None]] = set()

    def reload() -> None:
        task = loop.create_task(_reload(service))
        reloads.add(task)
        task.add_done_callback(reloads.discard)

    loop.add_signal_handler(signal.SIGHUP, reload)
    host, port = listener.getsockname()[:2]
    logger.info("listening at http://%s:%d", f"[{host}]" if ":" in host else host, port)
    listening = loop.create_task(server.serve(sockets=[listener]))
    loading = loop.create_task(service.load())
    ends = loop.create_task(ending.wait())
    try:
        await asyncio.wait({loading, ends, listening}, return_when=asyncio.FIRST_COMPLETED)
        if loading.done():
            loading.result()  # raises what was wrong with the artifact
            await asyncio.wait({ends, listening}, return_when=asyncio.FIRST_COMPLETED)
        logger.info("ending: %d requests are answered first", service.accepted)
        if not await service.drain():
            logger.warning("%d requests were not answered in time", service.accepted)
    finally:
        server.should_exit = True
        ends.cancel()
        await asyncio.gather(listening, ends, *reloads, return_exceptions=True)
        await asyncio.to_thread(service.close)
    logger.info("ended")


async def _reload(service: Service) -> None:
    try:
        await service.load()
    except Esm2Error as error:
        logger.error("not reloaded, what served before goes on: %s", error)
