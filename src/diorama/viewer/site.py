"""A page that viser serves, and its address: for this machine unless told otherwise, and never in public."""

import contextlib
import errno
import io
import socket
import threading
from abc import ABC, abstractmethod
from collections.abc import Iterator
from html import escape
from typing import Any

HOST, PORT = "127.0.0.1", 8080


class Site(ABC):
    """A running page: it serves until `stop`, in threads of its own. What it shows is its subclass's."""

    def __init__(self, host: str = HOST, port: int = PORT) -> None:
        """ValueError, in one line, for an address that cannot be had; port 0 takes any free one."""
        import viser

        check_address(host, port)
        with _hushed():
            self.server: Any = viser.ViserServer(host=host, port=port, label="diorama", verbose=False)
        if port and self.server.get_port() != port:  # viser takes the next one instead
            self.stop()
            raise ValueError(_taken(host, port))
        # A visitor could ask for a public tunnel to this machine; nobody can.
        self.server.request_share_url = lambda *_, **__: None
        self.visits: dict[int, Any] = {}
        self.over = threading.Event()
        self.server.gui.configure_theme(show_share_button=False, show_logo=False, control_width="large")
        self._place_camera()
        self.server.on_client_connect(self._came)
        self.server.on_client_disconnect(self._left)

    @property
    def url(self) -> str:
        """Where a browser of this machine finds it."""
        host = self.server.get_host()
        shown = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, f"[{host}]" if ":" in host else host)
        return f"http://{shown}:{self.server.get_port()}"

    def wait(self) -> None:
        """Serve until the keyboard interrupts or `stop` is called."""
        try:
            while not self.over.wait(0.2):  # a wait without an end could not be interrupted on every system
                pass
        finally:
            self.stop()

    def stop(self) -> None:
        """End it; a second time does nothing."""
        for visit in list(getattr(self, "visits", {}).values()):
            visit.end()
        if not getattr(self, "stopped", False):
            self.stopped = True
            with _hushed():
                self.server.stop()
        if hasattr(self, "over"):
            self.over.set()

    def _repr_html_(self) -> str:
        """A notebook shows it in place."""
        return f'<iframe src="{escape(self.url)}" width="100%" height="640" style="border:0"></iframe>'

    @abstractmethod
    def _place_camera(self) -> None:
        """Where visitors begin."""

    @abstractmethod
    def _visit(self, client: Any) -> Any:
        """What a new visitor gets, with `end`."""

    def _came(self, client: Any) -> None:
        self.visits[client.client_id] = self._visit(client)

    def _left(self, client: Any) -> None:
        visit = self.visits.pop(client.client_id, None)
        if visit is not None:
            visit.end()


def check_address(host: str, port: int) -> None:
    """ValueError unless a server can listen there; viser itself would look for another port, without an end."""
    if not 0 <= port <= 65535:
        raise ValueError(f"port {port}: accepted is 0 (any free one) to 65535")
    try:
        family, kind, number, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, number) as trial:
            trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            trial.bind(address)
            trial.listen()
    except socket.gaierror as error:
        raise ValueError(f"host {host!r}: no address of that name ({error.strerror})") from None
    except PermissionError:
        raise ValueError(f"port {port}: this user may not listen there; accepted are 1024 to 65535, or 0") from None
    except OSError as error:
        in_use = error.errno == errno.EADDRINUSE
        raise ValueError(_taken(host, port) if in_use else f"host {host!r}: {error.strerror}") from None


def _taken(host: str, port: int) -> str:
    return f"port {port} of {host} is taken by another program; give another, or 0 for any free one"


@contextlib.contextmanager
def _hushed() -> Iterator[None]:
    """viser prints where it listens and that it stopped; the caller says so in its own words."""
    with contextlib.redirect_stdout(io.StringIO()):
        yield
