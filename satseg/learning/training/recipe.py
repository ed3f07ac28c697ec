"""From a run's options to a network ready to train, and from a trained network to a model.

The default recipe stands in `satseg.options` as defaults; here they get their meaning. What each choice
rests on is said in the modules that implement it.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

import torch

from satseg.errors import UsageError
from satseg.imagery.levels import all_room, tones
from satseg.imagery.scene import Scene
from satseg.imagery.tiling import round_up
from satseg.learning.card import BandCard, FileHash, IndexCard, ModelCard, Training
from satseg.learning.ground.grounds import Prepared, source_of
from satseg.learning.machine import resolve_device
from satseg.learning.networks.architectures import architecture_of, library_versions, new_network
from satseg.learning.networks.bundle import current_versions
from satseg.learning.networks.halo import TOLERANCE, measure_halo
from satseg.learning.networks.model import Model
from satseg.learning.networks.network import Network
from satseg.learning.training.augment import step_generator
from satseg.learning.training.feed import LEAST_STEPS
from satseg.learning.training.learner import Learner, Outcome
from satseg.learning.training.start import Start, plane_names
from satseg.options import TrainOptions, names_file
from satseg.run import RunConfig
from satseg.specs import is_path, list_sensors, sensor_spec

log = logging.getLogger(__name__)

MINUTES_EACH = {False: 4.5, True: 1.0}
"""Of training until another network is worth more than going on: on two cores, and on a GPU."""
BANDS_IN_TIME = 6
ENOUGH_MEMBERS = 3
RARE = 0.01
"""Share of the ground that a class is taken to cover before training: the head's first bias."""


def build_learner(prepared: Prepared, run: RunConfig, start: Start | None = None) -> Learner:
    """Return an untrained learner for the data, its first weights drawn from the run's seed or those of `start`.

    Raises
    ------
    UsageError
        A model option is out of range, or the device is not here.
    BandError, ModelError, DependencyError
        As `architectures.new_network` and `Start.give_weights`.
    """
    device = resolve_device(run.train.device)
    model = run.model
    if model.members is None and model.kind == "unet":
        model = model.model_copy(update={"members": members_for(run.train, device, bands=len(prepared.bands))})
    cards = _band_cards(prepared.bands, run.data.sensor, prepared.grounds[0].scene)
    network = new_network(
        model, bands=len(prepared.bands), classes=len(prepared.classes) + len(prepared.separated), prior=RARE,
        generator=step_generator(run.train.seed, 0), cards=cards,
    )  # fmt: skip
    smallest, stride = max(run.train.chip, 2 * network.crop + 1), network.stride
    if run.train.chip < smallest or run.train.chip % stride:
        raise UsageError(
            f"chip {run.train.chip} is no multiple of the network's stride {stride} above its crop",
            hint=f"give {round_up(smallest, stride)}",
            code="E-TRN-007",
        )
    if run.model.encoder and run.train.batch < 2:
        raise UsageError(
            "batch 1 leaves the network's normalisation nothing to compare", hint="give batch=2", code="E-TRN-017"
        )
    names = tuple(item.name for item in prepared.classes)
    if start is not None:
        start.give_weights(network, plane_names(names, prepared.separated), bands=cards, inflate=run.model.inflate)
    return Learner(network, prepared.normalization, run, classes=names, device=device)


def members_for(options: TrainOptions, device: torch.device, *, bands: int) -> int:
    """Return how many networks a budget is enough for: each wants `MINUTES_EACH` or `LEAST_STEPS`, and 3 are enough.

    Of more than `BANDS_IN_TIME` bands a step takes longer, about in proportion.

    10 CPU-minutes, one run each (`benchmarks.accuracy`), Jaccard of areas and F1: two towns learnt, a third scored,
    pooled over Nairobi and Zanzibar; and three learnt, Las Vegas scored. Two networks 0.55 and 0.51, 0.75 and 0.32;
    three 0.56 and 0.54, 0.68 and 0.18. With small features surer, two 0.56 and 0.58, three 0.55 and 0.55. Of all means
    of seven networks on Nairobi and six on Zanzibar, those of two had 0.007 more than one, of three 0.011, of six
    0.012, from 0.58; single ones differ by 0.02. With BCE - ln J as the loss, one 0.52 and 0.53, 0.74 and 0.36 (0.53
    and 0.49 where it ends after 100 passes); two 0.55 and 0.52, 0.71 and 0.29; three 0.55 and 0.55, 0.71 and 0.26;
    five 0.56 and 0.55, 0.51 and 0.24. So towns like those learnt from ask for several, one from another sensor for
    steps: five had 350 each there, three 620, two 750, and two cost less to detect with. By itself the mean of two
    brought 0.01 to 0.03 of Jaccard over its members. Three of 200 steps gave 0.36 on the generated contest's 20 bands,
    one of 720 gave 0.43.
    """
    share = (options.minutes or 0) / (MINUTES_EACH[device.type == "cuda"] * max(1.0, bands / BANDS_IN_TIME))
    if options.steps is not None:
        share = options.steps / LEAST_STEPS
    return max(1, min(ENOUGH_MEMBERS, int(share)))


