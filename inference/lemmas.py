"""Lemmas with part-of-speech tags back to words: what a model trained on tagged lemmas writes, as people write it.

    rules = LemmaRules.load("rules.txt")
    rules.words(["a_DT", "man_NN", "ride_VBZ", "two_CD", "horse_NNS"])    # ["a", "man", "rides", "two", "horses"]
    rules.words("a DT man NN ride VBZ two CD horse NNS".split())          # the same

A rule is a line `lemma POS word`, such as `ride VBZ rides`. Lemma and tag are one token (joined by `_`, `/`, `|` or
`#`) or two that follow each other. A lemma for whose tag there is no rule stays as it is, without the tag: rules are
needed for the inflected forms only. A token without a tag is a word already.
"""

from collections import Counter
from collections.abc import Iterable, Sequence

from captioning.errors import UserError
from captioning.files import read_lines

JOINTS = "_/|#"


class LemmaRules:
    """rules: (lemma, tag) -> word; tags in any letter case, as vocabularies are mostly lower-cased.

    `unknown` counts the lemmas with a known tag that no rule was about, as "lemma tag".
    """

    def __init__(self, rules: dict[tuple[str, str], str]):
        self.rules = {(lemma.lower(), tag.lower()): word for (lemma, tag), word in rules.items()}
        self.tags = {tag for _, tag in self.rules}
        self.unknown: Counter[str] = Counter()

    @classmethod
    def load(cls, path) -> "LemmaRules":
        """Read a file of lines `lemma POS word`; blank lines and lines that begin with "# " are skipped.

        Of two lines about the same lemma and tag the later counts. Raises UserError naming the file and the line.
        """
        rules = {}
        for number, line in enumerate(read_lines(path, "--lemma_pos_rules"), 1):
            if not line.strip() or line.startswith("# "):
                continue
            fields = line.split()
            if len(fields) != 3:
                raise UserError(f"--lemma_pos_rules: {path}, line {number}: {line[:60]!r} is not 'lemma POS word'")
            rules[fields[0], fields[1]] = fields[2]
        if not rules:
            raise UserError(f"--lemma_pos_rules: {path} holds no rules (lines 'lemma POS word')")
        return cls(rules)

    def words(self, tokens: Sequence[str]) -> list[str]:
        """The words that `tokens` stand for."""
        tokens = list(tokens)
        out, place = [], 0
        while place < len(tokens):
            lemma, tag = self._split(tokens[place])
            place += 1
            if not tag and place < len(tokens) and tokens[place].lower() in self.tags:
                tag = tokens[place].lower()
                place += 1
            out.append(self._word(lemma, tag) if tag else lemma)
        return out

    def _split(self, token: str) -> tuple[str, str]:
        """Lemma and tag of a token that joins them, else (token, "")."""
        for joint in JOINTS:
            lemma, _, tag = token.rpartition(joint)
            if lemma and tag.lower() in self.tags:
                return lemma, tag.lower()
        return token, ""

    def _word(self, lemma: str, tag: str) -> str:
        word = self.rules.get((lemma.lower(), tag))
        if word is None:
            self.unknown[f"{lemma} {tag}"] += 1
            return lemma
        return word

    def report(self, most: int = 3) -> str | None:
        """One line on the lemmas without a rule, the most frequent named; None where there were none."""
        if not self.unknown:
            return None
        names: Iterable[str] = [name for name, _ in self.unknown.most_common(most)]
        more = ", ..." if len(self.unknown) > most else ""
        return f"{len(self.unknown)} lemmas stand as they are, without a rule: {', '.join(names)}{more}"
