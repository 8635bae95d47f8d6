"""Confidences of a captioner whose calibration knows how likely captions are about pictures that show nothing."""

import math

import numpy as np
import pytest
import torch
from toy_captioner import picture, save_photo_captioner

from captioning.decoder.search import Search
from captioning.scoring.calibration import Calibration
from model import load_captioner


def test_confidence_knows_how_likely_a_caption_is_about_nothing(tmp_path):
    """The number is the higher one of the means that `explain` gives for a grey picture and for noise."""
    save_photo_captioner(tmp_path / "photo.model")
    captioner = load_captioner(tmp_path / "photo.model")
    assert captioner.caption_photos([picture(1)])[0][0].blank is None
    captioner.calibration = Calibration(2.0, 1.0, 0.5, 0.4, 100, 0.1, blank_slope=-0.5)
    size = captioner.size
    noise = np.random.RandomState(0).randint(0, 256, (3, size, size))
    pixels = torch.tensor(np.stack([np.full((3, size, size), 128), noise]), dtype=torch.uint8)
    memory = captioner.encode(pixels, [None])
    for (caption,) in captioner.caption_photos([picture(1), picture(2)]):
        means = [float(log_probs.mean()) for _, log_probs in captioner.explain(memory, [caption, caption])]
        assert caption.blank == pytest.approx(max(means), abs=1e-5)
        sure = 1 / (1 + math.exp(-(2 * caption.mean_log_prob - 0.5 * caption.blank + 1)))
        assert captioner.confidence(caption) == pytest.approx(sure)
    captions = captioner.caption(captioner.encode(pixels, [None]), Search(beam_size=2, n_best=2))
    assert all(caption.blank is not None for several in captions for caption in several)
