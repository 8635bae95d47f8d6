"""The flags of infer.py, a function for each group, and which of them contradict each other; the bundled model."""

from argparse import Namespace
from pathlib import Path

from captioning.command_line import Parser, add_device
from captioning.errors import UserError

MOST_PENALTY = 50  # lengths to this power are still numbers
BUNDLED = Path(__file__).resolve().parents[1] / "models" / "photos.model"


def model_path(typed: str | None) -> Path:
    """The model file that --model names, or else the bundled one. Raises UserError where none is named or bundled."""
    if not typed and not BUNDLED.exists():
        raise UserError("--model: give a model file, such as models/NAME/best.model; there is no bundled model here")
    return Path(typed or BUNDLED)


def add_model_file(add) -> None:
    """Add --model and --weights, for scripts that caption photos with a model."""
    add("--model", metavar="FILE", help="model file of train.py (default: the bundled model, models/photos.model)")
    add("--weights", metavar="FILE", help="local file of the encoder's weights (default: package, cache or download)")


def add_images(add) -> None:
    add(
        "images",
        nargs="*",
        metavar="IMAGE",
        help="images: files, folders, zip files, and patterns such as 'holiday/**/*.jpg'",
    )
    add("--image_dir", metavar="DIR", help="caption every image of this folder or zip file")
    add("--recursive", action="store_true", help="caption the images of subfolders too")
    add("--dataset", metavar="NAME", help='section of datasets.conf, or PATH[:SPLIT] of captions; several: "a:x+b:y"')
    add("--images", dest="dataset_images", metavar="DIR", help="folder or zip file of the images of --dataset PATH "
        "(default: looked for beside it)")  # fmt: skip
    add("--dataset_config_file", metavar="FILE", help="file of the datasets (default: datasets/datasets.conf)")
    add("--batch_size", default=32, metavar="N", help="images in a batch")
    add("--num_workers", type=int, metavar="N", help="processes that decode images (default: all cores, none for few)")
    add("--resize", type=int, metavar="PIXELS", help="width and height given to the encoder (default: the model's)")
    add("--ext_features", metavar="FILES", help="feature files in place of the model's --features, separated by commas")
    add("--ext_persist_features", metavar="FILES", help="feature files in place of the model's --persist_features")


def add_model(add) -> None:
    add_model_file(add)
    add("--vocab", metavar="FILE", help="vocabulary of the same size to use instead of the model's own")
    add_device(add)
    add("--amp", choices=("off", "bf16"), default="off", help="mixed precision")


def add_search(add) -> None:
    add("--max_seq_length", default=20, metavar="N", help="most words of a sentence")
    add("--max_words", type=int, metavar="N", help="the same; counts in place of --max_seq_length where both are given")
    add("--min_words", default=0, metavar="N", help="fewest words of a sentence (default: 0)")
    add(
        "--no_repeat_words",
        action="store_true",
        help="write no word twice in a sentence, but function words (a, in, is) (default: as the model's file says)",
    )
    add(
        "--may_repeat", metavar="WORDS", help="--no_repeat_words: other words that may be repeated, separated by commas"
    )
    add("--repeat_words", action="store_true", help="let words come twice where the model's file is against it")
    add(
        "--beam_size",
        type=int,
        metavar="K",
        help="beams; 1 is greedy (default: the model's or 3, or --n_best where that is more)",
    )
    add("--length_penalty", type=float, metavar="A", help="rank beams by log p / length^A (default: the model's, or 0)")
    add("--n_best", default=1, metavar="N", help="captions of each image, best first")
    add("--block_trigrams", action="store_true", help="write no three words twice in a caption")
    add("--trigram_penalty_alpha", default=0.0, metavar="A", help="a word that repeats a trigram loses A ln 2 of log p")
    add("--no_repeat_sentences", action="store_true", help="write no sentence of a paragraph twice, but the next best")
    add("--only_complete_sentences", action="store_true", help="leave out sentences cut off at --max_seq_length")
    add("--mention", metavar="WORDS", help="words, separated by commas, that every caption must have; auto: those of "
        "the objects that the model's classifier is sure of")  # fmt: skip
    add("--allow_unk", action="store_true", help="allow <unk>, the unknown word, in captions")
    add("--sample", action="store_true", help="draw words at random by their probabilities, in place of a beam search")
    add("--temperature", type=float, metavar="T", help="--sample: divide logits by T, to sharpen below 1 (default: 1)")
    add("--top_k", type=int, metavar="K", help="--sample: draw among the K likeliest words (default: all)")
    add("--top_p", type=float, metavar="P", help="--sample: draw among the likeliest words that sum to P (default: 1)")
    add("--seed", type=int, metavar="N", help="--sample: seed of the random numbers (default: 42)")
    add("--no_capitalize", action="store_true", help="write lower-case words, without a capital and a period")
    add("--lemma_pos_rules", metavar="FILE", help="lines 'lemma POS word', to write words for a model's tagged lemmas")


