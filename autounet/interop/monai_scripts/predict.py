"""What `configs/inference.json` is made of: data set, networks, inferer, and the evaluator that runs them."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.data import Dataset
from monai.inferers import Inferer
from torch import Tensor, nn

from ...inference.ensembling import RunningMean, averaged_quantity
from ...inference.sliding_window import predict_scores
from ...nets import FAMILIES
from .grids import Grid, append_one_hot, for_next_stage, in_file, prepare, remove_components
from .images import Image, read_case, write_labels
from .records import is_on

log = logging.getLogger(__name__)
CHANNELS_LAST = {2: torch.channels_last, 3: torch.channels_last_3d}


class Networks(nn.Module):
    """The networks of all folds and configurations, whose weights are one file, `models/model.pt`.

    As a module of its own it is the first of the selected configurations: (B, C, *P) to logits (B, K, *P) of the mean
    over folds, without mirrored views.
    """

    def __init__(self, plan: Any) -> None:
        super().__init__()
        self.plan = plan
        self.configurations = tuple(plan.configurations)
        self.networks = nn.ModuleList(
            nn.ModuleList(FAMILIES[own.network.family].build(own.network) for _ in own.folds)
            for own in plan.configurations.values()
        )

    def of(self, name: str) -> Sequence[nn.Module]:
        """One for each fold."""
        return list(self.networks[self.configurations.index(name)])  # type: ignore[call-overload,no-any-return]

    def forward(self, image: Tensor) -> Tensor:
        own = self.plan.configurations[self.plan.chosen[0]]
        quantity, mean = averaged_quantity(own.inference.average, own.targets), RunningMean()
        for network in self.of(self.plan.chosen[0]):
            logits = network(image)
            mean.add(quantity.from_logits(logits if isinstance(logits, Tensor) else logits[0]))
        result: Tensor = quantity.to_logits(mean.result())
        return result


def load_networks(networks: Networks, weights: str, device: torch.device) -> Networks:
    """In eval mode on the device, with the weights of a file that holds tensors alone."""
    networks.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True))
    for stage, own in zip(networks.networks, networks.plan.configurations.values(), strict=True):
        if own.channels_last:
            stage.to(memory_format=CHANNELS_LAST[own.network.dims])  # type: ignore[call-overload]
    return networks.requires_grad_(False).eval().to(device)


class ReadCase:
    """A transform: `{"name": ..., "image": [paths]}` to the `Image`."""

    def __init__(self, plan: Any) -> None:
        self.plan = plan

    def __call__(self, item: Mapping[str, Any]) -> Image:
        files = item["image"] if isinstance(item["image"], list | tuple) else [item["image"]]
        return read_case(item.get("name") or Path(files[0]).name.partition(".")[0], files, self.plan)


class CaseInferer(Inferer):
    """A whole case through all configurations, stage by stage: label values (Z, Y, X) in the voxels of the file."""

    def __init__(self, plan: Any, device: torch.device) -> None:
        self.plan, self.device = plan, torch.device(device)

    def __call__(  # type: ignore[override]
        self, inputs: Image, network: Networks, *args: Any, **kwargs: Any
    ) -> np.ndarray:
        plan = self.plan
        grids: dict[str, Grid] = {}
        scores: dict[str, np.ndarray] = {}
        for name, own in plan.configurations.items():
            grids[name] = prepare(inputs, own.preprocess)
            image = grids[name].image
            if (before := own.previous_stage) is not None:
                earlier = plan.configurations[before]
                handed = for_next_stage(scores[before], grids[before], earlier, grids[name], own.inference.handover)
                image = append_one_hot(image, handed, len(plan.values))
            scores[name] = predict_scores(
                network.of(name), image, own, own.network.out_channels, self.device, swap=own.swap
            )
        chosen = plan.chosen
        weights = plan.weights or (1 / len(chosen),) * len(chosen)
        dense = in_file(
            [scores[name] for name in chosen],
            [grids[name] for name in chosen],
            plan.configurations[chosen[0]],
            averaged_quantity("probabilities", plan.configurations[chosen[0]].targets),
            weights,
        )
        values: np.ndarray = np.array(plan.values, np.int32)[dense]
        return values


class WriteSegmentation:
    """A transform: `Image` and label values to a file `<case>.<ending>`; returns its path."""

    def __init__(self, plan: Any, output_dir: str, remove: object = True) -> None:
        self.steps, self.folder = plan.postprocessing if is_on(remove) else (), Path(output_dir)

    def __call__(self, case: Image, values: np.ndarray) -> Path:
        return write_labels(self.folder, case, remove_components(values, case.spacing, self.steps))


class Evaluator:
    """Predicts one case after the other. `run` goes on after a case that fails, and raises RuntimeError at the end."""

    def __init__(self, dataset: Dataset, network: Networks, inferer: CaseInferer, postprocessing: Any) -> None:
        self.dataset, self.network, self.inferer, self.postprocessing = dataset, network, inferer, postprocessing

    def run(self) -> None:
        failed = []
        for index in range(len(self.dataset)):
            try:
                case = self.dataset[index]
                log.info("written %s", self.postprocessing(case, self.inferer(case, self.network)))
            except (ValueError, RuntimeError) as error:  # also monai's, of a transform, and SimpleITK's, of a file
                failed.append(f"{self.dataset.data[index]['name']}: {error.__cause__ or error}")
                log.error("not predicted: %s", failed[-1])
        if failed:
            raise RuntimeError(f"{len(failed)} of {len(self.dataset)} cases were not predicted: {'; '.join(failed)}")
