"""Captions of photos that come one at a time, worked out by the batch.

    with PhotoQueue(captioner, Search(beam_size=3)) as photos:
        photos.submit(pixels).result()                       # a list of Caption, best first

Photos that wait are captioned together, which takes less time than one after the other. On a CPU several batches are
worked on at once, each on its share of the cores, as in captioning/fast/threads.py.
"""

import queue
import threading
import time
from concurrent.futures import Future
from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor

from captioning.cores import own_cores
from captioning.decoder.search import Search
from captioning.fast.threads import MOST, use_cores
from model import Caption, Captioner

FULL = 512  # photos that may wait: with more a client would have no answer for a long time


class Busy(Exception):
    """As many photos wait as may."""


@dataclass
class Job:
    """A photo that waits: its pixels as the captioner's transform makes them, and where its captions go."""

    pixels: Tensor
    captions: Future


class PhotoQueue:
    """max_batch: most photos of a batch; max_wait: seconds that the first of a batch waits for others."""

    def __init__(self, captioner: Captioner, search: Search, max_batch: int = 16, max_wait: float = 0.005):
        self.captioner, self.search, self.max_batch, self.max_wait = captioner, search, max_batch, max_wait
        self.decoder = captioner.ready_decoder()
        self.jobs: queue.Queue[Job | None] = queue.Queue(FULL)
        self.gathering = threading.Lock()  # one thread gathers a batch: two would halve it
        on_cpu = captioner.device.type == "cpu"
        count = min(MOST, own_cores()) if on_cpu else 1
        cores = max(1, own_cores() // count) if on_cpu else None
        self.threads = [threading.Thread(target=self._work, args=(cores,), daemon=True) for _ in range(count)]
        for thread in self.threads:
            thread.start()

    def submit(self, pixels: Tensor) -> "Future[list[Caption]]":
        """The captions to come of a photo. Raises Busy."""
        job = Job(pixels, Future())
        try:
            self.jobs.put_nowait(job)
        except queue.Full:
            raise Busy from None
        return job.captions

    def warm_up(self) -> None:
        """Caption a grey photo: what is made at first use is made, and a model that cannot caption says so now."""
        size = self.captioner.size
        self.submit(self.captioner.transform(Image.new("RGB", (size, size), "grey"), None)).result()

    def close(self) -> None:
        """Caption what waits, then end the threads."""
        for _ in self.threads:
            self.jobs.put(None)
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
        """The next batch; empty where the queue was closed."""
        with self.gathering:
            batch = [self.jobs.get()]
            last = time.monotonic() + self.max_wait
            while batch[-1] is not None and len(batch) < self.max_batch:
                try:
                    batch.append(self.jobs.get(timeout=max(0.0, last - time.monotonic())))
                except queue.Empty:
                    break
        if batch[-1] is None:
            batch.pop()
            if batch:
                self.jobs.put(None)  # for the next round of this thread
        return batch

    def _caption(self, pixels: list[Tensor]) -> list[list[Caption]]:
        stacked = torch.stack(pixels).to(self.captioner.device)
        memory = self.captioner.encode(stacked, [None] * len(self.captioner.config.specs))
        return self.captioner.caption(memory, self.search, self.decoder)
