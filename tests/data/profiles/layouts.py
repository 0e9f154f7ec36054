"""Scenes written in the true layout and encoding of each data set that has a profile."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
from scipy.spatial.transform import Rotation

from . import encodings as e

LAYOUTS: dict[str, Callable[[Path], Path]] = {}


def layout(function: Callable[[Path], Path]) -> Callable[[Path], Path]:
    """A function that writes a scene below a data set's folder and returns the scene's, under its profile's name."""
    LAYOUTS[function.__name__] = function
    return function


def coded(number: int, per_unit: float, sky: int | None = None) -> np.ndarray:
    codes = (e.depth(number) * per_unit).round().astype(np.uint16)
    codes[e.INVALID] = 0
    if sky is not None:
        codes[e.SKY] = sky
    return codes


def floating(number: int, sky: float | None = None) -> np.ndarray:
    values = e.depth(number)
    values[e.INVALID] = 0
    if sky is not None:
        values[e.SKY] = sky
    return values


def cameras(key_pose: str, key_intrinsics: str, **more: np.ndarray) -> list[dict]:
    return [{key_pose: pose.astype(np.float32), key_intrinsics: e.integer_centers(), **more} for pose in e.poses()]


@layout
def cut3r_co3d(root: Path) -> Path:
    scene = root / "apple" / "110_13051_23361"
    for n, camera in enumerate(cameras("camera_pose", "camera_intrinsics", maximum_depth=np.float32(8.0))):
        e.photo(scene / f"images/frame{n + 1:06d}.jpg", n)
        e.npz(scene / f"images/frame{n + 1:06d}.npz", **camera)
        e.png(scene / f"depths/frame{n + 1:06d}.jpg.geometric.png", floating(n) / 8 * 65535)
        e.png(scene / f"masks/frame{n + 1:06d}.png", np.full((e.HEIGHT, e.WIDTH), 255, np.uint8))
    return scene


@layout
def cut3r_wildrgbd(root: Path) -> Path:
    scene = root / "apple" / "scenes" / "scene_000"
    for n, camera in enumerate(cameras("camera_pose", "camera_intrinsics")):
        e.photo(scene / f"rgb/{n:05d}.jpg", n)
        e.npz(scene / f"metadata/{n:05d}.npz", **camera)
        e.png(scene / f"depth/{n:05d}.png", coded(n, 1000))
        e.png(scene / f"masks/{n:05d}.png", np.full((e.HEIGHT, e.WIDTH), 255, np.uint8))
    return scene


def arkit(scene: Path, depths: str, metadata: str) -> Path:
    names = [f"41048190_{3414.5 + 0.1 * n:.3f}.png" for n in range(e.FRAMES)]
    k = e.integer_centers()
    rows = np.array([[640, 480, k[0, 0], k[1, 1], k[0, 2], k[1, 2]]] * e.FRAMES)
    for n, name in enumerate(names):
        e.photo(scene / "vga_wide" / name.replace(".png", ".jpg"), n)
        e.png(scene / depths / name, coded(n, 1000))
    order = [2, 0, 1]  # rows need not be in the order of the names
    more = {"image_collection": np.array({0: [(1, 0.5)]}, dtype=object)}  # a pickle, which nothing here may open
    e.npz(
        scene / metadata,
        images=np.array(names)[order],
        intrinsics=rows,
        trajectories=np.stack(e.poses())[order],
        **more,
    )
    return scene


@layout
def cut3r_arkitscenes(root: Path) -> Path:
    return arkit(root / "Training/41048190", "lowres_depth", "new_scene_metadata.npz")


@layout
def cut3r_arkitscenes_highres(root: Path) -> Path:
    return arkit(root / "Validation/41048190", "highres_depth", "scene_metadata.npz")


@layout
def cut3r_scannet(root: Path) -> Path:
    scene = root / "scans_train" / "scene0000_00"
    for n, camera in enumerate(cameras("pose", "intrinsics")):
        e.photo(scene / f"color/{n:05d}.jpg", n)
        e.png(scene / f"depth/{n:05d}.png", coded(n, 1000))
        e.npz(scene / f"cam/{n:05d}.npz", **camera)
    return scene


