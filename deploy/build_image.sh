#!/bin/sh
# Builds an image with buildah, which needs no daemon:
#
#   deploy/build_image.sh DOCKERFILE TAG [OPTION ...]
#
# OPTIONs are those of buildah bud, such as --build-arg EXTRAS=onnx,hdf5,parquet. The base image is
# pulled as the Dockerfile says. Where no image registry can be reached, STAND_IN=1 puts one together
# from this Debian's own packages (as root, with mmdebstrap).
set -eu
dockerfile=$1 tag=$2
shift 2
[ -w /dev/fuse ] || export STORAGE_DRIVER="${STORAGE_DRIVER:-vfs}"
[ "$(id -u)" != 0 ] || export BUILDAH_ISOLATION="${BUILDAH_ISOLATION:-chroot}"

if [ "${STAND_IN:-}" ]; then
    stand_in=localhost/esm2-python-stand-in
    if ! buildah inspect --type image "$stand_in" >/dev/null 2>&1; then
        folder=$(mktemp -d)
        trap 'rm -rf "$folder"' EXIT
        options=
        for file in /etc/apt/apt.conf.d/*; do options="$options --aptopt=$file"; done
        sources=$(ls /etc/apt/sources.list.d/debian.sources /etc/apt/sources.list 2>/dev/null | head -1)
        # shellcheck disable=SC2086
        mmdebstrap --quiet --variant=minbase $options \
            --include=python3,python3-venv,python3-pip,ca-certificates \
            "$(. /etc/os-release && echo "$VERSION_CODENAME")" "$folder/root.tar" "$sources"
        container=$(buildah from scratch)
        buildah add --quiet "$container" "$folder/root.tar" / >/dev/null
        buildah run "$container" -- sh -c \
            'ln -sf python3 /usr/bin/python && rm -f /usr/lib/python3*/EXTERNALLY-MANAGED'
        buildah commit --quiet --rm "$container" "$stand_in" >/dev/null
    fi
    set -- --build-arg "BASE=$stand_in" "$@"
fi

# pip is to find its index as on this machine.
for path in /etc/pip.conf /etc/xdg/pip /etc/ssl/certs; do
    [ ! -e "$path" ] || set -- --volume "$path:$path:ro" "$@"
done
# Docker's format, or the health check is lost.
exec buildah bud --format docker --file "$dockerfile" --tag "$tag" "$@" .
