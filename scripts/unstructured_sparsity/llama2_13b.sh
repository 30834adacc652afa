#!/usr/bin/env bash
# LLaMA-2 13B, 50 % unstructured: the dense model, every first pass with and without LLM-Barber, with the settings of its authors.
# Results go under $OUT_ROOT (default: out). EXTRA_ARGS is added to every command: EXTRA_ARGS="--nsamples 32" bash scripts/unstructured_sparsity/llama2_13b.sh
set -euo pipefail

ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)"
MODEL="${MODEL:-meta-llama/Llama-2-13b-hf}"
OUT="${OUT_ROOT:-out}/unstructured/llama2_13b"
read -r -a EXTRA <<<"${EXTRA_ARGS:-}"

run() { # run NAME FLAGS...: one row of the table; the checkpoint is deleted when it has been measured
  local name="$1"
  shift
  python "$ROOT/main.py" --model "$MODEL" "$@" --save_model "$OUT/$name/model" --save_ppl "$OUT/$name" --save_zeroshot "$OUT/$name" --delete ${EXTRA[@]+"${EXTRA[@]}"}
}

run dense --sparsity_ratio 0
run magnitude --prune_method magnitude --sparsity_ratio 0.5 --sparsity_type unstructured
run magnitude_barber --prune_method magnitude --sparsity_ratio 0.5 --sparsity_type unstructured --prune_barber --prune_granularity layer --threshold 0.1
run sparsegpt --prune_method sparsegpt --sparsity_ratio 0.5 --sparsity_type unstructured
run sparsegpt_without_update --prune_method sparsegpt --sparsity_ratio 0.5 --sparsity_type unstructured --prune_barber --prune_granularity block --threshold 0
run sparsegpt_barber --prune_method sparsegpt --sparsity_ratio 0.5 --sparsity_type unstructured --prune_barber --prune_granularity layer --threshold 0.1
run wanda --prune_method wanda --sparsity_ratio 0.5 --sparsity_type unstructured
run wanda_barber --prune_method wanda --sparsity_ratio 0.5 --sparsity_type unstructured --prune_barber --prune_granularity output1 --threshold 0.01
