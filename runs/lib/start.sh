# Sourced first by every script of runs/: its NAME=value arguments and the interpreter.
#
# A script takes the names that its head shows as NAME=..., as arguments or from the environment.
# PYTHON is the caller's; else `python` where that has what is needed, as in an activated
# environment; else that of .venv, which `make install` makes. Its torchrun comes before others.

fail() {  # what is wrong, what to do
    printf 'error: %s\n  -> %s\n' "$1" "$2" >&2
    exit 2
}

here=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
script=runs/$(basename "$0")
named=$(sed -n '2,${/^#/!q;p}' "$0" | { grep -oE '\b[A-Z][A-Z0-9_]*=' || true; } | tr -d = | sort -u)
for argument in "$@"; do
    [[ $argument =~ ^[A-Z][A-Z0-9_]*= ]] || fail "$argument is not NAME=value" "see the head of $script"
    grep -qx "${argument%%=*}" <<< "$named"$'\nPYTHON' || fail "$script has no ${argument%%=*}" \
        "it takes PYTHON $(tr '\n' ' ' <<< "$named")"
    export "${argument?}"
done

serves() {  # an interpreter; what the scripts import is looked for as they do it, not in this folder
    command -v "$1" > /dev/null && "$1" - 2> /dev/null << 'END'
import sys
from importlib.util import find_spec

sys.path[:] = [folder for folder in sys.path if folder]
sys.exit(not all(map(find_spec, ("bct", "torch", "easydict"))))
END
}
if [[ -z ${PYTHON:-} ]]; then
    PYTHON=python
    [[ -x $here/.venv/bin/python ]] && ! serves python && PYTHON=$here/.venv/bin/python
fi
serves "$PYTHON" || fail "$PYTHON has not got bct and what it needs" \
    "make install, or give the interpreter that has: PYTHON=..."
PYTHON=$(realpath -s "$(command -v "$PYTHON")")  # scripts change the folder
export PYTHON PATH="${PYTHON%/*}:$PATH"

whole_numbers() {  # names of variables that hold some
    local name
    for name in "$@"; do
        [[ ${!name} =~ ^\ *[0-9]+(\ +[0-9]+)*\ *$ ]] || fail "$name=${!name} is not whole numbers" \
            "see the head of $script"
    done
}

begin_with() {  # files of weights, or ""; runs that there are in OUT may have lost theirs
    local file
    for file in "$@"; do
        [[ -z $file || -e $file || -e $OUT ]] || fail "there are no weights $file" \
            "check the path; nothing is downloaded"
    done
}
