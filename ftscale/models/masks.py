"""Masks of dropout that are a function of seed, optimizer step, row, site and position, however a step is cut up.

A 64-bit key is made of seed and step, then of the row and how often it came before in the step, then of the token's
place in its sample, then of the site: which module, and which of its calls. From the key on SplitMix64 runs as it was
published (Steele, Lea, Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014): a key's word `j` is the
`j`-th number of the generator that has the key as its seed, and gives four elements 16 bits each.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from ftscale.base.seeding import derive_seed

# as signed integers, for torch has no others with shifts and products
GOLDEN = 0x9E3779B97F4A7C15 - 2**64
ROUNDS = ((30, 0xBF58476D1CE4E5B9 - 2**64), (27, 0x94D049BB133111EB - 2**64), (31, 1))
LANES = 4
"""Elements that a word serves."""
LEVELS = 2**16
"""Probabilities are multiples of 1 / LEVELS: with 8 bits an element 0.1 would be 0.1016."""
JUMP = (GOLDEN * 2**32 + 2**63) % 2**64 - 2**63
"""From the stream of one head (or channel) of a token to the next: 2**32 words, more than any takes."""
CHUNK = 2**17
"""Words that are mixed at a time: 1 MiB stays in a core's cache. One thread, 3 M elements: 0.9 to 1.0 ns an element,
2.7 where all were mixed at once in fresh memory; `Tensor.bernoulli_` takes 4.4."""


Drop = Callable[[Tensor], Tensor]
"""Dropout of the weights of attention: (samples, heads, queries, keys)."""


class RowsUnknownError(ValueError):
    """It cannot be told which states are of which row."""


class Masks:
    """What the dropouts of one model draw from; `enter` each batch before the forward in which they draw.

    The batch stays until the next one is entered, so that a recomputation in the backward pass draws the same.
    """

    def __init__(self, seed: int) -> None:
        """`seed`: the run's."""
        self.seed = seed
        self.step = 0
        """Of the optimizer step that runs, from 0."""
        self.around: Callable[[], AbstractContextManager[Any]] = nullcontext
        """Opened around a recomputation: what was open around its forward."""
        self._rows: _Rows | None = None
        self._calls: Counter[int] = Counter()

    def enter(self, rows: Tensor, *, repeats: Tensor | None, bounds: Tensor | None) -> None:
        """Draw for a batch from here on.

        rows: (samples,) int64, their numbers in the data set; repeats: (samples,) int64, how often each came before in
        the optimizer step, None = never; bounds: (samples + 1,) of a flat batch, where samples begin and end.
        """
        keys = _folded(rows.new_full((), derive_seed(self.seed, "dropout", self.step)), rows)
        keys = _folded(keys, torch.zeros_like(rows) if repeats is None else repeats)
        self._rows = _Rows(keys, None if bounds is None else bounds.tolist())
        self._calls.clear()

    def draw(self, site: int) -> Draw:
        """The next draw of a site: a module that is called twice in a forward draws twice."""
        if self._rows is None:
            raise RowsUnknownError("the model ran before a batch was entered")
        call = self._calls[site]
        self._calls[site] += 1
        return Draw(self._rows, derive_seed(site, call) if call else site)

    def replayed(self) -> tuple[AbstractContextManager[Any], AbstractContextManager[Any]]:
        """torch.utils.checkpoint's `context_fn`: a recomputation counts calls from where its forward did."""
        calls, rows, around = self._calls.copy(), self._rows, self.around

        @contextmanager
        def again() -> Iterator[None]:
            now = self._calls, self._rows
            self._calls, self._rows = calls.copy(), rows
            try:
                with around():
                    yield
            finally:
                self._calls, self._rows = now

        return nullcontext(), again()


