"""Scores of captions by pycocoevalcap: BLEU, METEOR, ROUGE-L, CIDEr, CIDEr-D and SPICE.

Each metric stands alone. One that cannot run is named in `left_out` with the reason; it never appears as a 0.
METEOR, SPICE and the tokens of Stanford's PTBTokenizer ("ptb") need Java. `ptb_tokens` gives the same tokens without
Java ("python").
"""

import contextlib
import functools
import io
import math
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from pycocoevalcap.bleu.bleu_scorer import BleuScorer
from pycocoevalcap.cider.cider import Cider
from pycocoevalcap.cider.cider_scorer import CiderScorer
from pycocoevalcap.rouge.rouge import Rouge
from pycocoevalcap.tokenizer import ptbtokenizer

from captioning.errors import UserError, note_once, one_line
from captioning.scoring.corpus_scores import Additive, bleu_sums, means, meteor_sums
from captioning.scoring.document_frequencies import check_table
from captioning.text.score_tokens import NOTE, score_tokenizer, score_tokens

METRICS = ("bleu", "meteor", "rouge", "cider", "ciderd", "spice")
TOKENIZERS = ("auto", "ptb", "python", "words")
NEEDS_JAVA = frozenset({"meteor", "spice"})
ALIASES = {"rougel": "rouge", "bleu1": "bleu", "bleu2": "bleu", "bleu3": "bleu", "bleu4": "bleu"}
LABELS = {f"bleu_{n}": f"BLEU-{n}" for n in (1, 2, 3, 4)} | {
    "bleu": "BLEU", "meteor": "METEOR", "rouge": "ROUGE-L", "rouge_l": "ROUGE-L",
    "cider": "CIDEr", "ciderd": "CIDEr-D", "spice": "SPICE",
}  # fmt: skip


@dataclass
class Scores:
    """Scores of captions. `values` has the keys bleu_1 .. bleu_4, meteor, rouge_l, cider, ciderd, spice.

    left_out: metric -> why it could not run. per_image: under the same keys as `values` a score for each candidate, in
    their order. The mean of those of BLEU and METEOR is not the score of all; `additive` has the figures of which it is
    computed, for captioning/scoring/bootstrap.py. tokens: of each candidate its tokens, joined by blanks.
    """

    values: dict[str, float] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)
    tokenizer: str = ""  # the one that was used: "ptb", "python" or "words"
    per_image: dict[str, list[float]] = field(default_factory=dict)
    additive: list[Additive] = field(default_factory=list)
    tokens: list[str] = field(default_factory=list)

    def by_words(self, captions: Sequence[str]) -> Sequence[str]:
        """The scored `captions` with blanks between their words, for statistics: as they are where they have blanks."""
        return self.tokens if self.tokenizer == "words" else captions

    def lines(self, intervals: Mapping[str, tuple[float, float]] | None = None) -> list[str]:
        """A table for people: a line for each score, then one for each metric that was left out.

        intervals: name of a score -> its interval, which is shown behind it.
        """
        bounds = {name: f"  [{low:.4f}, {high:.4f}]" for name, (low, high) in (intervals or {}).items()}
        rows = [f"{LABELS[name]:<8} {value:7.4f}{bounds.get(name, '')}" for name, value in self.values.items()]
        return rows + [f"{LABELS[name]:<8} left out: {reason}" for name, reason in self.left_out.items()]


def parse_metrics(text: str) -> tuple[str, ...]:
    """Names of metrics, comma separated, in any letter case ("cider,bleu", "CIDEr-D,Bleu_4"). Raises UserError."""
    names = []
    for word in text.split(","):
        name = re.sub(r"[-_\s]", "", word.lower())
        name = ALIASES.get(name, name)
        if name not in METRICS:
            raise UserError(f"unknown metric '{word.strip()}'; known are {', '.join(METRICS)}")
        names.append(name)
    return tuple(dict.fromkeys(names))


def java_missing() -> bool:
    """Whether there is no working `java` on the PATH. macOS has one that only asks to install Java."""
    return not _starts(shutil.which("java"))


