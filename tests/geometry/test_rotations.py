"""Rotations: every form agrees with every other, and with scipy, up to the last digits."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation, Slerp

from diorama.geometry import rotations

from .drawing import close, normal, quick, random_rotation, seeds, uniform

# From nothing to half a turn, dense at both ends, where naive formulas lose their digits.
angles = st.one_of(
    st.floats(0, math.pi), st.sampled_from([0.0, 1e-12, 1e-8, 1e-4, math.pi - 1e-4, math.pi - 1e-8, math.pi])
)


def turned(seed, angle):
    axis = normal(seed, 3)
    return angle * axis / axis.norm()


@quick
@given(seeds, angles)
def test_vectors_matrices_and_quaternions_agree_with_scipy(seed, angle):
    vector = turned(seed, angle)
    matrix = rotations.matrix_from_vector(vector)
    reference = Rotation.from_rotvec(vector.numpy())
    close(matrix, torch.from_numpy(reference.as_matrix()), 1e-12)
    quaternion = rotations.quaternion_from_matrix(matrix)
    close(quaternion, torch.from_numpy(reference.as_quat(canonical=True, scalar_first=True)).to(quaternion), 1e-7)
    close(rotations.matrix_from_quaternion(-2.5 * quaternion), matrix, 1e-12)
    close(rotations.matrix_from_vector(rotations.vector_from_matrix(matrix)), matrix, 1e-12)
    if angle < math.pi - 1e-6:
        close(rotations.vector_from_matrix(matrix), vector, 1e-9)


@pytest.mark.parametrize("axis", [[1.0, 0, 0], [0, 1.0, 0], [0, 0, 1.0], [1.0, 1.0, 1.0]])
def test_half_turns(axis):
    axis = torch.tensor(axis, dtype=torch.float64)
    matrix = rotations.matrix_from_vector(math.pi * axis / axis.norm())
    found = rotations.vector_from_matrix(matrix)
    assert float(found.norm()) == pytest.approx(math.pi, abs=1e-9)
    close(rotations.matrix_from_vector(found), matrix, 1e-12)


@quick
@given(seeds, angles)
def test_geodesic_angle_is_exact_at_both_ends(seed, angle):
    first = random_rotation(seed)
    second = first @ rotations.matrix_from_vector(turned(seed + 1, angle))
    assert float(rotations.geodesic_angle(first, second)) == pytest.approx(angle, abs=1e-14 + 1e-9 * angle)
    single = rotations.geodesic_angle(first.float(), second.float())
    assert float(single) == pytest.approx(angle, abs=2e-6)  # arccos of the trace: 5e-4


@quick
@given(seeds)
def test_geodesic_angle_is_an_invariant_metric(seed):
    a, b, c = random_rotation(seed, 3)
    angle = rotations.geodesic_angle
    close(angle(a, b), angle(b, a))
    close(angle(c @ a, c @ b), angle(a, b))
    assert angle(a, c) <= angle(a, b) + angle(b, c) + 1e-12
    assert angle(a, a) < 1e-15


@pytest.mark.parametrize("angle", [0.0, 1e-9, 1.0, math.pi])
def test_gradients_are_finite_everywhere(angle):
    vector = turned(0, angle).requires_grad_()
    matrix = rotations.matrix_from_vector(vector)
    for value in (
        rotations.geodesic_angle(torch.eye(3).double(), matrix),
        rotations.vector_from_matrix(matrix).sum(),
        rotations.quaternion_from_matrix(matrix).sum(),
    ):
        (gradient,) = torch.autograd.grad(value, vector, retain_graph=True)
        assert gradient.isfinite().all()


@quick
@given(seeds)
def test_slerp_agrees_with_scipy_and_is_uniform(seed):
    start, end = random_rotation(seed, 2)
    share = uniform(seed, 0, 1, 5)
    found = rotations.slerp(start.expand(5, 3, 3), end.expand(5, 3, 3), share)
    reference = Slerp([0, 1], Rotation.from_matrix(torch.stack([start, end]).numpy()))(share.numpy())
    close(found, torch.from_numpy(reference.as_matrix()), 1e-9)
    travelled = rotations.geodesic_angle(start.expand(5, 3, 3), found)
    close(travelled, share * rotations.geodesic_angle(start, end), 1e-9)


@quick
@given(seeds, st.integers(1, 6))
def test_mean_rotation(seed, count):
    several = random_rotation(seed, count)
    mean = rotations.mean_rotation(several)
    close(mean @ mean.T, torch.eye(3).double())
    assert float(torch.linalg.det(mean)) == pytest.approx(1)
    cost = ((several - mean) ** 2).sum()
    for other in [*several, *random_rotation(seed + 1, 20)]:
        assert cost <= ((several - other) ** 2).sum() + 1e-9
    turn = random_rotation(seed + 2)
    close(rotations.mean_rotation(turn @ several), turn @ mean, 1e-6)
    close(rotations.mean_rotation(several[:1].repeat(4, 1, 1)), several[0])


@quick
@given(seeds)
def test_nearest_rotation_keeps_rotations_and_never_reflects(seed):
    rotation = random_rotation(seed)
    close(rotations.nearest_rotation(3 * rotation), rotation)
    found = rotations.nearest_rotation(normal(seed, 3, 3))
    assert float(torch.linalg.det(found)) == pytest.approx(1)
    assert torch.linalg.det(rotations.nearest_rotation(torch.zeros(3, 3))) == pytest.approx(1)


@quick
@given(seeds)
def test_rotate_is_the_matrix_product(seed):
    rotation, vectors = random_rotation(seed, 2, 1), normal(seed, 2, 4, 3)
    close(rotations.rotate(rotation, vectors), torch.einsum("bzij,bnj->bni", rotation, vectors))
    assert np.allclose(rotations.rotate(rotation[0, 0], vectors[0]), vectors[0] @ rotation[0, 0].T)
