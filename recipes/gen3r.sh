#!/usr/bin/env bash
# Gen3R's published weights, from nothing to a scene. Non-commercial: `diorama download` shows the terms and asks.
# Needs 62 GB of disk while converting, a GPU of 16 GB (see `diorama doctor --plan gen3r`), and a photo.
set -euo pipefail
photo=${1:?usage: recipes/gen3r.sh PHOTO [FOLDER]}
folder=${2:-gen3r}

diorama doctor --plan gen3r --views 49 --size 560x560 --dtype bf16
diorama download gen3r --out "$folder"
diorama convert "$folder" "$folder-bf16"
diorama generate "$photo" --model "$folder-bf16" --views 49 --trajectory orbit:20 --out "$folder-scene"
