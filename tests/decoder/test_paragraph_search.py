"""Hierarchical models through train.py, infer.py and score.py, on made-up paragraphs."""

import json

import pytest
import torch
from deepcaption_toy import WORDS as OLD_WORDS
from deepcaption_toy import Decoder, Encoder, OldModel, save
from paragraph_toy import feature_map, make_paragraphs, sentences, write_features
from torch import nn
from toy import feature_vector, make_coco, write_config
from toy import write_features as write_toy_features

from captioning import checkpoint
from captioning.decoder.search import Search
from captioning.text.paragraphs import split_sentences
from model import load_captioner

SMALL = ["--embed_size", 48, "--hidden_size", 96, "--pooling_size", 64, "--optimizer", "adam", "--vocab_threshold", 1]
# the word decoder learns faster than what makes its topics
RATES = ["--learning_rate", 0.001, "--lr_word_decoder", 0.01, "--lr_scheduler", "cosine"]
HIERARCHICAL = ["--hierarchical_model", "--features", "v.lmdb", *SMALL, *RATES]
coherence = pytest.mark.parametrize("coherent", [[], ["--coherent_sentences"]], ids=["plain", "coherent"])


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Paragraphs of three sentences, and of two to four, with feature vectors and maps."""
    root = tmp_path_factory.mktemp("paragraphs")
    for name, varied in (("three", False), ("varied", True)):
        make_paragraphs(root / name, {"train": 240, "dev": 60, "few": 12}, varied)
        write_features(root / name, "v.lmdb")
        write_features(root / name, "map.lmdb", feature_map, "float16")
    return root


@pytest.fixture
def train(data, tmp_path, script):
    def call(*arguments, name="run", of="three", dataset="im2p:train"):
        common = ["--dataset_config_file", data / of / "datasets.conf", "--model_path", tmp_path / "models"]
        common += ["--vocab_root", tmp_path / f"vocab-{of}", "--cpu", "--model_name", name, "--captions_per_image", 1]
        return script("train.py", "--dataset", dataset, *common, *arguments)

    call.folder = tmp_path / "models"
    return call


def stats(folder) -> dict:
    return json.loads((folder / "train_stats.json").read_text())


TINY = ["--embed_size", 12, "--hidden_size", 16, "--vocab_threshold", 1, "--batch_size", 6]


def small(*flags):
    return ["--hierarchical_model", "--pooling_size", 16, *TINY, *flags]


@pytest.fixture(scope="module")
def learned(data, tmp_path_factory):
    """A plain and a coherent model that have learnt the paragraphs: name -> (model file, its last figures)."""
    from running import run_here

    models = {}

    def get(coherent):
        name = "coherent" if coherent else "plain"
        if name not in models:
            root = tmp_path_factory.mktemp(name)
            common = ["--dataset_config_file", data / "varied" / "datasets.conf", "--model_path", root, "--cpu"]
            common += ["--vocab_root", root, "--model_name", name, "--captions_per_image", 1, "--batch_size", 16]
            common += ["--dataset", "im2p:train", "--validate", "im2p:dev", "--validation_step", 100]
            done = run_here("train.py", *common, *HIERARCHICAL, "--num_epochs", 30, *coherent)
            assert done.status == 0, done.err
            models[name] = root / name / "ep30.model", stats(root / name)["30"]
        return models[name]

    return get


@coherence
def test_paragraphs_are_learnt(learned, coherent):
    """Sentences and their number follow from the picture, in pictures that were not trained on."""
    _, figures = learned(coherent)
    assert figures["validation_cider"] > 2
    assert figures["validation_right_number"] >= 0.95
    assert figures["validation_word_loss"] < 0.3 and figures["validation_stop_loss"] < 0.1


@coherence
def test_learnt_paragraphs_are_written_and_scored(learned, data, tmp_path, script, coherent):
    model, figures = learned(coherent)
    config = data / "varied" / "datasets.conf"
    common = ["--model", model, "--dataset", "im2p:dev", "--dataset_config_file", config, "--cpu"]
    out = tmp_path / "greedy.json"
    done = script("infer.py", *common, "--beam_size", 1, "--output_file", out, "--scoring", "cider")
    assert done.status == 0, done.err
    greedy = {entry["image_id"]: entry["caption"] for entry in json.loads(out.read_text())}
    counts = [len(split_sentences(text)) == len(sentences(i, varied=True)) for i, text in greedy.items()]
    assert sum(counts) >= 0.95 * len(counts)
    assert all(text[0].isupper() and text.endswith(".") for text in greedy.values())
    truth = data / "varied" / "paragraphs.json"
    done = script("score.py", out, "--ground_truth", truth, "--scoring", "cider", "--tokenizer", "python")
    assert done.status == 0, done.err
    assert f"{figures['validation_cider']:.3f}"[:4] in done.out
    beams = tmp_path / "beams.jsonl"
    rules = ["--no_repeat_sentences", "--only_complete_sentences"]
    done = script("infer.py", *common, "--beam_size", 3, "--output_file", beams, *rules)
    assert done.status == 0, done.err
    rows = [json.loads(line) for line in beams.read_text().splitlines()]
    assert sum(row["caption"] == greedy[row["image_id"]] for row in rows) >= 0.5 * len(rows)
    assert all(-60 < row["log_prob"] < 0 for row in rows)
    done = script("infer.py", *common, "--sample", "--n_best", 2, "--seed", 1, "--output_file", tmp_path / "s.csv")
    assert done.status == 0, done.err
    assert len((tmp_path / "s.csv").read_text().splitlines()) == 1 + 2 * len(rows)
    plain = script("infer.py", *common, "--beam_size", 1, "--no_capitalize", "--print_results", "--output_file", out)
    assert greedy[rows[0]["image_id"]].lower() in plain.out


@coherence
def test_resumed_run_equals_an_uninterrupted_one(train, coherent):
    from training import trainer as training

    flags = [*small("--features", "v.lmdb"), *coherent, "--num_epochs", 3]
    flags += ["--dropout", 0.2, "--dropout_fc", 0.1, "--dropout_stopping", 0.1, "--lr_word_decoder", 0.002]
    few = {"dataset": "im2p:few", "of": "varied"}
    assert train(*flags, name="whole", **few).status == 0
    original = training.Trainer.train_step

    def dies(self, batch):
        if self.step == 3:
            raise KeyboardInterrupt
        return original(self, batch)

    training.Trainer.train_step = dies
    try:
        assert train(*flags, "--save_every", 1, name="killed", **few).status == 130
    finally:
        training.Trainer.train_step = original
    done = train(*flags, "--save_every", 1, "--resume", name="killed", **few)
    assert done.status == 0, done.err
    assert "resumed at epoch 2, batch 1" in done.out
    whole, killed = (train.folder / name for name in ("whole", "killed"))
    assert stats(whole) == stats(killed)
    first, second = (checkpoint.load(folder / "ep3.model")["state"] for folder in (whole, killed))
    assert first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)


@pytest.mark.parametrize(
    "flags",
    [
        ["--features", "map.lmdb"],
        ["--features", "map.lmdb,v.lmdb", "--attention", "soft", "--regularize_attn", "--coherent_sentences"],
        ["--features", "v.lmdb", "--persist_features", "v.lmdb", "--rnn_arch", "GRU", "--share_embedding_weights"],
        ["--features", "v.lmdb", "--teacher_forcing", "sampled", "--teacher_forcing_k", 3, "--coherent_sentences"],
        ["--features", "v.lmdb", "--skip_start_token", "--encoder_non_lin", "--fc_size", 20, "--max_sentences", 2],
        ["--features", "v.lmdb", "--amp", "bf16", "--ema", 0.9, "--coherent_sentences", "--num_layers", 2],
    ],
    ids=lambda flags: " ".join(map(str, flags[1:4])),
)
def test_every_kind_of_hierarchical_model_runs(train, data, tmp_path, script, flags):
    validate = ["--validate", "im2p:few", "--num_epochs", 2]
    done = train(*small(*flags, *validate), of="varied", dataset="im2p:few")
    assert done.status == 0, done.err
    row = stats(train.folder / "run")["2"]
    wanted = {"validation_word_loss", "validation_stop_loss", "validation_sentences", "validation_right_number"}
    assert wanted <= set(row) and row["validation_sentences"] <= 6
    theirs = [
        row[name] for name in ("loss_word", "loss_sentence", "val_loss_word", "val_loss_sentence")
    ]  # DeepCaption's
    assert theirs[2:] == [row["validation_word_loss"], row["validation_stop_loss"]] and min(theirs) > 0
    attention = ["--attention_output", tmp_path / "a.npz"] if "--attention" in flags else []
    model = train.folder / "run" / "ep2.model"
    common = ["--model", model, "--dataset", "im2p:few", "--cpu", "--max_seq_length", 5, "--results_path", tmp_path]
    done = script("infer.py", *common, "--dataset_config_file", data / "varied" / "datasets.conf", *attention)
    assert done.status == 0, done.err
    assert load_captioner(model, photos=False).config.paragraphs.max_sentences == (2 if "--fc_size" in flags else 6)


def test_the_word_decoder_begins_with_a_flat_model(train, data, tmp_path, script):
    """Captions teach the words; the sentence RNN starts afresh, with features of its own."""
    make_coco(tmp_path / "toy", {"train": 8}, size=8)
    config = write_config(tmp_path / "toy", ["train"])
    write_toy_features(tmp_path / "toy", "flat.lmdb", feature_vector)
    flat = ["--dataset", "toy:train", "--dataset_config_file", config, "--features", "flat.lmdb", "--cpu"]
    flat += ["--num_epochs", 1]
    flat += ["--model_path", tmp_path, "--model_name", "flat", "--vocab_root", tmp_path]
    assert script("train.py", *flat, *TINY).status == 0
    start = tmp_path / "flat" / "last.model"
    begin = ["--load_model", start, "--hierarchical_model", "--features", "v.lmdb", "--pooling_size", 16]
    done = train(*begin, "--lr_word_decoder", 0, "--weight_decay", 0, "--num_epochs", 1, dataset="im2p:few")
    assert done.status == 0, done.err
    assert f"begins with the weights of {start}" in done.out
    before, after = (checkpoint.load(path) for path in (start, train.folder / "run" / "ep1.model"))
    assert after["epoch"] == 1 and after["vocabulary"] == before["vocabulary"]
    words = {name.removeprefix("decoder."): value for name, value in before["state"].items() if ".image." not in name}
    assert words and all(torch.equal(after["state"][f"decoder.word_decoder.{n}"], v) for n, v in words.items())
    # and on from the hierarchical model itself, the word decoder learning too
    again = ["--load_model", train.folder / "run" / "last.model", "--hierarchical_model", "--learning_rate", 0.01]
    done = train(*again, "--num_epochs", 2, name="more", dataset="im2p:few")
    assert done.status == 0, done.err
    more = checkpoint.load(train.folder / "more" / "ep2.model")["state"]
    name = "decoder.word_decoder.embed.weight"
    assert not torch.equal(more[name], after["state"][name])
    # without features asked for, the flat model's
    done = train("--load_model", start, "--hierarchical_model", "--num_epochs", 1, name="none", dataset="im2p:few")
    assert done.status == 2 and "flat.lmdb" in done.err
    bad = ["--load_model", start, "--hierarchical_model", "--features", "v.lmdb", "--persist_features", "v.lmdb"]
    done = train(*bad, name="bad", dataset="im2p:few")
    assert done.status == 2 and "does not fit as word decoder" in done.err and done.err.count("\n") == 1


def test_captions_are_paragraphs_of_one_sentence(tmp_path, script):
    make_coco(tmp_path, {"train": 8}, size=8)
    config = write_config(tmp_path, ["train"])
    write_toy_features(tmp_path, "v.lmdb", feature_vector)
    common = ["--dataset", "toy:train", "--validate", "toy:train", "--dataset_config_file", config, "--cpu"]
    common += ["--model_path", tmp_path, "--model_name", "run", "--vocab_root", tmp_path, "--num_epochs", 2]
    done = script("train.py", *common, *small("--features", "v.lmdb"))
    assert done.status == 0, done.err


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--self_critical_from_epoch", 1], ["--self_critical_from_epoch", "cross-entropy"]),
        (["--rnn_hidden_init", "from_features"], ["--rnn_hidden_init", "topic"]),
        (["--max_sentences", 0], ["--max_sentences 0"]),
        (["--dropout_fc", 1], ["--dropout_fc"]),
        (["--weight_word_loss", -1], ["--weight_word_loss"]),
        (["--features", "", "--persist_features", "v.lmdb"], ["--hierarchical_model", "--features"]),
    ],
)
def test_mistakes_are_told(train, arguments, told):
    done = train("--features", "v.lmdb", *small(*arguments), dataset="im2p:few")
    assert done.status == 2
    assert all(text in done.err for text in told) and "Traceback" not in done.err, done.err


def test_mistakes_about_models(train, data, script):
    assert train("--features", "v.lmdb", *TINY, "--coherent_sentences", dataset="im2p:few").status == 2
    few = {"dataset": "im2p:few"}
    assert train("--features", "v.lmdb", *small("--num_epochs", 1), **few).status == 0
    model = train.folder / "run" / "last.model"
    done = train("--load_model", model, "--self_critical_from_epoch", 1, "--num_epochs", 3, name="sc", **few)
    assert done.status == 2 and "cross-entropy alone" in done.err and done.err.count("\n") == 1
    common = ["--model", model, "--dataset", "im2p:few", "--dataset_config_file", data / "three" / "datasets.conf"]
    done = script("infer.py", *common, "--cpu", "--n_best", 2)
    assert done.status == 2 and "--n_best 2" in done.err and "--sample" in done.err


# ---- DeepCaption's hierarchical models ----


class OldParagraphs(nn.Module):
    """The tensors of DeepCaption's hierarchical decoder, and how it writes greedily."""

    def __init__(self, words: int, pooling: int, embed: int, hidden: int, fc: int, arch: str):
        super().__init__()
        self.sentence_rnn = getattr(nn, arch)(pooling, hidden, batch_first=True)
        self.linear_stopping = nn.Linear(hidden, 2)
        self.linear1, self.linear2 = nn.Linear(hidden, fc), nn.Linear(fc, embed)
        self.word_decoder = Decoder(words, embed, hidden, 1, arch, 0, 0, False, ())

    @torch.no_grad()
    def write(self, image, max_sentences: int, max_words: int) -> list[list[int]]:
        """Word ids of one image (1, pooling), sentence by sentence; read are the topic, <start>, each argmax."""
        hidden = self.sentence_rnn(image.unsqueeze(1).expand(-1, max_sentences, -1))[0][0]
        sentences = []
        for h in hidden:
            inputs = self.linear2(torch.relu(self.linear1(h)))
            _, state = self.word_decoder.rnn(inputs.view(1, 1, -1))
            sentence, word = [], 1
            while word != 2 and len(sentence) < max_words + 1:
                out, state = self.word_decoder.rnn(self.word_decoder.embed.weight[word].view(1, 1, -1), state)
                scores = self.word_decoder.words(out)[0, 0]
                scores[:2] = -torch.inf
                word = 2 if len(sentence) == max_words else int(scores.argmax())
                sentence.append(word)
            sentences.append(sentence[:-1])
            stop = torch.sigmoid(self.linear_stopping(h))
            if stop[0] <= stop[1]:
                break
        return [sentence for sentence in sentences if sentence]