@dataclass(frozen=True)
class Draw:
    """One mask for every row of a batch."""

    rows: _Rows
    site: int

    def drop(self, states: Tensor, p: float) -> Tensor:
        """Zeros with probability `p`, all else scaled to keep the mean.

        states: (samples, features), (samples, ..., tokens, features), or of a flat batch (1, tokens, features). So the
        weights of attention, (samples, heads, queries, keys), are drawn by their queries.

        Raises RowsUnknownError for other shapes.
        """
        kept = _kept(p)
        if kept == 0:
            return states * 0
        keys = _mixed(self.rows.places(tuple(states.shape)) + self.site)
        return _Drop.apply(states, _mask(keys, tuple(states.shape), kept), LEVELS / kept)

    def of_attention(self, p: float, *, runs: Sequence[tuple[int, int]], heads: int) -> Sequence[Drop]:
        """For each run (length, samples) of a flat batch's neighbours, what drops its (samples, heads, length, length).

        Short runs are drawn together: a call of attention over samples of many lengths is one draw, or a few.
        """
        kept = _kept(p)
        if kept == 0:
            return [lambda weights: weights * 0] * len(runs)
        keys = _mixed(self.rows.tokens() + self.site).split([length * samples for length, samples in runs])
        masks: list[Tensor] = []
        for group in _groups([length * samples * heads * -(-length // LANES) for length, samples in runs]):
            shapes = [(samples, heads, length, length) for length, samples in runs[group]]
            places = [key.view(-1, length) for key, (length, _) in zip(keys[group], runs[group], strict=True)]
            masks += _masks(places, shapes, kept) if len(places) > 1 else [_mask(places[0], shapes[0], kept)]
        return [_Dropping(mask, LEVELS / kept) for mask in masks]


_sites: WeakKeyDictionary[nn.Module, tuple[Masks, int]] = WeakKeyDictionary()


def draw_of(module: nn.Module) -> Draw | None:
    """What an attention function draws for its module; None = the model draws as torch does."""
    found = _sites.get(module)
    return None if found is None else found[0].draw(found[1])


def set_site(module: nn.Module, masks: Masks | None, *, site: int = 0) -> None:
    """Say what `draw_of` draws from for a module; None = nothing any more."""
    if masks is not None:
        _sites[module] = masks, site
    else:
        _sites.pop(module, None)


class _Rows:
    """Keys of the rows of a batch, and how the rows lie in it."""

    def __init__(self, keys: Tensor, bounds: list[int] | None) -> None:
        self.keys = keys  # (samples,)
        self._bounds = bounds
        self._places: dict[int, Tensor] = {}
        self._tokens: Tensor | None = None

    def places(self, shape: tuple[int, ...]) -> Tensor:
        """The keys of states of this shape: one for each row and place, (rows,) or (rows, places)."""
        samples = len(self.keys)
        if self._bounds is not None and len(shape) == 3 and shape[0] == 1:
            if shape[1] == self._bounds[-1]:
                return self.tokens()[None]
            if shape[1] == samples:  # of each sample its first token
                return self._by_place(1).view(1, -1)
        elif shape[0] == samples and len(shape) >= 2:
            return self._by_place(1)[:, 0] if len(shape) == 2 else self._by_place(shape[-2])
        raise RowsUnknownError(f"a dropout's states are {shape}, in which {samples} samples cannot be told apart")

    def tokens(self) -> Tensor:
        """The key of each token of a flat batch: (tokens,)."""
        if self._bounds is None:
            raise RowsUnknownError("flat attention in a padded batch")
        if self._tokens is None:
            lengths = [stop - start for start, stop in zip(self._bounds, self._bounds[1:], strict=False)]
            owners = [sample for sample, length in enumerate(lengths) for _ in range(length)]
            places = [place for length in lengths for place in range(length)]
            device = self.keys.device
            self._tokens = _folded(self.keys[torch.tensor(owners, device=device)], torch.tensor(places, device=device))
        return self._tokens

    def _by_place(self, places: int) -> Tensor:
        if places not in self._places:
            self._places[places] = _folded(self.keys[:, None], torch.arange(places, device=self.keys.device))
        return self._places[places]


class _Drop(torch.autograd.Function):
    """states x mask x scale; one byte an element is kept for the backward pass."""

    @staticmethod
    def forward(ctx: Any, states: Tensor, mask: Tensor, scale: float) -> Tensor:
        ctx.save_for_backward(mask)
        ctx.scale = scale
        return _masked(states, mask, scale)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, of_output: Tensor) -> tuple[Tensor, None, None]:
        return _masked(of_output, ctx.saved_tensors[0], ctx.scale), None, None


@dataclass(frozen=True)
class _Dropping:
    """Drops states by a mask that is drawn."""

    mask: Tensor
    scale: float

    def __call__(self, states: Tensor) -> Tensor:
        return _Drop.apply(states, self.mask, self.scale)


def _masked(states: Tensor, mask: Tensor, scale: float) -> Tensor:
    # an AND of bits takes a third of the time of a product or of `where`
    bits = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[states.element_size()]
    scaled = states * scale
    scaled.view(bits).bitwise_and_(mask.to(bits))
    return scaled


def _kept(p: float) -> int:
    """Of LEVELS, how many keep an element; 0 only where all are dropped."""
    return 0 if p >= 1 else min(max(round((1 - p) * LEVELS), 1), LEVELS - 1)


def _mask(keys: Tensor, shape: tuple[int, ...], kept: int) -> Tensor:
    """int8 of a shape (rows, ..., places, features) or (rows, features), of keys (rows, places) or (rows,).

    All bits stand where an element is kept, else none.
    """
    features = shape[-1]
    if len(shape) <= 3:  # one stream a key
        flat, outer, places = keys.reshape(-1, 1), 1, 1
    else:
        flat, outer, places = keys, torch.Size(shape[1:-2]).numel(), shape[-2]
    words = -(-features // LANES)
    if flat.numel() * outer * words <= CHUNK:
        [mask] = _masks([flat], [(len(flat), outer, places, features)], kept)
        return mask.reshape(shape)
    mask = keys.new_empty((len(flat), outer, places, words * LANES), dtype=torch.int8)
    rows = max(1, CHUNK // (outer * places * words))
    streams = outer if rows > 1 else max(1, CHUNK // (places * words))
    for some, part in zip(flat.split(rows), mask.split(rows), strict=True):
        for start in range(0, outer, streams):
            few = part[:, start : start + streams]
            [drawn] = _masks([some], [(len(some), few.shape[1], places, words * LANES)], kept, first=start)
            few.copy_(drawn)
    return mask[..., :features].reshape(shape)


def _masks(keys: list[Tensor], shapes: list[tuple[int, int, int, int]], kept: int, *, first: int = 0) -> list[Tensor]:
    """Masks of (rows, streams, places, features) each, drawn together; keys (rows, places) each.

    `first`: the number of the first stream.
    """
    device = keys[0].device
    words = [-(-shape[-1] // LANES) for shape in shapes]
    sizes = [rows * streams * places * many for (rows, streams, places, _), many in zip(shapes, words, strict=True)]
    parts = []
    for key, (_, streams, _, _), many in zip(keys, shapes, words, strict=True):
        counters = torch.arange(1, many + 1, device=device) * GOLDEN
        if streams > 1 or first:
            jumps = torch.arange(first, first + streams, device=device) * JUMP
            counters = jumps[:, None, None] + counters
        parts.append((key[:, None, :, None] + counters).flatten())
    lanes = _mixed(parts[0] if len(parts) == 1 else torch.cat(parts)).view(torch.int16)
    drawn = lanes.lt(kept - LEVELS // 2).view(torch.int8).neg_().split([size * LANES for size in sizes])
    return [
        mask.view(*shape[:-1], many * LANES)[..., : shape[-1]]
        for mask, shape, many in zip(drawn, shapes, words, strict=True)
    ]


def _groups(sizes: list[int]) -> list[slice]:
    """Runs of neighbours of at most CHUNK words together, or of one."""
    ends: list[int] = []
    total = 0
    for index, size in enumerate(sizes):
        if index and total + size > CHUNK:
            ends.append(index)
            total = 0
        total += size
    bounds = [0, *ends, len(sizes)]
    return [slice(start, stop) for start, stop in zip(bounds, bounds[1:], strict=False)]


def _folded(keys: Tensor, numbers: Tensor) -> Tensor:
    """Keys of the numbered streams of keys."""
    return _mixed(keys + (numbers + 1) * GOLDEN)


def _mixed(words: Tensor) -> Tensor:
    """SplitMix64's finaliser, in place."""
    shifted = torch.empty_like(words)
    for shift, factor in ROUNDS:
        torch.bitwise_right_shift(words, shift, out=shifted)
        words.bitwise_xor_(shifted.bitwise_and_((1 << (64 - shift)) - 1))  # the shift is of signed numbers
        if factor != 1:
            words.mul_(factor)
    return words
