"""The run file: defaults, overrides, refusals, and that what it prints it also reads."""

from __future__ import annotations

import pytest

from satseg.errors import UsageError
from satseg.options import NO_AUGMENTATION, AugmentOptions
from satseg.run import RunConfig


def test_printed_config_reads_back_as_itself(tmp_path):
    config = RunConfig.from_options(
        {"minutes": 3, "classes": ("a", "b"), "gsd": 0.3, "field": 'na"me', "loss_params": {"weight": 0.4}}
    )
    (tmp_path / "run.toml").write_text(config.to_toml(), encoding="utf-8")
    assert RunConfig.from_file(tmp_path / "run.toml") == config


def test_default_budget_is_ten_minutes():
    assert RunConfig().train.minutes == 10
    assert RunConfig.from_options({"steps": 5}).train.minutes is None


def test_steps_given_by_name_replace_minutes_of_the_file(tmp_path):
    (tmp_path / "run.toml").write_text("[train]\nminutes = 5\n")
    config = RunConfig.from_options({"steps": 7}, base=RunConfig.from_file(tmp_path / "run.toml"))
    assert (config.train.steps, config.train.minutes) == (7, None)


def test_minutes_and_steps_together_are_refused():
    with pytest.raises(UsageError, match="minutes or steps"):
        RunConfig.from_options({"steps": 7, "minutes": 1})


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[train]\nminuts = 5\n", "minutes"),
        ("[train]\nminutes = 'five'\n", "minutes"),
        ("[train]\nminutes = -5\n", "minutes"),
        ("[trian]\nminutes = 5\n", "train"),
        ("[model]\nnorm = 'group'\n", "norm"),
        ("[train]\nminutes = 5\nminutes = 6\n", "line"),
        ("[train\n", "line"),
        ("[train]\naugment = false\n", "augment"),
        ("[train]\nloss_params = { alpha = -1 }\n", "loss_params"),
        ("[train]\nsmoothing = 1.0\n", "smoothing"),
        ("[augment]\nflip = true\n", "flip"),
        ("[augment]\nrotate = 1.5\n", "rotate"),
        ("[augment]\nzoom = [1.4, 0.7]\n", "zoom"),
    ],
)
def test_faults_of_a_run_file_are_named_with_their_line(tmp_path, text, said):
    path = tmp_path / "run.toml"
    path.write_text(text)
    with pytest.raises(UsageError, match=said) as caught:
        RunConfig.from_file(path)
    assert "line" in str(caught.value)


def test_missing_run_file_is_a_usage_error(tmp_path):
    with pytest.raises(UsageError):
        RunConfig.from_file(tmp_path / "absent.toml")


def test_unknown_option_names_the_nearest():
    with pytest.raises(UsageError, match="minutes"):
        RunConfig.from_options({"minuets": 3})


@pytest.mark.parametrize("override", ["train.minutes", "minutes=3", "train.=3", "=3"])
def test_malformed_override_is_refused(override):
    with pytest.raises(UsageError):
        RunConfig.from_overrides([override])


def test_overrides_are_typed_as_in_toml():
    config = RunConfig.from_overrides(["train.minutes=3", "model.norm=channel", 'data.classes=["a"]'])
    assert config.train.minutes == 3
    assert config.model.norm == "channel"
    assert config.data.classes == ("a",)


def test_paths_of_a_run_file_are_relative_to_it(tmp_path):
    path = tmp_path / "run.toml"
    path.write_text('[data]\nscenes = [{ scene = "a.tif", labels = "sub/a.gpkg" }]\n')
    (item,) = RunConfig.from_file(path).data.scenes
    assert item.scene == str(tmp_path / "a.tif")
    assert item.labels == str(tmp_path / "sub" / "a.gpkg")


def test_augment_section_is_read_and_printed(tmp_path):
    path = tmp_path / "run.toml"
    path.write_text("[augment]\nd4 = false\nzoom = [0.5, 2]\nmixup = 0.25\n")
    config = RunConfig.from_file(path, ["augment.rotate=0.1"])
    assert config.augment == AugmentOptions(d4=False, zoom=(0.5, 2.0), mixup=0.25, rotate=0.1)
    assert config.changes == config.augment
    path.write_text(config.to_toml())
    assert RunConfig.from_file(path) == config


def test_augment_options_may_be_given_flat():
    config = RunConfig.from_options({"zoom": (0.9, 1.1), "cutmix": 0.5})
    assert (config.augment.zoom, config.augment.cutmix) == ((0.9, 1.1), 0.5)
    assert config.augment.gain == AugmentOptions().gain


def test_run_that_is_not_augmented_changes_nothing_whatever_the_section_says():
    assert RunConfig.from_options({"augmented": False, "noise": 1.0}).changes == NO_AUGMENTATION


def test_no_augmentation_is_without_any_change():
    values = NO_AUGMENTATION.model_dump()
    assert (values.pop("d4"), values.pop("zoom")) == (False, (1.0, 1.0))
    assert set(values) == set(AugmentOptions.model_fields) - {"d4", "zoom"}
    assert set(values.values()) == {0.0}


@pytest.mark.parametrize(
    "values",
    [{"zoom": (0.0, 1.0)}, {"zoom": (1.4, 0.7)}, {"zoom": (0.05, 1.0)}, {"zoom": (1.0, 11.0)},
     {"zoom": (float("nan"), 1.0)}, {"zoom": (0.7, float("nan"))}, {"zoom": (1.0,)}, {"gain": 1.0}, {"gain": -0.1},
     {"offset": -1.0}, {"offset": float("inf")}, {"brightness": 1.0}, {"gamma": 2.1}, {"shade": -0.1}, {"blur": 1.1},
     {"noise": float("nan")}, {"noise": -0.1}, {"band_drop": 1.1}, {"rotate": -0.1}, {"cutmix": 1.1},
     {"mixup": float("nan")}, {"d4": 2}],
    ids=str,
)  # fmt: skip
def test_impossible_augmentation_is_refused(values):
    with pytest.raises(UsageError, match=next(iter(values))):
        RunConfig.from_options(values)


@pytest.mark.parametrize("zoom", [(0.1, 10.0), (1.0, 1.0), (2.0, 2.0)])
def test_zoom_may_reach_its_limits(zoom):
    assert AugmentOptions(zoom=zoom).zoom == zoom
