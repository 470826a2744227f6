#!/bin/sh
# `make env`: create .env from .env.example and fill in new secrets. Needs only a POSIX shell.
# Variables without a value in the example are secrets. An existing .env is never changed.
set -eu
cd "$(dirname "$0")/../.."

# The containers mount this folder for the API keys. Docker would create it for root.
mkdir -p -m 755 keys

secrets=$(sed -n 's/^\([A-Z_]*\)=$/\1/p' .env.example)

if [ -e .env ] || [ -L .env ]; then
    for name in $secrets; do
        if ! grep -q "^$name=." .env; then
            echo "make env: .env exists, but $name is not set in it. Add it: 32 random characters." >&2
            exit 1
        fi
    done
    echo "make env: .env already exists; it was not changed."
    exit 0
fi

umask 077
part=$(mktemp .env.XXXXXX)
trap 'rm -f "$part"' EXIT
while IFS= read -r line; do
    name=${line%=}
    case $line in
        '#'* | '') ;;
        "$name"=) line="$name=$(head -c 32 /dev/urandom | od -An -vtx1 | tr -d ' \n')" ;;
    esac
    printf '%s\n' "$line"
done <.env.example >"$part"
# ln fails if another process has created .env meanwhile; mv would overwrite it.
ln "$part" .env
echo "make env: wrote .env with new secrets. Back it up and keep it private."
