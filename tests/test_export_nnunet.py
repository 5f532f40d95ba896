"""What nnU-Net would install: its files say what the bundle says, and importing them gives the same model again; what
nnU-Net cannot express is refused, and what it does in its own way is told."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from nnunet_exports import CLASSES, REGIONS, configuration, packed
from nnunet_folders import tensors
from typer.testing import CliRunner

from autounet.cli.app import app
from autounet.inference.bundle import load_bundle
from autounet.interop.export_nnunet import export_nnunet
from autounet.interop.import_nnunet import import_model
from autounet.interop.nnunet_network import nnunet_architecture, nnunet_weights
from autounet.interop.nnunet_plans import convert_configuration, nnunet_plans
from autounet.interop.nnunet_records import find_reader, nnunet_dataset, read_channels, read_labels, written_numbers
from autounet.nets import FAMILIES
from autounet.schema.errors import ModelError, OptionError, UsageError
from autounet.schema.labels import LabelClass, Labels, Region, overlapping_targets
from autounet.schema.plan import ChannelNormalisation, Configuration, Resampling
from autounet.schema.selection import PostprocessStep

FOLDER = "nnUNetTrainer__nnUNetPlans__"


def files(out: Path, name: str, dataset: str = "Dataset777_Shapes") -> tuple[dict[str, Any], dict[str, Any]]:
    """plans.json and dataset.json."""
    folder = out / dataset / f"{FOLDER}{name}"
    plans, described = (json.loads((folder / file).read_text()) for file in ("plans.json", "dataset.json"))
    return plans, described


KINDS = {
    "plain 2d": (configuration(2), CLASSES),
    "plain 3d": (configuration(3), CLASSES),
    "residual 2d": (configuration(2, "residual"), CLASSES),
    "residual 3d": (configuration(3, "residual", preprocess={"orientation": "as_stored"}), CLASSES),
    "regions": (configuration(3, labels=REGIONS, preprocess={"transpose": (1, 0, 2)}), REGIONS),
    "not mirrored": (configuration(3, inference={"mirror_axes": ()}, mirror_axes=()), CLASSES),
}


@pytest.mark.parametrize("kind", KINDS)
def test_export_and_import_give_the_same_bytes_of_weights_and_the_same_plan(kind: str, tmp_path: Path) -> None:
    own, labels = KINDS[kind]
    name = f"{own.network.dims}d_any"
    model = packed(tmp_path, {name: own}, labels=labels)
    written = export_nnunet(model, tmp_path / "out")
    assert written.differences == ()
    for source in (*written.paths, written.paths[0] / f"{FOLDER}{name}"):
        import_model(source, tmp_path / "again")
        (before, folder), (after, again) = load_bundle(model), load_bundle(tmp_path / "again")
        assert [member.path for member in after.members] == [member.path for member in before.members]
        for member in before.members:
            assert (again / member.path).read_bytes() == (folder / member.path).read_bytes()
        found = after.configurations[name]
        assert found.model_copy(update={"precision": own.precision, "prepared": own.prepared}) == own
        assert [channel.name for channel in after.channels] == ["CT", "T1"]
        assert overlapping_targets(after.labels) == overlapping_targets(labels)
        assert (after.name, after.suffix) == (before.name, before.suffix)


@pytest.mark.parametrize("family", ["plain", "residual"])
@pytest.mark.parametrize("dims", [2, 3])
def test_architecture_and_tensors_are_those_of_nnunets_own_networks(family: str, dims: int) -> None:
    """The golden file is what nnU-Net 2.8.1 builds: `benchmarks/nnunet_models.py tensors`."""
    spec = configuration(dims, family).network
    golden = json.loads((Path(__file__).parent / "golden" / "nnunet_tensors.json").read_text())[f"{family} {dims}d"]
    assert nnunet_architecture(spec, "here") == golden["architecture"]
    state = FAMILIES[family].build(spec).state_dict()
    written = nnunet_weights(state, spec)
    assert {name: list(each.shape) for name, each in written.items()} == golden["tensors"]
    assert len({each.data_ptr() for each in written.values()}) == len(state)  # further names, no copies


def test_a_network_without_deep_supervision_gets_the_heads_that_nnunet_expects() -> None:
    spec = configuration(2, network={"deep_supervision": False}).network
    written = nnunet_weights(FAMILIES["plain"].build(spec).state_dict(), spec)
    assert set(written) == set(tensors(spec.model_copy(update={"deep_supervision": True}), seed=0))
    assert not written["decoder.seg_layers.0.weight"].any()
    assert written["decoder.seg_layers.1.weight"].any()


channel = st.one_of(
    st.builds(
        ChannelNormalisation,
        scheme=st.just("ct"),
        mean=st.floats(-1e3, 1e3),
        std=st.floats(1e-3, 1e3),
        lower=st.floats(-1e4, 0),
        upper=st.floats(1, 1e4),
    ),
    st.builds(ChannelNormalisation, scheme=st.just("zscore"), nonzero_only=st.booleans()),
    st.sampled_from([ChannelNormalisation(scheme=scheme) for scheme in ("range", "none")]),
    st.just(ChannelNormalisation(scheme="unit", lower=0, upper=255)),
)
resampling = st.builds(
    Resampling,
    image_order=st.sampled_from([0, 1, 3]),
    label_order=st.integers(0, 1),
    score_order=st.integers(0, 1),
    z_order=st.integers(0, 1),
    separate_z_ratio=st.sampled_from([3.0, 0.5, 1e9]),
)


@given(
    dims=st.sampled_from([2, 3]),
    spacing=st.tuples(*[st.floats(0.01, 50)] * 3),
    normalisation=st.lists(channel, min_size=2, max_size=2).map(tuple),
    rules=resampling,
    transpose=st.permutations(range(3)).map(tuple),
    orientation=st.sampled_from(["ras", "as_stored"]),
    mirrored=st.sets(st.integers(0, 1)).map(sorted).map(tuple),
)
def test_a_configuration_survives_nnunets_plans(
    dims: int, spacing: Any, normalisation: Any, rules: Any, transpose: Any, orientation: str, mirrored: Any
) -> None:
    own = configuration(
        dims,
        preprocess={
            "orientation": orientation,
            "spacing": (spacing[0] if dims == 3 else None, *spacing[1:]),
            "normalisation": normalisation,
            "resampling": rules,
            "transpose": transpose,
        },
        inference={"mirror_axes": mirrored},
        mirror_axes=mirrored,
        precision="fp16",
        prepared="x",
    )
    reader, _ = find_reader(orientation, ".nii.gz", 3, 2, "here")
    plans = nnunet_plans("Dataset777_Shapes", reader, {"x": own}, (1, 1, 1), "here")
    assert convert_configuration(plans, "x", "here", 2, 3, mirrored, regions=False) == own


def test_the_files_say_what_nnunet_does(tmp_path: Path) -> None:
    out = tmp_path / "out"
    export_nnunet(packed(tmp_path, {"3d_fullres": configuration(3)}, folds=[0, None]), out)
    plans, described = files(out, "3d_fullres")
    assert described == {
        "channel_names": {"0": "CT", "1": "T1"},
        "labels": {"background": 0, "large": 1, "small": 2},
        "numTraining": 0,
        "file_ending": ".nii.gz",
    }
    assert plans["image_reader_writer"] == "SimpleITKIOWithReorient"
    assert plans["transpose_forward"] == plans["transpose_backward"] == [0, 1, 2]
    assert set(plans["foreground_intensity_properties_per_channel"]) == {"0", "1"}
    assert plans["foreground_intensity_properties_per_channel"]["0"] == {
        "mean": 40.5, "std": 12.25, "percentile_00_5": -3.0, "percentile_99_5": 90.0
    }  # fmt: skip
    found = plans["configurations"]["3d_fullres"]
    assert found["normalization_schemes"] == ["CTNormalization", "ZScoreNormalization"]
    assert found["use_mask_for_norm"] == [False, True]
    kwargs = {"is_seg": False, "order": 3, "order_z": 0, "force_separate_z": None}
    assert found["resampling_fn_data_kwargs"] == kwargs
    assert found["resampling_fn_seg_kwargs"] == {**kwargs, "is_seg": True, "order": 1}
    assert found["resampling_fn_probabilities_kwargs"] == {**kwargs, "order": 1}
    assert found["architecture"] == {
        "network_class_name": "dynamic_network_architectures.architectures.unet.PlainConvUNet",
        "arch_kwargs": {
            "n_stages": 3,
            "features_per_stage": [4, 6, 6],
            "strides": [[1, 1, 1], [1, 2, 2], [2, 2, 2]],
            "kernel_sizes": [[1, 3, 3], [3, 3, 3], [3, 3, 3]],
            "n_conv_per_stage": [1, 2, 2],
            "n_conv_per_stage_decoder": [1, 1],
            "conv_op": "torch.nn.modules.conv.Conv3d",
            "conv_bias": True,
            "norm_op": "torch.nn.modules.instancenorm.InstanceNorm3d",
            "norm_op_kwargs": {"eps": 1e-05, "affine": True},
            "dropout_op": None,
            "dropout_op_kwargs": None,
            "nonlin": "torch.nn.LeakyReLU",
            "nonlin_kwargs": {"inplace": True},
        },
        "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
    }
    folder = out / "Dataset777_Shapes" / f"{FOLDER}3d_fullres"
    for fold, name in ((0, "fold_0"), ("all", "fold_all")):
        content = torch.load(folder / name / "checkpoint_final.pth", weights_only=True)
        assert (content["trainer_name"], content["inference_allowed_mirroring_axes"]) == ("nnUNetTrainer", (0, 1, 2))
        assert (content["init_args"]["configuration"], content["init_args"]["fold"]) == ("3d_fullres", fold)


def test_no_mirroring_is_none_to_nnunet(tmp_path: Path) -> None:
    own = configuration(2, inference={"mirror_axes": ()})
    export_nnunet(packed(tmp_path, {"2d": own}, folds=[0]), tmp_path / "out")
    checkpoint = tmp_path / "out" / "Dataset777_Shapes" / f"{FOLDER}2d" / "fold_0" / "checkpoint_final.pth"
    assert torch.load(checkpoint, weights_only=True)["inference_allowed_mirroring_axes"] is None


def test_the_zip_unpacks_into_nnunets_results(tmp_path: Path) -> None:
    model = packed(tmp_path, {"2d": configuration(2)}, folds=[3], name="my liver")
    written = export_nnunet(model, tmp_path / "only.zip", dataset="Dataset123_Liver")
    assert written.paths == (tmp_path / "only.zip",)
    with zipfile.ZipFile(tmp_path / "only.zip") as archive:
        assert sorted(archive.namelist()) == [
            "Dataset123_Liver/README.md",
            "Dataset123_Liver/model_card.md",
            f"Dataset123_Liver/{FOLDER}2d/dataset.json",
            f"Dataset123_Liver/{FOLDER}2d/fold_3/checkpoint_final.pth",
            f"Dataset123_Liver/{FOLDER}2d/plans.json",
        ]
        assert written.commands[0] in archive.read("Dataset123_Liver/README.md").decode()
    assert written.commands == ("nnUNetv2_predict -i IMAGES -o SEGMENTATIONS -d Dataset123_Liver -c 2d -f 3",)
    for called, made in (("Task04_Hippocampus", "Dataset004_Hippocampus"), ("my liver", "Dataset928_my_liver")):
        again = packed(tmp_path / made, {"2d": configuration(2)}, folds=[0], name=called)
        assert export_nnunet(again, tmp_path / f"{made}.zip").dataset == made


def test_a_cascade_and_an_ensemble_bring_their_commands(tmp_path: Path) -> None:
    stages = {
        "3d_lowres": configuration(3),
        "3d_cascade_fullres": configuration(3, previous="3d_lowres", inference={"overlap": 0.25}),
        "2d": configuration(2),
    }
    model = packed(tmp_path, stages, ["2d", "3d_cascade_fullres"], folds=range(5))
    written = export_nnunet(model, tmp_path / "out")
    start = "nnUNetv2_predict -i IMAGES -o SEGMENTATIONS"
    data = "-d Dataset777_Shapes"
    assert written.commands == (
        f"{start}_2d {data} -c 2d --save_probabilities",
        f"{start}_3d_lowres {data} -c 3d_lowres",
        f"{start}_3d_cascade_fullres {data} -c 3d_cascade_fullres -step_size 0.75 "
        "-prev_stage_predictions SEGMENTATIONS_3d_lowres --save_probabilities",
        "nnUNetv2_ensemble -i SEGMENTATIONS_2d SEGMENTATIONS_3d_cascade_fullres -o SEGMENTATIONS",
    )
    plans, _ = files(tmp_path / "out", "3d_cascade_fullres")
    assert list(plans["configurations"]) == ["3d_lowres", "3d_cascade_fullres"]
    import_model(written.paths[1], tmp_path / "again", ["3d_cascade_fullres"])
    again = load_bundle(tmp_path / "again")[0].configurations
    assert again["3d_cascade_fullres"].previous_stage == "3d_lowres"
    assert again["3d_cascade_fullres"].network == stages["3d_cascade_fullres"].network
    one = export_nnunet(model, tmp_path / "one", configuration="2d", folds=[4])
    assert one.commands == (f"{start} {data} -c 2d -f 4",)


def labels(values: tuple[int, ...], *regions: Region, ignore: int | None = None) -> Labels:
    named = (LabelClass(name="background" if not value else f"c{value}", value=value) for value in values)
    return Labels(classes=tuple(named), regions=regions, ignore=ignore)


BRATS = (Region(name="whole", values=(1, 2, 4)), Region(name="core", values=(1, 4)))


@pytest.mark.parametrize(
    ("own", "numbers", "declared", "order"),
    [
        (labels((0, 1, 2)), (0, 1, 2), {"c1": 1, "c2": 2}, None),
        (labels((0, 1, 2), ignore=9), (0, 1, 2), {"c1": 1, "c2": 2, "ignore": 3}, None),
        (labels((0, 3, 255)), (0, 1, 2), {"c3": 1, "c255": 2}, None),
        (labels((0, 1, 2, 4), *BRATS), (0, 1, 2, 4), {"whole": [1, 2, 4], "core": [1, 4], "c4": 4}, [2, 1, 4]),
        (labels((0, 1), Region(name="one", values=(1,))), (0, 1), {"one": [1, 1]}, [1]),
    ],
)
def test_labels_become_nnunets_and_are_read_back(
    own: Labels, numbers: tuple[int, ...], declared: dict[str, Any], order: list[int] | None
) -> None:
    targets = "regions" if own.regions else "classes"
    described = nnunet_dataset(["a", "b"], own, targets, ".mha", 7, "here")
    assert described["labels"] == {"background": 0, **declared}
    assert described.get("regions_class_order") == order
    assert written_numbers(own, targets) == numbers
    assert read_channels(described, "here") == ("a", "b")
    again = read_labels(described, "here")
    assert again.values == numbers
    if own.regions:
        found = [(target.members, target.paints) for target in overlapping_targets(again)]
        assert found == [(target.members, target.paints) for target in overlapping_targets(own)]


def test_classes_called_as_nnunets_own_keys_keep_a_name() -> None:
    own = Labels(classes=tuple(LabelClass(name=n, value=v) for v, n in enumerate(("rest", "ignore", "background"))))
    described = nnunet_dataset(["a"], own, "classes", ".nii.gz", 0, "here")
    assert described["labels"] == {"background": 0, "ignore_": 1, "background_": 2}


@pytest.mark.parametrize(
    ("orientation", "ending", "dimension", "highest", "expected"),
    [
        ("ras", ".nrrd", 3, 2, ("SimpleITKIOWithReorient", ".nrrd")),
        ("ras", ".nii", 3, 2, ("NibabelIOWithReorient", ".nii")),
        ("ras", ".nii.gz", 3, 300, ("NibabelIOWithReorient", ".nii.gz")),
        ("ras", ".dcm", 3, 2, ("SimpleITKIOWithReorient", ".nii.gz")),
        ("ras", ".png", 2, 2, ("NaturalImage2DIO", ".png")),
        ("canonical", ".tif", 2, 2, ("NaturalImage2DIO", ".tif")),
        ("as_stored", ".tif", 3, 2, ("Tiff3DIO", ".tif")),
        ("as_stored", ".NII.GZ", None, 2, ("SimpleITKIO", ".nii.gz")),
    ],
)
def test_the_reader_is_one_that_shows_images_as_the_network_saw_them(
    orientation: str, ending: str, dimension: int | None, highest: int, expected: tuple[str, str]
) -> None:
    assert find_reader(orientation, ending, dimension, highest, "here") == expected


def other(**changes: Any) -> Configuration:
    return configuration(3, **changes)


NESTED = FAMILIES["nested"].propose(3, 2, 3, ((1, 1, 1), (2, 2, 2)), ((3, 3, 3),) * 2, base_features=4)


@pytest.mark.parametrize(
    ("own", "match"),
    [
        (other(network=NESTED.model_dump(exclude={"dims"})), "no network of the family nested"),
        (other(inference={"weighting": "uniform"}), "there tiles are weighted by a Gaussian"),
        (other(preprocess={"resampling": Resampling(separate_z_ratio=2)}), "a coarse axis is separate from"),
        (other(preprocess={"orientation": "canonical"}), "the orientation canonical, as older plans"),
        (other(preprocess={"spacing": (None, 1.0, 1.0)}), "3-D networks one spacing"),
    ],
)
def test_what_nnunet_cannot_express_is_refused_with_the_reason(own: Configuration, match: str, tmp_path: Path) -> None:
    model = packed(tmp_path, {"3d_fullres": own}, folds=[0])
    with pytest.raises(ModelError, match=match):
        export_nnunet(model, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_a_region_with_the_background_and_images_that_lack_a_channel_are_refused(tmp_path: Path) -> None:
    own = labels((0, 1, 2), Region(name="not two", values=(0, 1)))
    with pytest.raises(ModelError, match="the region not two holds the value 0"):
        nnunet_dataset(["a"], own, "regions", ".nii.gz", 0, "here")


def test_what_nnunet_does_in_its_own_way_is_told(tmp_path: Path) -> None:
    pairs = Labels(
        classes=tuple(LabelClass(name=n, value=v) for n, v in (("background", 0), ("left_a", 3), ("right_a", 7))),
        pairs=(("left_a", "right_a"),),
    )
    stages = {
        "3d_lowres": configuration(3, labels=pairs, swap_axis=2, inference={"average": "probabilities"}),
        "3d_cascade_fullres": configuration(
            3, labels=pairs, previous="3d_lowres", inference={"handover": "grid"}, precision="bf16"
        ),
    }
    step = PostprocessStep(name="foreground", values=(3, 7), keep="largest")
    selection = {"weights": (0.25, 0.75), "postprocessing": (step,)}
    model = packed(tmp_path, stages, list(stages), pairs, [0], selection, suffix=".dcm", file_kind="dicom")
    written = export_nnunet(model, tmp_path / "out")
    assert written.differences == (
        "3d_lowres: nnU-Net averages logits over views, tiles and folds, as predict --average logits does.",
        "3d_lowres: predictions are not mirrored from left to right, since nnU-Net exchanges no classes.",
        "3d_cascade_fullres: the segmentation of 3d_lowres goes by way of its files, from which labels are resampled; "
        "predict interpolates its scores.",
        "3d_cascade_fullres: on a CPU nnU-Net computes in float32, where predict takes bfloat16.",
        "nnUNetv2_ensemble averages with equal weights, and predict with 0.25, 0.75.",
        "components are not removed: predict keeps the largest component of foreground.",
        "images have to be converted to .nii.gz: nnU-Net does not read .dcm so.",
        "values in segmentations are numbered without gaps: 3 is 1, 7 is 2.",
    )
    readme = (written.paths[0] / "README.md").read_text()
    assert all(text in readme for text in (*written.differences, *written.commands))
    folder = written.paths[0] / f"{FOLDER}3d_lowres" / "fold_0" / "checkpoint_final.pth"
    assert torch.load(folder, weights_only=True)["inference_allowed_mirroring_axes"] == (0, 1)


def test_colours_of_another_range_are_clipped_at_what_no_image_reaches(tmp_path: Path) -> None:
    schemes = (
        ChannelNormalisation(scheme="unit", lower=0, upper=255),
        ChannelNormalisation(scheme="unit", lower=100, upper=4100),
    )
    own = configuration(2, preprocess={"normalisation": schemes})
    export_nnunet(packed(tmp_path, {"2d": own}, folds=[0]), tmp_path / "out")
    plans, _ = files(tmp_path / "out", "2d")
    assert plans["configurations"]["2d"]["normalization_schemes"] == ["RGBTo01Normalization", "CTNormalization"]
    assert plans["foreground_intensity_properties_per_channel"]["1"] == {
        "mean": 100, "std": 4000, "percentile_00_5": -1e30, "percentile_99_5": 1e30
    }  # fmt: skip


def test_the_command_line(tmp_path: Path) -> None:
    model = packed(tmp_path, {"2d": configuration(2)}, folds=[0])
    run = CliRunner().invoke
    words = ["export", str(model), "--format", "nnunet"]
    done = run(app, [*words, "--out", str(tmp_path / "out"), "--dataset", "Dataset042_Answer"])
    assert done.exit_code == 0, done.output
    assert "-d Dataset042_Answer -c 2d -f 0" in done.output
    with pytest.raises(OptionError, match="is there already"):
        run(app, [*words, "--out", str(tmp_path / "out")], catch_exceptions=False, standalone_mode=False)
    with pytest.raises(OptionError, match="no name of nnU-Net's"):
        export_nnunet(model, tmp_path / "x", dataset="liver")
    with pytest.raises(ModelError, match="no fold_7 of 2d; it has fold_0"):
        export_nnunet(model, tmp_path / "x", folds=[7])
    wrong = run(app, ["export", str(model), "--format", "torch", "--out", str(tmp_path / "y"), "--dataset", "D"])
    assert isinstance(wrong.exception, UsageError)