@layout
def cut3r_scannetpp(root: Path) -> Path:
    scene, names = root / "0a5c013435", ["DSC00001", "DSC00002", "frame_000010"]
    for n, name in enumerate(names):
        e.photo(scene / f"images/{name}.jpg", n)
        e.png(scene / f"depth/{name}.png", coded(n, 1000))
    stacked = {"trajectories": np.stack(e.poses()), "intrinsics": np.stack([e.integer_centers()] * e.FRAMES)}
    e.npz(scene / "new_scene_metadata.npz", images=np.array(names), **stacked)
    return scene


def beside(scene: Path, keys: tuple[str, str], depths: Callable[[Path, int], None], photo: str = "png") -> Path:
    """NNNNNN_rgb, _depth and _cam.npz in one folder."""
    for n, camera in enumerate(cameras(*keys)):
        e.photo(scene / f"{n:06d}_rgb.{photo}", n)
        e.npz(scene / f"{n:06d}_cam.npz", **camera)
        depths(scene / f"{n:06d}_depth", n)
    return scene


@layout
def cut3r_hypersim(root: Path) -> Path:
    write = lambda path, n: e.npy(path.with_suffix(".npy"), floating(n))  # noqa: E731
    return beside(root / "ai_001_001" / "cam_00", ("pose", "intrinsics"), write)


@layout
def cut3r_tartanair(root: Path) -> Path:
    write = lambda path, n: e.npy(path.with_suffix(".npy"), floating(n, sky=1.0e4))  # noqa: E731
    return beside(root / "abandonedfactory/Easy/P000", ("camera_pose", "camera_intrinsics"), write)


@layout
def cut3r_vkitti2(root: Path) -> Path:
    write = lambda path, n: e.png(path.with_suffix(".png"), coded(n, 100, sky=65535))  # noqa: E731
    return beside(root / "Scene01/clone/Camera_0", ("camera_pose", "camera_intrinsics"), write, "jpg")


@layout
def cut3r_re10k(root: Path) -> Path:
    for n, camera in enumerate(cameras("pose", "intrinsics")):
        stamp = 9_900_000 + 100_000 * n  # 9900000, 10000000: sorted by value
        e.photo(root / f"0000cc6d8b108390/rgb/{stamp}.png", n)
        e.npz(root / f"0000cc6d8b108390/cam/{stamp}.npz", **camera)
    return root / "0000cc6d8b108390"


@layout
def cut3r_dl3dv(root: Path) -> Path:
    scene = root / "1K" / "0a1b7c20a92c"
    for n, camera in enumerate(cameras("pose", "intrinsic")):
        e.photo(scene / f"dense/rgb/frame_{n + 1:05d}.png", n)
        e.npz(scene / f"dense/cam/frame_{n + 1:05d}.npz", **camera)
        e.npy(scene / f"dense/depth/frame_{n + 1:05d}.npy", e.depth(n))
        for kind, place in (("sky_mask", e.SKY), ("outlier_mask", e.INVALID)):
            mask = np.zeros((e.HEIGHT, e.WIDTH), np.uint8)
            mask[place] = 255
            e.png(scene / f"dense/{kind}/frame_{n + 1:05d}.png", mask)
    return scene


@layout
def cut3r_mvimgnet(root: Path) -> Path:
    f, cx, cy, k = 14.25, 7.75, 6.0, -0.03  # a matrix of fx, fy, cx, cy that was given f, cx, cy, k
    wrong = np.array([[f, 0, cy], [0, cx, k], [0, 0, 1]])
    for n, pose in enumerate(e.poses()):
        e.photo(root / f"6_0a00ab12/rgb/{n:03d}.jpg", n)
        e.npz(root / f"6_0a00ab12/cam/{n:03d}.npz", pose=pose, intrinsics=wrong)
    return root / "6_0a00ab12"


@layout
def cut3r_waymo(root: Path) -> Path:
    scene = root / "segment-10017090168044687777_6380_000_6400_000_with_camera_labels.tfrecord"
    for n, camera in enumerate(cameras("cam2world", "intrinsics", distortion=np.zeros(5))):
        for number in (1, 5):
            e.photo(scene / f"{n:05d}_{number}.jpg", n)
            e.npz(scene / f"{n:05d}_{number}.npz", **camera)
            e.exr(scene / f"{n:05d}_{number}.exr", floating(n))
    return scene


@layout
def cut3r_mvs_synth(root: Path) -> Path:
    for n, camera in enumerate(cameras("pose", "intrinsics")):
        e.photo(root / f"0000/rgb/{n:04d}.jpg", n)
        e.npz(root / f"0000/cam/{n:04d}.npz", **camera)
        e.npy(root / f"0000/depth/{n:04d}.npy", floating(n))
    return root / "0000"


