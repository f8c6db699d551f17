#!/usr/bin/env bash
# Find or make a Python environment with what a requirements file names.
#
#   ./setup.sh                         set up, and say how to go on
#   . setup.sh                         (runme.sh, tests/run.sh) only define the following:
#   setup_environment REQUIREMENTS     (a path in the repository) sets $PYTHON
#
# In an activated virtual or conda environment that one is used, otherwise .venv beside this file. It
# is made with a Python that TensorFlow supports (3.11 to 3.13), or else with a newer one: there Keras
# runs on JAX. A copy of the requirements that were installed lies in the environment: as long as it
# is the same, nothing is done.

repository=$(cd "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")" > /dev/null && pwd)

setup_environment() {
    local requirements=$repository/$1 prefix=${VIRTUAL_ENV:-${CONDA_PREFIX:-}} installed
    if [ -z "$prefix" ]; then
        prefix=$repository/.venv
        # pip is what venv installs last: without it an earlier run was killed in between.
        { [ -x "$prefix/bin/pip" ] && is_python '>= (3, 11)' "$prefix/bin/python" && is_in_place "$prefix"; } ||
            make_venv "$prefix" || return 2
    fi
    PYTHON=$prefix/bin/python
    if ! is_python '>= (3, 11)' "$PYTHON"; then
        echo "setup: $PYTHON is missing or older than Python 3.11; activate another environment, or none" >&2
        return 2
    fi
    installed=$prefix/.speech_enhancement_$(basename "$(dirname "$requirements")")_requirements.txt
    if ! cat "$repository/requirements.txt" "$requirements" | cmp -s - "$installed"; then
        echo "setup: installing $requirements into $prefix (a few minutes)"
        is_python '< (3, 14)' "$PYTHON" ||
            echo "setup: TensorFlow is not there for this Python yet, only for 3.11 to 3.13: Keras runs on JAX"
        PIP_USER=0 "$PYTHON" -m pip install --quiet --disable-pip-version-check -r "$requirements" || {
            echo "setup: pip could not install $requirements; see its message above" >&2
            return 2
        }
        cat "$repository/requirements.txt" "$requirements" > "$installed"
    fi
}

# is_python '< (3, 14)' COMMAND [MODULES]: whether the command starts such a Python, with these modules.
is_python() {
    "$2" -c "import sys${3:+, $3}; sys.exit(not sys.version_info[:2] $1)" 2> /dev/null
}

# Whether an environment was made where it is: its scripts hold its path, so that a moved or copied one is of no use.
is_in_place() {
    [ ! -e "$1/bin/activate" ] || grep -qF -- "$1" "$1/bin/activate"
}

# Make the environment with the first Python that TensorFlow supports, or else the first newer one.
make_venv() {
    local candidate versions without_venv= failed=
    for versions in 'in ((3, 11), (3, 12), (3, 13))' '>= (3, 14)'; do
        for candidate in python3 python3.13 python3.12 python3.11 python; do
            is_python "$versions" "$candidate" || continue
            if is_python "$versions" "$candidate" 'venv, ensurepip'; then
                echo "setup: making $1 with $candidate"
                "$candidate" -m venv --clear "$1" && return
                rm -rf "$1"
                failed=${failed:-$candidate}
            else
                without_venv=${without_venv:-$candidate}
            fi
        done
    done
    if [ -n "$failed" ]; then
        echo "setup: $failed could not make $1; see its message above" >&2
    elif [ -n "$without_venv" ]; then
        echo "setup: $without_venv has no working venv module; install it (Debian, Ubuntu: python3-venv)" >&2
    else
        echo "setup: expected Python 3.11 or newer as python3, found none; install it" >&2
    fi
    return 2
}

# Say how to go on after ./setup.sh.
say_what_next() {
    local enter=
    [ -n "${VIRTUAL_ENV:-${CONDA_PREFIX:-}}" ] || enter="    . $(printf %q "$repository/.venv/bin/activate")"$'\n'
    cat << END
setup: ready. To clean a recording with the models that come with this program:
$enter    python $(printf %q "$repository/main_dnn.py") enhance recording.wav --output_dir cleaned
To train a model on the recordings in mini_data and score it:
    $(printf %q "$repository/runme.sh")
END
}

if [ "${BASH_SOURCE[0]}" = "$0" ]; then
    set -euo pipefail
    case "$*" in
        "") setup_environment requirements.txt && say_what_next ;;
        -h | --help) sed -n '2,/^$/s/^# \{0,1\}//p' "${BASH_SOURCE[0]}" ;;
        *) echo "setup.sh: expected no argument, found $*" >&2; exit 2 ;;
    esac
fi
