#!/bin/sh
# The whole workflow on drawn photographs, with the same commands as for real ones.
set -eu
bin="${VENV:-.venv}/bin"
here="${DEMO:-demo}"
export RETINA_ARTIFACTS="$here/artifacts"

if [ -e "$here" ] && [ ! -e "$here/.retina-demo" ]; then
  echo "DEMO=$here: expected no folder, or an earlier demo's, which is replaced, found another. Give a new one." >&2
  exit 2
fi
rm -rf "$here"
mkdir -p "$here"
touch "$here/.retina-demo"
say() { printf '\n\033[1m%s\033[0m\n' "$*"; }

say "1/5  Drawing a data set of fundus photographs"
"$bin/python" -m retina.train.synthetic "$here/data" --train 200 --valid 60 --test 60 --size 320 --seed 7

say "2/5  Training on it: retina-train"
# A small ResNet from random weights: nothing to download, and it learns in minutes, if its rate falls to zero.
# The default is a ResNet-50.
"$bin/retina-train" "$here/data" --backbone resnet18 --weights none --lr-backbone 1e-3 --batch-size 10 --epochs 8 \
  --image-size 160 --schedule cosine --name demo

say "3/5  Exporting one file with everything inside: retina-export --format onnx"
"$bin/retina-export" --format onnx

say "4/5  Scoring a folder without torch: retina-score"
"$bin/retina-score" "$here/data/test/images" --annotations "$here/data/test/annotations.csv" \
  --out "$here/test_predictions.csv"

say "5/5  Where the network looked: retina-gradcam"
set -- "$here"/data/test/images/*
"$bin/retina-gradcam" "$1" "$2" "$3" "$4" --out "$here/overlays"

say "Made:"
cat <<EOF
  $here/artifacts/retina_multitask_best.pth    the best checkpoint (retina_multitask_final.pth: the last one)
  $here/artifacts/retina_multitask.onnx        the model file, preprocessing and contract inside
  $here/artifacts/runs/demo/report.html        figures, curves and worst mistakes of the run: open it in a browser
  $here/test_predictions.csv                   a row for each photograph
  $here/overlays/index.html                    Grad-CAM overlays: open it in a browser

The photographs are drawn and the training is short: the figures show that the workflow runs, and nothing about accuracy.
Next:  $bin/retina-train YOUR_DATA   or   $bin/retina-score YOUR_PHOTOGRAPHS --model MODEL.onnx
EOF
