#!/usr/bin/env bash
# Fills .gpu/ with what a bare machine needs for `make gpu-check`: wheels, real molecules, and Hu et
# al.'s GCN as a teacher. usage: gpu_pack.sh PYTHON   (one that has this project's packages)
set -euo pipefail
cd "$(dirname "$0")/.."
python=$1
mkdir -p .gpu/wheels
platforms=()
for glibc in 5 17 27 28 34; do platforms+=(--platform "manylinux_2_${glibc}_x86_64"); done
"$python" -m pip download --quiet --no-deps --only-binary=:all: --python-version "${GPU_PYTHON_VERSION:-3.12}" --implementation cp \
    "${platforms[@]}" --platform manylinux1_x86_64 --platform manylinux2014_x86_64 --dest .gpu/wheels --requirement benchmarks/gpu_wheels.txt
"$python" -m benchmarks.molecules 4096 > .gpu/molecules.smi
cp ../shared/weights/hu2020/gcn_supervised_contextpred.pth .gpu/teacher.pth
ls -l .gpu/wheels
du -sh .gpu
