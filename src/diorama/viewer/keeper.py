"""The controls that keep a scene: saved, exported, or sent to the visitor's own machine."""

from collections.abc import Callable
from typing import Any

from diorama.scene import Scene
from diorama.viewer.line import Line
from diorama.viewer.shelf import KINDS, Shelf


class Keeper:
    """A folder of controls, hidden until there is a scene."""

    def __init__(self, client: Any, shelf: Shelf) -> None:
        self.client, self.shelf = client, shelf
        self.scene: Scene | None = None
        gui = client.gui
        with gui.add_folder("Keep the scene", visible=False) as self.folder:
            self.name = gui.add_text("name", "scene", hint=f"Below {shelf.folder} on the machine that made it.")
            self.save = gui.add_button("Save", icon="device-floppy", hint="A folder that every command opens again.")
            self.save.on_click(lambda _: self.keep(shelf.save))
            self.kind = gui.add_dropdown("export as", KINDS)
            self.export = gui.add_button("Export", icon="file-export", hint="Into the same folder.")
            self.export.on_click(lambda _: self.keep(lambda scene, name: shelf.export(scene, name, self.kind.value)))
            self.download = gui.add_button("Download", icon="download", hint="To the machine of this browser.")
            self.download.on_click(lambda _: self.keep(self._send))
            self.line = Line(client)

    def take(self, scene: Scene) -> None:
        """This is the scene now, with a name that is free."""
        self.scene, self.name.value = scene, self.shelf.free_name(self.name.value.strip() or "scene")
        self.line.say("")
        self.folder.visible = True

    def keep(self, write: Callable[[Scene, str], object]) -> None:
        """Write the scene under the visitor's name for it, and say where."""
        with self.line.errors():
            if self.scene is None:
                raise ValueError("nothing is made yet; accepted is a scene")
            self.line.say("Writing …")
            self.line.say(f"Written: {write(self.scene, self.name.value)}")

    def _send(self, scene: Scene, name: str) -> str:
        file, content = self.shelf.packed(scene, name, self.kind.value)
        self.client.send_file_download(file, content, save_immediately=True)
        return f"{file}, {len(content) / 2**20:.1f} MB, on its way to you"
