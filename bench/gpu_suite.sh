#!/usr/bin/env bash
# Runs parts of the GPU benchmarks on a host with two or four GPUs:
#
#     bench/gpu_suite.sh FOLDER COMMIT tests parallel training one_row hops
#
# Writes a JSON file and a log for each to the folder. `tests` and `parallel` use all GPUs. In
# `training`, ours and the baseline run at the same time on different GPUs. `one_row` and `hops` are
# limited by the host, so each runs alone on one GPU. If a benchmark fails, its log stays and the
# others still run. PYTHON: the interpreter, by default python3. PYTEST_OPTIONS: for the tests, such
# as pytest-xdist's -n 12.
set -uo pipefail
cd "$(dirname "$0")/.."
out=${1:?folder for the results} commit=${2:?commit of this tree}
shift 2
mkdir -p "$out"
python=${PYTHON:-python3}
gpus=$(nvidia-smi -L | wc -l)
all=$(seq -s, 0 $((gpus - 1)))

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
    bench "$all" gpu_tests gpu_tests -- ${PYTEST_OPTIONS:-}
}

parallel() {
    local cases=(lora-bf16-b4-g2 lora-bf16-b4)
    [ "$gpus" -lt 4 ] || cases=(lora-bf16-b4-g4 "${cases[@]}")
    bench "$all" gpu_training_parallel gpu_training --readings 2 "${cases[@]}"
    links gpu_links
    NCCL_P2P_DISABLE=1 links gpu_links_host
}

full() { # GPU
    bench "$1" gpu_training_sft_l22 gpu_training --readings 3 sft-bf16-b2-l22
    bench "$1" gpu_training_sft_l26 gpu_training --readings 3 sft-bf16-b2-l26
    bench "$1" gpu_training_sft_b1 gpu_training --readings 3 sft-bf16-b1-l22
}

full_peer() { # GPU
    bench "$1" gpu_training_sft_l22_peer gpu_training_peer mixed-b1-l22 mixed-b2-l22
    bench "$1" gpu_training_sft_l26_peer gpu_training_peer mixed-b2-l26 mixed-b1-l26
}

lora() { # GPU
    bench "$1" gpu_training_lora gpu_training --readings 3 lora-bf16-b4 lora-bf16-pack16384 \
        lora-fp8-b4 lora-fp8-pack16384 lora-bf16-b2 lora-fp8-b2
}

lora_peer() { # GPU
    bench "$1" gpu_training_peer gpu_training_peer lora-b2 lora-b1 lora-b4
}

training() {
    if [ "$gpus" -ge 4 ]; then
        full 0 &
        full_peer 1 &
        lora 2 &
        lora_peer 3 &
    else
        { full 0; lora 0; } &
        { full_peer 1; lora_peer 1; } &
    fi
    wait
    bench 0 gpu_kernels gpu_kernels
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
        tests | parallel | training | one_row | hops) ;;
        *) echo "no part: $part (tests, parallel, training, one_row or hops)" >&2 && exit 2 ;;
    esac
done
for part in "$@"; do "$part"; done
