"""Captions of photos that come one at a time, worked out by the batch.

    with PhotoQueue(captioner, Search(beam_size=3)) as photos:
        photos.submit(pixels).result()                       # a list of Caption, best first

Photos that wait are captioned together, which takes less time than one after the other. On a CPU several batches are
worked on at once, each on its share of the cores, as in captioning/fast/threads.py.
"""

import math
import threading
from collections import deque
from concurrent.futures import Future
from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor

from captioning.cores import own_cores
from captioning.decoder.search import Search
from captioning.fast.threads import MOST, use_cores
from model import Caption, Captioner

SHARED = 4  # photos that are not shared among threads: one by one they take twice the time
FULL = 512  # photos that may wait: with more a client would have no answer for a long time


class Busy(Exception):
    """A photo is refused, because as many wait as may wait."""


@dataclass
class Job:
    """A photo that waits: its pixels as the captioner's transform makes them, and where its captions go."""

    pixels: Tensor
    captions: Future


class PhotoQueue:
    """Captions photos that come one at a time, several in a batch.

    max_batch: most photos of a batch; max_wait: seconds that the first of a batch waits for others while other batches
    are worked on.
    """

    def __init__(self, captioner: Captioner, search: Search, max_batch: int = 16, max_wait: float = 0.02):
        self.captioner, self.search, self.max_batch, self.max_wait = captioner, search, max_batch, max_wait
        self.decoder = captioner.ready_decoder()
        self.jobs: deque[Job] = deque()
        self.closed, self.idle, self.changed = False, 0, threading.Condition()
        self.gathering = threading.Lock()  # one thread gathers at a time: two would halve a batch
        on_cpu = captioner.device.type == "cpu"
        count = min(MOST, own_cores()) if on_cpu else 1
        cores = max(1, own_cores() // count) if on_cpu else None
        self.threads = [threading.Thread(target=self._work, args=(cores,), daemon=True) for _ in range(count)]
        for thread in self.threads:
            thread.start()

    def submit(self, pixels: Tensor) -> "Future[list[Caption]]":
        """The captions to come of a photo. Raises Busy."""
        job = Job(pixels, Future())
        with self.changed:
            if self.closed or len(self.jobs) >= FULL:
                raise Busy
            self.jobs.append(job)
            self.changed.notify_all()
        return job.captions

    def warm_up(self) -> None:
        """Caption a grey photo: what is made at first use is made, and a model that cannot caption says so now."""
        size = self.captioner.size
        self.submit(self.captioner.transform(Image.new("RGB", (size, size), "grey"), None)).result()

    def close(self) -> None:
        """Caption what waits, then end the threads."""
        with self.changed:
            self.closed = True
            self.changed.notify_all()
        for thread in self.threads:
            thread.join()

    def __enter__(self) -> "PhotoQueue":
        return self

    def __exit__(self, *error) -> None:
        self.close()

    def _work(self, cores: int | None) -> None:
        if cores is not None:
            use_cores(cores)
        while batch := self._gather():
            try:
                found = self._caption([job.pixels for job in batch])
            except Exception as error:  # the next batch may be sound
                for job in batch:
                    job.captions.set_exception(error)
            else:
                for job, captions in zip(batch, found):
                    job.captions.set_result(captions)

    def _gather(self) -> list[Job]:
        """The next batch, a fair share for each thread that has none; empty where the queue is closed."""
        with self.changed:
            self.idle += 1
        with self.gathering, self.changed:
            self.changed.wait_for(lambda: self.jobs or self.closed)
            if self.idle < len(self.threads):  # others work, so that more photos are likely to come
                self.changed.wait_for(lambda: len(self.jobs) >= self.max_batch or self.closed, self.max_wait)
            share = max(SHARED, math.ceil(len(self.jobs) / self.idle))
            self.idle -= 1
            return [self.jobs.popleft() for _ in range(min(share, self.max_batch, len(self.jobs)))]

    def _caption(self, pixels: list[Tensor]) -> list[list[Caption]]:
        stacked = torch.stack(pixels).to(self.captioner.device)
        memory = self.captioner.encode(stacked, [None] * len(self.captioner.config.specs))
        return self.captioner.caption(memory, self.search, self.decoder)
