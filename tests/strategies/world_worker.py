"""One rank of a launch that goes on from runs of other numbers of processes; notes the rows of each optimizer step."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from launching import forget_after, listed_jobs
from torch import Tensor, nn

from ftscale.base.errors import UserError
from ftscale.base.logs import launched_rank
from ftscale.config import parse_config
from ftscale.distributed.runtime import Distributed
from ftscale.run.train import train

made: list[Noting] = []


class Noting(Distributed):
    """Notes the tokens of every row that counted, by optimizer step."""

    def prepare(self, module: nn.Module, optimizer: torch.optim.Optimizer, *, unused_weights: bool) -> None:
        super().prepare(module, optimizer, unused_weights=unused_weights)
        self.steps: list[list[list[int]]] = [[]]
        self.lying: list[list[int]] = []
        module.register_forward_pre_hook(self._look, with_kwargs=True)
        made.append(self)

    def _look(self, module: nn.Module, args: tuple[Any, ...], given: dict[str, Any]) -> None:
        if module.training:
            inputs = given["batch"].inputs
            tokens, positions = inputs["input_ids"][0], inputs["position_ids"][0]  # a flat row
            starts = [*(positions == 0).nonzero().flatten().tolist(), len(tokens)]
            self.lying = [tokens[start:stop].tolist() for start, stop in zip(starts, starts[1:], strict=False)]

    def load_state(self, folder: Path, *, weights_only: bool = False) -> None:
        """Saves at once what was loaded, for a comparison."""
        super().load_state(folder, weights_only=weights_only)
        if self.strategy.is_zero and not weights_only:
            self.save_state(folder.parents[1] / f"taken-over-{self.world_size}", torch.save)

    def backward(self, loss: Tensor, *, last: bool) -> None:
        if float(loss.detach()):  # ranks without a row go through one that counts zero times
            self.steps[-1] += self.lying
        super().backward(loss, last=last)

    def step(self, **moments: Callable[[], None]) -> float:
        self.steps.append([])
        return super().step(**moments)


def run_job(config: dict[str, Any], *, goes_on_from: str, step: int) -> None:
    folder = Path(config["run_folder"])
    if goes_on_from and launched_rank() == 0:
        forget_after(Path(goes_on_from), folder, step=step)
    note: dict[str, Any] = {}
    try:
        train(parse_config(config, source="job"), resume=bool(goes_on_from))
    except UserError as error:
        note["refused"] = str(error)
    distributed = made[-1]
    if "refused" in note:
        distributed.close()
    gathered: list[Any] = [None] * distributed.world_size
    gathered[distributed.rank] = distributed.steps[:-1]
    if distributed.world_size > 1:
        torch.distributed.all_gather_object(gathered, distributed.steps[:-1])
    if launched_rank() == 0:
        note["rows"] = [sum(parts, []) for parts in zip(*gathered, strict=True)]
        (folder / "seen.json").write_text(json.dumps(note))


def main() -> None:
    torch.set_num_threads(1)
    import ftscale.run.train

    ftscale.run.train.Distributed = Noting
    for job in listed_jobs():
        run_job(job["config"], goes_on_from=job["goes_on_from"], step=job["step"])


main()
