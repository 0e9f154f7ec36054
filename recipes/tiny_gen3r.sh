#!/usr/bin/env bash
# Tiny Gen3R at 112x112 pixels and 17 views, from nothing: worlds, VGGT, video VAE, adapter, denoiser, one pipeline of all.
# For one GPU. Not run yet: no result of it is published here. With --smoke the same lines run on a few worlds in minutes.
#
#     recipes/tiny_gen3r.sh [FOLDER]           # trains it; a killed run goes on when started again
#     recipes/tiny_gen3r.sh [FOLDER] --show    # prints the lines instead; --smoke --show: those of --smoke
#
# The text and image encoders are small, random and frozen (recipes/tiny_gen3r.py): the denoiser learns to read them as
# they are, so a caption tells words apart and knows nothing of their meaning.
set -euo pipefail
runs=runs/tiny-gen3r smoke='' show=''
for word in "$@"; do
    case $word in --smoke) smoke=yes ;; --show) show=yes ;; *) runs=$word ;; esac
done
run() { if [ -n "$show" ]; then printf '%q ' "$@"; echo; else "$@"; fi; }

train=20000 held=128 workers=8 views=17
few=() clips=() short=()  # what --smoke says after all other flags, and so instead
if [ -n "$smoke" ]; then
    train=2 held=1 workers=1 views=5
    few=(--steps 1 --batch 1 --device cpu --precision 32-true --warmup 0)
    clips=(--frames 5 --statistics-clips 1)
    short=(--short-frames 1 --short-steps 1)
fi

run diorama data worlds "$runs/train" --split train --scenes $train --views $views --size 112 --samples 4 --workers $workers
run diorama data worlds "$runs/validation" --split validation --scenes $held --views $views --size 112 --samples 4 --workers $workers
common=(--data "$runs/train" --validation "$runs/validation" --save-every 1000 --validate-every 5000)
tiny=("${common[@]}" --size tiny --final-rate 0.02 --clip 1)

# Foundations: what geometry and appearance are told in.
run diorama train vggt --out "$runs/vggt" "${tiny[@]}" --title "tiny VGGT" --views 1 2 $((views / 2)) $views --mirror --steps 60000 \
    --batch 32 --learning-rate 1e-3 --muon-rate 2e-3 --warmup 500 --ema 0.999 "${few[@]}"
run diorama train video_vae --out "$runs/video_vae" "${tiny[@]}" --frames $views --strides 1 --steps 60000 --batch 16 \
    --learning-rate 1e-3 --warmup 500 --ema 0.999 "${few[@]}" "${clips[@]}"

# Gen3R's two stages.
run diorama train adapter --out "$runs/adapter" "${tiny[@]}" --vggt "$runs/vggt/model" --video-vae "$runs/video_vae/model" \
    --frames 17 --strides 1 --short-frames 5 --short-steps 10000 --steps 40000 --batch 32 --learning-rate 5e-4 --warmup 500 \
    --ema 0.999 "${few[@]}" "${clips[@]}" "${short[@]}"
run python recipes/tiny_gen3r.py join "$runs" "$runs/untrained"
run diorama train gen3r --out "$runs/gen3r" "${common[@]}" --model "$runs/untrained" --title tiny-gen3r --negative-prompt "" \
    --frames 17 --posterior mean --scale vggt --keep-latents --steps 100000 --batch 64 --learning-rate 5e-4 --warmup 1000 \
    --final-rate 0.02 --clip 1 --ema 0.9995 --guidance 1.5 "${few[@]}" "${clips[@]:0:2}"

run python recipes/tiny_gen3r.py half "$runs/gen3r/model" "$runs/tiny-gen3r"
