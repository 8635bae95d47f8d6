"""A captioner that is not trained, whose captions differ from picture to picture, and pictures for it."""

import random

import torch
from PIL import Image, ImageDraw

from captioning.config import ModelConfig
from captioning.encoder.factory import build_encoder
from captioning.encoder.provenance import internal_spec
from captioning.text.tokens import END
from model import Captioner, build_model, save_captioner
from vocabulary import Vocabulary

TEXT = "a the red blue green ball box dog man is on runs , under"
WORDS = ["<pad>", "<start>", "<end>", "<unk>", *TEXT.split()]
SIZES = {"embed_size": 24, "hidden_size": 32, "value_size": 24, "attention_size": 16}


def captioner_for(config: ModelConfig) -> Captioner:
    """Untrained, but with weights large enough that images and words make a difference, and sentences that end."""
    built = build_model(config, Vocabulary(WORDS))
    torch.manual_seed(3)
    with torch.no_grad():
        for parameter in built.decoder.parameters():  # drawn anew: building an encoder used up random numbers
            torch.nn.init.uniform_(parameter, -0.18, 0.18)
        for name, parameter in built.decoder.named_parameters():
            parameter.mul_(0.3 if name.startswith("init") else 5.0 if "weight" in name else 1.0)
        built.decoder.linear.bias[END] += 2.0
    return Captioner(built, Vocabulary(WORDS))


def picture(seed: int) -> Image.Image:
    draw_from = random.Random(seed)
    image = Image.new("RGB", (300, 260), tuple(draw_from.randrange(256) for _ in range(3)))
    for _ in range(6):
        x, y = draw_from.randrange(250), draw_from.randrange(200)
        colour = tuple(draw_from.randrange(256) for _ in range(3))
        ImageDraw.Draw(image).rectangle([x, y, x + draw_from.randrange(20, 200), y + 60], fill=colour)
    return image


def save_photo_captioner(path) -> None:
    """Write a model file that captions photos: soft attention over the map of the encoder that is installed."""
    spec = internal_spec("efficientnet_lite0-conv", build_encoder("efficientnet_lite0-conv"))
    save_captioner(captioner_for(ModelConfig(features=[spec], attention="soft", **SIZES)), path)
