"""The packed model."""

from __future__ import annotations

from pydantic import JsonValue

from autounet.schema.card import ModelCard
from autounet.schema.dataset import Channel
from autounet.schema.labels import Labels
from autounet.schema.plan import Configuration
from autounet.schema.record import Part, Record
from autounet.schema.selection import Selection


class BundleMember(Part):
    configuration: str
    fold: int | None
    path: str
    """weights file relative to the bundle"""
    checksum: str
    """blake2b-128 of the file, hex"""


class ModelBundle(Record):
    """`model/bundle.json`: predicting needs this folder, or the `.autounet` file made of it, alone."""

    name: str
    layout: str
    image_pattern: str
    suffix: str
    file_kind: str
    channels: tuple[Channel, ...]
    channel_patterns: dict[str, str] = {}
    channel_combinations: tuple[tuple[bool, ...], ...] = ()
    """which channels an image may have: the combinations that occurred in training; empty: all of them"""
    time_points: bool = False
    labels: Labels
    configurations: dict[str, Configuration]
    selection: Selection
    members: tuple[BundleMember, ...]
    mean_dice: float | None
    versions: dict[str, str]
    details: dict[str, JsonValue] = {}
    card: ModelCard | None = None
    """None: packed before models had cards"""
    card_checksum: str | None = None
    """blake2b-128 of `model_card.md`, hex; None: there is none"""
    checksum: str | None = None
    """digest of this record without this field, so that a changed bundle.json is noticed"""
