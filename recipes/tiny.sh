#!/usr/bin/env bash
# The embedded model `tiny`, from nothing: worlds, RAE3D, DiT3D, half-precision weights.
# Not run from end to end yet: the model card tells how the embedded weights came about. Each line resumes where it stopped, so a killed run is started again as it is.
set -euo pipefail
runs=${1:-runs/tiny}

# Procedural rooms, outdoor places and objects: 3,000 to learn from, 128 to look at while learning. Nothing trains on test.
diorama data worlds "$runs/train" --split train --scenes 3000 --views 12 --size 64 --samples 4 --workers 2
diorama data worlds "$runs/validation" --split validation --scenes 128 --views 12 --size 64 --samples 4 --workers 2

# Most of the time belongs here: no denoiser can be sharper than the autoencoder that decodes it.
diorama train rae3d --out "$runs/rae3d" --data "$runs/train" --validation "$runs/validation" --device cpu \
    --size tiny --steps 2600 --batch 16 --learning-rate 1e-3 --muon-rate 2e-3 --warmup 60 --final-rate 0.02 --ema 0.995 \
    --known-views 1 2 3 4 4 6 8 --target-views 4 --point-views 1 --noise 0.2 --mirror \
    --gradient-weight 0.5 --point-weight 0.05 --point-unit scene --save-every 100 --validate-every 250

diorama train dit3d --out "$runs/dit3d" --data "$runs/train" --validation "$runs/validation" --device cpu \
    --autoencoder "$runs/rae3d/model" --title tiny --size tiny --steps 1500 --batch 64 --learning-rate 1e-3 \
    --muon-rate 2e-3 --warmup 60 --final-rate 0.02 --ema 0.998 --encoder-views 8 --visible 1 1 2 3 4 --samples 2 \
    --conditions 1 --guidance 1.5 --save-every 100 --validate-every 500

python recipes/embed.py "$runs/dit3d/model" src/diorama/weights/tiny
