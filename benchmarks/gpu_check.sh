#!/usr/bin/env bash
# `make gpu-check`: benchmarks/gpu_check.py with the wheels of .gpu/, where there are any. On a bare
# machine: torch and PyG are there, nothing else need be. usage: gpu_check.sh PYTHON [ARGUMENT ...]
set -euo pipefail
cd "$(dirname "$0")/.."
python=$1
shift
if compgen -G ".gpu/wheels/*.whl" > /dev/null; then
    site=$(mktemp -d)
    trap 'rm -rf "$site"' EXIT
    "$python" -m pip install --quiet --no-index --no-deps --no-compile --no-cache-dir --target "$site" .gpu/wheels/*.whl
    # The service asks for the version of the installed package, and this one is not installed.
    version=$(sed -n 's/^version = "\(.*\)"/\1/p' pyproject.toml)
    mkdir "$site/g_merging-$version.dist-info"
    printf 'Metadata-Version: 2.1\nName: g-merging\nVersion: %s\n' "$version" > "$site/g_merging-$version.dist-info/METADATA"
    export PYTHONPATH="$PWD:$site"
else
    export PYTHONPATH="$PWD"
fi
export PYTHONUNBUFFERED=1
# tqdm draws no bars where nobody looks
TQDM_DISABLE=${TQDM_DISABLE-1} timeout 420 "$python" -m benchmarks.gpu_check "$@"
