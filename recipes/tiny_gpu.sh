#!/usr/bin/env bash
# A larger sibling of `tiny` at 128x128 for one GPU of 24 GiB or more. Not run yet: no result of it is published here.
set -euo pipefail
runs=${1:-runs/tiny-gpu}

diorama data worlds "$runs/train" --split train --scenes 50000 --views 16 --size 128 --samples 4 --workers 16
diorama data worlds "$runs/validation" --split validation --scenes 256 --views 16 --size 128 --samples 4 --workers 16

diorama train rae3d --out "$runs/rae3d" --data "$runs/train" --validation "$runs/validation" --device cuda \
    --size tiny --steps 60000 --batch 64 --learning-rate 1e-3 --muon-rate 2e-3 --warmup 500 --final-rate 0.02 --ema 0.999 \
    --known-views 1 2 3 4 4 6 8 --target-views 4 --point-views 1 --noise 0.2 --mirror \
    --gradient-weight 0.5 --point-weight 0.05 --point-unit scene

diorama train dit3d --out "$runs/dit3d" --data "$runs/train" --validation "$runs/validation" --device cuda \
    --autoencoder "$runs/rae3d/model" --title tiny-gpu --size tiny --steps 60000 --batch 256 --learning-rate 1e-3 \
    --muon-rate 2e-3 --warmup 500 --final-rate 0.02 --ema 0.9995 --encoder-views 8 --visible 1 1 2 3 4 --samples 4 \
    --conditions 2 --guidance 1.5
