#!/bin/sh
# An ARM64 Linux in a folder, for test_emulated.py: QEMU, Debian's Python and wheels from PyPI. On Debian 12, in the
# repository's root and with the project's Python first in PATH:  sh tests/kernels/arm64.sh build/arm64
# Nothing is installed on this machine: apt and pip fetch packages, which are unpacked in the folder (1.2 GB).
set -eu
mkdir -p "$1/apt/state/lists/partial" "$1/apt/cache/archives/partial" "$1/debs" "$1/host"
here=$(cd "$1" && pwd)
python=$(command -v python)
constraints=$(pwd)/constraints.txt

cat > "$here/apt.conf" <<END
APT::Architecture "arm64";
APT::Architectures { "arm64"; };
Dir::State "$here/apt/state";
Dir::State::status "$here/apt/state/status";
Dir::Cache "$here/apt/cache";
END
touch "$here/apt/state/status"

cd "$here/host"
apt-get download qemu-user-static
for package in *.deb; do dpkg -x "$package" .; done

export APT_CONFIG="$here/apt.conf"
cd "$here/debs"
apt-get update
apt-get download $(apt-get install --simulate --no-install-recommends \
    python3.11-minimal libpython3.11-stdlib libstdc++6 libgomp1 | awk '/^Inst/ { print $2 }')
for package in *.deb; do dpkg -x "$package" "$here/root"; done

fetch() {
    "$python" -m pip download --quiet --no-deps --only-binary=:all: --python-version 3.11 --implementation cp \
        --platform manylinux_2_34_aarch64 --platform manylinux_2_31_aarch64 --platform manylinux_2_28_aarch64 \
        --platform manylinux_2_24_aarch64 --platform manylinux_2_17_aarch64 --platform manylinux2014_aarch64 \
        --dest "$here/wheels" "$@"
}
fetch torch==2.8.0 # later wheels of this kind want a GPU's libraries
fetch --constraint "$constraints" accelerate annotated-doc anyio attrs certifi cffi charset-normalizer click cryptography \
    filelock fsspec gguf grpcio grpcio-health-checking h11 hf-xet httpcore httpx huggingface_hub hypothesis idna iniconfig \
    jinja2 llvmlite markdown-it-py markupsafe mdurl mpmath networkx numba numpy packaging platformdirs pluggy \
    prometheus-client protobuf pycparser pygments pytest pyyaml regex requests rich safetensors shellingham sniffio \
    sortedcontainers sympy tokenizers tqdm transformers typer typing_extensions urllib3 httpcore2 httpx2 truststore
for wheel in "$here"/wheels/*.whl; do "$python" -m zipfile -e "$wheel" "$here/site"; done

cat > "$here/python" <<'END'
#!/bin/sh
here=$(cd "$(dirname "$0")" && pwd)
export PYTHONPATH="${PYTHONPATH:+$PYTHONPATH:}$here/site"
exec "$here/host/usr/bin/qemu-aarch64-static" -L "$here/root" "$here/root/usr/bin/python3.11" "$@"
END
chmod +x "$here/python"
"$here/python" -c "import platform; print(platform.machine(), platform.python_version())"
