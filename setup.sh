# Sourced by runme.sh and tests/run.sh: find or make a Python environment with what a requirements file names.
#
#   setup_environment REQUIREMENTS   (a path in the repository) sets $PYTHON
#
# In an activated virtual or conda environment that one is used, otherwise .venv beside this file. A copy of
# the requirements that were installed lies in the environment: as long as it is the same, nothing is done.

repository=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)

setup_environment() {
    local requirements=$repository/$1 prefix=${VIRTUAL_ENV:-${CONDA_PREFIX:-}} installed
    if [ -z "$prefix" ]; then
        prefix=$repository/.venv
        # pip is what venv installs last: without it an earlier run was killed in between.
        [ -x "$prefix/bin/pip" ] || make_venv "$prefix" || return 2
    fi
    PYTHON=$prefix/bin/python
    if ! is_recent_python "$PYTHON"; then
        echo "setup: $PYTHON is missing or older than Python 3.11; activate another environment, or none" >&2
        return 2
    fi
    installed=$prefix/.speech_enhancement_$(basename "$(dirname "$requirements")")_requirements.txt
    if ! cat "$repository/requirements.txt" "$requirements" | cmp -s - "$installed"; then
        echo "setup: installing $requirements into $prefix (a few minutes)"
        "$PYTHON" -m pip install --quiet --disable-pip-version-check -r "$requirements" || {
            echo "setup: pip could not install $requirements; see its message above" >&2
            return 2
        }
        cat "$repository/requirements.txt" "$requirements" > "$installed"
    fi
}

is_recent_python() {
    "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2> /dev/null
}

make_venv() {
    local candidate
    for candidate in python3 python3.13 python3.12 python3.11 python; do
        if is_recent_python "$candidate"; then
            echo "setup: making $1 with $candidate"
            "$candidate" -m venv --clear "$1" && return
            rm -rf "$1"
            echo "setup: $candidate has no working venv module; install it (Debian, Ubuntu: python3-venv)" >&2
            return 2
        fi
    done
    echo "setup: expected Python 3.11 or newer as python3, found none; install it" >&2
    return 2
}