@layout
def cut3r_blendedmvs(root: Path) -> Path:
    scene = root / "57f8d9bbe73f6760f10e916a"
    for n, pose in enumerate(e.poses()):
        e.photo(scene / f"{n:08d}.jpg", n)
        e.exr(scene / f"{n:08d}.exr", floating(n))
        parts = {"R_cam2world": pose[:3, :3], "t_cam2world": pose[:3, 3]}
        e.npz(scene / f"{n:08d}.npz", intrinsics=e.integer_centers(), **parts)
    return scene


@layout
def cut3r_megadepth(root: Path) -> Path:
    scene = root / "0001" / "0"
    for n, camera in enumerate(cameras("cam2world", "intrinsics")):
        name = f"{n}2345678_abcd_o"
        e.photo(scene / f"{name}.jpg", n)
        e.exr(scene / f"{name}.exr", floating(n))
        e.npz(scene / f"{name}.npz", **camera)
    return scene


@layout
def scannet(root: Path) -> Path:
    scene, whole = root / "scans/scene0000_00", np.eye(4)
    whole[:3, :3] = np.diag([480 / e.HEIGHT, 480 / e.HEIGHT, 1]) @ e.INTRINSICS
    for n, pose in enumerate(e.poses()):
        e.photo(scene / f"color/{n}.jpg", n)
        e.png(scene / f"depth/{n}.png", coded(n, 1000))
        e.lines(scene / f"pose/{n}.txt", pose.tolist())
    e.lines(scene / "intrinsic/intrinsic_depth.txt", whole.tolist())
    e.photo(scene / f"color/{e.FRAMES}.jpg", 0)
    e.lines(scene / f"pose/{e.FRAMES}.txt", np.full((4, 4), -np.inf).tolist())  # tracking was lost
    return scene


@layout
def wildrgbd(root: Path) -> Path:
    scene = root / "apple/scenes/scene_000"
    for n in range(e.FRAMES):
        e.photo(scene / f"rgb/{n:05d}.png", n)
        e.png(scene / f"depth/{n:05d}.png", coded(n, 1000))
        e.png(scene / f"masks/{n:05d}.png", np.full((e.HEIGHT, e.WIDTH), 255, np.uint8))
    e.lines(scene / "cam_poses.txt", [[n, *e.floats(pose)] for n, pose in enumerate(e.poses())])
    (scene / "metadata").write_text(json.dumps({"K": e.floats(e.INTRINSICS.T), "w": e.WIDTH, "h": e.HEIGHT}))
    return scene


@layout
def tartanair(root: Path) -> Path:
    scene, rows = root / "abandonedfactory/Easy/P000", []
    for n, pose in enumerate(e.poses()):
        e.photo(scene / f"image_left/{n:06d}_left.png", n)
        e.npy(scene / f"depth_left/{n:06d}_left_depth.npy", floating(n, sky=1.0e4))
        forward_right_down = pose[:3, [2, 0, 1]]
        rows.append(e.floats(np.concatenate([pose[:3, 3], Rotation.from_matrix(forward_right_down).as_quat()])))
    e.lines(scene / "pose_left.txt", rows)
    return scene