@functools.lru_cache
def _starts(java: str | None) -> bool:
    try:
        return java is not None and subprocess.run([java, "-version"], capture_output=True, timeout=60).returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        return False


def java_note(metrics: Sequence[str], tokenizer: str = "auto") -> str | None:
    """One line that says what the lack of Java changes for `metrics` and `tokenizer`; None where nothing changes."""
    if not java_missing():
        return None
    effects = []
    if lost := [LABELS[name] for name in metrics if name in NEEDS_JAVA]:
        effects.append(f"{' and '.join(lost)} left out")
    if tokenizer == "auto":
        effects.append("tokens by the Python tokenizer instead of Stanford's")
    return f"Java is not installed: {'; '.join(effects)}" if effects else None


def tokenize(captions: Sequence[str], tokenizer: str = "auto") -> tuple[list[str], str]:
    """Tokens of each caption, joined by spaces, lower-cased and without punctuation; and the tokenizer used.

    "ptb" is Stanford's PTBTokenizer as pycocoevalcap calls it (Java), "python" is `ptb_tokens`, "auto" is "ptb" where
    Java works and else "python"; "words" is for languages that PTB's rules cannot split. Raises UserError where "ptb"
    is asked for and cannot run.
    """
    if tokenizer not in TOKENIZERS:
        raise UserError(f"unknown tokenizer '{tokenizer}'; known are {', '.join(TOKENIZERS)}")
    if tokenizer == "ptb" and java_missing():
        raise UserError("tokenizer 'ptb' needs Java, which is not installed; use 'python', which gives the same tokens")
    if tokenizer in ("auto", "ptb") and not java_missing():
        try:
            return _stanford(captions), "ptb"
        except (OSError, RuntimeError) as error:
            if tokenizer == "ptb":
                raise UserError(f"tokenizer 'ptb' failed: {one_line(error)}; use 'python'") from error
            print(f"Stanford's tokenizer failed ({one_line(error)}): the Python tokenizer is used", file=sys.stderr)
    used = "words" if tokenizer == "words" else "python"
    split = score_tokens(used)
    return [" ".join(split(caption)) for caption in captions], used


def fitting(tokenizer: str, references: Iterable[str]) -> str:
    """The tokenizer to score with: `tokenizer`, or "words" for "auto" where the references need it, with a note."""
    if tokenizer != "auto" or score_tokenizer(references) != "words":
        return tokenizer
    note_once(NOTE)
    return "words"


def _stanford(captions: Sequence[str]) -> list[str]:
    """The tokens of all captions by one run of PTBTokenizer. Raises RuntimeError with Java's message where it fails.

    pycocoevalcap's own wrapper writes into its installation folder, depends on the locale, and shifts all captions
    behind one with an unusual line break. So only its jar and its punctuation list are used.
    """
    lines = [" ".join(caption.split()) for caption in captions]
    filled = [line for line in lines if line]
    if not filled:
        return lines
    jar = Path(ptbtokenizer.__file__).parent / ptbtokenizer.STANFORD_CORENLP_3_4_1_JAR
    command = ["java", "-XX:+UseSerialGC", "-cp", str(jar), "edu.stanford.nlp.process.PTBTokenizer"]
    command += ["-preserveLines", "-lowerCase", "-encoding", "UTF-8"]
    text = "".join(f"{line}\n" for line in filled).encode("utf-8", "replace")
    done = subprocess.run(command, input=text, capture_output=True)
    answers = done.stdout.decode("utf-8", "replace").split("\n")[:-1]
    if done.returncode or len(answers) != len(filled):
        said = _telling_line(done.stderr.decode(errors="replace"))
        raise RuntimeError(said or f"{len(answers)} lines came back for {len(filled)} captions")
    tokens = (" ".join(t for t in answer.split(" ") if t and t not in ptbtokenizer.PUNCTUATIONS) for answer in answers)
    return [next(tokens) if line else "" for line in lines]


