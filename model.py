"""The captioner: encoders and a decoder as one model, its file, and captioning a batch.

    captioner = load_captioner("models/run/best.model")           # .model .vocabulary .transform .config
    for captions in captioner.caption_photos(["photo.jpg", image]):  # a list of Caption per photo, best first
        print(captions[0].text)                                      # as infer.py prints it

All code that needs a captioner imports it from here. The folder captioner/ has what stands behind the names: the
network, the captioner, captions batch by batch, the model file.
"""

from captioner.batches import batch_inputs, caption_features, caption_loader
from captioner.captioner import Caption, Captioner, as_text, tidy_caption
from captioner.model_file import captioner_of, load_captioner, read_model_file, save_captioner
from captioner.network import CaptionModel, as_regions, build_model

__all__ = [
    "Caption",
    "CaptionModel",
    "Captioner",
    "as_regions",
    "as_text",
    "batch_inputs",
    "build_model",
    "caption_features",
    "caption_loader",
    "captioner_of",
    "load_captioner",
    "read_model_file",
    "save_captioner",
    "tidy_caption",
]
