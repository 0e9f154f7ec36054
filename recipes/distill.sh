#!/usr/bin/env bash
# Four steps without guidance, from a trained denoiser: `tiny` on a CPU, and the paper's as recipes/dit3d.sh leaves them.
# The paper's sizes have not been run. With --smoke the same line runs on a few worlds, from `tiny`.
#
#     recipes/distill.sh ROW             # distils it; a killed run goes on when started again
#     recipes/distill.sh ROW --show      # prints the lines instead; --smoke --show: those of --smoke
#
# $DATA holds a folder for each data set (for tiny: recipes/tiny.sh's train and validation), $RUNS what is made here and
# what recipes/dit3d.sh made. torchrun lets each of DEVICES make its share of the teacher's trajectories.
set -euo pipefail
row='' smoke='' show=''
for word in "$@"; do
    case $word in --smoke) smoke=yes ;; --show) show=yes ;; *) row=$word ;; esac
done
data=${DATA:-data} runs=${RUNS:-runs} devices=${DEVICES:-8}
run() { if [ -n "$show" ]; then printf '%q ' "$@"; echo; else "$@"; fi; }

case $row in  # tokens and size of the teacher
    tiny)    tokens='' size='' ;;
    s-1024)  tokens=1024 size=S ;;
    b-1024)  tokens=1024 size=B ;;
    xl-256)  tokens=256  size=XL ;;
    xl-512)  tokens=512  size=XL ;;
    xl-1024) tokens=1024 size=XL ;;
    *) echo "recipes/distill.sh ROW [--smoke] [--show]; rows: tiny s-1024 b-1024 xl-256 xl-512 xl-1024" >&2; exit 2 ;;
esac
mixture=(co3d wildrgbd arkitscenes scannet scannetpp taskonomy hm3d hypersim re10k waymo mapillary vkitti mvssynth dl3dv
    blendedmvg megadepth tartanair)
weights=(CO3D WildRGBD ARKitScenes ScanNet ScanNet++ Taskonomy HM3D Hypersim RE10K Waymo Mapillary "Virtual KITTI" MVS-Synth
    DL3DV BlendedMVG MegaDepth TartanAir)

if [ "$row" = tiny ]; then
    start=(diorama) teacher=tiny
    how=(--data "$data/train" --validation "$data/validation" --device cpu --title tiny-4step --batch 16 --visible 1 1 2 3 4
        --teacher-steps 24 --teacher-batches 64 --steps 600 --learning-rate 3e-4 --muon-rate 5e-4 --warmup 20 --final-rate 0.02
        --ema 0.98 --save-every 50 --validate-every 100)
else
    start=(torchrun --standalone --nproc-per-node "$devices" --no-python diorama)
    teacher=$runs/dit3d-dinov2-$tokens-$size-first-yes/model
    how=(--data "${mixture[@]/#/$data/}" --weights "${weights[@]}" --validation "$data/validation" --dynamic --window 192
        --batch 64 --teacher-steps 48 --teacher-batches 2000 --steps 20000 --title "3DDiT-$size-$tokens, 4 steps")
fi

few=()  # what --smoke says after all other flags, and so instead
if [ -n "$smoke" ]; then
    runs=$runs/smoke teacher=tiny start=(diorama)
    for split in train validation; do
        run diorama data worlds "$runs/worlds/$split" --split $split --scenes 2 --views 8 --size 64 --samples 1
    done
    few=(--data "$runs/worlds/train" --validation "$runs/worlds/validation" --device cpu --teacher-steps 8 --teacher-batches 2
        --steps 2 --batch 2 --warmup 0)
    [ "$row" = tiny ] || few+=(--weights 1 --pixels 3000 5000 --sample-views 2 4 --token-budget 700)
fi
run "${start[@]}" train distill --model "$teacher" --out "$runs/distill-$row" "${how[@]}" "${few[@]}"
