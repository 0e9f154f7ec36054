#!/usr/bin/env bash
# A trained model fine-tuned on captures of one's own: do the cameras fit, an adapter and the model with it, one scene.
# With --smoke the same lines run in small.
#
#     recipes/lora.sh CAPTURE [MODEL [FOLDER]]           # a killed run goes on when started again
#     recipes/lora.sh CAPTURE [MODEL [FOLDER]] --show    # prints the lines instead; --smoke --show: those of --smoke
set -euo pipefail
words=() smoke='' show=''
for word in "$@"; do
    case $word in --smoke) smoke=yes ;; --show) show=yes ;; *) words+=("$word") ;; esac
done
capture=${words[0]:-} model=${words[1]:-tiny} runs=${words[2]:-runs/lora}
run() { if [ -n "$show" ]; then printf '%q ' "$@"; echo; else "$@"; fi; }

few=() short=()  # what --smoke says after all other flags, and so instead
if [ -n "$smoke" ]; then
    few=(--steps 2 --batch 1 --rank 2 --device cpu --precision 32-true)
    short=(--steps 1 --device cpu)
fi
[ -n "$capture" ] || { echo "recipes/lora.sh CAPTURE [MODEL [FOLDER]] [--smoke] [--show]: CAPTURE is missing" >&2; exit 2; }

run diorama data check "$capture"
run diorama train lora --model "$model" --data "$capture" --out "$runs/run" "${few[@]}"
run diorama generate "$capture" --model "$runs/run/model" --out "$runs/scene" "${short[@]}"
