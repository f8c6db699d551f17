#!/usr/bin/env bash
# Run the tests, one file on each of up to four cores; set up what is missing. Arguments go to pytest:
# ./tests/run.sh -k stft; ./tests/run.sh -n 0 --pdb
set -euo pipefail
cd "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/.." > /dev/null
. ./setup.sh
setup_environment tests/requirements.txt
PYTHON=$PYTHON pesq_tool/build.sh
at_once=$("$PYTHON" -c 'from speech_enhancement.parallel import n_cores; print(min(4, n_cores()))')
exec "$PYTHON" -m pytest --numprocesses="$at_once" --dist=loadfile "$@"
