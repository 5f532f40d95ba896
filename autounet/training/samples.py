"""Which patch of which case a sample shows. Sample i of step t is a pure function of (seed, fold, t, i).

So an interrupted training resumes with the step number alone, and the number of workers changes nothing.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
import torch
from batchgenerators.dataloading.data_loader import SlimDataLoaderBase
from torch import Tensor

from autounet.losses import Batch
from autounet.ops.mirror import mirrored_indices
from autounet.training.augment import Augmentation
from autounet.training.cases import CaseStore, TrainCase

TRIES = 10
"""patches drawn at most, in a set with unlabelled voxels, to find one with a labelled voxel"""
ORDER_STREAM, SAMPLE_STREAM = 0, 1


@dataclass
class SampleSource:
    """Draws samples for one training.

    With 2-D patches, the first prepared axis is walked slice by slice.
    """

    cases: CaseStore
    patch: tuple[int, ...]
    batch_size: int
    seed: int
    fold: int
    foreground_fraction: float
    augmentation: Augmentation
    sparse: bool = False
    """whether voxels without a label exist: samples are drawn until they show a labelled voxel, and what lies beyond
    the image has no label either, since a few labelled voxels would be lost in it. Without such voxels it is
    background, as in nnU-Net (which fills -1 there and turns it into 0): whole images smaller than the patch are
    padded alike when they are predicted"""
    weigh: Callable[[np.ndarray], np.ndarray] | None = None
    """labels (*P) as augmented -> weight (*P) float32 of each voxel in the loss; picklable"""
    output: tuple[int, ...] | None = None
    """size of the network's output where it is smaller than the patch, in its middle: then that is what is placed
    inside the image and shows foreground, and beyond the borders lies the mirror image, labels included, as when whole
    images are predicted"""
    _order: tuple[int, np.ndarray] = field(default=(-1, np.empty(0, int)), repr=False)

    def batch(self, step: int) -> Batch:
        """B samples: image (B, C, *P) float32, the previous stage's one-hot included, labels (B, *P) int16."""
        with one_thread():
            samples = [self.sample(step, index) for index in range(self.batch_size)]
            images, labels, names = zip(*samples, strict=True)
            weight = None
            if self.weigh is not None:
                weight = torch.stack([torch.from_numpy(self.weigh(each.numpy())) for each in labels])
            return Batch(torch.stack(images), torch.stack(labels), weight=weight, cases=names)

    def sample(self, step: int, index: int) -> tuple[Tensor, Tensor, str]:
        """Image (C, *P), labels (*P), case identifier."""
        generator = np.random.default_rng((self.seed, self.fold + 1, SAMPLE_STREAM, step, index))
        case = self.cases[self._case_number(step * self.batch_size + index)]
        transform = self.augmentation.draw(generator)
        for _ in range(TRIES if self.sparse else 1):
            corner = self._corner(generator, case, forced=self._forced(index))
            # the transform reads around the patch; keep the patch's centre
            margin = [(large - size) // 2 for large, size in zip(transform.source_size, self.patch, strict=True)]
            beyond = None if self.output else -1 if self.sparse else 0
            image, *maps = _read(case, corner, margin, transform.source_size, beyond)
            if not self.sparse or (_middle(maps[0], self.output or maps[0].shape) >= 0).any():
                break
        augmented, target = self.augmentation.apply(transform, *map(torch.from_numpy, (image, *maps)))
        return augmented, target, case.identifier

    def _forced(self, index: int) -> bool:
        """The last samples of a batch show foreground for certain (nnU-Net's rule and rounding)."""
        return index >= round(self.batch_size * (1 - self.foreground_fraction))

    def _case_number(self, number: int) -> int:
        """Every case once, in a new random order, before any comes again."""
        epoch, place = divmod(number, len(self.cases))
        if self._order[0] != epoch:
            generator = np.random.default_rng((self.seed, self.fold + 1, ORDER_STREAM, epoch))
            self._order = (epoch, generator.permutation(len(self.cases)))
        return int(self._order[1][place])

    def _corner(self, generator: np.random.Generator, case: TrainCase, forced: bool) -> tuple[int, ...]:
        """First voxel of the patch on the prepared grid (3 axes); may be negative where padding is needed.

        Forced: a random class that occurs, a random voxel of it in the middle of the patch, moved to stay inside the
        image. A 2-D patch has thickness 1 along the first axis. With an `output` all this holds for it instead.
        """
        flat = (1,) * (3 - len(self.patch))
        patch, size = flat + self.patch, flat + (self.output or self.patch)
        lost = [(large - small) // 2 for large, small in zip(patch, size, strict=True)]
        lowest, highest = corner_limits(case.labels.shape, size)
        if forced and case.locations:
            classes = sorted(case.locations)
            voxels = case.locations[classes[generator.integers(len(classes))]]
            voxel = voxels[generator.integers(len(voxels))]
            wanted = [int(v) - s // 2 for v, s in zip(voxel, size, strict=True)]
            first = [min(max(w, lo), hi) for w, lo, hi in zip(wanted, lowest, highest, strict=True)]
        else:
            first = [int(generator.integers(lo, hi + 1)) for lo, hi in zip(lowest, highest, strict=True)]
        return tuple(start - margin for start, margin in zip(first, lost, strict=True))


def corner_limits(shape: Sequence[int], size: Sequence[int]) -> tuple[list[int], list[int]]:
    """Lowest and highest first voxel per axis: inside the image, or centred where the image is the smaller."""
    lowest, highest = [], []
    for length, patch in zip(shape, size, strict=True):
        missing = max(0, patch - length)
        lowest.append(-(missing // 2))
        highest.append(length - patch if missing == 0 else -(missing // 2))
    return lowest, highest


def _read(
    case: TrainCase, corner: Sequence[int], margin: Sequence[int], size: Sequence[int], beyond: int | None
) -> tuple[np.ndarray, ...]:
    """Image (C, *size) float32 and labels (*size) int16 around a patch; 0 and `beyond` outside the image's borders.

    In a cascade also the previous stage's labels (*size) int16, 0 outside. With `size` of two axes the slice
    `corner[0]` is read. `beyond` None: everything goes on outside as in a mirror.
    """
    plane = tuple(corner[: 3 - len(size)])
    starts = [first - m for first, m in zip(corner[len(plane) :], margin, strict=True)]
    shape = case.labels.shape[len(plane) :]
    if beyond is None:
        return _read_mirrored(case, plane, starts, size)
    inside = [slice(max(0, s), min(n, s + p)) for s, p, n in zip(starts, size, shape, strict=True)]
    target = tuple(slice(i.start - s, i.stop - s) for i, s in zip(inside, starts, strict=True))
    image = np.zeros((case.image.shape[0], *size), np.float32)
    maps = [(case.labels, np.full(tuple(size), beyond, np.int16))]
    if case.previous is not None:
        maps.append((case.previous, np.zeros(tuple(size), np.int16)))
    if all(i.stop > i.start for i in inside):
        image[(slice(None), *target)] = case.image[(slice(None), *plane, *inside)]
        for stored, read in maps:
            read[target] = stored[(*plane, *inside)]
    return image, *(read for _, read in maps)


def _read_mirrored(
    case: TrainCase, plane: tuple[int, ...], starts: Sequence[int], size: Sequence[int]
) -> tuple[np.ndarray, ...]:
    """As `_read`: the box that is reached is read once, then its voxels are repeated."""
    shape = case.labels.shape[len(plane) :]
    reached = [mirrored_indices(s, s + p, n) for s, p, n in zip(starts, size, shape, strict=True)]
    box = tuple(slice(int(each.min()), int(each.max()) + 1) for each in reached)
    inside = np.ix_(*(each - each.min() for each in reached))
    image = case.image[(slice(None), *plane, *box)][(slice(None), *inside)].astype(np.float32, copy=False)
    maps = [case.labels] if case.previous is None else [case.labels, case.previous]
    return np.ascontiguousarray(image), *(stored[(*plane, *box)][inside].astype(np.int16) for stored in maps)


def _middle(labels: np.ndarray, size: Sequence[int]) -> np.ndarray:
    """The middle (*size) of (*S)."""
    starts = [(length - asked) // 2 for length, asked in zip(labels.shape, size, strict=True)]
    return labels[tuple(slice(start, start + asked) for start, asked in zip(starts, size, strict=True))]


@contextmanager
def one_thread() -> Iterator[None]:
    """Sums over several threads differ in their last bits with the number of threads; samples must not."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


class SampleLoader(SlimDataLoaderBase):
    """batchgenerators' loader: endless batches from step `start` on, made in this process."""

    def __init__(self, source: SampleSource, start: int) -> None:
        super().__init__(source, source.batch_size)
        self._steps = itertools.count(start)

    def generate_train_batch(self) -> Batch:
        return self._data.batch(next(self._steps))


class _BatchTable(torch.utils.data.Dataset):
    """Batches by step number, for torch's worker processes."""

    def __init__(self, source: SampleSource) -> None:
        self.source = source

    def __getitem__(self, step: int) -> Batch:
        return self.source.batch(step)


def batches(source: SampleSource, start: int, workers: int, pin_memory: bool = False) -> Generator[Batch, None, None]:
    """Batches of steps `start`, `start` + 1, ...: the same ones for every number of `workers`.

    Workers are spawned, because a fork after torch has used its threads hangs; 0 works in this process.
    """
    if workers == 0:
        yield from SampleLoader(source, start)
        return
    yield from torch.utils.data.DataLoader(
        _BatchTable(source),
        batch_size=None,
        collate_fn=_as_it_is,
        sampler=itertools.count(start),  # type: ignore[arg-type]
        num_workers=workers,
        prefetch_factor=3,
        pin_memory=pin_memory,
        multiprocessing_context="spawn",
    )


def _as_it_is(batch: Batch) -> Batch:
    return batch
