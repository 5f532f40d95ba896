"""Which patch of which case a sample shows. Sample i of step t is a pure function of (seed, fold, t, i).

So an interrupted training resumes with the step number alone, and the number of workers changes nothing. Only the
classes that are emphasised at step t, since the training had left them behind, come to it: see `SampleSource.batch`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..losses import Batch
from ..schema.dataset import ChannelAvailability
from ..workers import PROCESS_WIDE
from .augment import Augmentation, Excerpt
from .cases import CaseStore, ChannelDropout, TrainCase, corner_limits, drop_channels, middle, read_patch
from .copies import Copies

SIZES = 16
"""samples whose size says how large one becomes"""
TRIES = 10
"""patches drawn at most, in a set with unlabelled voxels, to find one with a labelled voxel"""
ORDER_STREAM, SAMPLE_STREAM, EMPHASIS_STREAM, PATCH_STREAM = 0, 1, 2, 3
EMPHASIS = 4
"""times as often as another class of its case an emphasised class is shown, and as much its voxels weigh"""
P_CASE = 0.5
"""of a sample that shows foreground, and whose case has no emphasised class, to show a case that has one instead"""


NOTHING = torch.empty(0)


class Reading(NamedTuple):
    """What a sample is made of: what was read of a case, and how it is changed."""

    cut: Excerpt
    case: str
    shown: ChannelAvailability | None
    """the channels that are shown; None: all"""


@dataclass(frozen=True)
class PackedReadings:
    """The readings of one batch, their arrays one after the other: however many there are, two travel to the device."""

    images: Tensor
    """(N) float32"""
    labels: Tensor
    """(M) int16"""
    readings: tuple[Reading, ...]
    """without their arrays"""

    @classmethod
    def of(cls, readings: Sequence[Reading]) -> PackedReadings:
        """Of readings without labels of a previous stage."""
        images = torch.cat([each.cut.image.flatten() for each in readings])
        labels = torch.cat([each.cut.maps[0].flatten() for each in readings])
        return cls(images, labels, tuple(each._replace(cut=each.cut.holding(NOTHING)) for each in readings))

    def pin_memory(self) -> PackedReadings:
        """Called by torch's loader, where it is to pin what its workers send."""
        return PackedReadings(self.images.pin_memory(), self.labels.pin_memory(), self.readings)

    def on(self, copies: Copies) -> list[Reading]:
        images, labels = copies.of([self.images, self.labels])
        sizes = [each.cut.spatial.source_size for each in self.readings]
        voxels = [math.prod(size) for size in sizes]
        channels = len(images) // sum(voxels)
        arrays = zip(images.split([channels * each for each in voxels]), labels.split(voxels), strict=True)
        return [
            each._replace(cut=each.cut.holding(image.view(channels, *size), own.view(size)))
            for each, size, (image, own) in zip(self.readings, sizes, arrays, strict=True)
        ]


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
    own: range | None = None
    """places in the batch of the samples that this process makes; None: all"""
    _order: tuple[int, np.ndarray] = field(default=(-1, np.empty(0, int)), repr=False)

    def batch(self, step: int, emphasised: Collection[int] = ()) -> Batch:
        """B samples: image (B, C, *P) float32, the previous stage's one-hot included, labels (B, *P) int16.

        Of the samples that show foreground for certain, more show one of the dense classes `emphasised`. All others are
        what they are without.
        """
        with one_thread():
            return self.collated(self.readings(step, emphasised))

    def readings(self, step: int, emphasised: Collection[int] = ()) -> list[Reading]:
        """What the batch of a step, or this process's part of it, is made of."""
        return [self.reading(step, index, emphasised) for index in self.own or range(self.batch_size)]

    def collated(self, readings: Sequence[Reading]) -> Batch:
        """The batch, augmented on the device where the images lie."""
        cuts, names, shown = zip(*readings, strict=True)
        images, labels, swapped = self.augmentation.apply(cuts)
        for image, channels in zip(images, shown, strict=True):
            drop_channels(image, channels)
        weight = None
        if self.weigh is not None:
            weight = torch.stack([torch.from_numpy(self.weigh(each.numpy())) for each in labels])
        annotated = self._annotated(names, swapped)
        if annotated is not None:
            annotated = annotated.to(images.device, non_blocking=True)
        return Batch(images, labels, annotated, weight, names)

    def packed(self, step: int, emphasised: Collection[int] = ()) -> PackedReadings:
        with one_thread():
            return PackedReadings.of(self.readings(step, emphasised))

    @property
    def on_device(self) -> bool:
        """Whether batches are augmented where the network is: all that is done then is done by torch.

        Weights of voxels, and the changes of a previous stage's labels, are made by libraries that know only the CPU.
        """
        augmentation = self.augmentation
        together = augmentation.by == "torch" and augmentation.kind != "none"
        return together and self.weigh is None and not augmentation.previous_classes

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

    def case_names(self, step: int, emphasised: Collection[int] = ()) -> tuple[str, ...]:
        """The cases that the batch of a step shows, each once."""
        numbers = (self._shown_case(step, index, emphasised) for index in self.own or range(self.batch_size))
        return tuple(dict.fromkeys(self.cases.identifiers[number] for number in numbers))

    def batch_bytes(self, packed: bool) -> int:
        """Memory of a batch, at most; `packed`: of what it is made of, as drawn for a few samples."""
        voxels = math.prod(self.patch)
        if packed:
            draws = (self.augmentation.draw(self._generator(SAMPLE_STREAM, 0, index)) for index in range(SIZES))
            voxels = max(voxels, *(math.prod(each.source_size) for each in draws))
        channels = self.cases.channels + self.augmentation.previous_classes
        return self.batch_size * voxels * (4 * channels + 2 + (4 if self.weigh else 0))

    def _shown_case(self, step: int, index: int, emphasised: Collection[int]) -> int:
        number = self._case_number(step * self.batch_size + index)
        if self._forced(index) and emphasised:
            return self._emphasised_case(step, index, number, emphasised)
        return number

    def reading(self, step: int, index: int, emphasised: Collection[int] = ()) -> Reading:
        generator = self._generator(SAMPLE_STREAM, step, index)
        case = self.cases[self._shown_case(step, index, emphasised)]
        if not self._forced(index):
            return self.cut(generator, case, ())
        shown = self._shown(case)
        more = [label for label in shown if label in emphasised for _ in range(EMPHASIS - 1)]
        return self.cut(generator, case, [*shown, *more])

    def showing(self, number: int, case: int, label: int) -> Reading:
        """Patch `number` of those that no step has: around a voxel of a class in the case with the number `case`."""
        return self.cut(self._generator(PATCH_STREAM, number), self.cases[case], [label])

    def cut(self, generator: np.random.Generator, case: TrainCase, shown: Sequence[int]) -> Reading:
        """A patch around a voxel of one of the dense classes `shown`, or, without any, anywhere."""
        transform = self.augmentation.draw(generator)
        for attempt in range(1, TRIES + 1 if self.sparse else 2):
            corner = self._corner(generator, case, sorted(case.locations) if attempt == TRIES else shown)
            # the transform reads around the patch; keep the patch's centre
            margin = [(large - size) // 2 for large, size in zip(transform.source_size, self.patch, strict=True)]
            beyond = None if self.output else -1 if self.sparse else 0
            image, *maps = read_patch(case, corner, margin, transform.source_size, beyond)
            if not self.sparse or (middle(maps[0], self.output or maps[0].shape) >= 0).any():
                break
        channels = self.dropout.draw(generator, case.identifier, len(image))
        return Reading(Excerpt.of(transform, *map(torch.from_numpy, (image, *maps))), case.identifier, channels)

    def _forced(self, index: int) -> bool:
        """The last samples of a batch show foreground for certain (nnU-Net's rule and rounding)."""
        return index >= round(self.batch_size * (1 - self.foreground_fraction))

    def _generator(self, *stream: int) -> np.random.Generator:
        return np.random.default_rng((self.seed, self.fold + 1, *stream))

    def _case_number(self, number: int) -> int:
        """Every case once, in a new random order, before any comes again."""
        epoch, place = divmod(number, len(self.cases))
        if self._order[0] != epoch:
            self._order = (epoch, self._generator(ORDER_STREAM, epoch).permutation(len(self.cases)))
        return int(self._order[1][place])

    def _emphasised_case(self, step: int, index: int, number: int, emphasised: Collection[int]) -> int:
        """Case `number`, or one that holds an emphasised class; drawn apart, so that all else of a sample is equal."""
        holding = self.cases.holding(emphasised)
        generator = self._generator(EMPHASIS_STREAM, step, index)
        if number in holding or not holding or generator.random() >= P_CASE:
            return number
        return holding[int(generator.integers(len(holding)))]

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
    with PROCESS_WIDE:
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            yield
        finally:
            torch.set_num_threads(threads)
