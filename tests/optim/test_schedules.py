"""Learning rates at given steps, for every schedule, and options that a schedule does not have."""

import pytest
import torch
from transformers import SchedulerType

from ftscale.base.errors import UserError
from ftscale.config.schema import ScheduleConfig
from ftscale.optim import advance_schedule, build_schedule
from ftscale.optim.schedules import NAMES

NEEDED = {
    "exponential": {"gamma": 0.9},
    "warmup_stable_decay": {"num_decay_steps": 4},
    "cosine_with_min_lr": {"min_lr": 0.1},
    "cosine_warmup_with_min_lr": {"min_lr": 0.1},
}


def rates(name, *, num_steps=10, loss=1.0, **fields):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    config = ScheduleConfig(name=name, **{"options": NEEDED.get(name, {}), **fields})
    schedule = build_schedule(optimizer, config, num_steps=num_steps)
    values = []
    for _ in range(num_steps + 1):
        values.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        advance_schedule(schedule, loss=loss)
    return values


def test_linear_falls_to_zero_after_its_warmup():
    assert rates("linear", num_steps=6, warmup_steps=2) == pytest.approx([0, 0.5, 1, 0.75, 0.5, 0.25, 0])


def test_a_warmup_ratio_is_rounded_up():
    assert rates("linear", num_steps=5, warmup_ratio=0.3) == pytest.approx([0, 0.5, 1, 2 / 3, 1 / 3, 0])


def test_exponential_multiplies_by_gamma_after_its_warmup():
    values = rates("exponential", num_steps=4, warmup_steps=2, options={"gamma": 0.5})
    assert values == pytest.approx([0, 0.5, 1, 0.5, 0.25])


def test_cosine_is_half_way_in_the_middle():
    assert rates("cosine")[5] == pytest.approx(0.5)


def test_options_reach_the_schedule():
    assert rates("cosine_with_min_lr", options={"min_lr": 0.25})[-1] == pytest.approx(0.25)
    assert rates("polynomial", options={"lr_end": 0.5, "power": 1.0})[-1] == pytest.approx(0.5)


@pytest.mark.parametrize("name", NAMES)
def test_every_schedule_builds_and_gives_rates_up_to_the_peak(name):
    values = rates(name)
    assert len(values) == 11
    assert all(0 <= value <= 1 for value in values)
    assert max(values) == pytest.approx(1, abs=0.03)  # one of them begins one step into its cosine


def test_the_names_are_all_of_transformers_and_exponential():
    assert set(NAMES) == {kind.value for kind in SchedulerType} | {"exponential"}


def test_schedules_that_go_by_the_loss_get_it():
    assert rates("reduce_lr_on_plateau", options={"patience": 1, "factor": 0.5}, num_steps=6)[-1] < 1


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"name": "cosin"}, "schedule.name = 'cosin' is not known; did you mean 'cosine'?"),
        ({"name": "cosine", "options": {"num_cycle": 2}}, "'num_cycle' is not known; did you mean 'num_cycles'?"),
        ({"name": "linear", "options": {"gamma": 1}}, "linear has no options; leave it out"),
        ({"name": "exponential"}, "needs gamma for exponential"),
        ({"name": "warmup_stable_decay"}, "needs num_decay_steps for warmup_stable_decay"),
        ({"name": "constant", "warmup_steps": 2}, "schedule.name = constant has no warm-up; use constant_with_warmup"),
        ({"name": "linear", "warmup_steps": 11}, "schedule.warmup_steps = 11 must be at most 10"),
        ({"name": "cosine_with_min_lr"}, "is refused by cosine_with_min_lr"),
    ],
)
def test_mistakes_are_refused(settings, problem):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    with pytest.raises(UserError, match=problem):
        build_schedule(optimizer, ScheduleConfig(**settings), num_steps=10)


@pytest.mark.parametrize("name", NAMES)
def test_a_saved_schedule_goes_on_where_it_stopped(name):
    def build():
        optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
        config = ScheduleConfig(name=name, options=NEEDED.get(name, {}))
        return optimizer, build_schedule(optimizer, config, num_steps=10)

    def run(optimizer, schedule, steps):
        for step in steps:
            optimizer.step()
            advance_schedule(schedule, loss=1.0 / (1 + step))
        return optimizer.param_groups[0]["lr"]

    whole = run(*build(), range(8))
    optimizer, schedule = build()
    run(optimizer, schedule, range(4))
    resumed_optimizer, resumed_schedule = build()
    resumed_optimizer.load_state_dict(optimizer.state_dict())
    resumed_schedule.load_state_dict(schedule.state_dict())
    assert run(resumed_optimizer, resumed_schedule, range(4, 8)) == pytest.approx(whole)
