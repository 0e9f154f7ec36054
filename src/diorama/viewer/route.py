"""The controls of the camera path: a movement, or keyframes that the visitor flies to."""

from collections.abc import Callable
from typing import Any

from diorama.viewer.line import Line
from diorama.viewer.poses import Pose
from diorama.viewer.wish import FREE, KEYFRAMES, MOST_KEYFRAMES, MOST_VIEWS, PRESETS, amount_of

ADD, DROP = "add here", "remove last"
START, OUTSIDE = "at the start", "outside"


class Route:
    """A folder of controls; `changed` is called when the path is another."""

    def __init__(self, client: Any, changed: Callable[[], None], move: Callable[[str], None]) -> None:
        """`move` puts the visitor to `START` or `OUTSIDE`."""
        self.client, self.changed = client, changed
        self.keyframes: list[Pose] = []
        gui = client.gui
        with gui.add_folder("Camera path"):
            self.path = gui.add_dropdown("path", (*PRESETS, KEYFRAMES), hint="Green in the window.")
            self.path.on_update(lambda _: self.choose())
            self.amount = gui.add_number("amount", 0.0, hint="How far it goes. Negative: the other way.")
            self.flown = gui.add_button_group(
                "keyframe", (ADD, DROP), visible=False, hint="The view that you have now."
            )
            self.flown.on_click(lambda _: self.keyframe(self.flown.value))
            self.line = Line(client)
            self.views = gui.add_number("views", 16, min=1, max=MOST_VIEWS, step=1)
            self.fov = gui.add_number(
                "field of view", 60.0, min=1.0, max=170.0, step=1.0, hint="Degrees along the photo's longer side."
            )
            for control in (self.amount, self.views, self.fov):
                control.on_update(lambda _: changed())
            self.stand = gui.add_button_group("stand", (START, OUTSIDE))
            self.stand.on_click(lambda _: move(self.stand.value))

    @property
    def asked(self) -> dict[str, Any]:
        """What the controls say, as `Wish` takes it."""
        return {
            "path": self.path.value,
            "amount": float(self.amount.value),
            "keyframes": tuple(self.keyframes),
            "views": int(self.views.value),
            "fov": float(self.fov.value),
        }

    def offer(self, free: bool) -> None:
        """Let the visitor leave the cameras to the model, or not."""
        self.path.options = (*PRESETS, KEYFRAMES, *((FREE,) if free else ()))

    def choose(self) -> None:
        """Show the controls of this kind of path, at their defaults."""
        path = self.path.value
        amount = amount_of(path) if path in PRESETS else None
        self.amount.visible, self.flown.visible = amount is not None, path == KEYFRAMES
        if amount is not None:
            self.amount.label, self.amount.value = amount
        self._count()

    def keyframe(self, act: str) -> None:
        """Add the visitor's camera to the path, or take the last one away."""
        with self.line.errors():
            if act == DROP:
                del self.keyframes[-1:]
            elif len(self.keyframes) >= MOST_KEYFRAMES:
                raise ValueError(f"{MOST_KEYFRAMES} keyframes are here; accepted are no more")
            else:
                self.keyframes.append(pose_now(self.client))
            self._count()

    def _count(self) -> None:
        count = len(self.keyframes)
        told = {
            KEYFRAMES: f"{count} keyframe{'s' * (count != 1)} after the start. Fly to a view, then add it.",
            FREE: "The model finds the cameras.",
        }
        self.line.say(told.get(self.path.value, ""))
        self.changed()


def pose_now(client: Any) -> Pose:
    """Where a visitor stands."""
    camera = client.camera
    return Pose(tuple(camera.wxyz), tuple(camera.position), float(camera.fov), float(camera.aspect))
