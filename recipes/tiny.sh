#!/usr/bin/env bash
# The embedded model `tiny`, from nothing: worlds, RAE3D in three stages, its memory, DiT3D, half-precision weights.
# Each line resumes where it stopped, so a killed run is started again as it is.
set -euo pipefail
runs=${1:-runs/tiny}
export OMP_WAIT_POLICY=PASSIVE  # two processes of one thread each must not spin on each other's core

# Procedural rooms, outdoor places and objects: 4,000 to learn from, 128 to look at while learning. Nothing trains on test.
diorama data worlds "$runs/validation" --split validation --scenes 128 --views 12 --size 64 --samples 4 --workers 2
diorama data worlds "$runs/train" --split train --scenes 4000 --views 12 --size 64 --samples 4 --workers 2

common=(--data "$runs/train" --validation "$runs/validation" --device cpu --devices 2 --size tiny --learning-rate 1e-3
    --muon-rate 2e-3 --warmup 60)
rae3d=("${common[@]}" --batch 16 --ema 0.995 --point-views 1 --point-weight 0.1 --noise 0.2 --mirror --gradient-weight 0.5
    --target-views 4 --save-every 100)
all_seen=(--mask-probability 0 --blind-probability 0)

# Most of the time belongs here: no denoiser can be sharper than the autoencoder that decodes it.
# First what was seen, from the same cameras; then small motions; then the whole path, with views hidden.
diorama train rae3d --out "$runs/known" "${rae3d[@]}" "${all_seen[@]}" --steps 600 --final-rate 1 --point-unit scene \
    --known-views 1 2 3 4 --known-targets 4
diorama train rae3d --out "$runs/near" "${rae3d[@]}" "${all_seen[@]}" --steps 700 --final-rate 1 --point-unit scene \
    --known-views 2 3 --known-targets 1 --window 6 --start "$runs/known/model"
diorama train rae3d --out "$runs/rae3d" "${rae3d[@]}" --steps 3000 --final-rate 0.02 --point-unit distance \
    --known-views 1 2 2 3 4 4 8 --known-targets 1 --mask-probability 0.3 --start "$runs/near/model"

# What keeps known views sharp; the autoencoder stays as it is, so this and the denoiser may come in either order.
diorama train observed_memory --out "$runs/memory" --data "$runs/train" --validation "$runs/validation" --device cpu \
    --devices 2 --autoencoder "$runs/rae3d/model" --precision 32-true --batch 6 --steps 2800 --learning-rate 3e-3 \
    --warmup 60 --final-rate 0.02 --ema 0.995 --mirror --gradient-weight 0.1 --save-every 100 --validate-every 1400

diorama train dit3d --out "$runs/dit3d" "${common[@]}" --autoencoder "$runs/rae3d/model" --title tiny --batch 64 \
    --steps 640 --final-rate 0.02 --ema 0.995 --encoder-views 8 --visible 1 1 2 3 4 --samples 1 \
    --conditions 1 --guidance 1.5 --save-every 100

python recipes/embed.py "$runs/dit3d/model" "$runs/memory/model" src/diorama/weights/tiny
