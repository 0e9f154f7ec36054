"""`diorama studio`: from photos and a path to a scene in the browser, one job at a time."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from diorama.viewer.desk import Desk
from diorama.viewer.job import Job
from diorama.viewer.site import HOST, PORT, Site
from diorama.viewer.workshop import Workshop

UPLOAD = 32 * 2**20  # bytes of one file


class Studio(Site):
    """The page on which scenes are made: every visitor has an own desk, all share one workshop."""

    def __init__(
        self,
        models: Sequence[str] = (),
        out: str | Path = "scenes",
        *,
        host: str = HOST,
        port: int = PORT,
        device: str = "auto",
        upload: int = UPLOAD,
    ) -> None:
        """`models` are offered beside the embedded ones; `upload` is what a photo's file may have in bytes.

        ValueError, in one line, for models, devices, folders and addresses that there are not.
        """
        self.upload, self.workshop = upload, Workshop(models, out, device, self._job_changed)
        super().__init__(host, port)

    def stop(self) -> None:
        """End it, and the job that runs."""
        self.workshop.worker.stop()
        super().stop()

    def _job_changed(self, job: Job | None) -> None:
        for desk in list(self.visits.values()):
            desk.show_job(job)

    def _place_camera(self) -> None:
        """Beside and above the first camera, so that it and the path are seen; up is where photos have it."""
        camera = self.server.initial_camera
        self.server.scene.set_up_direction((0.0, -1.0, 0.0))
        camera.position, camera.look_at = (1.2, -1.1, -1.8), (0.1, 0.0, 0.5)
        camera.fov = math.radians(50)
        camera.near, camera.far = 0.01, 1000.0

    def _visit(self, client: Any) -> Desk:
        return Desk(client, self.workshop, self.upload)

    def _came(self, client: Any) -> None:
        super()._came(client)
        if (desk := self.visits.get(client.client_id)) is not None:
            desk.show_job(self.workshop.worker.job)
