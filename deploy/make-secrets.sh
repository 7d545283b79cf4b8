#!/bin/sh
# Makes the secrets of a deployment in a new folder: keys, passwords, and the ACL file with the hashes of the
# passwords. Prints nothing secret.   usage: make-secrets.sh [FOLDER, default: secrets beside this file]
#
# Files are readable (0444) in a folder that is not (0700): containers mount single files, not the folder, and run as
# users that do not exist on the host.
set -eu

here=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)
out=${1:-$here/secrets}
redis=${SNORKY_DEPLOY_REDIS:-redis:6379/0}

if [ -e "$out" ]; then
    echo "$out exists; secrets are never overwritten. Remove it, or name another folder." >&2
    exit 1
fi

random() { od -An -N32 -tx1 /dev/urandom | tr -d ' \n'; }
sha256() { printf %s "$1" | sha256sum | cut -d ' ' -f 1; }
store() { printf %s "$2" >"$out/$1"; }

umask 077
mkdir -p "$out"
node=$(random) publisher=$(random) metrics=$(random)
store api_key "$(random)"
store redis_url_node "redis://node:$node@$redis"
store redis_url_publisher "redis://publisher:$publisher@$redis"
store redis_password_metrics "$metrics"
sed -e "s/NODE_SHA256/$(sha256 "$node")/" \
    -e "s/PUBLISHER_SHA256/$(sha256 "$publisher")/" \
    -e "s/METRICS_SHA256/$(sha256 "$metrics")/" \
    "$here/redis/users.acl" >"$out/users.acl"
chmod 0444 "$out"/*
echo "secrets made in $out"
