"""Fine-tuning: initial weights from `--pretrained` or `--init`, checked before anything is trained.

A model's fold k starts fold k here, so that its validation cases stay unseen where data and folds are the same.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path

from ..inference.bundle import BUNDLE_FILE, file_checksum, load_bundle
from ..nets import FAMILIES
from ..nets.efficient import encoder_weights
from ..nets.transfer import class_tensors, differences, input_tensors
from ..planning.plan_transfer import StartingModel
from ..schema.bundle import BundleMember, ModelBundle
from ..schema.dataset import Channel, Dataset
from ..schema.errors import ModelError, OptionError, UsageError
from ..schema.options import RunOptions, StartingWeights, TrainOptions
from ..schema.plan import Configuration, Reason
from ..schema.record import digest
from ..schema.stage_inputs import InitialWeights
from ..store.weights import read_pretrained
from .defaults import PRETRAINED_FAMILY, TRANSFERRED_RATE
from .jobs import InitialFold


def network_source(options: RunOptions) -> StartingWeights | None:
    """The model whose networks a plan transfers; None: there is none, or a preset says what the networks are."""
    source = options.start
    return source if options.starts_from == "model" and not options.preset else None


def starting_model(options: RunOptions) -> StartingModel | None:
    """The model of `--init`; None also where it does not exist any more: what was planned and trained from it stays.

    Raises OptionError where the options name another family, and ModelError for a damaged model.
    """
    source = network_source(options)
    if source is None or not Path(source.path).exists():
        return None
    bundle, folder = loaded(source)
    families = {each.network.family for each in bundle.configurations.values()}
    if options.family not in (None, *families):
        raise OptionError(
            f"--init {folder}: the networks of the model are of the family {', '.join(sorted(families))}, and "
            f"--family is {options.family}",
            f"Give --family {min(families)}, or --init none",
        )
    return StartingModel(name=str(folder), channels=bundle.channels, configurations=bundle.configurations)


def loaded(source: StartingWeights) -> tuple[ModelBundle, Path]:
    """The bundle and its folder, read once for each checksum. Raises ModelError as `load_bundle` does."""
    return _loaded(source.path, source.checksum)


@lru_cache(maxsize=1)
def _loaded(path: str, checksum: str | None) -> tuple[ModelBundle, Path]:
    return load_bundle(Path(path))


def require_model(options: RunOptions, starting: StartingModel | None) -> None:
    """Raises OptionError where a plan is to be made from a model that does not exist any more."""
    source = network_source(options)
    if source is not None and starting is None:
        raise OptionError(
            f"--init {source.path} does not exist any more, and a new plan needs its network",
            "Give the path where it is now, or --init none",
        )


def transfer_reason(model: StartingModel) -> Reason:
    text = (
        f"training starts from the weights of {model.name}, so its learning rate rises to {TRANSFERRED_RATE:g} at most "
        "(0.01 with SGD, 0.003 with AdamW where nothing is transferred), from 0 over the first 5 %"
    )
    return Reason(configuration=None, topic="fine-tuning", text=text)


log = logging.getLogger(__name__)


def known_weights(options: RunOptions, out: Path) -> RunOptions:
    """With the checksum of what weights start from, so that another file of the same name is noticed.

    A file of an earlier command may be missing: what was trained from it is kept. Raises UsageError for one that was
    never there, OptionError for the model of this very output folder, and ModelError for a damaged one.
    """
    source = options.start
    if source is None:
        return options
    if not Path(source.path).exists():
        if source.checksum is None:
            raise UsageError(f"{_option(options)} {source.path} does not exist", "Check the path")
        log.warning("%s %s does not exist any more: what was trained from it is kept", _option(options), source.path)
        return options
    checksum = _model_checksum(source, out) if source.kind == "model" else _file_checksum(source)
    if source.checksum not in (None, checksum):
        log.warning("%s %s has changed since: folds are trained again", _option(options), source.path)
    return options.model_copy(update={"start": source.model_copy(update={"checksum": checksum})})


def _option(options: RunOptions) -> str:
    return "--pretrained" if options.starts_from == "encoder" else "--init"


def _file_checksum(source: StartingWeights) -> str:
    if not Path(source.path).is_file():
        raise OptionError(f"--pretrained {source.path} is a folder", "Give a file of weights")
    return file_checksum(Path(source.path))


def _model_checksum(source: StartingWeights, out: Path) -> str:
    """Of the weights alone: a model that is packed again with the same ones is the same."""
    bundle, folder = load_bundle(Path(source.path))
    if folder.resolve().is_relative_to(out.resolve()):
        raise OptionError(f"--init {source.path} is the model of --out {out} itself", "Give another --out")
    return digest(sorted((member.configuration, str(member.fold), member.checksum) for member in bundle.members))


@dataclass(frozen=True)
class FineTuning:
    """The initial weights of the trainings of one run."""

    options: RunOptions
    dataset: Dataset
    configurations: Mapping[str, Configuration]
    """that are trained"""
    train_options: Mapping[str, TrainOptions]
    """of each configuration"""
    plan_file: Path

    @property
    def source(self) -> StartingWeights | None:
        return self.options.start

    @cached_property
    def model(self) -> tuple[ModelBundle, Path] | None:
        """What `--init` names."""
        source = self.source
        return loaded(source) if source and source.kind == "model" else None

    @property
    def _starting(self) -> StartingModel:
        assert self.model is not None
        bundle, folder = self.model
        return StartingModel(name=str(folder), channels=bundle.channels, configurations=bundle.configurations)

    def check(self) -> None:
        """Raises OptionError or ModelError where what is to be trained cannot start from the given weights."""
        if self.source is None or not Path(self.source.path).exists():
            return
        for name, configuration in self.configurations.items():
            if self.model is None:
                self._check_encoder(name, configuration)
            else:
                self._check_model(name, configuration)
        if self.model is not None:
            here, there = (tuple(each.name for each in channels) for channels in self._channels)
            if here != there:
                log.warning("the channels are %s here and %s in the model of --init", ", ".join(here), ", ".join(there))

    @property
    def _channels(self) -> tuple[tuple[Channel, ...], tuple[Channel, ...]]:
        """Here, and of the model."""
        assert self.model is not None
        return self.dataset.channels, self.model[0].channels

    def of(self, name: str, fold: int | None) -> InitialFold | None:
        """For one training; None where it starts from random numbers."""
        if self.source is None:
            return None
        if self.model is None:
            path = Path(self.source.path)
            return InitialFold(path, InitialWeights(), (f"the encoder starts from {path} ({self.source.checksum})",))
        bundle, folder = self.model
        source = self._starting.source(name) or name
        configuration, trained = self.configurations[name], bundle.configurations[source]
        member = _member(bundle, source, fold)
        channels = self._matched(configuration, trained)
        weights = InitialWeights(trained=trained.network, new=_new_heads(configuration, trained), channels=channels)
        return InitialFold(folder / member.path, weights, tuple(self._events(name, fold, member, weights)))

    def _matched(self, configuration: Configuration, trained: Configuration) -> tuple[int | None, ...] | None:
        """For each input channel the model's, None where it has none; None: they are the same ones in the same order.

        A previous stage's classes follow the image's channels. They are the same where their number is.
        """
        (here, there), known = self._channels, self._starting
        matched = known.matched(tuple(each.name for each in here))
        further, theirs = configuration.network.in_channels - len(here), trained.network.in_channels - len(there)
        matched += tuple(len(there) + k if further == theirs else None for k in range(further))
        return None if matched == tuple(range(trained.network.in_channels)) else matched

    def _events(self, name: str, fold: int | None, member: BundleMember, start: InitialWeights) -> Iterator[str]:
        assert self.model is not None
        bundle, folder = self.model
        of_fold = "the training on all cases" if member.fold is None else f"fold {member.fold}"
        yield f"the weights start from {of_fold} of {member.configuration} in {folder} ({member.checksum})"
        configuration = self.configurations[name]
        if start.new:
            yield f"new, since the classes differ: {', '.join(start.new)}"
        if start.channels is not None:
            yield self._channel_event(configuration, start.channels)
        if start.trained is not None and configuration.network.kernel_sizes != start.trained.kernel_sizes:
            yield "kernels were interpolated to their larger size (UpKern)"
        rate = self.train_options[name].learning_rate
        yield f"the learning rate rises to {rate:g} at most, after a warm-up, since weights are transferred"
        if fold is not None and member.fold != fold and bundle.name == self.dataset.name:
            yield "the model may have been trained on validation cases of this fold: its Dice may be too good"

    def _channel_event(self, configuration: Configuration, channels: tuple[int | None, ...]) -> str:
        names = [each.name for each in self._channels[0]]
        names += [f"class {k + 1} of the previous stage" for k in range(len(channels) - len(names))]
        new = [name for name, index in zip(names, channels, strict=True) if index is None]
        kept = [name for name, index in zip(names, channels, strict=True) if index is not None]
        tensors = ", ".join(input_tensors(configuration.network))
        parts = [f"trained for {', '.join(kept)}"] if kept else []
        parts += [f"new for {', '.join(new)}"] if new else []
        return f"{tensors}: {', '.join(parts)}"

    def _check_encoder(self, name: str, configuration: Configuration) -> None:
        import torch

        assert self.source is not None
        network, place = configuration.network, f"--pretrained {self.source.path}: {name}"
        if network.family != PRETRAINED_FAMILY:
            raise OptionError(
                f"{place} is of the family {network.family}, and the weights are those of an encoder of "
                f"{PRETRAINED_FAMILY}",
                f"Give --family {PRETRAINED_FAMILY}",
            )
        if network.dims != 2:
            raise OptionError(
                f"{place} is three-dimensional, and pretrained weights are for images of two dimensions",
                "Give --configurations 2d",
            )
        with torch.device("meta"):
            built = FAMILIES[network.family].build(network)
        try:
            encoder_weights(built, read_pretrained(Path(self.source.path)))
        except ModelError as error:
            raise ModelError(f"{place}: {error.message}", error.remedy) from None

    def _check_model(self, name: str, configuration: Configuration) -> None:
        assert self.model is not None
        bundle, folder = self.model
        source = self._starting.source(name)
        trained = bundle.configurations.get(source or name)
        if trained is None:
            known = ",".join(bundle.configurations)
            raise OptionError(
                f"--init {folder}: the model has no configuration {name}; it has {known}",
                f"Give --configurations {known}",
            )
        matched = self._matched(configuration, trained) is not None
        if differing := differences(configuration.network, trained.network, matched):
            raise ModelError(
                f"--init {folder}: {name} cannot start from the model's {source}, whose network is another one: "
                f"{'; '.join(differing)}",
                "Plan with the options that the model was planned with, or edit the network of "
                f"{name} in {self.plan_file} to be that of {folder / BUNDLE_FILE}, and run again",
            )


def _member(bundle: ModelBundle, name: str, fold: int | None) -> BundleMember:
    """The model's same fold where there is one; else the model's folds in turn."""
    members = [member for member in bundle.members if member.configuration == name]
    same = (member for member in members if member.fold == fold)
    return next(same, members[(fold or 0) % len(members)])


def _new_heads(configuration: Configuration, trained: Configuration) -> tuple[str, ...]:
    """Tensors of the output layers, where the number or kind of targets differs; other class names change nothing."""
    same = configuration.network.out_channels == trained.network.out_channels
    return () if same and configuration.targets == trained.targets else class_tensors(configuration.network)
