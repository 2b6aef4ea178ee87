# What every step's script begins with.
set -eu -o pipefail

fail() {
    echo "$*" >&2
    exit 1
}
