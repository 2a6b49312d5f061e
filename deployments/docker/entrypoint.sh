#!/bin/sh
# Run a command with the secrets of a folder in its environment: the file HF_TOKEN becomes the variable HF_TOKEN. They are in
# no layer of the image, and `docker inspect` does not show them. What is set already stays.
set -eu
for file in "${MRALIGN_SECRETS:-/run/secrets/mr-align}"/*; do
    [ -f "$file" ] || continue
    name=${file##*/}
    case $name in
    [0-9]* | *[!A-Za-z0-9_]*)
        echo "error: $file: a secret's file is named like its environment variable, with letters, digits and _" >&2
        exit 64
        ;;
    esac
    [ -r "$file" ] || {
        echo "error: $file can't be read by user $(id -u): chgrp 10001 and chmod g+r it on the host" >&2
        exit 77
    }
    eval "[ -n \"\${$name+set}\" ]" || export "$name=$(cat "$file")"
done
exec "$@"
