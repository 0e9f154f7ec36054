#!/usr/bin/env bash
# A tiny Gen3R on two processor cores in about two hours: clips of 9 frames at 112x112. After these lines it is far from done:
# docs/training.md says how far. Nothing embedded comes from it yet.
# Each line resumes where it stopped, so a killed run is started again as it is. recipes/tiny_gen3r.sh is the GPU's, longer.
set -euo pipefail
runs=${1:-runs/tiny-gen3r}
export OMP_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE

worlds=(--views 17 --size 112 --samples 4 --workers 2)
diorama data worlds "$runs/validation" --split validation --scenes 64 "${worlds[@]}"
diorama data worlds "$runs/train" --split train --scenes 2000 "${worlds[@]}"
diorama data worlds "$runs/few" --split train --scenes 1000 "${worlds[@]}"  # whose latents are kept while the denoiser learns
common=(--validation "$runs/validation" --device cpu --clip 1 --save-every 100)
tiny=("${common[@]}" --data "$runs/train" --size tiny)
clips=("${tiny[@]}" --strides 1)

# The first two lines and the next two need nothing of each other: each pair has a core.
diorama train vggt --out "$runs/vggt_any" "${tiny[@]}" --views 1 2 4 8 17 17 --mirror --steps 1800 --batch 4 --warmup 80 \
    --learning-rate 1e-3 --muon-rate 2e-3 --final-rate 0.02 --ema 0.995 --validate-every 450
diorama train vggt --out "$runs/vggt" "${tiny[@]}" --start "$runs/vggt_any/model" --title "tiny VGGT" --views 2 4 9 9 --mirror \
    --steps 800 --batch 4 --warmup 30 --learning-rate 6e-4 --muon-rate 1.5e-3 --final-rate 0.02 --ema 0.99 --validate-every 400
diorama train video_vae --out "$runs/video_vae_short" "${clips[@]}" --frames 5 --steps 550 --batch 2 --warmup 20 \
    --learning-rate 2e-3 --muon-rate 4e-3 --final-rate 0.3 --ema 0.98 --kl-weight 2e-4 --statistics-clips 4 --validate-every 275
diorama train video_vae --out "$runs/video_vae" "${clips[@]}" --start "$runs/video_vae_short/model" --frames 9 --steps 300 \
    --batch 2 --warmup 10 --learning-rate 8e-4 --muon-rate 1.5e-3 --final-rate 0.02 --ema 0.98 --kl-weight 2e-4 \
    --statistics-clips 64 --validate-every 300
diorama train adapter --out "$runs/adapter" "${clips[@]}" --vggt "$runs/vggt/model" --video-vae "$runs/video_vae/model" --frames 9 \
    --short-frames 5 --short-steps 250 --steps 500 --batch 2 --warmup 20 --learning-rate 2e-3 --final-rate 0.02 --ema 0.98 \
    --weight-decay 0 --statistics-clips 64 --validate-every 250

python recipes/tiny_gen3r.py join "$runs" "$runs/untrained"
diorama train gen3r --out "$runs/gen3r" "${common[@]}" --data "$runs/few" --model "$runs/untrained" --title tiny-gen3r \
    --negative-prompt "" --frames 9 --strides 1 --starts 1 --posterior mean --scale vggt --keep-latents --camera-dropout 0.25 \
    --steps 750 --batch 8 --warmup 30 --learning-rate 1e-3 --muon-rate 2e-3 --final-rate 0.02 --ema 0.993 --guidance 1.5 \
    --validate-every 250
python recipes/tiny_gen3r.py half "$runs/gen3r/model" "$runs/tiny-gen3r"
