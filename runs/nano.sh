#!/bin/sh
# Makes nano from nothing: synthesised speech, codec, clip bank, a first language model, what that one says itself, the
# language model, package files, table of results.
# `sh runs/nano.sh FOLDER` goes on where an earlier call in the same FOLDER stopped. On a CPU only a smaller
# configuration is sensible: NANO_CONFIG=other/folder with nano-{clips,codec-1,codec-2,lm-1,lm}.toml; OWN_LINES says how many lines are new.
set -eu
cd "$(dirname "$0")/.."
out=${1:?name a folder for the runs}
config=${NANO_CONFIG:-runs}
python=${PYTHON:-.venv/bin/python}
train="$python -m personaplex train"
export MLX_ENABLE_TF32=1 # in training TF32 is exact enough

mkdir -p "$out"
tokenizer=src/personaplex/nano/tokenizer.model
[ -f "$tokenizer" ] || "$python" scripts/make_nano_tokenizer.py "$tokenizer"

[ -d "$out/corpus" ] || $train corpus --config "$config/nano-codec-2.toml" --out "$out/corpus"
set -- # the folders of clips, one after the other
for part in "$config"/nano-clips*.toml; do
  name=$(basename "$part" .toml)
  $train clips --config "$part" --out "$out/$name"
  set -- "$@" --clips "$out/$name"
done
$train codec --config "$config/nano-codec-1.toml" --corpus "$out/corpus" --out "$out/codec-1"
$train codec --config "$config/nano-codec-2.toml" --corpus "$out/corpus" --out "$out/codec" --start-from "$out/codec-1/mimi.safetensors"
[ -f "$out/bank.npz" ] || $train bank --int8 --takes 3 "$@" --codec "$out/codec" --out "$out/bank.npz"
$train lm --config "$config/nano-lm-1.toml" --bank "$out/bank.npz" --tokenizer "$tokenizer" --out "$out/lm-1"
[ -f "$out/own.npz" ] || $train own --bank "$out/bank.npz" --model "$out/lm-1" --tokenizer "$tokenizer" --out "$out/own.npz" --lines "${OWN_LINES:-4000}"
$train lm --config "$config/nano-lm.toml" --bank "$out/bank.npz" --bank "$out/own.npz" --tokenizer "$tokenizer" --out "$out/lm" --start-from "$out/lm-1/model.safetensors"

model=${NANO_MODEL:-src/personaplex/nano}
"$python" scripts/pack_nano.py --codec "$out/codec" --lm "$out/lm" --bank "$out/bank.npz" --tokenizer "$tokenizer" --out "$model"

evaluate="$python scripts/evaluate_nano.py"
[ "${NANO_EVALUATE:-yes}" = yes ] || exit 0
[ -d "$out/items" ] || $evaluate items --out "$out/items"
$evaluate generate --model "$model" --items "$out/items" --out "$out/talks"
$evaluate codec --model "$model" --json "$out/results.json"
$evaluate speed --model "$model" --json "$out/results.json"
$evaluate score --items "$out/items" --generated "$out/talks" --model "$model" --json "$out/results.json" --card docs/nano.md
