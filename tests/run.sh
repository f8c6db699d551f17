#!/usr/bin/env bash
# Run the tests; set up what is missing. Arguments go to pytest: ./tests/run.sh -k stft
set -euo pipefail
cd "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/.." > /dev/null
. ./setup.sh
setup_environment tests/requirements.txt
PYTHON=$PYTHON pesq_tool/build.sh
exec "$PYTHON" -m pytest "$@"