@pytest.mark.parametrize("arch", ["LSTM", "GRU"])
def test_paragraph_models_of_deepcaption_are_read(tmp_path, arch):
    torch.manual_seed(2)
    encoder, decoder = Encoder(16, 7, True, ()).eval(), OldParagraphs(len(OLD_WORDS), 7, 5, 6, 9, arch).eval()
    with torch.no_grad():
        for parameter in [*encoder.parameters(), *decoder.parameters()]:
            parameter.normal_(0, 0.8)
        encoder.bn.running_mean.normal_()
        decoder.word_decoder.linear.bias[2] += 1.0
    contents = OldModel(embed=5, hidden=6, arch=arch, non_lin=True).contents
    contents |= {"hierarchical_model": True, "max_sentences": 4, "fc_size": 9, "dropout_fc": 0.5}
    contents |= {"encoder": encoder.state_dict(), "decoder": decoder.state_dict()}
    save(contents, tmp_path / "old.model")
    captioner = load_captioner(tmp_path / "old.model", photos=False)
    settings = captioner.config.paragraphs
    assert (settings.pooling_size, settings.fc_size, settings.max_sentences, settings.dropout_fc) == (7, 9, 4, 0.5)
    features = torch.randn(8, 16)
    found = captioner.caption(captioner.encode(None, [features]), Search(max_length=6, allow_unk=True))
    with torch.no_grad():
        expected = [decoder.write(encoder(row.view(1, -1)), 4, 6) for row in features]
    assert [caption[0].paragraph.sentences for caption in found] == expected
    assert len({len(sentences) for sentences in expected}) > 1
