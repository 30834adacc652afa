#!/usr/bin/env bash
# LLaMA-2 7B, 2:4 and 4:8: the dense model, every first pass, and LLM-Barber after those that its authors give settings for.
# Results go under $OUT_ROOT (default: out). EXTRA_ARGS is added to every command: EXTRA_ARGS="--nsamples 32" bash scripts/semi_structured_sparsity/llama2_7b.sh
set -euo pipefail

ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)"
MODEL="${MODEL:-meta-llama/Llama-2-7b-hf}"
OUT="${OUT_ROOT:-out}/semi_structured/llama2_7b"
read -r -a EXTRA <<<"${EXTRA_ARGS:-}"

run() { # run NAME FLAGS...: one row of the table; the checkpoint is deleted when it has been measured
  local name="$1"
  shift
  python "$ROOT/main.py" --model "$MODEL" "$@" --save_model "$OUT/$name/model" --save_ppl "$OUT/$name" --save_zeroshot "$OUT/$name" --delete ${EXTRA[@]+"${EXTRA[@]}"}
}

run dense --sparsity_ratio 0
run magnitude_2_4 --prune_method magnitude --sparsity_ratio 0.5 --sparsity_type 2:4
run magnitude_2_4_barber --prune_method magnitude --sparsity_ratio 0.5 --sparsity_type 2:4 --prune_barber --prune_granularity output1 --threshold 0.1
run sparsegpt_2_4 --prune_method sparsegpt --sparsity_ratio 0.5 --sparsity_type 2:4
run wanda_2_4 --prune_method wanda --sparsity_ratio 0.5 --sparsity_type 2:4
run wanda_2_4_barber --prune_method wanda --sparsity_ratio 0.5 --sparsity_type 2:4 --prune_barber --prune_granularity output1 --threshold 0.01
run magnitude_4_8 --prune_method magnitude --sparsity_ratio 0.5 --sparsity_type 4:8
run magnitude_4_8_barber --prune_method magnitude --sparsity_ratio 0.5 --sparsity_type 4:8 --prune_barber --prune_granularity output1 --threshold 0.1
run sparsegpt_4_8 --prune_method sparsegpt --sparsity_ratio 0.5 --sparsity_type 4:8
run wanda_4_8 --prune_method wanda --sparsity_ratio 0.5 --sparsity_type 4:8
run wanda_4_8_barber --prune_method wanda --sparsity_ratio 0.5 --sparsity_type 4:8 --prune_barber --prune_granularity output1 --threshold 0.01