def add_words(add) -> None:
    add("--probabilities", action="store_true", help="write every word with its probability: a=0.69 man=0.15 ...")
    add("--alternatives", type=int, metavar="N", help="show N words at every step, the written one first: a/two/the")


def add_output(add) -> None:
    add("--print_results", action="store_true", help="print the captions too when they are written to a file")
    add("--output_file", metavar="FILE", help="results file")
    add("--output_format", choices=("txt", "json", "jsonl", "csv"), help="default: by the file's ending, else txt")
    add("--results_path", metavar="DIR", help="folder of results (default: this one with --output_file, else results)")
    add("--store_image_paths", action="store_true", help="write paths of images in place of their ids")
    add("--resume", action="store_true", help="continue an interrupted results file: skip the images that it has")
    add(
        "--force",
        action="store_true",
        help="begin the results file anew, also where an interrupted run left a part of it",
    )
    add("--html", metavar="FILE", help="write a gallery of the images with their captions; beyond 1,000 images with a "
        "folder of thumbnails beside it")  # fmt: skip
    add("--html_attention", action="store_true", help="--html: show where the model looked for each word")
    add("--compare", nargs="+", metavar="FILE", help="--html: show the captions of this results file, json, jsonl or "
        "csv, beside those of this run; with two files show both, and run no model")  # fmt: skip
    add("--with_scores", action="store_true", help="json: write log-probabilities and confidences too; print them")
    add("--min_confidence", type=float, metavar="P", help="tell no caption that the model is less sure of than P, from "
        "0 to 1 (default: tell all)")  # fmt: skip
    add("--attention_output", metavar="FILE.npz", help="write the attention weights of every word of the best captions")
    add("--scoring", metavar="NAMES", help="print scores: bleu, cider, rouge, meteor, spice, separated by commas")
    add("--verbose", action="store_true", help="print which model, encoder and device are used, and the speed")


def check_gallery(parser: Parser, args: Namespace) -> None:
    """End the script where flags of the gallery contradict others."""
    for name in ("html_attention", "compare"):
        if getattr(args, name) and not args.html:
            parser.error(f"--{name} is for the gallery: add --html FILE")
    if args.html_attention and args.resume:
        parser.error("--html_attention cannot be resumed: leave out --resume")
    if len(args.compare or ()) > 2:
        parser.error(f"--compare: {len(args.compare)} files are too many; give one or two")
    if len(args.compare or ()) == 2:
        of_runs = "model output_file print_results attention_output html_attention sidecar write_metadata "
        for name in (of_runs + "write_metadata_in_place resume").split():
            if getattr(args, name):
                parser.error(f"--compare with two files runs no model: leave out --{name}")