@layout
def vkitti2(root: Path) -> Path:
    scene, k = root / "Scene01/clone", e.integer_centers()
    poses, intrinsics = [], []
    for n, pose in enumerate(e.poses()):
        for camera in (0, 1):
            e.photo(scene / f"frames/rgb/Camera_{camera}/rgb_{n:05d}.jpg", n)
            e.png(scene / f"frames/depth/Camera_{camera}/depth_{n:05d}.png", coded(n, 100, sky=65535))
            shifted = pose @ np.array([[1, 0, 0, 0.5 * camera], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
            poses.append([n, camera, *e.floats(np.linalg.inv(shifted))])
            intrinsics.append([n, camera, k[0, 0], k[1, 1], k[0, 2], k[1, 2]])
    e.lines(
        scene / "extrinsic.txt", poses, "frame cameraID r1,1 r1,2 r1,3 t1 r2,1 r2,2 r2,3 t2 r3,1 r3,2 r3,3 t3 0 0 0 1"
    )
    e.lines(scene / "intrinsic.txt", intrinsics, "frame cameraID K[0,0] K[1,1] K[0,2] K[1,2]")
    return scene


@layout
def blendedmvs(root: Path) -> Path:
    scene = root / "57f8d9bbe73f6760f10e916a"
    for n, pose in enumerate(e.poses()):
        e.photo(scene / f"blended_images/{n:08d}.jpg", n)
        e.photo(scene / f"blended_images/{n:08d}_masked.jpg", n)
        e.pfm(scene / f"rendered_depth_maps/{n:08d}.pfm", floating(n))
        rows = [
            ["extrinsic"],
            *np.linalg.inv(pose).tolist(),
            [],
            ["intrinsic"],
            *e.INTRINSICS.tolist(),
            [],
            [1.0, 0.02, 128, 4.0],
        ]
        e.lines(scene / f"cams/{n:08d}_cam.txt", rows)
    return scene


@layout
def mvs_synth(root: Path) -> Path:
    k, swap = e.INTRINSICS, np.eye(4)[[1, 0, 2, 3]]
    for n, pose in enumerate(e.poses()):
        e.photo(root / f"0000/images/{n:04d}.png", n)
        e.exr(root / f"0000/depths/{n:04d}.exr", floating(n, sky=np.inf))
        extrinsic = np.linalg.inv(swap @ pose).tolist()
        camera = {"c_x": k[0, 2], "c_y": k[1, 2], "f_x": k[0, 0], "f_y": k[1, 1], "extrinsic": extrinsic}
        (root / "0000/poses").mkdir(exist_ok=True)
        (root / f"0000/poses/{n:04d}.json").write_text(json.dumps(camera))
    return root / "0000"


@layout
def tanks_and_temples(root: Path) -> Path:
    rows = []
    for n, pose in enumerate(e.poses()):
        e.photo(root / f"barn/Barn/{n + 1:06d}.jpg", n)
        rows += [[n, n, 0], *pose.tolist()]
    e.lines(root / "barn/Barn_COLMAP_SfM.log", rows)
    return root / "barn"


@layout
def kitti360(root: Path) -> Path:
    drive, k, rows = "2013_05_28_drive_0000_sync", e.integer_centers(), []
    for n, pose in enumerate(e.poses()):
        e.photo(root / f"data_2d_raw/{drive}/image_00/data_rect/{250 + n:010d}.png", n)
        rows.append([250 + n, *e.floats(pose)])
    e.photo(root / f"data_2d_raw/{drive}/image_00/data_rect/{0:010d}.png", 9)  # the car stood still
    e.lines(root / f"data_poses/{drive}/cam0_to_world.txt", rows)
    projection = np.concatenate([k, np.zeros((3, 1))], 1)
    table = [["S_rect_00:", 1408.0, 376.0], ["R_rect_00:", *e.floats(np.eye(3))], ["P_rect_00:", *e.floats(projection)]]
    e.lines(root / "calibration/perspective.txt", table)
    return root


def mvsnet_camera(path: Path, pose: np.ndarray, matrix: np.ndarray) -> None:
    rows = [["extrinsic"], *np.linalg.inv(pose).tolist(), [], ["intrinsic"], *matrix.tolist(), [], [425.0, 2.5]]
    e.lines(path, rows)


@layout
def dtu(root: Path) -> Path:
    quarter = np.diag([160 / e.WIDTH, 128 / e.HEIGHT, 1]) @ e.INTRINSICS
    for n, pose in enumerate(e.poses()):
        for light in (0, 3):
            e.photo(root / f"Rectified/scan1_train/rect_{n + 1:03d}_{light}_r5000.png", n if light else 9)
        mvsnet_camera(root / f"Cameras/train/{n:08d}_cam.txt", pose, quarter)
        e.pfm(root / f"Depths/scan1_train/depth_map_{n:04d}.pfm", floating(n))
    return root


@layout
def mvsnet(root: Path) -> Path:
    scene = root / "scan1"
    for n, pose in enumerate(e.poses()):
        e.photo(scene / f"images/{n:08d}.jpg", n)
        mvsnet_camera(scene / f"cams/{n:08d}_cam.txt", pose, e.INTRINSICS)
    return scene


@layout
def deepvideomvs(root: Path) -> Path:
    scene = root / "000"
    for n in range(e.FRAMES):
        e.photo(scene / f"images/{n + 3:05d}.png", n)
        e.png(scene / f"depth/{n + 3:05d}.png", coded(n, 1000))
    e.lines(scene / "poses.txt", [e.floats(pose) for pose in e.poses()])
    e.lines(scene / "K.txt", e.INTRINSICS.tolist())
    return scene
