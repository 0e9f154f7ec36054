#!/usr/bin/env bash
# The paper's autoencoders, one for each row of its tables 2 and 3 (upper half) and of what table 4 builds on.
# Not run at this size: no result of it is published here. With --smoke the same line runs on a few worlds.
#
#     recipes/rae3d.sh ROW             # trains it; a killed run goes on when started again
#     recipes/rae3d.sh ROW --show      # prints the line instead
#
# $DATA holds a folder for each data set (ImageNet with recipes/data/intrinsics.py's list), or what `diorama data pack` made
# of it, and `validation`, captures that no set holds. Weights of frozen encoders, LPIPS and the discriminator's net are
# looked for in the caches. On several machines start this with torchrun's variables set; DEVICES are those of one machine:
# the paper has 32 of 80 GB. Fewer can be made up for with --accumulate, which fills the budget so many times.
set -euo pipefail
row=${1:-} mode=${2:-}
data=${DATA:-data} runs=${RUNS:-runs/paper} devices=${DEVICES:-8}

case $row in  # what looks at the images, latent tokens
    table2-imgonly)  encoder=patches tokens=1024 ;;
    table2-da3)      encoder=da3     tokens=1024 ;;
    table2-siglip2)  encoder=siglip2 tokens=1024 ;;
    table2-dinov2)   encoder=dinov2  tokens=1024 ;;
    table3-tok256)   encoder=dinov2  tokens=256 ;;
    table3-tok512)   encoder=dinov2  tokens=512 ;;
    table3-tok1024)  encoder=dinov2  tokens=1024 ;;
    *) echo "recipes/rae3d.sh ROW [--smoke|--show]; rows: $(grep -o '^ *table[0-9a-z-]*)' "$0" | tr -d ' )' | tr '\n' ' ')" >&2
       exit 2 ;;
esac
name=rae3d-$encoder-$tokens

# Table 7: each set is drawn by its weight, whatever its size.
sets=(co3d wildrgbd arkitscenes scannet scannetpp taskonomy hm3d hypersim re10k waymo mapillary vkitti mvssynth dl3dv
    blendedmvg megadepth tartanair imagenet)
weights=(CO3D WildRGBD ARKitScenes ScanNet ScanNet++ Taskonomy HM3D Hypersim RE10K Waymo Mapillary "Virtual KITTI" MVS-Synth
    DL3DV BlendedMVG MegaDepth TartanAir ImageNet)
mixture=(--data "${sets[@]/#/$data/}" --weights "${weights[@]}" --validation "$data/validation")
few=()  # what --smoke says after all of these flags, and so instead

if [ "$mode" = --smoke ]; then
    runs=$runs/smoke
    worlds=$runs/worlds
    for split in train validation; do
        diorama data worlds "$worlds/$split" --split $split --scenes 4 --views 6 --size 24 --samples 1
    done
    mixture=(--data "$worlds/train" "$worlds/validation" --weights 3 1 --validation "$worlds/validation")
    few=(--size tiny --steps 2 --devices 1 --device cpu --precision 32-true --pixels 200 600 --sample-views 4 6
        --token-budget 800 --warmup 0 --lpips-weight 0 --discriminator worlds64 --discriminator-start 0 --adversarial-start 1)
fi
run() { if [ "$mode" = --show ]; then printf '%q ' "$@"; echo; else "$@"; fi; }

# Table 5: 120,000 steps of AdamW at 2e-4 after 8,000 of warm-up, noise 0.8, are the defaults. --attention mutual is how the
# paper's decoder reads; the default, one_way, is faster. Views come from 192 neighbouring frames: the paper does not say.
run diorama train rae3d --out "$runs/$name" "${mixture[@]}" --dynamic --window 192 --size "base-$tokens" --encoder "$encoder" \
    --attention mutual --masking paper --lpips-weight 1 --adversarial-weight 0.75 --discriminator dinov2-s14 \
    --point-quantile 0.98 --devices "$devices" "${few[@]}"
