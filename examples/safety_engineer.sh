#!/bin/sh
# A safety engineer: a gate in continuous integration that a release of a detector must pass.
#
#     sh examples/safety_engineer.sh [FOLDER [REQUIREMENT]]
#
# Exit code 0: certified as required. 1: a requirement does not hold. 2: wrong usage, or a file is missing or damaged.
# 3: the network cannot be certified. The numbers are in FOLDER/certification.json, image by image in certificates.csv.
set -eu
run="${1:-runs/release}"
requirement="${2:-certified_fraction@digits>=0.5}"

# In a real pipeline the weights come from the training job; here they are made in seconds.
[ -f "$run/checkpoint.safetensors" ] ||
  certood train digits-greg --out "$run" --set training.epochs=8 --device cpu

# Which operations can be bounded: exit code 3 where one cannot.
certood inspect "$run"

# "violations<=0" means that no inequality that must hold was found broken: the certificates are consistent. Of the others the less
# favourable end of the 95 % interval must hold, so that few images cannot pass by luck; below 100 a set is an error.
certood certify "$run" --eps 0.01 --limit 100 --ood digits-photo \
  --require "violations<=0" --require "gauc@digits-photo>=0.75" --require "$requirement"
