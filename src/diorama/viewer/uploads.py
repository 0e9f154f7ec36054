"""Files that a visitor's browser sends: several at a time, and never more bytes than are accepted."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from importlib.resources import files
from typing import Any

from diorama.viewer.photos import plain_name

TOGETHER = 4  # times the limit of one file that may be on their way from one visitor at once


class Intake:
    """An upload button that also takes dropped files, whose bytes are counted as they come.

    viser keeps all parts of a file until it is whole, whatever its size, and hands over the newest file only. So its
    two handlers are called from here, with what is acceptable.
    """

    def __init__(
        self, client: Any, limit: int, arrived: Callable[[str, bytes], None], refused: Callable[[str], None]
    ) -> None:
        """`arrived` is called with one file's name and bytes after the other, `refused` with one line."""
        from viser import _messages

        self.gui, self.limit, self.arrived, self.refused = client.gui, limit, arrived, refused
        self.acknowledge = _messages.FileTransferPartAck
        self.coming: dict[str, int] = {}  # transfer -> bytes that it may still bring
        self.readers = ThreadPoolExecutor(1, "photos")  # one, so that photos keep their order
        page = (files("diorama.viewer") / "drop.html").read_text(encoding="utf-8")
        self.gui.add_html(page.replace("{MEGABYTES}", _megabytes(limit)).replace("{BYTES}", str(limit)))
        self.button = self.gui.add_upload_button("Add a photo", mime_type="image/*")
        for kind, theirs, ours in (
            (_messages.FileTransferStartUpload, self.gui._handle_file_transfer_start, self._begun),
            (_messages.FileTransferPart, self.gui._handle_file_transfer_part, self._part),
        ):
            self.gui._websock_interface.unregister_handler(kind, theirs)
            self.gui._websock_interface.register_handler(kind, ours)

    def end(self) -> None:
        """Read nothing more."""
        self.readers.shutdown(wait=False, cancel_futures=True)

    def _begun(self, client_id: int, message: Any) -> None:
        """A file is announced. Called, as the next, by viser's event loop, one message after the other."""
        size = int(message.size_bytes)
        if size > self.limit or size < 0 or size + sum(self.coming.values()) > TOGETHER * self.limit:
            done = self.acknowledge(message.source_component_uuid, message.transfer_uuid, size, size)
            self.gui._websock_interface.queue_message(done)  # else the browser waits for ever
            most = f"{_megabytes(self.limit)} MB a file, {_megabytes(TOGETHER * self.limit)} MB at once"
            self.refused(f"{plain_name(message.filename)}: {_megabytes(size)} MB; accepted are up to {most}")
            return
        self.coming[message.transfer_uuid] = size
        self.gui._handle_file_transfer_start(client_id, message)
        self._perhaps_whole(message.transfer_uuid)

    def _part(self, client_id: int, message: Any) -> None:
        if message.transfer_uuid not in self.coming:
            return
        self.coming[message.transfer_uuid] -= len(message.content)
        if self.coming[message.transfer_uuid] < 0:  # more than was announced
            del self.coming[message.transfer_uuid]
            self.gui._current_file_upload_states.pop(message.transfer_uuid, None)
            return
        self.gui._handle_file_transfer_part(client_id, message)
        self._perhaps_whole(message.transfer_uuid)

    def _perhaps_whole(self, transfer: str) -> None:
        if self.coming[transfer] == 0 and transfer not in self.gui._current_file_upload_states:
            del self.coming[transfer]
            file = self.button.value  # before the next message can bring another
            self.readers.submit(self.arrived, file.name, file.content)


def _megabytes(count: int) -> str:
    return f"{round(count / 2**20, 2):g}"