def score_captions(
    candidates: Mapping,
    references: Mapping,
    metrics: Sequence[str] = ("bleu", "cider"),
    tokenizer: str = "auto",
    document_frequencies: Mapping | None = None,
) -> Scores:
    """Score one caption per image against the image's references.

    `candidates` is id -> caption and `references` id -> list of captions (more images than in `candidates` are
    ignored). `document_frequencies` is the table that "ciderd" needs, as `CachedWords.to_dict` gives it. Raises
    UserError where there is nothing to score, an image has no reference, or a metric or tokenizer is unknown.
    """
    for name in metrics:
        if name not in METRICS:
            raise UserError(f"unknown metric '{name}'; known are {', '.join(METRICS)}")
    if not candidates:
        raise UserError("there are no captions to score")
    alone = [key for key in candidates if not references.get(key)]
    if alone:
        which = f"{len(alone)} of {len(candidates)} captioned images"
        raise UserError(f"{which} have no reference, the first is {alone[0]!r}")

    known = [text for key in candidates for text in references[key]]
    tokens, used = tokenize([*candidates.values(), *known], fitting(tokenizer, known))
    later = iter(tokens[len(candidates) :])
    # plain numbers as ids, because SPICE sorts them and writes them to JSON
    hypotheses = {i: [tokens[i]] for i in range(len(candidates))}
    targets = {i: [next(later) for _ in references[key]] for i, key in enumerate(candidates)}

    scores = Scores(tokenizer=used, tokens=tokens[: len(candidates)])
    for name in dict.fromkeys(metrics):
        try:
            found, additive = _score(name, hypotheses, targets, document_frequencies)
            for key, (value, each) in found.items():
                scores.values[key], scores.per_image[key] = float(value), [float(one) for one in each]
            scores.additive.append(additive or means({key: scores.per_image[key] for key in found}))
        except Exception as error:  # noqa: BLE001 - whatever breaks one metric must not cost the others
            scores.left_out[name] = one_line(error)
    return scores


def _score(name: str, hypotheses: dict, references: dict, frequencies: Mapping | None) -> tuple[dict, Additive | None]:
    """Key of `Scores.values` -> (value, those of the images), for each score that the metric `name` gives.

    Second come the figures that add up to the score; None where the score is the mean of those of the images. Raises
    UserError naming what the metric lacks.
    """
    if name in NEEDS_JAVA and java_missing():
        raise UserError("needs Java, which is not installed")
    if name == "bleu":
        return _bleu(references, hypotheses)
    if name == "rouge":
        return {"rouge_l": Rouge().compute_score(references, hypotheses)}, None
    if name == "cider":
        if len(references) < 2:
            raise UserError("needs two images or more, because it counts in how many of them a phrase occurs")
        return {"cider": Cider().compute_score(references, hypotheses)}, None
    if name == "ciderd":
        if frequencies is None:
            raise UserError("needs document frequencies from a file (--cached_words)")
        scorer = CiderD(frequencies)
        for key, captions in references.items():
            scorer += (hypotheses[key][0], captions)
        return {"ciderd": scorer.compute_score()}, None
    value, each, additive = {"meteor": _meteor, "spice": _spice}[name](references, hypotheses)
    if math.isnan(value):
        raise UserError("gave no number")
    return {name: (value, each)}, additive


def _bleu(references: dict, hypotheses: dict) -> tuple[dict, Additive]:
    scorer = BleuScorer(n=4)
    for key, captions in references.items():
        scorer += (hypotheses[key][0], captions)
    values, each = scorer.compute_score(option="closest")
    return {f"bleu_{n}": pair for n, pair in enumerate(zip(values, each), start=1)}, bleu_sums(scorer.ctest)


