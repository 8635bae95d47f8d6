"""Made-up model files in DeepCaption's format, and what its networks compute, written with torch's own modules."""

import sys
from collections import namedtuple
from types import ModuleType

import torch
from torch import nn

WORDS = ["<pad>", "<start>", "<end>", "<unk>", "a", "red", "green", "blue", "yellow", "ball", "box", "roof", "is", "on"]
WORDS += ["the", "grey", "floor", "."]

_encoder_decoder, _vocabulary, _package = (ModuleType(n) for n in ("model.encoder_decoder", "vocabulary", "model"))
Features = namedtuple("Features", "external internal", module="model.encoder_decoder")


class Vocabulary:
    """The attributes of the pickled class."""

    def __init__(self, words, freq=None):
        self.word2idx = {word: i for i, word in enumerate(words)}
        self.idx2word = dict(enumerate(words))
        self.idx = len(words)
        self.metadata = {"vocab_threshold": 4, "no_tokenize": False, "dataset": "toy:train"}
        if freq:
            self.freq = freq


Vocabulary.__module__ = "vocabulary"
_encoder_decoder.Features, _vocabulary.Vocabulary = Features, Vocabulary
_package.encoder_decoder = _encoder_decoder


def save(contents: dict, path, legacy: bool = False) -> None:
    """torch.save with classes that pretend to be DeepCaption's; legacy: as torch before 1.6 wrote it."""
    fakes = {"model": _package, "model.encoder_decoder": _encoder_decoder, "vocabulary": _vocabulary}
    real = {name: sys.modules.get(name) for name in fakes}
    sys.modules.update(fakes)
    try:
        torch.save(contents, path, _use_new_zipfile_serialization=not legacy)
    finally:
        for name, module in real.items():
            if module is None:
                del sys.modules[name]
            else:
                sys.modules[name] = module


class Extractor(nn.Module):
    def __init__(self, network):
        super().__init__()
        self.extractor = network


class Encoder(nn.Module):
    def __init__(self, size, embed, non_lin, networks):
        super().__init__()
        self.extractors = nn.ModuleList(Extractor(n) for n in networks)
        self.linear = nn.Linear(size, embed)
        self.bn = nn.BatchNorm1d(embed, momentum=0.01)
        self.non_lin = nn.SELU() if non_lin else nn.Identity()

    def forward(self, features):
        return self.bn(self.non_lin(self.linear(features)))


class Decoder(nn.Module):
    def __init__(self, words, embed, hidden, layers, arch, persist, initial, shared, networks):
        super().__init__()
        self.embed = nn.Embedding(words, embed)
        self.extractors = nn.ModuleList(Extractor(n) for n in networks)
        if initial:
            self.init_h = nn.ModuleList(nn.Linear(initial, hidden) for _ in range(layers))
            self.init_c = nn.ModuleList(nn.Linear(initial, hidden) for _ in range(layers))
        self.rnn = getattr(nn, arch)(embed + persist, hidden, layers, batch_first=True)
        if shared:
            self.projection = nn.Linear(hidden, hidden)
            self.hidden_to_embeddings = nn.Linear(hidden, embed)
            self.embed_output = nn.Linear(embed, words)
            self.embed_output.weight.data = self.embed.weight.data.t()
            if shared == "apart":  # as after training on a GPU
                self.embed_output.weight.data = torch.randn(embed, words)
        else:
            self.linear = nn.Linear(hidden, words)

    def words(self, hidden):
        if hasattr(self, "embed_output"):
            return self.hidden_to_embeddings(self.projection(hidden)) @ self.embed_output.weight
        return self.linear(hidden)


class OldModel:
    """A DeepCaption model of random weights; `contents` is what its file holds.

    size, persist: D of the features; networks, persist_networks: modules within the model, whose features come first.
    """

    def __init__(
        self, *, size=16, persist=0, embed=6, hidden=8, layers=1, arch="LSTM", init=False, shared=False, non_lin=False,
        skip_start=False, features=(["pooled.lmdb"], []), persist_features=([], []), networks=(), persist_networks=(),
        seed=3,
    ):  # fmt: skip
        torch.manual_seed(seed)
        self.init, self.skip_start = init, skip_start
        self.encoder = Encoder(size, embed, non_lin, networks)
        self.decoder = Decoder(
            len(WORDS), embed, hidden, layers, arch, persist, size if init else 0, shared, persist_networks
        )
        self.encoder.eval(), self.decoder.eval()
        with torch.no_grad():
            for name, parameter in [*self.encoder.named_parameters(), *self.decoder.named_parameters()]:
                if "extractor." not in name and "embed_output" not in name:
                    parameter.normal_(0, 0.5)
            self.encoder.bn.running_mean.normal_()
            self.encoder.bn.running_var.uniform_(0.5, 2)
        self.contents = {
            "hierarchical_model": False, "epoch": 4, "encoder": self.encoder.state_dict(),
            "decoder": self.decoder.state_dict(), "optimizer": {"state": {}, "param_groups": [{"lr": 0.001}]},
            "embed_size": embed, "hidden_size": hidden, "num_layers": layers, "batch_size": 64, "learning_rate": 0.001,
            "dropout": 0.0, "encoder_dropout": 0.0, "encoder_non_lin": non_lin, "features": Features(*features),
            "persist_features": Features(*persist_features), "ext_features_dim": [size, persist], "attention": None,
            "vocab": Vocabulary(WORDS), "skip_start_token": skip_start, "rnn_arch": arch,
            "rnn_hidden_init": "from_features" if init else None, "share_embedding_weights": bool(shared),
            "command_history": ["./train.py --dataset toy:train --features pooled.lmdb"],
        }  # fmt: skip

    @torch.no_grad()
    def logits(self, features, captions, persist=None):
        """features (N, D), captions (N, T) without <end> -> (N, T, V), the words after each of `captions`.

        Captions begin with <start>; with skip_start the image stands in its place.
        """
        inputs = self.decoder.embed(captions)
        state = None
        if self.init:
            state = tuple(torch.stack([f(features) for f in fs]) for fs in (self.decoder.init_h, self.decoder.init_c))
        else:
            image = self.encoder(features).unsqueeze(1)
            inputs = torch.cat([image, inputs[:, 1:] if self.skip_start else inputs], 1)
        if persist is not None:
            inputs = torch.cat([inputs, persist.unsqueeze(1).expand(-1, inputs.shape[1], -1)], 2)
        hidden, _ = self.decoder.rnn(inputs, state)
        return self.decoder.words(hidden)[:, -captions.shape[1] :]

    def greedy(self, features, persist=None, most=20):
        """Ids of each caption up to <end>, by running the whole sentence anew for every word."""
        captions = torch.ones(len(features), 1, dtype=torch.long)
        for _ in range(most + 1):
            logits = self.logits(features, captions, persist)[:, -1]
            logits[:, :2] = -torch.inf  # neither <pad> nor <start>, which trained models do not write
            captions = torch.cat([captions, logits.argmax(1, keepdim=True)], 1)
        rows = [row[1 : most + 1] for row in captions.tolist()]
        return [row[: row.index(2)] if 2 in row else row for row in rows]
