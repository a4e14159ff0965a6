"""Has a model's dropouts draw by row: its modules, its attention, and `F.dropout` inside a forward."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import partial
from types import FunctionType
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.hooks import RemovableHandle

from ftscale.base.seeding import derive_seed
from ftscale.models.attention import padded_attention, use_row_attention
from ftscale.models.masks import Masks, draw_of, set_site
from ftscale.models.probing import transformers_model

HELPER_DEPTH = 3
"""How far a forward is followed into functions of its own file, in search of a dropout."""


class RowDropout(nn.Dropout):
    """nn.Dropout that draws by row."""

    def __init__(self, p: float, masks: Masks, site: int) -> None:
        super().__init__(p)
        self.masks = masks
        self.site = site

    def forward(self, input: Tensor) -> Tensor:
        """Shapes as `Draw.drop` takes them."""
        return self.masks.draw(self.site).drop(input, self.p) if self.training and self.p else input


def use_row_dropout(model: nn.Module, masks: Masks) -> Callable[[], None]:
    """Have all dropouts of the model draw from `masks`; returns what undoes it.

    Call it on the bare or PEFT-wrapped model, when its batches have their layout. Whether it reaches every dropout of
    the model is for a probe to say: what it does not reach draws as torch does.
    """
    with padded_attention(model):  # which flat rows hide
        undo_attention = use_row_attention(model)
    is_eager = transformers_model(model).config._attn_implementation == "eager"
    known: dict[type[nn.Module], bool] = {}
    named = dict(model.named_modules(remove_duplicate=False))
    swapped: dict[nn.Module, RowDropout] = {}
    changes: list[Callable[[], Any]] = [undo_attention]
    sites: set[nn.Module] = set()
    for name, module in named.items():
        site = derive_seed(0, "site", name)
        if type(module) is nn.Dropout:
            if module not in swapped:
                swapped[module] = RowDropout(module.p, masks, site).train(module.training)
            parent, _, leaf = name.rpartition(".")
            setattr(named[parent], leaf, swapped[module])
            changes.append(partial(setattr, named[parent], leaf, module))
        elif module not in sites:
            sites.add(module)
            set_site(module, masks, site=site)
            changes.append(partial(set_site, module, None))
            if type(module) not in known:
                known[type(module)] = _calls_dropout(type(module), is_eager=is_eager)
            if known[type(module)]:
                changes += [handle.remove for handle in _redirect(module, masks)]

    def undo() -> None:
        for change in changes:
            change()

    return undo


def _calls_dropout(module_class: type[nn.Module], *, is_eager: bool) -> bool:
    """Whether its `forward` calls `nn.functional.dropout`, itself or by functions of its file and class."""
    seen: set[Any] = set() if is_eager else {"eager_attention_forward"}  # which all attentions name, and few run

    home = inspect.unwrap(module_class.forward).__module__
    methods = dict(inspect.getmembers(module_class, callable))

    def calls(function: Any, depth: int) -> bool:
        function = inspect.unwrap(function)
        if not isinstance(function, FunctionType) or function.__module__ != home:
            return False
        names = set(function.__code__.co_names)
        if "dropout" in names and names & {"functional", "F"}:
            return True
        if depth == HELPER_DEPTH:
            return False
        new = names - seen
        seen.update(new)
        known = {**methods, **function.__globals__}
        return any(calls(known[name], depth + 1) for name in sorted(new & known.keys()) if callable(known[name]))

    return calls(module_class.forward, 0)


def _redirect(module: nn.Module, masks: Masks) -> list[RemovableHandle]:
    """Inside the module's forward, `F.dropout` draws by row."""
    opened: list[_Redirected] = []

    def enter(_: nn.Module, __: Any) -> None:
        if module.training:
            opened.append(_Redirected(module, masks))
            opened[-1].__enter__()

    def leave(_: nn.Module, __: Any, ___: Any) -> None:
        if opened:
            opened.pop().__exit__(None, None, None)

    return [module.register_forward_pre_hook(enter), module.register_forward_hook(leave, always_call=True)]


class _Redirected(TorchFunctionMode):
    """Inside, `F.dropout` draws by row."""

    def __init__(self, module: nn.Module, masks: Masks) -> None:
        super().__init__()
        self.module = module
        self.masks = masks
        self.outer = masks.around

    def __enter__(self) -> _Redirected:
        # a recomputation begins inside the module, behind its hooks (transformers checkpoints `forward`)
        self.outer, self.masks.around = self.masks.around, partial(_Redirected, self.module, self.masks)
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        self.masks.around = self.outer
        super().__exit__(*error)

    def __torch_function__(self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is not F.dropout:
            return func(*args, **(kwargs or {}))
        bound = _DROPOUT.bind(*args, **(kwargs or {}))
        bound.apply_defaults()
        states, p, training, inplace = bound.args
        if not training or not p:
            return states
        if inplace:
            raise ValueError("a dropout in place cannot be drawn by row")
        draw = draw_of(self.module)
        assert draw is not None, "the module has a site"
        return draw.drop(states, p)


_DROPOUT = inspect.signature(F.dropout)
