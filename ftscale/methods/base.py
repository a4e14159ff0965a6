"""What a method is: a task made of a task. It says what is learned; the inner task says from what."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from torch import nn

from ftscale.config.methods.base import MethodSettings
from ftscale.data.loader import Step
from ftscale.distributed.process_state import random_state, set_random_state
from ftscale.models.gradient_rule import GradientRule
from ftscale.tasks.base import Task
from ftscale.tasks.context import Context as Context  # where methods of users' own look for it

if TYPE_CHECKING:
    TaskLike = Task
else:
    TaskLike = object  # the members of a task are found in the inner one, see `Method.__getattr__`


class Method(TaskLike):
    """A task (ftscale/tasks/base.py) whose members are the inner task's, but for those that a subclass has itself.

    A subclass that has `prepare`, `count`, `loss`, `outputs` or others is asked for these instead of the inner task,
    which it may call as `self.inner`. Besides, it may have what stands here.
    """

    def __init__(self, own: MethodSettings, inner: Task) -> None:
        """Raises UserError for settings that method and task cannot meet together."""
        self.own = own
        """The method's settings; `settings` are the task's."""
        self.inner = inner
        self.extra = nn.ModuleDict()
        """What `extra_modules` gave, as it trains."""

    def __getattr__(self, name: str) -> Any:
        """What the method does not say itself, the inner task says."""
        if name == "inner" or name.startswith("__"):  # of an object that is being copied, which has none yet
            raise AttributeError(name)
        return getattr(self.inner, name)

    def says(self, member: str) -> bool:
        """Whether a member of the task is the method's own."""
        return getattr(type(self), member, None) is not getattr(Method, member, None)

    # ------------------------------------------------------------ what a method adds to a task

    def extra_modules(self, model: nn.Module) -> nn.ModuleDict:
        """Modules that train beside the model, e.g. class centres; made from a seed, the same on every rank.

        The loss finds them in `self.extra`. Call them, rather than reading their weights: under ZeRO-3 a weight is
        whole inside its module's forward only.
        """
        return nn.ModuleDict()

    def before_step(self, step: Step, context: Context) -> Step:
        """As the task's, of which it is what the task does where a method has none of its own."""
        return self.inner.before_step(step, context)

    def gradient_rule(self, module: nn.Module) -> GradientRule:
        """What looks at gradients between backward and update, where the settings say `has_rule`.

        module: model and extra modules, named `model.` and `extra.`; not yet wrapped by a strategy.
        """
        return GradientRule()

    # ------------------------------------------------------------ for those who train

    def after(self, scores: Mapping[str, Any]) -> Method:
        """The same with what the chosen evaluation's scores tell."""
        settings = self.inner.settings.model_copy(update=self.inner.tuned(scores))
        return type(self)(self.own, type(self.inner)(settings, self.inner.processor))

    @property
    def acts_before_step(self) -> bool:
        """Whether there is anything to do before a step."""
        return self.says("before_step") or self.inner.acts_before_step

    def attach(self, model: nn.Module) -> nn.ModuleDict:
        """Make the extra modules, on the device and in the type of the weights that train, and keep them."""
        self.extra = self.extra_modules(model)
        if len(self.extra):
            weights = [weight for weight in model.parameters() if weight.is_floating_point()]
            like = next((weight for weight in weights if weight.requires_grad), weights[0])
            self.extra.to(like.device, like.dtype)
        return self.extra


@contextmanager
def undisturbed(module: nn.Module) -> Iterator[None]:
    """Behind it, random generators and the modes of modules are as they were, and batch norms have their statistics."""
    modes = [(inner, inner.training) for inner in module.modules()]
    norms = [inner for inner in module.modules() if isinstance(inner, nn.modules.batchnorm._NormBase)]
    kept = [(buffer, buffer.clone()) for norm in norms for buffer in norm.buffers()]
    generators = random_state()
    try:
        yield
    finally:
        set_random_state(generators)
        for inner, mode in modes:
            inner.training = mode
        for buffer, value in kept:
            buffer.copy_(value)