def add_beside(add) -> None:
    add("--sidecar", metavar="ENDING", help="write x.ENDING beside each image x.jpg: its captions, one a line")
    add("--prefix", metavar="TEXT", help="--sidecar: text in front of each caption")
    add("--suffix", metavar="TEXT", help="--sidecar: text behind each caption")
    add("--write_metadata", metavar="DIR", help="write copies of the images, with their captions in XMP and EXIF")
    add("--write_metadata_in_place", action="store_true", help="write the captions into the images themselves")
    add("--existing", choices=("skip", "overwrite", "append"), default="skip",
        help="what to do where a text file or copy is there; skip: not caption the image again")  # fmt: skip


def check_beside(parser: Parser, args: Namespace) -> None:
    """Ends the script for flags about sidecars and metadata that exclude each other, or have nothing to work on."""
    for name in ("prefix", "suffix"):
        if getattr(args, name) and not args.sidecar:
            parser.error(f"--{name} is for text files beside the images: add --sidecar txt")
    if "existing" in args.typed_flags and not (args.sidecar or args.write_metadata):
        parser.error("--existing is for --sidecar and --write_metadata")
    if args.existing == "append" and not args.sidecar:
        parser.error("--existing append is for --sidecar: a copy of an image has one caption; give skip or overwrite")
    if args.write_metadata and args.write_metadata_in_place:
        parser.error("--write_metadata writes copies, --write_metadata_in_place the images: give one of them")


def parse_args(doc: str, argv=None) -> Namespace:
    """The flags of `argv` (default: the command line's); `doc` is what --help begins with.

    Ends the script for values out of range and for flags that exclude each other.
    """
    parser = Parser(doc, processes=True)
    add_images(parser.group("images"))
    add_model(parser.group("model"))
    add_search(parser.group("search"))
    add_words(parser.group("probabilities of words"))
    add_output(parser.group("output"))
    add_beside(parser.group("captions beside the images and in them"))
    args = parser.parse_args(argv)
    parser.at_least(1, args, "batch_size", "resize", "max_seq_length", "beam_size", "n_best", "top_k", "alternatives")
    parser.at_least(1, args, "max_words")
    parser.at_least(0, args, "num_workers", "min_words")
    parser.at_most(1000, args, "num_workers")
    parser.at_most(10_000, args, "resize", "max_words", "max_seq_length", "beam_size", "n_best", "alternatives")
    for name in ("temperature", "top_k", "top_p", "seed"):
        if getattr(args, name) is not None and not args.sample:
            parser.error(f"--{name} is for sampling: add --sample")
    parser.at_least(0.001, args, "temperature")
    parser.at_most(1000, args, "temperature")
    parser.at_least(1e-6, args, "top_p")
    parser.at_least(0, args, "min_confidence")
    parser.at_most(1, args, "top_p", "min_confidence")
    parser.at_least(-MOST_PENALTY, args, "length_penalty")
    parser.at_most(MOST_PENALTY, args, "length_penalty")
    if args.sample and args.mention:
        parser.error("--mention and --sample exclude each other: words that must occur need a search")
    if args.sample and (args.beam_size or 1) > 1:
        parser.error("--sample and --beam_size exclude each other; for several samples of an image give --n_best")
    if args.beam_size and args.n_best > args.beam_size and not args.sample:
        parser.error(f"--n_best {args.n_best} needs as many beams, not --beam_size {args.beam_size}")
    if args.min_words > (most := args.max_words or args.max_seq_length):
        parser.error(f"--min_words {args.min_words} is more than the {most} words of --max_words or --max_seq_length")
    if args.no_repeat_words and args.repeat_words:
        parser.error("--no_repeat_words and --repeat_words exclude each other")
    if args.may_repeat and not args.no_repeat_words:
        parser.error("--may_repeat is for --no_repeat_words")
    parser.one_device(args)
    check_beside(parser, args)
    if args.resume and args.force:
        parser.error("--resume goes on with an interrupted run, --force begins anew: give one of them")
    check_gallery(parser, args)
    if args.dataset_images and not args.dataset:
        parser.error("--images is for --dataset PATH; --image_dir captions a folder of images")
    if args.recursive and not (args.image_dir or args.images):
        parser.error("--recursive is for folders: name one, or give --image_dir")
    return args
