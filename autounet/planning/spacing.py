"""On which grid the network works: target spacing, order of the axes, size of the data there, and a coarser grid; and
from that how deep it is along each axis, with its strides and kernel sizes.

The rules are those of nnU-Net v2 (Isensee et al., Nature Methods 2021, supplementary note 1 and its software).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from ..ops.resample import coarser_spacing
from ..schema.errors import PlanError
from ..schema.fingerprint import Fingerprint
from ..schema.plan import Reason

ANISOTROPY = 3.0
"""an axis this many times coarser than the others, and with that many times fewer voxels, is anisotropic"""
ANISOTROPIC_PERCENTILE = 10.0
"""percentile of an anisotropic axis' spacing that becomes the target: the median would blur the finer cases"""
FLAT = 999.0
"""2-D images have no spacing through the plane; this many times the largest in-plane one puts that axis first"""
ENOUGH_CONTEXT = 0.25
"""share of the median image that a patch should see"""
COARSENING = 1.03
"""factor of the target spacing per attempt"""
LEAST_REDUCTION = 2.0
"""a coarser configuration is dropped when its median image has more than 1 / this of the voxels"""
SIMILAR = 2.0
"""the finest axes are coarsened alone until the others are within this factor"""
NO_PATCH = (0, 0, 0)


@dataclass(frozen=True)
class Grid:
    """The full-resolution grid in network axis order (after transposition)."""

    transpose: tuple[int, int, int]
    """network axis i is file axis transpose[i]"""
    spacing: np.ndarray
    """(3,) target, mm"""
    median: np.ndarray
    """(3,) median image size after crop and resampling; halves are possible"""
    median_cropped: np.ndarray
    """(3,) median image size after crop, before resampling"""
    cases: int
    reasons: tuple[Reason, ...]

    @property
    def voxels(self) -> float:
        """Approximate voxels of the whole data set."""
        return float(np.prod(self.median, dtype=np.float64) * self.cases)


def find_grid(fingerprint: Fingerprint, scale: float = 1.0) -> Grid:
    """Target spacing, made coarser by `scale`, the axis of the largest first, and the data's size on that grid."""
    target, transpose, reasons = own_target(fingerprint)
    return grid_on(fingerprint, target, transpose, reasons, scale)


def own_target(fingerprint: Fingerprint) -> tuple[np.ndarray, tuple[int, int, int], list[Reason]]:
    """The data set's target spacing, (3,) in file axis order, the order of the network's axes, and the reasons."""
    sizes = np.array([case.cropped_shape for case in fingerprint.cases])
    target, reasons = target_spacing(case_spacings(fingerprint), sizes)
    if fingerprint.dimension == 2:
        reasons = [spacing_reason(f"in-plane target spacing {numbers(target[1:])}: the median of the data set")]
    transpose = axis_order(target)
    if transpose != (0, 1, 2):
        reasons.append(
            spacing_reason(
                f"the axes are reordered to {transpose}: the axis of the largest spacing comes first, so that 2-D "
                "slices lie in the plane of the finest resolution"
            )
        )
    return target, transpose, reasons


def grid_on(
    fingerprint: Fingerprint, target: np.ndarray, transpose: tuple[int, int, int], reasons: list[Reason], scale: float
) -> Grid:
    """The data's size at `target` (file axis order), made coarser by `scale`."""
    spacings = case_spacings(fingerprint)
    sizes = np.array([case.cropped_shape for case in fingerprint.cases])
    if scale != 1:
        target = coarser_spacing(target, scale, fingerprint.dimension)
        reasons = [
            *reasons,
            spacing_reason(f"made {scale:g} times coarser than the finest axis: {numbers(target)} mm"),
        ]
    resampled = np.array([resampled_shape(*pair, target) for pair in zip(sizes, spacings, strict=True)])
    order = list(transpose)
    return Grid(
        transpose=transpose,
        spacing=target[order],
        median=np.median(resampled, 0)[order],
        median_cropped=np.median(sizes, 0)[order],
        cases=len(sizes),
        reasons=tuple(reasons),
    )


def case_spacings(fingerprint: Fingerprint) -> np.ndarray:
    """(cases, 3) spacing, with a large one through the plane of 2-D images."""
    spacings = np.array([case.spacing for case in fingerprint.cases], dtype=np.float64)
    if fingerprint.dimension == 2:
        spacings[:, 0] = FLAT * spacings[:, 1:].max()
    return spacings


