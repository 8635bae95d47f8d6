#!/usr/bin/env bash
# The whole job on pictures of its own, as `make demo` runs it; everything is written into the folder demo/.
#     make demo                      with the Makefile's environment
#     bash datasets/demo.sh          with the environment at hand
# It ends with status 1 where the captions miss their targets (see datasets/demo_scenes.py).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

config=(--dataset_config_file demo/data/datasets.conf)
model=demo/models/lite0/best.model

run() { # show a command as it would be typed, then run it
    printf '\n\033[1m$ %s\033[0m\n' "$*"
    "$@"
}

SECONDS=0
rm -rf demo/data demo/models # of an earlier demo: shrunken pictures and features must not outlive their originals
run python datasets/demo_scenes.py make demo/data
for split in train val test; do
    run ./resize.py --image_dir demo/data/images/$split --output_dir demo/data/resized/$split --image_size 224
done
run ./build_vocab.py --dataset demo:train "${config[@]}" --vocab_threshold 2 --vocab_output_path demo/vocab.json --force
run ./extract_features.py --dataset demo:train+demo:val+demo:test "${config[@]}" \
    --extractor efficientnet_lite0-conv --dtype float16 --output_file conv.lmdb --force
run ./train.py --dataset demo:train --validate demo:val "${config[@]}" --vocab demo/vocab.json \
    --features conv.lmdb --attention soft --embed_size 128 --hidden_size 256 --value_size 256 --dropout 0.3 \
    --num_epochs 8 --batch_size 64 --optimizer adamw --learning_rate 0.002 --lr_scheduler cosine \
    --validation_scoring cider --model_path demo/models --model_name lite0 --replace
run ./plot_stats.py demo/models/lite0 --output demo/curves.png
run ./infer.py --model $model --dataset demo:test "${config[@]}" --length_penalty 0.7 --scoring bleu,cider \
    --output_file demo/results.json --html demo/gallery.html --html_attention
pictures=(demo/data/images/test/*.jpg)
run ./infer.py --model $model "${pictures[@]:0:6}" # from pixels, by the model file alone

status=0
run python datasets/demo_scenes.py check demo/results.json demo/data || status=$?

bin=$(dirname "$(command -v python)")
echo
echo "The demo took $SECONDS s. Look at demo/curves.png and demo/gallery.html. Next:"
[ ! -f "$bin/activate" ] || echo "    source $bin/activate"
echo "    ./infer.py --model $model YOUR_PHOTO.jpg      # this model knows the demo's dozen objects only"
echo "    ./train.py --help                                            # with photos and captions of your own: README.md"
exit $status
