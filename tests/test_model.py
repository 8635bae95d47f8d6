"""The captioner as a whole: configuration, files, what goes where, captions; with encoders of a few weights."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from captioning import checkpoint
from captioning.config import FeatureSpec, ModelConfig
from captioning.decoder.search import Search
from captioning.encoder import provenance
from captioning.encoder.encoder import ImageEncoder
from captioning.encoder.provenance import internal_spec
from captioning.errors import UserError
from captioning.text.tokens import END, PAD, START
from inference.run.search import SearchFlags
from model import Captioner, CaptionModel, as_regions, build_model, caption_loader, load_captioner, save_captioner
from training.losses import caption_cross_entropy, token_cross_entropy
from vocabulary import build_vocabulary

SIZES = {"embed_size": 8, "hidden_size": 10, "attention_size": 6, "value_size": 12}
VOCABULARY = build_vocabulary(["a brown dog runs on the green grass", "two cats sleep under a red table ."] * 2, 1)
V = len(VOCABULARY)
POOLED = FeatureSpec("x.npy", (5,), True)
WIDE = FeatureSpec("y.lmdb", (7,), True)
MAP = FeatureSpec("map.npy", (4, 3, 3), True)
MAP2 = FeatureSpec("map2.npy", (6, 2, 2), True)


def tiny_extractor(name, weights=None, pretrained=True, transform=None) -> ImageEncoder:
    """Encoders "tiny" and "tiny-conv" of 16 x 16 pixels: 6 numbers, or 6 x 2 x 2."""
    torch.manual_seed(1 if weights is None and pretrained else 2)
    convolution = nn.Conv2d(3, 6, 8, stride=8)
    conv = name.endswith("-conv")
    network = nn.Sequential(convolution) if conv else nn.Sequential(convolution, nn.AdaptiveAvgPool2d(1), nn.Flatten())
    own = {"size": 16, "interpolation": "bilinear", "mean": [0.5] * 3, "std": [0.5] * 3, **(transform or {})}
    return ImageEncoder(name, network, own, (6, 2, 2) if conv else (6,), order=list(network.state_dict()), blocks=["0"])


@pytest.fixture(autouse=True)
def tiny_encoders(monkeypatch):
    monkeypatch.setattr(provenance, "build_encoder", tiny_extractor)


def internal(name: str) -> FeatureSpec:
    return internal_spec(name, tiny_extractor(name))


def made(name: str, extractor: str, **changes) -> FeatureSpec:
    """A feature file that says what made it."""
    spec = internal(extractor)
    return FeatureSpec(name, spec.shape, True, {**spec.provenance, **changes})


def make(features=(), persist=(), **changes) -> Captioner:
    config = ModelConfig(list(features), list(persist), **{**SIZES, **changes})
    model = build_model(config, VOCABULARY)
    torch.manual_seed(3)
    with torch.no_grad():
        for parameter in model.decoder.parameters():
            parameter.normal_(0, 0.4)
    return Captioner(model.eval(), VOCABULARY)


def photos(count: int = 3) -> list[Image.Image]:
    random = np.random.default_rng(0)
    return [Image.fromarray(random.integers(0, 256, (20 + k, 30, 3), np.uint8)) for k in range(count)]


def record(spec: FeatureSpec, images: int = 3, seed: int = 0) -> torch.Tensor:
    """A batch of such features as the loader gives it."""
    torch.manual_seed(seed + spec.shape[0])
    return as_regions(torch.randn(images, *spec.shape))


def logits_of(captioner, inputs, pixels=None):
    captions, lengths = (
        torch.tensor([[START, 4, 5, END], [START, 6, END, PAD], [START, 7, 8, END]]),
        torch.tensor([4, 3, 4]),
    )
    with torch.no_grad():
        return captioner.model(pixels, inputs, captions, lengths, torch.arange(3))


# ---- configuration ----


def test_a_configuration_survives_a_file(tmp_path):
    config = ModelConfig([internal("tiny"), POOLED], [MAP], rnn_arch="GRU", attention="soft", dropout=0.3, crop_size=32)
    checkpoint.save({"config": config.to_dict()}, tmp_path / "x.model")
    again = ModelConfig.from_dict(checkpoint.load(tmp_path / "x.model")["config"])
    assert again == config and again.persist_features[0].shape == (4, 3, 3)


@pytest.mark.parametrize(
    ("features", "persist", "expected"),
    [
        ([MAP], [], 0),
        ([POOLED, MAP], [], 1),
        ([], [MAP], 0),
        ([MAP], [MAP2], 1),  # the one among the persistent features comes first
        ([MAP], [POOLED], 0),
        ([POOLED], [WIDE, MAP, MAP2], 2),
        ([MAP, MAP2], [], 0),
    ],
)
def test_which_map_is_attended_to(features, persist, expected):
    for attention in ("soft", "spatial"):
        assert ModelConfig(features, persist, attention=attention).attended() == expected
    assert ModelConfig(features, persist).attended() is None


def test_attention_without_a_map():
    with pytest.raises(UserError, match=r"--attention soft needs a spatial map.*x\.npy, y\.lmdb.*-conv"):
        make([POOLED], [WIDE], attention="soft")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"persist": [POOLED], "rnn_hidden_init": "from_features"}, "--rnn_hidden_init from_features needs initial"),
        ({"persist": [POOLED], "skip_start_token": True}, "--skip_start_token needs pooled initial"),
        ({"features": [MAP], "attention": "soft", "skip_start_token": True}, "--skip_start_token needs pooled initial"),
        ({"features": [POOLED], "rnn_hidden_init": "from_features", "skip_start_token": True}, "--skip_start_token"),
    ],
)
def test_settings_that_exclude_each_other(settings, message):
    with pytest.raises(UserError, match=message):
        make(**settings)


# ---- what goes where ----


def test_a_map_that_nobody_attends_to_is_averaged():
    captioner = make([MAP, POOLED], [MAP2])
    inputs = [record(spec) for spec in (MAP, POOLED, MAP2)]
    memory = captioner.encode(None, inputs)
    torch.testing.assert_close(memory.persist, inputs[2].mean(1))
    torch.testing.assert_close(memory.initial, torch.cat([inputs[0].mean(1), inputs[1]], 1))
    averaged = captioner.encode(None, [inputs[0].mean(1), inputs[1], inputs[2].mean(1)])
    assert torch.equal(memory.first, averaged.first)


@pytest.mark.parametrize("attention", ["soft", "spatial"])
def test_each_input_reaches_the_captions(attention):
    """The attended map among the persistent features, the other map pooled at the start, the vector at every step."""
    captioner = make([MAP2], [WIDE, MAP], attention=attention)
    decoder = captioner.model.decoder
    assert decoder.regions.in_features == 4 and decoder.persist_size == 7 and decoder.image.linear.in_features == 6
    inputs = [record(spec) for spec in (MAP2, WIDE, MAP)]
    plain, _, weights, row = logits_of(captioner, inputs)
    assert weights.shape == (len(row), 9)
    for index in range(3):
        changed = list(inputs)
        changed[index] = record([MAP2, WIDE, MAP][index], seed=99)
        assert (logits_of(captioner, changed)[0] - plain).abs().max() > 1e-3
    # the order of regions matters to nobody
    shuffled = [inputs[0].flip(1), inputs[1], inputs[2].flip(1)]
    torch.testing.assert_close(logits_of(captioner, shuffled)[0], plain, rtol=0, atol=1e-5)


def test_features_as_the_initial_state():
    captioner = make([POOLED], [WIDE], rnn_hidden_init="from_features", num_layers=2)
    assert captioner.model.decoder.image is None and captioner.model.decoder.has_initial
    memory = captioner.encode(None, [record(POOLED), record(WIDE)])
    assert torch.equal(memory.initial, record(POOLED)) and memory.first is None


def test_pixels_and_their_features_give_the_same():
    spec, extractor = internal("tiny-conv"), tiny_extractor("tiny-conv")
    captioner = make([internal("tiny")], [spec], attention="soft")
    pixels = torch.stack([captioner.transform(photo, None) for photo in photos()])
    assert pixels.shape == (3, 3, 16, 16) and pixels.dtype == torch.uint8
    from_pixels, *_ = logits_of(captioner, [None, None], pixels)
    features = [tiny_extractor("tiny")(pixels), as_regions(extractor(pixels))]
    torch.testing.assert_close(logits_of(captioner, features)[0], from_pixels, rtol=0, atol=1e-5)


def test_a_photo_is_encoded_once_for_both_uses():
    spec = internal("tiny-conv")
    captioner = make([spec], [spec], attention="soft")
    extractor, calls = captioner.model.extractors[0], []
    assert captioner.model.extractors[1] is extractor
    extractor.register_forward_hook(lambda *_: calls.append(1))
    memory = captioner.encode(torch.zeros(2, 3, 16, 16, dtype=torch.uint8), [None, None])
    assert calls == [1] and memory.values.shape == (2, 4, 12) and memory.first.shape == (2, 8)


def test_half_precision_features_are_computed_in_full():
    captioner = make([POOLED], [MAP], attention="soft")
    half = [record(POOLED).half(), record(MAP).half()]
    expected, *_ = logits_of(captioner, [x.float() for x in half])
    assert torch.equal(logits_of(captioner, half)[0], expected)


def test_regions_are_read_row_by_row():
    grid = torch.arange(24.0).view(1, 2, 3, 4)
    regions = as_regions(grid)
    assert regions.shape == (1, 12, 2) and torch.equal(regions[0, 4 * 1 + 2], grid[0, :, 1, 2])


# ---- teacher forcing ----


def test_targets_are_the_next_words_and_never_start_or_padding():
    captioner = make([POOLED])
    captions = torch.tensor([[START, 4, END, PAD, PAD], [START, 5, 6, 7, END], [START, END, PAD, PAD, PAD]])
    batch = (None, [record(POOLED)], captions, torch.tensor([3, 5, 2]), torch.tensor([2, 0, 0]))
    logits, targets, weights, row = captioner.model(*batch)
    assert logits.shape == (7, V) and weights is None
    assert [targets[row == n].tolist() for n in range(3)] == [[4, END], [5, 6, 7, END], [END]]
    forced, same, *_ = captioner.model(*batch, ("sampled", 1.0, torch.Generator()))
    assert torch.equal(same, targets)
    torch.testing.assert_close(forced, logits, rtol=0, atol=1e-5)


@pytest.mark.parametrize(("settings", "smoothing"), [({}, 0.0), ({"num_layers": 2}, 0.1), ({"attention": "soft"}, 0.1)])
def test_the_loss_without_logits_is_that_of_the_logits(settings, smoothing):
    captioner = make([MAP if "attention" in settings else POOLED], **settings)
    captions = torch.tensor([[START, 4, END, PAD, PAD], [START, 5, 6, 7, END], [START, END, PAD, PAD, PAD]])
    spec = captioner.config.features[0]
    batch = (None, [record(spec)], captions, torch.tensor([3, 5, 2]), torch.tensor([2, 0, 0]))
    model, gradients = captioner.model.train(), []
    for fast in (True, False):
        model.zero_grad()
        if fast:
            memory = model.encode(*batch[:2])
            loss, tokens, weights, row = caption_cross_entropy(model, memory, *batch[2:], smoothing)
        else:
            logits, targets, weights, row = model(*batch)
            loss, tokens = token_cross_entropy(logits, targets, smoothing), len(targets)
        loss.backward()
        gradients.append([loss.detach(), *(p.grad for p in model.parameters())])
        assert (
            tokens == 7 and row.tolist() == [1, 0, 2, 1, 0, 1, 1] and (weights is None) == ("attention" not in settings)
        )
    for a, b in zip(*gradients):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-6)


def test_a_frozen_encoder_stays_frozen():
    captioner = make([internal("tiny")])
    captioner.model.train()
    extractor = captioner.model.extractors[0]
    assert not extractor.network.training and not any(p.requires_grad for p in extractor.parameters())
    captions = torch.tensor([[START, 4, END]] * 2)
    pixels = torch.randint(0, 256, (2, 3, 16, 16), dtype=torch.uint8)
    logits, *_ = captioner.model(pixels, [None], captions, torch.tensor([3, 3]), torch.arange(2))
    logits.sum().backward()
    assert all(p.grad is None for p in extractor.parameters())


# ---- captions ----


def test_dropout_has_no_say_in_captions():
    captioner = make([POOLED], [MAP], attention="soft", dropout=0.5, encoder_dropout=0.5)
    inputs = [record(POOLED), record(MAP)]
    captioner.model.train()
    first = captioner.caption(captioner.encode(None, inputs), Search(beam_size=3))
    captioner.model.train()
    assert captioner.caption(captioner.encode(None, inputs), Search(beam_size=3)) == first


def test_captions_best_first():
    captioner = make([POOLED])
    memory = captioner.encode(None, [record(POOLED)])
    several = captioner.caption(memory, Search(beam_size=5, n_best=4, max_length=6))
    assert [len(captions) for captions in several] == [4, 4, 4]
    for captions in several:
        assert [c.log_prob for c in captions] == sorted((c.log_prob for c in captions), reverse=True)
        for caption in captions:
            assert caption.text == VOCABULARY.sentence(caption.tokens)
            assert not {PAD, START, END} & set(caption.tokens) and len(caption.tokens) <= 6
    # fewer sentences exist than were asked for: no empty places
    few = captioner.caption(memory, Search(beam_size=40, n_best=40, max_length=1))
    assert all(len(captions) == V - 3 for captions in few)  # each word but the specials, and the empty sentence


@pytest.mark.parametrize("attention", [None, "soft", "spatial"])
def test_explanations_belong_to_their_captions(attention):
    captioner = make([POOLED, MAP], attention=attention)
    memory = captioner.encode(None, [record(POOLED), record(MAP)])
    captions = [best[0] for best in captioner.caption(memory, Search(beam_size=2, max_length=7))]
    captions[1].tokens, captions[1].log_prob = [], None  # an empty caption has <end> alone
    for caption, (weights, log_probs) in zip(captions, captioner.explain(memory, captions)):
        assert log_probs.shape == (len(caption.tokens) + 1,)
        if caption.log_prob is not None:
            assert log_probs.sum().item() == pytest.approx(caption.log_prob, abs=1e-4)
        if attention is None:
            assert weights is None
        else:
            torch.testing.assert_close(weights.sum(1), torch.ones(len(caption.tokens) + 1))
    # by step(), for the first image
    if attention:
        mine = memory.select(torch.tensor([0]))
        state = captioner.model.decoder.start(mine)
        for token, expected in zip([START, *captions[0].tokens], captioner.explain(memory, captions)[0][0]):
            _, state, weights = captioner.model.decoder.step(torch.tensor([token]), state, mine)
            torch.testing.assert_close(weights[0], expected, rtol=0, atol=1e-5)


def test_the_loop_over_batches():
    captioner = make([internal("tiny"), POOLED], [MAP])
    pixels = torch.randint(0, 256, (3, 3, 16, 16), dtype=torch.uint8)
    batch = SimpleNamespace(pixels=pixels, inputs=[None, record(POOLED), record(MAP)])
    (same, memory, captions), (_, _, none) = [
        *caption_loader(captioner, [batch], Search()),
        *caption_loader(captioner, [batch], None),
    ]
    assert same is batch and none is None and len(memory) == 3
    expected = captioner.encode(pixels, [None, record(POOLED), record(MAP)])
    assert captions == captioner.caption(expected, Search())


def test_how_captions_are_searched_for_where_no_flag_says_it():
    captioner = make([POOLED])
    captioner.info["length_penalty"] = 0.7
    assert captioner.default_search() == Search(3, length_penalty=0.7)
    assert captioner.default_search(n_best=5) == Search(5, length_penalty=0.7, n_best=5)
    assert captioner.default_search(beam_size=2, length_penalty=0.0) == Search(2)
    captioner.info = {"made_by": "DeepCaption"}
    assert captioner.default_search() == Search(1, allow_unk=True)
    assert captioner.default_search(deepcaption=False) == Search(3)
    assert SearchFlags().search(captioner).beam_size == 1 and SearchFlags().search(captioner).allow_unk
    asked = SearchFlags(n_best=4, max_seq_length=9, min_words=2).search(captioner)
    assert (asked.beam_size, asked.n_best, asked.max_length, asked.min_length, asked.allow_unk) == (4, 4, 9, 2, False)
    drawn = SearchFlags(sample=True, n_best=4, seed=7)
    assert drawn.search(captioner).beam_size == 1 and drawn.sampling_seed == 7


def test_one_image_in_every_mode_and_shape():
    captioner = make([internal("tiny")])
    grey = Image.new("L", (40, 25), 120)
    clear = Image.new("RGBA", (10, 90), (1, 200, 3, 40))
    assert len(captioner.caption_images([grey, clear])) == 2
    assert captioner.caption_images([grey]) == [captioner.caption_images([clear, grey])[1]]


# ---- files ----


@pytest.mark.parametrize(
    ("features", "persist", "settings"),
    [
        (["tiny"], [], {}),
        (["tiny"], ["tiny-conv"], {"attention": "soft", "share_embedding_weights": True}),
        (["tiny"], [], {"rnn_arch": "GRU", "num_layers": 2, "rnn_hidden_init": "from_features"}),
        (["tiny"], ["tiny-conv"], {"attention": "spatial", "skip_start_token": True, "encoder_non_lin": True}),
    ],
    ids=str,
)
@pytest.mark.parametrize("external", [False, True])
def test_a_model_file_gives_the_same_captions(tmp_path, features, persist, settings, external):
    spec = (lambda name: made(f"{name}.npy", name)) if external else internal
    captioner = make(map(spec, features), map(spec, persist), **settings)
    search = Search(beam_size=3, n_best=2)
    expected = captioner.caption_images(photos(), search)
    save_captioner(captioner, tmp_path / "x.model", epoch=3, command=["train.py"])
    again = load_captioner(tmp_path / "x.model")
    assert not again.model.training and again.caption_images(photos(), search) == expected
    assert again.config == captioner.config and again.vocabulary.words == VOCABULARY.words
    assert again.info["epoch"] == 3 and again.info["command"] == ["train.py"] and "versions" in again.info


def test_a_trained_encoder_travels_in_the_file(tmp_path):
    """The one behind a feature file, built for photos, does not."""
    captioner = make([internal("tiny")], [made("map.npy", "tiny-conv")], attention="soft", finetune_encoder=-1)
    with torch.no_grad():
        captioner.model.extractors[0].network[0].weight.mul_(1.5)
    expected = captioner.caption_images(photos())
    save_captioner(captioner, tmp_path / "x.model")
    names = [name for name in checkpoint.load(tmp_path / "x.model")["state"] if name.startswith("extractors.")]
    assert names == ["extractors.0.network.0.weight", "extractors.0.network.0.bias"]
    assert load_captioner(tmp_path / "x.model").caption_images(photos()) == expected
    captioner.model.load_trained_state(captioner.model.trained_state(), "itself")


def test_a_trained_encoder_frozen_later_stays_in_the_file(tmp_path):
    captioner = make([internal("tiny")], finetune_encoder=-1)
    assert any(p.requires_grad for p in captioner.model.extractors.parameters())
    save_captioner(captioner, tmp_path / "x.model")
    again = load_captioner(tmp_path / "x.model")
    assert not any(p.requires_grad for p in again.model.extractors.parameters())
    assert again.model.trained_state().keys() == captioner.model.trained_state().keys()
    again.model.finetune(-1)
    assert all(p.requires_grad for p in again.model.extractors.parameters())


def test_nothing_to_fine_tune():
    with pytest.raises(UserError, match="--finetune_encoder: no encoder"):
        make([POOLED], finetune_encoder=2)


def test_a_frozen_encoder_is_not_in_the_file():
    frozen, trained = make([internal("tiny")]), make([internal("tiny")], finetune_encoder=-1)
    assert not any(name.startswith("extractors.") for name in frozen.model.trained_state())
    assert any(name.startswith("extractors.0.network") for name in trained.model.trained_state())
    decoder = {f"decoder.{name}" for name in frozen.model.decoder.state_dict()}
    assert set(frozen.model.trained_state()) == decoder and decoder < set(trained.model.trained_state())


def test_photos_are_normalised_as_the_feature_file_was(tmp_path):
    """extract_features.py --normalize and --crop_size change the transform; the file says so."""
    changed = {"size": 24, "interpolation": "bicubic", "mean": [0.1, 0.2, 0.3], "std": [1.0, 1.0, 1.0]}
    spec = made("x.npy", "tiny", transform=changed)
    save_captioner(make([spec]), tmp_path / "x.model")
    captioner = load_captioner(tmp_path / "x.model")
    assert captioner.size == 24 and captioner.transform.interpolation == "bicubic"
    assert captioner.model.extractors[0].transform == changed
    pixels = torch.stack([captioner.transform(photo, None) for photo in photos()])
    features = tiny_extractor("tiny", transform=changed)(pixels)
    fresh = load_captioner(tmp_path / "x.model", photos=False)
    assert isinstance(fresh.model.extractors[0], nn.Identity)  # the encoder is spared until a photo comes
    assert captioner.caption_images(photos()) == fresh.caption(fresh.encode(None, [features]), Search())


def test_feature_files_of_different_sizes_cannot_caption_photos():
    larger = {**internal("tiny").provenance["transform"], "size": 24}
    captioner = make([made("x.npy", "tiny"), made("y.npy", "tiny", transform=larger)])
    with pytest.raises(UserError, match=r"different sizes \(24 pixels for y\.npy, else 16\)"):
        captioner.caption_images(photos())


def test_a_feature_file_that_names_its_encoder_alone():
    spec = FeatureSpec("x.npy", (6,), True, {"extractor": "tiny"})
    assert make([spec]).caption_images(photos()) == make([made("x.npy", "tiny")]).caption_images(photos())


@pytest.mark.parametrize(
    ("provenance", "message"),
    [
        (None, r"reads features from x\.npy, which does not say what made them"),
        ({}, r"reads features from x\.npy, which does not say"),
        ({"transform": {"size": 16, "interpolation": "bilinear"}}, r"reads features from x\.npy, which does not say"),
        ({"extractor": "tiny", "feature_type": "median"}, r"of type 'median' from x\.npy"),
        ({"extractor": "tiny", "weights_sha256": "0" * 64}, r"other weights of tiny \(sha256 0000.*--weights"),
    ],
)
def test_feature_files_that_cannot_be_made_again(tmp_path, provenance, message):
    save_captioner(make([FeatureSpec("x.npy", (6,), True, provenance)]), tmp_path / "x.model")
    with pytest.raises(UserError, match=message):
        load_captioner(tmp_path / "x.model")
    captioner = load_captioner(tmp_path / "x.model", photos=False)  # datasets with features go all the same
    assert captioner.caption(captioner.encode(None, [torch.randn(2, 6)]), Search())


def test_other_weights_than_the_model_was_trained_on(tmp_path):
    save_captioner(make([internal("tiny")]), tmp_path / "x.model")
    with pytest.raises(UserError, match=r"other weights of tiny.*--weights"):
        load_captioner(tmp_path / "x.model", weights="another.pth")


def test_weights_that_do_not_fit():
    small, large = make([POOLED]), make([POOLED], hidden_size=12)
    with pytest.raises(UserError, match=r"model file a\.model does not fit.*\(.*in the file, .*in the model"):
        large.model.load_trained_state(small.model.trained_state(), "model file a.model")
    state = small.model.trained_state()
    for broken in ({**state, "decoder.other": torch.zeros(1)}, {k: v for k, v in state.items() if "embed" not in k}):
        with pytest.raises(UserError, match=r"a\.model does not fit the model: decoder\..* is missing or unknown"):
            small.model.load_trained_state(broken, "a.model")


def test_a_model_of_another_vocabulary():
    other = CaptionModel(ModelConfig([POOLED], **SIZES), V + 5, [None])
    with pytest.raises(
        UserError, match=r"x\.model does not fit the model: decoder\.embed\.weight is \(\d+, 8\) in the file"
    ):
        other.load_trained_state(make([POOLED]).model.trained_state(), "x.model")


@pytest.mark.parametrize("lacking", ["config", "vocabulary", "state"])
def test_a_file_that_is_no_captioner(tmp_path, lacking):
    captioner = make([POOLED])
    contents = {
        "config": captioner.config.to_dict(),
        "vocabulary": captioner.vocabulary.to_dict(),
        "state": captioner.model.trained_state(),
    }
    del contents[lacking]
    checkpoint.save(contents, tmp_path / "x.model")
    with pytest.raises(UserError, match=rf"x\.model lacks '{lacking}'"):
        load_captioner(tmp_path / "x.model")


def test_a_configuration_of_a_newer_version(tmp_path):
    captioner = make([POOLED])
    config = {**captioner.config.to_dict(), "number_of_wings": 2}
    checkpoint.save({"config": config, "vocabulary": VOCABULARY.to_dict(), "state": {}}, tmp_path / "x.model")
    with pytest.raises(UserError, match=r"x\.model"):
        load_captioner(tmp_path / "x.model")