def target_spacing(spacings: np.ndarray, sizes: np.ndarray) -> tuple[np.ndarray, list[Reason]]:
    """The median spacing; for an anisotropic axis its 10th percentile, but coarser than the other axes.

    `spacings` and `sizes` (after crop) are (cases, 3). Returns (3,) in the same axis order, and the reasons.
    """
    target = np.percentile(spacings, 50, 0)
    size = np.percentile(sizes, 50, 0)
    axis = int(np.argmax(target))
    others = [other for other in range(3) if other != axis]
    coarsest_other = max(target[others])
    few_voxels = size[axis] * ANISOTROPY < min(size[others])
    if not (target[axis] > ANISOTROPY * coarsest_other and few_voxels):
        return target, [spacing_reason(f"target spacing {numbers(target)} mm: the median of the data set on each axis")]
    median = target[axis]
    finer = np.percentile(spacings[:, axis], ANISOTROPIC_PERCENTILE)
    target[axis] = finer if finer >= coarsest_other else coarsest_other + 1e-5
    return target, [
        spacing_reason(
            f"target spacing {numbers(target)} mm: the median of the data set, but along axis {axis}, which is more "
            f"than {ANISOTROPY:g} times coarser than the others (median {median:.4g} mm), the "
            f"{ANISOTROPIC_PERCENTILE:g}th percentile, so that the finer cases keep their slices"
        )
    ]


def axis_order(target: np.ndarray) -> tuple[int, int, int]:
    """The axis of the largest spacing first, the others in their order."""
    first = int(np.argmax(target))
    second, third = (axis for axis in range(3) if axis != first)
    return first, second, third


def resampled_shape(shape: np.ndarray, spacing: np.ndarray, target: np.ndarray) -> list[int]:
    """Voxels per axis after resampling, as nnU-Net plans: may be 0, which the planner refuses.

    `ops.resample.resampled_shape`, by which cases are prepared, keeps at least 1.
    """
    return [round(old / new * length) for old, new, length in zip(spacing, target, shape, strict=True)]


def spacing_reason(text: str) -> Reason:
    return Reason(configuration=None, topic="spacing", text=text)


def numbers(values: Sequence[float] | np.ndarray) -> str:
    """For sentences: 1 x 0.79 x 0.79."""
    return " x ".join(f"{value:.4g}" for value in values)


@dataclass(frozen=True)
class CoarseGrid:
    """A coarser grid; arrays are (3,) in network axis order."""

    spacing: np.ndarray
    """mm"""
    median: np.ndarray
    """size of the median image there, rounded"""
    voxels: float
    """of the median image, not rounded"""


PatchAt = Callable[[CoarseGrid], tuple[int, ...]]
"""the patch that the planner finds on a grid; raises PlanError when there is none"""


def find_lowres(
    spacing: np.ndarray, median: np.ndarray, patch: tuple[int, ...], patch_at: PatchAt, in_turn: bool = False
) -> tuple[CoarseGrid | None, str]:
    """The grid of 3d_lowres, or None when full resolution suffices; and why.

    `spacing`, `median` and `patch` are those of 3d_fullres. The finest axes are coarsened alone until the others are
    within a factor 2. nnU-Net looks for a patch on each grid `in_turn`; else few are tried, near the one on which that
    of 3d_fullres would be enough, until one grid suffices and the next finer does not.
    """
    full_voxels = np.prod(median, dtype=np.float64)
    full = CoarseGrid(spacing, median, float(full_voxels))
    if _seen(patch, full) >= ENOUGH_CONTEXT:
        return None, f"a patch of 3d_fullres sees {_seen(patch, full):.0%} of the median image, at least a quarter"
    grids = [full]
    while min((coarser := _coarsened(grids[-1], spacing, median)).median) >= 1:
        grids.append(coarser)

    @functools.cache
    def suffices(place: int) -> bool:
        try:
            return place > 0 and _seen(patch_at(grids[place]), grids[place]) >= ENOUGH_CONTEXT
        except PlanError:
            return False  # a grid for which there is no network is passed over, as in nnU-Net

    guess = 1 if in_turn else next((at for at, each in enumerate(grids) if _seen(patch, each) >= ENOUGH_CONTEXT), 1)
    place = _first(suffices, guess, len(grids), 1 if in_turn else 2)
    if place is None:
        return None, "an axis would vanish before a patch saw a quarter of the median image"
    grid = grids[place]
    if full_voxels / grid.voxels < LEAST_REDUCTION:
        return None, (
            f"the grid on which a patch sees a quarter of the median image has {grid.voxels / full_voxels:.0%} of the "
            "voxels of 3d_fullres, more than half, and so is too similar"
        )
    return grid, "a patch of 3d_fullres sees less than a quarter of the median image, and one here at least that"