def finished_model(
    learner: Learner, prepared: Prepared, run: RunConfig, outcome: Outcome, start: Start | None = None,
    weights: FileHash | None = None,
) -> Model:  # fmt: skip
    """Return the trained network with its card: what it needs, what it learnt from, how it scored.

    `start` and `weights` are what the network began with.
    """
    network: Network = learner.network.eval()
    scenes = [ground.scene for ground in prepared.grounds]
    scene = scenes[0]
    classes = tuple(
        item.model_copy(update={"threshold": threshold})
        for item, threshold in zip(prepared.classes, outcome.thresholds, strict=True)
    )
    training = Training(
        sources=tuple(map(source_of, prepared.grounds, tones(scenes, all_room(prepared.normalization)))),
        validation=tuple(map(source_of, prepared.apart)),
        warnings=prepared.warnings,
        weights=weights,
        steps=outcome.steps,
        seconds=round(outcome.seconds, 1),
        seed=run.train.seed,
        options=_told(run, start, registered=any(scene.registrations for scene in scenes)),
        start=None if start is None else start.file,
        start_sources=() if start is None else start.sources(prepared),
    )
    halo = measure_halo(network, prepared.normalization, scenes, seed=run.train.seed)
    if network.reach is None and halo == network.halo:
        log.warning(
            "the network looks at all of a tile: no halo of up to %d pixels keeps scores within %g, seams may show",
            halo, TOLERANCE,
        )  # fmt: skip
    card = ModelCard(
        architecture=architecture_of(network),
        bands=_band_cards(prepared.bands, run.data.sensor, scene),
        indices=tuple(map(IndexCard.of, scene.indices)),
        gsd_m=prepared.gsd_m,
        normalization=prepared.normalization,
        classes=classes,
        separated=prepared.separated,
        halo=halo,
        halo_tolerance=TOLERANCE,
        stride=network.stride,
        sensor=scene.sensor,
        training=training,
        scores=_scores(learner, outcome),
        versions={**current_versions(), "lightning": version("lightning"), **library_versions(network)},
    )
    return Model(card, network.to(learner.target).to(memory_format=torch.channels_last), learner.target)


def _told(run: RunConfig, start: Start | None, *, registered: bool) -> dict[str, object]:
    """Options as a card keeps them: without the folders of this machine, and with what was done to open scenes."""
    options = run.model_dump(mode="json", exclude={"data": {"scenes", "valid_scenes"}})
    options["data"]["registered"] = run.data.registered or registered
    options["data"]["index_spec"] = None  # the card holds the indices themselves
    for name in ("class_spec", "sensor"):  # and what it needs of these two
        if options["data"][name] is not None and is_path(options["data"][name]):
            options["data"][name] = Path(options["data"][name]).name
    if start is not None and run.data.class_spec is None:  # so that the next to start from it knows them too
        options["data"]["class_spec"] = start.own_list
    weights = run.model.weights
    if weights is not None and names_file(weights):
        options["model"]["weights"] = Path(weights).name
    if run.model.start is not None:
        options["model"]["start"] = Path(run.model.start).name
    return options


def _scores(learner: Learner, outcome: Outcome) -> dict[str, object]:
    found = [score for score in outcome.jaccard if score is not None]
    return {
        "validation_jaccard": dict(zip(learner.classes, outcome.jaccard, strict=True)),
        "validation_mean_jaccard": sum(found) / len(found) if found else None,
        "validation_jaccard_at_0.05_to_0.95": dict(zip(learner.classes, learner.curve.told(), strict=True)),
        "skipped_batches": outcome.skipped,
    }


def _band_cards(names: Sequence[str], given: str | None, scene: Scene) -> tuple[BandCard, ...]:
    """Bands with the wavelengths of the sensor given, else of the scene's own where it is a shipped one."""
    sensor = given or (scene.sensor if scene.sensor in list_sensors() else None)
    known = {band.name: band for band in sensor_spec(sensor).bands} if sensor else {}
    cards = []
    for name in names:
        band = known.get(name)
        figures = {} if band is None else {key: getattr(band, key) for key in ("center_nm", "low_nm", "high_nm")}
        cards.append(BandCard(name=name, **figures))
    return tuple(cards)
