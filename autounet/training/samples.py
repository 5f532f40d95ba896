"""Which patch of which case a sample shows. Sample i of step t is a pure function of (seed, fold, t, i).

So an interrupted training resumes with the step number alone, and the number of workers changes nothing.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..losses import Batch
from ..schema.dataset import ChannelAvailability
from .augment import Augmentation
from .cases import CaseStore, TrainCase, corner_limits, middle, read_patch

P_DROPOUT = 0.5
"""of a sample whose case has more channels than some other combination"""


@dataclass(frozen=True)
class ChannelDropout:
    """Which channels a sample shows. Inactive where every case has all channels."""

    combinations: tuple[ChannelAvailability, ...] = ()
    """those that occur, of the whole data set"""
    present: Mapping[str, ChannelAvailability] = field(default_factory=dict)
    """of the cases that lack channels"""
    probability: float = P_DROPOUT

    def draw(self, generator: np.random.Generator, case: str, channels: int) -> ChannelAvailability | None:
        """The channels that a sample of a case shows: its own, or a smaller combination; None for all of them.

        Nothing is drawn where there is nothing to choose, so that samples of other data sets stay what they were.
        """
        if not self.combinations:
            return None
        own = self.present.get(case, (True,) * channels)
        smaller = [each for each in self.combinations if each != own and not any(np.greater(each, own))]
        if smaller and generator.random() < self.probability:
            own = smaller[int(generator.integers(len(smaller)))]
        return None if all(own) else own


def drop_channels(image: Tensor, shown: ChannelAvailability | None) -> Tensor:
    """Image (C + previous stage's channels, *P) with 0 in the channels that are not shown, as prepared cases have it.

    After intensity transforms, which would put noise into absent channels.
    """
    if shown is not None:
        for index, there in enumerate(shown):
            if not there:
                image[index] = 0
    return image


TRIES = 10
"""patches drawn at most, in a set with unlabelled voxels, to find one with a labelled voxel"""
ORDER_STREAM, SAMPLE_STREAM = 0, 1


class Sample(NamedTuple):
    image: Tensor
    """(C, *P) float32"""
    labels: Tensor
    """(*P) int16"""
    case: str
    swapped: bool
    """whether left and right classes have changed places"""


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
    """whether voxels without a label exist: samples are drawn until they show a labelled voxel, at last around one, and
    what lies beyond the image has no label either, since a few labelled voxels would be lost in it. Without such voxels
    it is background, as in nnU-Net (which fills -1 there and turns it into 0): whole images smaller than the patch are
    padded alike when they are predicted"""
    weigh: Callable[[np.ndarray], np.ndarray] | None = None
    """labels (*P) as augmented -> weight (*P) float32 of each voxel in the loss; picklable"""
    annotated: Mapping[str, tuple[bool, ...]] = field(default_factory=dict)
    """case -> (K) which dense classes were annotated, for cases where some were not"""
    dropout: ChannelDropout = field(default_factory=ChannelDropout)
    output: tuple[int, ...] | None = None
    """size of the network's output where it is smaller than the patch, in its middle: then that is what is placed
    inside the image and shows foreground, and beyond the borders lies the mirror image, labels included, as when whole
    images are predicted"""
    _order: tuple[int, np.ndarray] = field(default=(-1, np.empty(0, int)), repr=False)

    def batch(self, step: int) -> Batch:
        """B samples: image (B, C, *P) float32, the previous stage's one-hot included, labels (B, *P) int16."""
        with one_thread():
            samples = [self.sample(step, index) for index in range(self.batch_size)]
            images, labels, names, swapped = zip(*samples, strict=True)
            weight = None
            if self.weigh is not None:
                weight = torch.stack([torch.from_numpy(self.weigh(each.numpy())) for each in labels])
            return Batch(torch.stack(images), torch.stack(labels), self._annotated(names, swapped), weight, names)

    def _annotated(self, cases: Sequence[str], swapped: Sequence[bool]) -> Tensor | None:
        """(B, K) bool, as the classes are after mirroring; None where all are annotated in all samples."""
        if not self.annotated:
            return None
        swap, count = self.augmentation.swap, len(next(iter(self.annotated.values())))
        rows = [self.annotated.get(case, (True,) * count) for case in cases]
        for number, changed in enumerate(swapped):
            if changed and swap is not None:
                rows[number] = tuple(rows[number][index] for index in swap.classes)
        return None if all(map(all, rows)) else torch.tensor(rows)

    def sample(self, step: int, index: int) -> Sample:
        generator = np.random.default_rng((self.seed, self.fold + 1, SAMPLE_STREAM, step, index))
        case = self.cases[self._case_number(step * self.batch_size + index)]
        transform = self.augmentation.draw(generator)
        shown = self._shown(case) if self._forced(index) else []
        for attempt in range(1, TRIES + 1 if self.sparse else 2):
            corner = self._corner(generator, case, sorted(case.locations) if attempt == TRIES else shown)
            # the transform reads around the patch; keep the patch's centre
            margin = [(large - size) // 2 for large, size in zip(transform.source_size, self.patch, strict=True)]
            beyond = None if self.output else -1 if self.sparse else 0
            image, *maps = read_patch(case, corner, margin, transform.source_size, beyond)
            if not self.sparse or (middle(maps[0], self.output or maps[0].shape) >= 0).any():
                break
        channels = self.dropout.draw(generator, case.identifier, len(image))
        moved, labels, swapped = self.augmentation.apply(transform, *map(torch.from_numpy, (image, *maps)))
        return Sample(drop_channels(moved, channels), labels, case.identifier, swapped)

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

    def _shown(self, case: TrainCase) -> list[int]:
        """Foreground classes that occur in a case and were annotated there."""
        known = self.annotated.get(case.identifier)
        return [label for label in sorted(case.locations) if label and (known is None or known[label])]

    def _corner(self, generator: np.random.Generator, case: TrainCase, classes: Sequence[int]) -> tuple[int, ...]:
        """First voxel of the patch on the prepared grid (3 axes); may be negative where padding is needed.

        With `classes` a random one of them, a random voxel of it in the middle of the patch, moved to stay inside the
        image. A 2-D patch has thickness 1 along the first axis. With an `output` all this holds for it instead.
        """
        flat = (1,) * (3 - len(self.patch))
        patch, size = flat + self.patch, flat + (self.output or self.patch)
        lost = [(large - small) // 2 for large, small in zip(patch, size, strict=True)]
        lowest, highest = corner_limits(case.labels.shape, size)
        if classes:
            voxels = case.locations[classes[int(generator.integers(len(classes)))]]
            voxel = voxels[generator.integers(len(voxels))]
            wanted = [int(v) - s // 2 for v, s in zip(voxel, size, strict=True)]
            first = [min(max(w, lo), hi) for w, lo, hi in zip(wanted, lowest, highest, strict=True)]
        else:
            first = [int(generator.integers(lo, hi + 1)) for lo, hi in zip(lowest, highest, strict=True)]
        return tuple(start - margin for start, margin in zip(first, lost, strict=True))


@contextmanager
def one_thread() -> Iterator[None]:
    """Sums over several threads differ in their last bits with the number of threads; samples must not."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


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
        for step in itertools.count(start):
            yield source.batch(step)
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


def _as_it_is(batch: Any) -> Any:
    return batch
