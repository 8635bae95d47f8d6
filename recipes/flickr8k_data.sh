# Sourced by the recipes of this folder: Flickr8k made ready for training.
#
# IMAGES: folder of the photos. SPLIT: Karpathy's split file, or a folder with captions_train.json and captions_val.json
# in COCO's format. WORK: the folder to write to, which is there.

run() { # show a command as it would be typed, then run it
    printf '\n$ %s\n' "$*"
    "$@"
}

flickr8k_data() { # size: photos of so many pixels in $WORK/images, flickr8k:train and flickr8k:val in $WORK/datasets.conf
    local annotations
    if [ -f "$SPLIT" ]; then
        run python datasets/karpathy_split.py "$SPLIT" "$WORK/annotations"
        annotations=$(cd "$WORK/annotations" && pwd)
    else
        annotations=$(cd "$SPLIT" && pwd)
    fi
    run ./resize.py --image_dir "$IMAGES" --output_dir "$WORK/images" --image_size "$1"
    cat >"$WORK/datasets.conf" <<CONF
[flickr8k]
dataset_class = CocoDataset
image_dir = $(cd "$WORK" && pwd)/images

[flickr8k:train]
caption_path = $annotations/captions_train.json

[flickr8k:val]
caption_path = $annotations/captions_val.json
CONF
}