def _meteor(references: dict, hypotheses: dict) -> tuple[float, list[float], Additive]:
    from pycocoevalcap.meteor.meteor import Meteor

    lines = []

    class Recording(Meteor):
        """Keeps the figures of each caption, which the scorer sends back to its program."""

        def _stat(self, *arguments) -> str:
            lines.append(super()._stat(*arguments))
            return lines[-1]

    meteor = Recording()
    try:
        value, each = meteor.compute_score(references, hypotheses)
    except (OSError, ValueError) as error:  # Java went away; its last words tell why
        meteor.meteor_p.kill()
        said = _telling_line(meteor.meteor_p.stderr.read().decode(errors="replace"))
        raise UserError(said or one_line(error)) from error
    finally:
        with contextlib.suppress(OSError):  # closing flushes, to a Java that may be gone; __del__ would complain
            meteor.meteor_p.stdin.close()
        if meteor.lock.locked():  # after an error it is still held, and Meteor.__del__ would wait for it forever
            meteor.lock.release()
    return value, each, meteor_sums(lines)


def _spice(references: dict, hypotheses: dict) -> tuple[float, list[float], None]:
    """SPICE, whose Stanford models pycocoevalcap downloads at first use (about 500 MB)."""
    from pycocoevalcap.spice.get_stanford_models import JAR
    from pycocoevalcap.spice.spice import Spice
    from pycocoevalcap.spice.spice import __file__ as path

    models = Path(path).parent / "lib" / f"{JAR}.jar"
    if not models.exists():
        print("SPICE: downloading Stanford's models at first use (about 500 MB)", file=sys.stderr)
    timeout = socket.getdefaulttimeout()
    socket.setdefaulttimeout(10)  # a network that swallows packets would hold us for minutes
    try:
        with _silenced():
            scorer = Spice()
    except OSError as error:
        raise UserError(f"its models could not be downloaded ({one_line(getattr(error, 'reason', error))})") from error
    finally:
        socket.setdefaulttimeout(timeout)
    with _silenced() as said:
        try:
            value, each = scorer.compute_score(references, hypotheses)
            return value, [one["All"]["f"] for one in each], None
        except subprocess.CalledProcessError as error:
            raise UserError(_telling_line(said()) or f"Java ended with status {error.returncode}") from error


@contextlib.contextmanager
def _silenced():
    """Swallow what pycocoevalcap prints. Yields a function that returns what child processes have written."""
    sys.stdout.flush()
    sys.stderr.flush()
    with tempfile.TemporaryFile() as file:
        saved = [os.dup(1), os.dup(2)]
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
        try:
            with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
                yield functools.partial(_written, file.fileno())
        finally:
            for target, copy in zip((1, 2), saved):
                os.dup2(copy, target)
                os.close(copy)


def _written(descriptor: int) -> str:
    """The first megabyte of what was written to an open file."""
    os.lseek(descriptor, 0, os.SEEK_SET)
    said = os.read(descriptor, 1 << 20)
    os.lseek(descriptor, 0, os.SEEK_END)  # others write to it behind what is there
    return said.decode(errors="replace")


def _telling_line(said: str) -> str:
    """The line of Java's output that names the trouble."""
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    for line in lines:
        if re.search(r"could not|cannot|out of memory|exception|invalid", line, re.IGNORECASE):
            return one_line(line)
    return one_line(lines[0]) if lines else ""


class CiderD(CiderScorer):
    """pycocoevalcap's CIDEr-D (Vedantam et al. 2015, arXiv 1411.5726) with the document frequencies of another corpus.

        scorer = CiderD(words.to_dict())                          # words: CachedWords
        scorer += ("a dog runs", ["a dog is running", ...])       # tokens, joined by blanks
        mean, each = scorer.compute_score()                       # each: one score per image

    Raises UserError where the table is malformed.
    """

    def __init__(self, table: Mapping):
        super().__init__()
        frequencies, images = check_table(table)
        self.document_frequency, self._log_images = defaultdict(float, frequencies), math.log(images)

    @property
    def ref_len(self) -> float:
        """Logarithm of the number of images that were counted."""
        return self._log_images

    @ref_len.setter
    def ref_len(self, value) -> None:
        """Does nothing: CiderScorer sets it to the number of images that are scored."""

    def compute_score(self, option=None, verbose=0) -> tuple[float, np.ndarray]:
        scores = np.array(self.compute_cider())
        return scores.mean(), scores
