"""Captioning by several processes that torchrun started: each captions its share, the first one gets what all have.

    share = my_share(settings)                                        # LoaderSettings of this process' batches
    shares = work_of_all(lambda: Share(...))                          # [Share, ...] in the first process
    whole = joined(shares, order)

Batches go round: with three processes the first captions batches 0, 3, 6. They are the batches of a single process, so
the captions are too. With one process all of this comes to nothing.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import torch

from captioning.devices import is_main, process, share, to_main
from captioning.errors import UserError
from captioning.text.cleaning import id_text
from data_loader import LoaderSettings
from inference.attention_maps import AttentionLog
from inference.results.result import Result


@dataclass
class Share:
    """What a process made of its images.

    bad: why images were left out; attention: where the model looked; unknown: the lemmas that no rule was about;
    counts: those of each of the inference.image_outputs.
    """

    results: list[Result] = field(default_factory=list)
    bad: list[str] = field(default_factory=list)
    attention: AttentionLog | None = None
    unknown: Counter = field(default_factory=Counter)
    counts: list[Counter] = field(default_factory=list)


def my_share(settings: LoaderSettings) -> LoaderSettings:
    """`settings` for the batches of this process."""
    rank, count = process()
    return replace(settings, rank=rank, world_size=count)


def work_of_all(work: Callable[[], Share]) -> list[Share]:
    """What `work()` returned in every process, by rank, in the first one; an empty list in the others.

    All processes must call it. Where one raises a UserError the first process raises it, and the others end.
    """
    done = error = None
    try:
        done = work()
    except UserError as problem:
        error = problem
    found = to_main((done, None if error is None else str(error)))
    problem = share(next((message for _, message in found if message is not None), None))
    if problem is not None:
        raise (error or UserError(problem)) if is_main() else SystemExit(2)
    return [done for done, _ in found]


def joined(shares: list[Share], order: Mapping[str, int]) -> Share:
    """All `shares` as one, its results and attention in the order of the images. order: the place of an image id."""
    if len(shares) == 1:
        return shares[0]
    whole = Share(bad=sorted({message for one in shares for message in one.bad}))
    whole.results = in_order([result for one in shares for result in one.results], order)
    for one in shares:
        whole.unknown.update(one.unknown)
    logs = [one.attention for one in shares if one.attention is not None]
    if logs:
        whole.attention = logs[0].joined(logs[1:], order)
    return whole


def in_order(results: list[Result], order: Mapping[str, int]) -> list[Result]:
    return sorted(results, key=lambda result: order[id_text(result.image_id)])


def seeded(loader, seed: int) -> Iterator:
    """The batches of `loader`; before each of them torch's random numbers begin anew, by `seed` and by its place.

    Samples of an image then do not depend on the number of processes.
    """
    rank, count = process()
    for batch in loader:
        place = rank + count * batch.index
        torch.manual_seed(int(np.random.SeedSequence([seed % 2**32, place]).generate_state(1)[0]) if place else seed)
        yield batch
