"""Learning-rate schedules, as factors of a recipe's learning rate."""

from __future__ import annotations

from experiments.config.recipes import PolySchedule, Recipe, StepSchedule, Warmup


def poly_factor(step: int, steps: int, power: float) -> float:
    """(1 - step / steps) ** power: 1 at step 0, 0 at ``steps``."""
    return float((1 - step / steps) ** power)


def milestone_factor(step: int, steps: int, schedule: StepSchedule) -> float:
    """``factor`` to the power of the milestones passed."""
    return float(schedule.factor ** sum(step >= share * steps for share in schedule.milestones))


def warmup_factor(step: int, warmup: Warmup) -> float:
    """Linear from ``ratio`` at step 0 to 1 at ``warmup.steps``."""
    if step >= warmup.steps:
        return 1.0
    return warmup.ratio + (1 - warmup.ratio) * step / warmup.steps


def learning_rate(step: int, recipe: Recipe) -> float:
    """The rate at a step in [0, recipe.steps)."""
    schedule = recipe.schedule
    if isinstance(schedule, PolySchedule):
        factor = poly_factor(step, recipe.steps, schedule.power)
    else:
        factor = milestone_factor(step, recipe.steps, schedule)
    return recipe.learning_rate * factor * warmup_factor(step, recipe.warmup)
