#!/usr/bin/env python3
"""Count in how many images each phrase of one to four words occurs: document frequencies, the weights of CIDEr-D.

    ./build_cached_words.py --dataset coco:train2014 --output coco-train2014.npz
    ./train.py --dataset coco:train2014 --self_critical_from_epoch 20 --cached_words coco-train2014.npz ...
    ./score.py results.json --ground_truth captions.json --scoring ciderd --cached_words coco-train2014.npz

train.py counts its training captions by itself; this is for the words of another or a larger dataset, and for other
programs: .pkl holds the dict of document_frequency and ref_len that DeepCaption reads. The end of a caption is counted
as the word <end>, unless --no_end.
"""

import sys
from argparse import Namespace

from captioning.command_line import Parser


def parse_args(argv=None) -> Namespace:
    parser = Parser(__doc__)
    add = parser.add_argument
    add("--dataset", required=True, metavar="NAME", help="sections of datasets.conf, several joined by +")
    add("--dataset_config_file", metavar="FILE", help="the datasets.conf to use (default: see README)")
    add("--output", required=True, metavar="FILE", help="file to write: .npz, .json or .pkl")
    add("--vocab", metavar="FILE", help="count the words that this vocabulary lacks as <unk> (default: each by itself)")
    add("--no_end", action="store_true", help="do not count the end of a caption (default: as the word <end>)")
    add("--force", action="store_true", help="write over --output where it exists")
    return parser.parse_args(argv)


if __name__ == "__main__":
    ARGS = parse_args()  # before the heavy imports, so that --help and mistakes answer at once


from captioning.datasets.base import image_key
from captioning.datasets.factory import open_dataset
from captioning.errors import run
from captioning.files import check_new, known_ending
from captioning.scoring.document_frequencies import EXTENSIONS, caption_hash, count_documents, tokenized, tokenizer_of
from captioning.text.score_tokens import score_tokens
from vocabulary import Vocabulary


def main(args) -> int:
    known_ending(args.output, "cached words", EXTENSIONS)
    check_new("--output", args.output, args.force)
    vocabulary, known = Vocabulary.load(args.vocab) if args.vocab else None, None
    dataset = open_dataset(args.dataset, args.dataset_config_file)
    dataset.require_captions()
    captions = {image_key(item): item.captions for item in dataset.items if item.captions}
    if vocabulary is not None:
        tokens = score_tokens(tokenizer_of(captions))
        known = {token for word in vocabulary.words for token in tokens(word)}
    words = count_documents(tokenized(captions, end_token=not args.no_end).values(), known)
    words.origin = caption_hash(captions) if known is None and not args.no_end else ""
    words.save(args.output)
    print(f"{args.output}: {len(words):,} phrases of {len(words.tokens):,} words in {int(words.images):,} images")
    return 0


if __name__ == "__main__":
    sys.exit(run(main, ARGS))
