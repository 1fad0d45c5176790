"""The batches of a phase: labelled and unlabelled, the part of this process."""

import itertools
from collections.abc import Generator, Iterator
from contextlib import closing, contextmanager

import numpy as np
import torch

from config import Config
from datasets import Views, view_options
from model_unet import UNet
from runtime.checkpoints import load_checkpoint
from runtime.loaders import LoaderOptions, choose_workers, make_loader, seed_of
from runtime.messages import quiet_bar
from slices.data_folder import Data
from training.phases import Job
from utils import SlidingWindow, decide, predict_image

GUIDE_OVERLAP = 0.25  # of the windows through which foreground is looked for in unlabelled slices


@contextmanager
def batches_of(job: Job, start: int) -> Iterator[tuple[Iterator[dict], Iterator[dict | None]]]:
    """Yield the labelled and the unlabelled batches of a phase, from number `start` on.

    In a supervised phase the latter are None. The processes that make them are ended when the block
    is left, and not by the garbage collector, which would swallow their errors.
    """
    config, data, phase = job.config, job.data, job.phase
    views = Views(
        data.train, view_options(config, has_weak_view=False, class_count=data.class_count)
    )
    with closing(batches(job, views, phase.name, start)) as labelled:
        if not phase.is_semi_supervised:
            yield labelled, itertools.repeat(None)
            return

        guides = predict_guides(config, data, job.device)
        options = view_options(config, config.strong_views, class_count=data.class_count)
        views = Views(data.unlabelled, options, guides)
        with closing(batches(job, views, phase.unlabelled_stream, start)) as unlabelled:
            yield labelled, unlabelled


def batches(job: Job, views: Views, stream: str, start: int) -> Generator[dict, None, None]:
    """Return endless batches from number `start` on, of each this process's part.

    The name of the stream sets their order and views apart from those of other phases.
    """
    config, team = job.config, job.team
    options = LoaderOptions(
        batch_size=config.batch_size,
        seed=seed_of(config.seed, stream),
        workers=choose_workers(config.num_workers, job.device),
        rank=team.rank,
        size=team.size,
    )
    return make_loader(views, options, start, job.device)


def predict_guides(config: Config, data: Data, device: torch.device) -> list[np.ndarray] | None:
    """Return where the supervised model sees foreground in each unlabelled slice: (H, W) bool, or class by pixel.

    None where that is not asked for. With `warm_start` that model is the teacher as it starts; a
    teacher that starts from random weights knows nothing.
    """
    if not config.unlabelled_foreground:
        return None
    weights, _ = load_checkpoint(config.checkpoint("supervised"))
    model = UNet.from_weights(weights).to(device)
    window = SlidingWindow(config.patch_size, GUIDE_OVERLAP, precision=config.precision)
    guides = []
    for s in quiet_bar(data.unlabelled, "foreground of the unlabelled"):
        probability = predict_image(model, s.image, device, window)
        guides.append(decide(probability, config.threshold) * s.inside)
    return guides
