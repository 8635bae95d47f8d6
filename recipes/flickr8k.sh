#!/usr/bin/env bash
# A model of Flickr8k, from images to scores: cross-entropy with the encoder's last blocks fine-tuned, then self-critical
# training, then the mean of several models. Run it again after an interruption: it goes on where it was.
#
#     IMAGES=/data/Flickr8k_Dataset SPLIT=dataset_flickr8k.json bash recipes/flickr8k.sh
#
# IMAGES: folder of the photos. SPLIT: Karpathy's split file, or a folder with captions_train.json and captions_val.json
# in COCO's format. WORK: where everything is written (default: work/flickr8k). ENCODER: efficientnet_lite0 (default), or
# resnet152 and any other encoder that can be downloaded. Two CPU cores take about two hours.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

IMAGES=${IMAGES:?folder of the Flickr8k photos}
SPLIT=${SPLIT:?dataset_flickr8k.json, or a folder with captions_train.json and captions_val.json}
ENCODER=${ENCODER:-efficientnet_lite0}
WORK=${WORK:-work/flickr8k}
case $ENCODER in
    efficientnet_lite0) tuned=5 ;; # the last five of its blocks
    resnet152) tuned=3 ;;          # layer4
    *) tuned=${TUNED:-2} ;;
esac
mkdir -p "$WORK"
exec > >(tee -a "$WORK/log.txt") 2>&1
config=(--dataset_config_file "$WORK/datasets.conf")

. recipes/flickr8k_data.sh
flickr8k_data 256
[ -f "$WORK/vocab.json" ] || run ./build_vocab.py --dataset flickr8k:train "${config[@]}" --vocab_output_path "$WORK/vocab.json"


data=(--dataset flickr8k:train --validate flickr8k:val "${config[@]}" --batch_size 125 --num_workers 1)
data+=(--model_path "$WORK/models" --resume)
regularised=(--dropout 0.5 --encoder_dropout 0.2 --label_smoothing 0.1 --weight_decay 1e-4 --ema 0.999)
schedule=(--optimizer adamw --lr_scheduler cosine --finetune_encoder "$tuned" --encoder_learning_rate 1e-4)

# 1. Cross-entropy: random crops and mirror images, the encoder's last blocks ten times as slowly as the decoder.
run ./train.py "${data[@]}" "${regularised[@]}" "${schedule[@]}" --model_name xe1 --vocab "$WORK/vocab.json" \
    --features "$ENCODER-conv" --attention soft --learning_rate 1e-3 --warmup_steps 300 --num_epochs 10

# 2. The same once more from a lower learning rate: a second cycle.
run ./train.py "${data[@]}" "${regularised[@]}" "${schedule[@]}" --model_name xe2 \
    --load_model "$WORK/models/xe1/ep10.model" --learning_rate 6e-4 --warmup_steps 50 --num_epochs 15

# 3. Self-critical training, several times, a hundred steps or two each: the reward of the training photos goes on rising
#    for long, the dev score does not.
critical() { # name, model to start from, then flags
    run ./train.py "${data[@]}" --model_name "$1" --load_model "$WORK/models/$2.model" --self_critical_from_epoch 0 \
        --optimizer adam --weight_decay 0 --ema 0.98 --validation_beam_size 3 "${@:3}"
}
critical sc1 xe1/ep10 --learning_rate 5e-5 --num_batches 120 --num_epochs 11
critical sc2 sc1/ep11 --learning_rate 2.5e-5 --lr_scheduler cosine --num_batches 120 --num_epochs 15
critical sc3 sc1/ep11 --learning_rate 4e-5 --lr_scheduler cosine --num_batches 120 --num_epochs 15 \
    --self_critical_loss mixed --gamma_ml_rl 0.8
critical sc4 xe2/ep15 --learning_rate 5e-5 --num_batches 60 --num_epochs 18
critical sc5 xe2/ep15 --learning_rate 4e-5 --num_batches 80 --num_epochs 17 --seed 7

# 4. The mean of eight models in one small file, and its scores. Training saw crops, in which things look larger than in
#    whole photos: whole photos are given to the encoder at 256x256 pixels.
models=(sc1/ep11 sc2/ep12 sc3/ep13 sc4/ep16 sc4/ep17 sc4/ep18 sc5/ep16 sc5/ep17)
models=("${models[@]/#/$WORK/models/}")
run ./average_models.py "${models[@]/%/.model}" --half --image_size 256 --length_penalty 0.8 --force \
    --output "$WORK/flickr8k.model"
run ./infer.py --model "$WORK/flickr8k.model" --dataset flickr8k:val "${config[@]}" --scoring bleu,cider,rouge,meteor \
    --output_file "$WORK/results.json"
run ./plot_stats.py "$WORK"/models/{xe1,xe2,sc4}/train_stats.json --labels xe1,xe2,sc4 --output "$WORK/curves.png"