def _first(holds: Callable[[int], bool], guess: int, count: int, growth: int) -> int | None:
    """A place below `count` that `holds` while the one before does not, nearest the guess; not the first, 0.

    Steps away from the guess grow by the factor `growth`; None where those upwards find none.
    """
    step, low, high = 1, guess - 1, guess
    if holds(guess):
        while low > 0 and holds(low):
            low, high, step = max(0, low - step * growth), low, step * growth
    else:
        while high < count and not holds(high):
            low, high, step = high, high + step, step * growth
        if high >= count:
            high = next((each for each in range(low + 1, count) if holds(each)), count)
            return high if high < count else None
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if holds(middle) else (middle, high)
    return high


def _seen(patch: tuple[int, ...], grid: CoarseGrid) -> float:
    """Share of the median image."""
    return float(np.prod(patch, dtype=np.float64) / grid.voxels)


def _coarsened(grid: CoarseGrid, spacing: np.ndarray, median: np.ndarray) -> CoarseGrid:
    coarse = grid.spacing.copy()
    finer = max(coarse) / coarse > SIMILAR
    coarse[finer if finer.any() else slice(None)] *= COARSENING
    return grid_at(coarse, spacing, median)


def grid_at(coarse: np.ndarray, spacing: np.ndarray, median: np.ndarray) -> CoarseGrid:
    """The grid of spacing `coarse` for images whose median size is `median` at `spacing`."""
    size = spacing / coarse * median
    return CoarseGrid(coarse, np.array([round(length) for length in size]), float(np.prod(size, dtype=np.float64)))


LEAST_EDGE = 4
"""voxels along an axis at the bottleneck, at least"""
SIMILAR = 2.0
"""axes whose spacing is below this many times the finest are treated alike"""

Triple = tuple[int, ...]


@dataclass(frozen=True)
class Topology:
    """Strides and kernel sizes per encoder stage, highest resolution first, and the patch padded to fit them."""

    strides: tuple[Triple, ...]
    kernel_sizes: tuple[Triple, ...]
    patch: Triple
    divisor: Triple


def find_topology(spacing: Sequence[float] | np.ndarray, size: Sequence[float]) -> Topology:
    """Halve, stage by stage, the axes that are large enough and about as fine as the finest such axis.

    A kernel spans 3 voxels along an axis from the stage on where its spacing is near the finest, before that 1;
    at the bottleneck 3 everywhere. `size` is the wanted patch, possibly with halves, as a median shape has.
    """
    steps, edges = [float(value) for value in spacing], [float(value) for value in size]
    axes = range(len(steps))
    kernel = [1 for _ in axes]
    strides, kernels = [tuple(1 for _ in axes)], []
    while halved := _axes_to_halve(steps, edges):
        finest = min(steps)
        kernel = [3 if kernel[axis] == 3 or steps[axis] / finest < SIMILAR else 1 for axis in axes]
        kernels.append(tuple(kernel))
        strides.append(tuple(2 if axis in halved else 1 for axis in axes))
        for axis in halved:
            steps[axis] *= 2
            edges[axis] = math.ceil(edges[axis] / 2)
    kernels.append(tuple(3 for _ in axes))
    divisor = tuple(math.prod(stride[axis] for stride in strides) for axis in axes)
    patch = tuple(math.ceil(length / step) * step for length, step in zip(size, divisor, strict=True))
    return Topology(tuple(strides), tuple(kernels), patch, divisor)


def shrink(topology: Topology, spacing: np.ndarray, median: np.ndarray) -> Topology:
    """One step smaller along the axis that is largest relative to the median image (the last of equal ones).

    The step is the divisor of the already smaller patch, which may be less than that of the present one: for 256 with
    divisor 64 the next size is 224, not 192.
    """
    relative = [length / whole for length, whole in zip(topology.patch, median, strict=True)]
    axis = max(range(len(relative)), key=lambda index: (relative[index], index))
    probe = list(topology.patch)
    probe[axis] -= topology.divisor[axis]
    smaller = list(topology.patch)
    smaller[axis] -= find_topology(spacing, probe).divisor[axis]
    return find_topology(spacing, smaller)


def _axes_to_halve(spacing: Sequence[float], edges: Sequence[float]) -> list[int]:
    """Empty when the network is deep enough."""
    large = [axis for axis, edge in enumerate(edges) if edge >= 2 * LEAST_EDGE]
    if not large:
        return []
    finest = min(spacing[axis] for axis in large)
    similar = [axis for axis in large if spacing[axis] / finest < SIMILAR]
    # one axis alone must be worth another stage
    if len(similar) == 1 and edges[similar[0]] < 3 * LEAST_EDGE:
        return []
    return similar
