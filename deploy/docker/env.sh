#!/bin/sh
# Makes .env from .env.example with secrets of its own: `make env`. Needs no Python, only a POSIX shell.
# A setting without a value in the example is a secret. What is there already is never changed.
set -eu
cd "$(dirname "$0")/../.."

secrets=$(sed -n 's/^\([A-Z_]*\)=$/\1/p' .env.example)

if [ -e .env ] || [ -L .env ]; then
    for name in $secrets; do
        if ! grep -q "^$name=." .env; then
            echo "make env: .env is there and has no $name: add one of your own, 32 random characters." >&2
            exit 1
        fi
    done
    echo "make env: .env is there and was left as it is."
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
# A link fails where a file has appeared meanwhile; a move would replace it.
ln "$part" .env
echo "make env: wrote .env with new secrets; keep it, and keep it to yourself."
