"""The live view: its pictures are the pipeline's, its thread draws the newest pose."""

import threading
from dataclasses import replace

import pytest
import torch

from diorama.pipelines.decoding import in_frames
from diorama.viewer.detail import BLENDED, COARSE, LEVELS, PLAIN, SWIFT
from diorama.viewer.live import LiveDecoder, LiveView, Picture
from diorama.viewer.poses import pose_of


@pytest.mark.parametrize("which", ["pipeline", "forgetful"])
def test_a_picture_is_what_the_pipeline_renders(request, which, scene):
    model = request.getfixturevalue(which)
    decoder = LiveDecoder(model, scene)
    camera = scene.views.cameras[2]
    picture, wanted = decoder.picture(camera), model.render(scene, camera)
    assert torch.allclose(picture.image, wanted.images[0], atol=1e-6)
    # The pipeline's depth is read back from points, which far from the origin are rounded to so much.
    assert torch.allclose(picture.depth, wanted.depth[0], rtol=1e-4, atol=1e-6 * float(wanted.points.abs().max()))


def test_the_memory_matters(pipeline, forgetful, scene):
    camera = scene.views.cameras[2]
    with_it, without = (LiveDecoder(model, scene).picture(camera).image for model in (pipeline, forgetful))
    assert (with_it - without).abs().max() > 1e-3
    swift = LiveDecoder(pipeline, scene).picture(camera, SWIFT)
    assert torch.equal(swift.image, without), "while the camera moves nothing is looked up"


def test_blended_pictures_are_weighted_means_of_shifted_ones(forgetful, scene):
    decoder, camera = LiveDecoder(forgetful, scene), scene.views.cameras[2]
    total, share = torch.zeros(3, 32, 32), torch.zeros(32, 32)
    inside = torch.tensor([1, 3, 5, 7, 7, 5, 3, 1]).repeat(5)
    for row in (0, 4):
        for column in (0, 4):
            shifted = in_frames([camera.cropped(-row, -column, 40, 40)], [decoder.frame])
            one = decoder.autoencoder.decode_images(decoder.cache, shifted.plucker())[0, 0].detach()
            weight = torch.outer(inside, inside).float()
            total += (one * weight)[:, row : row + 32, column : column + 32]
            share += weight[row : row + 32, column : column + 32]
    blended = decoder.picture(camera, BLENDED)
    assert torch.allclose(blended.image, (total / share).clamp(0, 1), atol=1e-5)
    assert blended.depth.shape == (32, 32)


def test_a_picture_that_nobody_wants_any_more_is_given_up(forgetful, scene):
    decoder, camera, asked = LiveDecoder(forgetful, scene), scene.views.cameras[2], []
    decode, shapes = decoder.autoencoder.decode, []
    decoder.autoencoder.decode = lambda cache, rays: shapes.append(rays.shape) or decode(cache, rays)
    try:
        assert decoder.picture(camera, BLENDED, lambda: asked.append(0) or len(asked) < 3) is None
    finally:
        del decoder.autoencoder.decode
    assert [shape[1] for shape in shapes] == [1, 1], "two of four were drawn, each alone"
    assert decoder.picture(camera, BLENDED) is not None, "and the next one is not kept waiting"


def test_who_moves_on_does_not_wait_for_the_fine_picture(slow, scene):
    """At rest the decoder is told to stop as soon as a new pose is there."""
    shown, begun = [], threading.Event()

    def picture(cameras, level, wanted=None):
        if level == BLENDED:
            begun.set()
            while wanted():
                threading.Event().wait(0.01)
            return None
        return Picture(torch.zeros(3, 8, 8), torch.ones(8, 8))

    slow.picture = picture
    view = LiveView(slow, lambda _, level, seconds: shown.append(level), shown.append)
    pose = pose_of(scene.views.cameras[0])
    view.look(pose)
    assert begun.wait(60)
    begun.clear()
    view.look(pose._replace(position=(1.0, 0.0, 0.0)))
    assert begun.wait(60), "the second pose was not drawn"
    assert len(shown) == 2 and LEVELS[-1] not in shown
    view.end()
    view.thread.join(60)
    assert not view.thread.is_alive()


def test_the_camera_of_a_window_of_the_views_own_shape_is_the_views_own(pipeline, scene):
    camera = scene.views.cameras[1]
    mine = LiveDecoder(pipeline, scene).cameras(pose_of(camera), PLAIN)
    assert (mine.height, mine.width) == (32, 32)
    assert torch.allclose(mine.intrinsics.float(), camera.intrinsics, rtol=1e-5)
    wide = LiveDecoder(pipeline, scene).cameras(pose_of(camera)._replace(aspect=2.0), COARSE)
    assert (wide.height, wide.width) == (16, 32)


def test_what_cannot_be_decoded_is_refused_in_one_line(pipeline, scene):
    with pytest.raises(ValueError, match="holds no latents"):
        LiveDecoder(pipeline, replace(scene, latents=None))
    with pytest.raises(ValueError, match="scene latents of shape"):
        LiveDecoder(pipeline, replace(scene, latents=scene.latents[:2]))


class Slow(LiveDecoder):
    """A decoder that waits until it is let go, and remembers what it drew."""

    def __init__(self, decoder):
        self.patch, self.decoder, self.go, self.drawn, self.trouble = 8, decoder, threading.Semaphore(0), [], None
        self.recalled = decoder.recalled

    def cameras(self, pose, level):
        return self.decoder.cameras(pose, level)

    def picture(self, cameras, level, wanted=None):
        assert self.go.acquire(timeout=20)
        if self.trouble:
            raise self.trouble
        self.drawn.append((float(cameras.centers[0, 0]), level.shifts))
        return Picture(torch.zeros(3, 8, 8), torch.ones(8, 8))


@pytest.fixture
def slow(pipeline, scene):
    return Slow(LiveDecoder(pipeline, scene))


def test_the_newest_pose_is_drawn_and_then_finely(slow, scene):
    shown, all_shown, failures = [], threading.Event(), []

    def show(_, level, seconds):
        shown.append(level)
        if level == LEVELS[-1]:
            all_shown.set()

    pose = pose_of(scene.views.cameras[0])
    places = [pose._replace(position=(float(x), 0.0, 0.0)) for x in range(4)]
    view = LiveView(slow, show, failures.append)
    view.look(places[0])
    while view.pose is not None:  # until the first one is being drawn
        threading.Event().wait(0.01)
    for place in places[1:]:
        view.look(place)
    for _ in range(3):
        slow.go.release()
    assert all_shown.wait(20)
    # Those between were never drawn; the last one twice, the second time finely.
    assert slow.drawn == [(0.0, 1), (3.0, 1), (3.0, 2)]
    assert shown[-1] == LEVELS[-1]
    slow.trouble = RuntimeError("out of memory")
    view.look(places[0])
    slow.go.release()
    while not failures:
        threading.Event().wait(0.01)
    assert str(failures[0]) == "out of memory"
    assert view.thread.is_alive(), "one picture that fails is not the end"
    view.end()
    view.thread.join(20)
    assert not view.thread.is_alive()
