"""One visitor's desk in the studio: the controls that make a scene, and the scene once it is made."""

import threading
from dataclasses import replace
from typing import Any

from diorama.viewer.job import Job, Outcome
from diorama.viewer.keeper import Keeper
from diorama.viewer.line import Line, words
from diorama.viewer.photos import MOST_PHOTOS, Photo, read_photo, strip
from diorama.viewer.poses import Pose, pose_of, showing
from diorama.viewer.preview import Preview
from diorama.viewer.route import START, Route, pose_now
from diorama.viewer.uploads import Intake
from diorama.viewer.visit import Visit
from diorama.viewer.wish import FREE, MOST_SEED, MOST_STEPS, Wish
from diorama.viewer.workshop import Result, Workshop

SEVERAL = "The model knows the one that it starts from: without cameras it cannot place the others."


class Desk:
    """A visitor's own photos, wishes and result; the worker is everybody's."""

    def __init__(self, client: Any, workshop: Workshop, upload: int) -> None:
        self.client, self.workshop = client, workshop
        self.photos: list[Photo] = []
        self.result: Result | None = None
        self.visit: Visit | None = None
        self.gone, self.ready, self.watching = False, False, False
        self.turn = threading.RLock()  # callbacks come from many threads
        self.outside = pose_now(client)
        self.preview = Preview(client)
        with client.atomic():
            tabs = client.gui.add_tab_group()
            with tabs.add_tab("Make"):
                self._add_photos(upload)
                self._add_making()  # above what has good defaults: a phone shows no more than this at once
                self.keeper = Keeper(client, workshop.shelf)
                self.route = Route(client, self.redraw, self.move)
                with client.gui.add_folder("Sampling"):
                    hint = "Another seed, another scene."
                    self.seed = client.gui.add_number("seed", 0, min=0, max=MOST_SEED, step=1, hint=hint)
                    self.steps = client.gui.add_number("steps", 50, min=1, max=MOST_STEPS, step=1)
            self.look = tabs.add_tab("Look")
            with self.look:
                self.looking = client.gui.add_folder(None)
                with self.looking:
                    client.gui.add_markdown("*Nothing is made yet.*")
        self.ready = True
        self.choose_model()
        self.route.choose()

    def end(self) -> None:
        """The visitor has gone; a job that was begun goes on, and its scene is the next visitor's to look at."""
        with self.turn:
            self.gone = True
            self.intake.end()
            if self.visit is not None:
                self.visit.end()

    # What stands on it

    def _add_photos(self, upload: int) -> None:
        gui = self.client.gui
        self.intake = Intake(self.client, upload, self.add_photo, self.refuse)
        self.shown: Any = gui.add_folder(None)
        self.strip: Any = None
        self.first = gui.add_dropdown("start from", ("-",), visible=False, hint="The photo at the path's start.")
        self.first.on_update(lambda _: self.redraw())
        self.note = gui.add_html("")
        self.clear = gui.add_button("Remove the photos", visible=False, icon="trash", color="gray")
        self.clear.on_click(lambda _: self.remove_photos())
        self.model = gui.add_dropdown("model", tuple(self.workshop.offers))
        self.model.on_update(lambda _: self.choose_model())
        self.prompt = gui.add_text("prompt", "", multiline=True, visible=False, hint="What the scene shows, in words.")

    def _add_making(self) -> None:
        gui = self.client.gui
        self.go = gui.add_button("Generate", color="green", icon="sparkles")
        self.go.on_click(lambda _: self.generate())
        self.again = gui.add_button("Another seed", visible=False, icon="arrows-shuffle")
        self.again.on_click(lambda _: self.generate(another=True))
        self.cancel = gui.add_button("Cancel", color="red", visible=False, icon="x")
        self.cancel.on_click(lambda _: self.cancel_job())
        self.bar = gui.add_progress_bar(0.0, visible=False, animated=True)
        self.line = Line(self.client)
        self.old = gui.add_button("Show the last scene", visible=False, hint="Made here before you came.")
        self.old.on_click(lambda _: self.show_last())

    # Photos

    def add_photo(self, name: str, content: bytes) -> None:
        """Take a file that came, or say in one line why not."""
        with self.turn, self.line.errors():
            if len(self.photos) >= MOST_PHOTOS:
                raise ValueError(f"{name}: {MOST_PHOTOS} photos are here; accepted are no more")
            photo = read_photo(name, content)
            self.photos.append(photo)
            if len(self.photos) == 1 and photo.fov is not None:
                self.route.fov.value = round(photo.fov, 1)
            self.show_photos()

    def refuse(self, why: str) -> None:
        """Say why a file was not taken."""
        if not self.gone:
            self.line.error(why)

    def remove_photos(self) -> None:
        """Begin without any."""
        with self.turn:
            self.photos.clear()
            self.show_photos()

    def show_photos(self) -> None:
        """Show all photos small, and the path from the one that it starts from."""
        with self.turn:
            self.first.options = tuple(f"{i + 1}: {photo.name}" for i, photo in enumerate(self.photos)) or ("-",)
            self.first.visible, self.clear.visible = len(self.photos) > 1, bool(self.photos)
            if self.strip is not None:
                self.strip.remove()
                self.strip = None
            if self.photos:
                with self.shown:
                    self.strip = self.client.gui.add_image(strip(self.photos), jpeg_quality=85)
            self.redraw()

    # What is wished for

    def wish(self) -> Wish:
        """What the controls say."""
        with self.turn:
            prompt = self.prompt.value if self.workshop.offers[self.model.value].prompted else ""
            seed, steps = int(self.seed.value), int(self.steps.value)
            return Wish(self._in_order(), prompt, seed=seed, steps=steps, **self.route.asked)

    def _in_order(self) -> tuple[Photo, ...]:
        """All photos, that of the path's start in front."""
        if len(self.photos) < 2 or self.route.path.value == FREE:
            return tuple(self.photos)
        place = self.first.options.index(self.first.value)
        return (self.photos[place], *self.photos[:place], *self.photos[place + 1 :])

    def choose_model(self) -> None:
        """Show what this model can be asked for."""
        offer = self.workshop.offers[self.model.value]
        self.steps.value, self.prompt.visible = offer.steps, offer.prompted
        self.route.offer(offer.prompted)
        self.redraw()

    def redraw(self) -> None:
        """Draw the path that is wished for."""
        with self.turn:
            if not self.ready or self.gone:
                return
            wish = self.wish()
            self.note.content = words(SEVERAL if len(wish.photos) > 1 and wish.path != FREE else "")
            try:
                cameras = wish.checked().cameras
            except ValueError:  # said when it is asked for; here it may be half typed
                self.preview.hide()
            else:
                self.preview.show(cameras, wish.photos[0].image if wish.photos else None)

    def move(self, where: str) -> None:
        """Stand at the path's first camera, or where path and photo are seen from outside."""
        with self.turn, self.line.errors():
            start = pose_of(self.wish().checked().start)
            self._stand(showing(start, float(self.client.camera.aspect)) if where == START else self.outside)

    def _stand(self, pose: Pose) -> None:
        if self.visit is not None:
            self.visit.move_to(pose)
            return
        camera = self.client.camera
        with self.client.atomic():
            camera.position, camera.wxyz, camera.fov = pose.position, pose.wxyz, pose.fov

    # Making it

    def generate(self, another: bool = False) -> None:
        """Begin a job, unless one runs."""
        with self.turn, self.line.errors():
            wish = self.wish()
            if another:
                wish = replace(wish, seed=(wish.seed + 1) % (MOST_SEED + 1))
            self.workshop.begin(self.model.value, wish, self.ended, self)
            self.seed.value = wish.seed

    def cancel_job(self) -> None:
        """End the job, if it is this visitor's or nobody's."""
        job = self.workshop.worker.job
        if job is not None and self._may_cancel(job):
            job.cancel()

    def _may_cancel(self, job: Job) -> bool:
        return job.owner is self or getattr(job.owner, "gone", True)

    def show_job(self, job: Job | None) -> None:
        """Show how far the worker is."""
        if self.gone:
            return
        mine = job is not None and job.owner is self
        with self.client.atomic():
            self.bar.visible, self.cancel.visible = job is not None, job is not None and self._may_cancel(job)
            self.go.visible, self.again.visible = not mine, not mine and self.result is not None
            self.old.visible = self.result is None and self.workshop.last is not None
            if job is not None:
                self.bar.animated, self.bar.value = job.share is None, 100.0 * (1.0 if job.share is None else job.share)
            if job is not None and (mine or not self.line.wrong):
                said = job.words if mine else f"another job is running: {job.words}"
                self.line.say(said[0].upper() + said[1:])
            elif job is None and self.watching and not self.line.wrong:
                self.line.say("The other job has ended.")
        self.watching = job is not None and not mine

    def ended(self, outcome: Outcome) -> None:
        """The job of this visitor has ended."""
        if self.gone:
            return
        if outcome.result is not None:
            self.show(outcome.result)
            self.line.say(f"Made with seed {outcome.result.wish.seed}.")
        elif outcome.cancelled:
            self.line.say("Cancelled.")
        else:
            self.line.error(outcome.error)

    def show_last(self) -> None:
        """Show the scene that was made before this visitor came."""
        if self.workshop.last is not None:
            self.show(self.workshop.last)

    def show(self, result: Result) -> None:
        """Put a scene into the window in place of the one before."""
        with self.turn:
            if self.gone:
                return
            moves = self.result is None or self.result.wish.path != result.wish.path
            if self.visit is not None:
                self.visit.remove()
            self.looking.remove()
            self.preview.hide()  # the scene's own cameras stand there now
            self.client.camera.near, self.client.camera.far = result.stage.planes
            with self.look:
                self.looking = self.client.gui.add_folder(None)
                with self.looking:
                    self.visit = Visit(self.client, result.stage)
            self.result = result
            if moves:
                self.visit.move_to(result.stage.poses[0])
            self.old.visible, self.again.visible = False, True
            self.keeper.take(result.scene)
