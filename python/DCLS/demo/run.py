"""One run of the demo: train, tell, draw."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import torch

from DCLS.demo import data, experiment, picture, report
from DCLS.demo.distributed import Team, gather_team
from DCLS.demo.experiment import Outcome
from DCLS.demo.model import count_parameters
from DCLS.demo.settings import DTYPES, Settings


def train_all(settings: Settings, team: Team, *, quiet: bool = False) -> list[Outcome]:
    """Trains the networks that ``settings`` asks for.

    Args:
        settings: what to train, and how.
        team: the processes that train together; the first one reports.
        quiet: whether to say nothing on the way.

    Returns:
        The trained networks, the one with DCLS layers first; the same on every process.

    Raises:
        DivergedError: a loss became infinite or NaN.
    """
    silent = quiet or team.rank > 0
    digits = data.load().to(team.device, DTYPES[settings.dtype])
    count, held_out = len(digits.train_labels), len(digits.test_labels)
    if not silent:
        report.say(
            f"{count} digits for training, {held_out} for test; on {team.device}, "
            f"{team.size} process(es) of {torch.get_num_threads()} CPU thread(s)"
        )
    outcomes = []
    steps = settings.epochs * -(-count // settings.batch_size)
    for contestant in experiment.contestants(settings):
        if not silent:
            parameters = count_parameters(contestant.make(settings))
            report.say(f"{contestant.name}: {parameters} parameters")
        with closing(report.Progress(steps, settings.epochs, silent=silent)) as progress:
            outcomes.append(
                experiment.compete(
                    contestant,
                    digits,
                    settings,
                    team,
                    on_step=progress.step,
                    on_epoch=progress.epoch,
                )
            )
    return outcomes


def run(settings: Settings, device: torch.device, output: Path, *, quiet: bool = False) -> None:
    """Trains the networks, prints the table and draws the picture.

    Under ``torchrun`` the processes train together, and the first one prints and draws.

    Args:
        settings: what to train, and how.
        device: where.
        output: the picture; its suffix chooses the format.
        quiet: whether to print the table only.

    Raises:
        DivergedError: a loss became infinite or NaN.
        OSError: the picture cannot be written.
    """
    with gather_team(device) as team:
        outcomes = train_all(settings, team, quiet=quiet)
        if team.rank == 0:
            report.say(f"\n{report.table(outcomes)}\n")
            picture.save(outcomes, settings, output)
            report.say(f"picture: {output}")
