#!/usr/bin/env bash
# The benchmarks of training and of the hops on a host of two GPUs, part by part:
#
#     bench/gpu_suite.sh FOLDER COMMIT tests training one_row hops
#
# Leaves a JSON file and a log of each in the folder. In `training` both contestants run at the same
# time, each on a GPU of its own; `one_row` and `hops`, which wait for the host, run without others,
# on one GPU. A bench that fails leaves its log, and the others still run. PYTHON: the interpreter,
# python3 if not given; PYTEST_OPTIONS: of the tests, such as pytest-xdist's -n 12.
set -uo pipefail
cd "$(dirname "$0")/.."
out=${1:?folder for the results} commit=${2:?commit of this tree}
shift 2
mkdir -p "$out"
python=${PYTHON:-python3}

logged() { # NAME COMMAND …
    local name=$1 begin=$SECONDS
    shift
    "$@" >"$out/$name.log" 2>&1
    echo "$name: exit code $?, $((SECONDS - begin)) s"
}

bench() { # GPUS NAME SCRIPT [ARGUMENT …]
    local gpus=$1 name=$2 script=$3
    shift 3
    CUDA_VISIBLE_DEVICES=$gpus logged "$name" "$python" "bench/$script.py" --commit "$commit" \
        --output "$out/$name.json" "$@"
}

links() { # NAME
    logged "$1" "$python" -m torch.distributed.run --nproc-per-node 2 bench/gpu_links.py \
        --commit "$commit" --output "$out/$1.json"
}

tests() {
    bench 0,1 gpu_tests gpu_tests -- ${PYTEST_OPTIONS:-}
    bench 0,1 gpu_training_two gpu_training lora-bf16-b4-g2
    links gpu_links
    NCCL_P2P_DISABLE=1 links gpu_links_host
}

training() {
    {
        bench 1 gpu_training_sft_l22_peer gpu_training_peer mixed-b1-l22 mixed-b2-l22
        bench 1 gpu_training_peer gpu_training_peer mixed-b2-l26 mixed-b1-l26 lora-b2 lora-b1 lora-b4
    } &
    bench 0 gpu_training_sft_l22 gpu_training --readings 3 sft-bf16-b2-l22
    bench 0 gpu_training_sft_l26 gpu_training --readings 3 sft-bf16-b2-l26
    bench 0 gpu_training_lora gpu_training --readings 3 lora-bf16-b4 lora-bf16-pack16384 \
        lora-fp8-b4 lora-fp8-pack16384 lora-bf16-b2 lora-fp8-b2
    bench 0 gpu_training_sft_b1 gpu_training --readings 3 sft-bf16-b1-l22
    bench 0 gpu_kernels gpu_kernels
    wait
}

one_row() {
    bench 0 gpu_training_one_row gpu_training --readings 3 lora-bf16-b1 lora-fp8-b1
}

hops() {
    local work
    work=$(mktemp -d)
    bench 0 gpu_hops gpu_hops --work "$work/hops"
    rm -rf "$work"
}

for part in "$@"; do
    case $part in
        tests | training | one_row | hops) ;;
        *) echo "no part: $part (tests, training, one_row or hops)" >&2 && exit 2 ;;
    esac
done
for part in "$@"; do "$part"; done
