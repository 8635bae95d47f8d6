"""The four special tokens of every vocabulary: their ids, and their words in the order of the ids."""

PAD, START, END, UNK = range(4)
SPECIALS = ("<pad>", "<start>", "<end>", "<unk>")
MARKS = SPECIALS[:3]  # what no caption may say: they would end it, or begin it again


def upto_end(ids: list[int], keep_end: bool = False) -> list[int]:
    """The word ids before <end>, without padding. With `keep_end` the <end> follows, where there is one."""
    return ids[: ids.index(END) + keep_end] if END in ids else [i for i in ids if i != PAD]
