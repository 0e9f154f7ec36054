#!/usr/bin/env bash
# The paper's denoisers, one for each row of its tables 2 (one known view), 3 (lower half) and 4.
# Not run at this size: no result of it is published here. With --smoke the same lines run on a few worlds in a minute.
#
#     recipes/dit3d.sh ROW             # trains it, in two stages; a killed run goes on when started again
#     recipes/dit3d.sh ROW --show      # prints the lines instead
#
# $DATA holds a folder for each data set (ImageNet with recipes/data/intrinsics.py's list), $RUNS the autoencoders and
# what is made here. On several machines start this with torchrun's variables set; DEVICES are those of one machine.
set -euo pipefail
row=${1:-} mode=${2:-}
data=${DATA:-data} runs=${RUNS:-runs/paper} devices=${DEVICES:-8}

case $row in  # encoder of the autoencoder, latent tokens, size of the denoiser, whether single images come first
    table2-imgonly)  encoder=patches tokens=1024 size=XL first=yes ;;
    table2-da3)      encoder=da3     tokens=1024 size=XL first=yes ;;
    table2-siglip2)  encoder=siglip2 tokens=1024 size=XL first=yes ;;
    table2-dinov2)   encoder=dinov2  tokens=1024 size=XL first=yes ;;
    table3-xl-256)   encoder=dinov2  tokens=256  size=XL first=yes ;;
    table3-xl-512)   encoder=dinov2  tokens=512  size=XL first=yes ;;
    table3-s-1024)   encoder=dinov2  tokens=1024 size=S  first=yes ;;
    table3-b-1024)   encoder=dinov2  tokens=1024 size=B  first=yes ;;
    table3-xl-1024)  encoder=dinov2  tokens=1024 size=XL first=yes ;;
    table4-without)  encoder=dinov2  tokens=1024 size=XL first=no ;;
    table4-with)     encoder=dinov2  tokens=1024 size=XL first=yes ;;
    *) echo "recipes/dit3d.sh ROW [--smoke|--show]; rows: $(grep -o '^ *table[0-9a-z-]*)' "$0" | tr -d ' )' | tr '\n' ' ')" >&2
       exit 2 ;;
esac
name=$encoder-$tokens-$size
common=(--autoencoder "$runs/rae3d-$encoder-$tokens/model" --size "$size" --online --dynamic --steps 80000 --devices "$devices"
    --validation "$data/validation")
mixture=(co3d wildrgbd arkitscenes scannet scannetpp taskonomy hm3d hypersim re10k waymo mapillary vkitti mvssynth dl3dv
    blendedmvg megadepth tartanair)
weights=(CO3D WildRGBD ARKitScenes ScanNet ScanNet++ Taskonomy HM3D Hypersim RE10K Waymo Mapillary "Virtual KITTI" MVS-Synth
    DL3DV BlendedMVG MegaDepth TartanAir)
few=() one=() many=()  # what --smoke says after all of these flags, and so instead

if [ "$mode" = --smoke ]; then
    runs=$runs/smoke name=$name worlds=$runs/worlds
    for split in train validation; do
        diorama data worlds "$worlds/$split" --split $split --scenes 4 --views 6 --size 24 --samples 1
    done
    diorama train rae3d --out "$runs/rae3d" --data "$worlds/train" --validation "$worlds/validation" --size tiny --device cpu \
        --steps 1 --batch 2 --known-views 2 --target-views 1 --precision 32-true
    few=(--autoencoder "$runs/rae3d/model" --validation "$worlds/validation" --size tiny --steps 2 --devices 1 --device cpu
        --precision 32-true --pixels 200 600 --sample-views 2 4 --token-budget 240 --encoder-views 4 --statistics-batches 2
        --warmup 0 --learning-rate 1e-3)
    one=(--data "$worlds/train") many=(--data "$worlds/train" "$worlds/validation" --weights 3 1)
fi
run() { if [ "$mode" = --show ]; then printf '%q ' "$@"; echo; else "$@"; fi; }

# Stage 1: single images of ImageNet by class; what is known is their pose. Its table of classes ends with it.
start=()
if [ $first = yes ]; then
    run diorama train dit3d --out "$runs/images-$name" --single-images --data "$data/imagenet" "${common[@]}" "${few[@]}" "${one[@]}"
    start=(--start "$runs/images-$name/model" --statistics start)
fi

# Stage 2: many views of the paper's table 7, of which 60 to 90 percent are hidden, and of a tenth of the samples all. They come
# from 192 neighbouring frames, as the autoencoder's do: the paper does not say.
run diorama train dit3d --out "$runs/dit3d-$name-first-$first" --data "${mixture[@]/#/$data/}" --weights "${weights[@]}" "${start[@]}" \
    "${common[@]}" --window 192 --title "3DDiT-$size-$tokens ($encoder)" "${few[@]}" "${many[@]}"
