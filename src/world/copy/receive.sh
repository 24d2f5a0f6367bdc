# Receives a closure: $1 GC root, $2 toplevel, $3 state directory. No backslashes, no single quotes: see quote.rs.
set -eu
PATH="${PATH:-/usr/bin:/bin}:/run/current-system/sw/bin:/nix/var/nix/profiles/default/bin"
export PATH
root=$1 toplevel=$2 pidfile=$3/copy.pid

# When a process started: field 22 of its stat, counted from behind its name, which may hold anything.
started() {
    { read -r stat < "/proc/$1/stat"; } 2> /dev/null || return 1
    set -- ${stat##*) }
    echo "${20}"
}
# Whether $1 is still the copy that started at $2.
copying() {
    { read -r comm < "/proc/$1/comm"; } 2> /dev/null || return 1
    [ "$comm" = nix-store ] && [ "$(started "$1")" = "$2" ]
}

# Before the copy: what arrives is never garbage.
{ [ -d "${root%/*}" ] && [ -d "$3" ]; } || mkdir -p "${root%/*}" "$3"
ln -sfn "$toplevel" "$root"

# A predecessor whose controller vanished waits for ever, and holds the lock of the path that it was receiving.
if { read -r pid start < "$pidfile"; } 2> /dev/null; then
    for signal in TERM KILL; do
        tries=0
        while copying "$pid" "$start" && [ $tries -lt 30 ]; do
            [ $tries -gt 0 ] || kill -s $signal "$pid" 2> /dev/null || :
            tries=$((tries + 1))
            sleep 0.1
        done
    done
fi
echo "$$ $(started $$)" > "$pidfile" || :
exec nix-store --serve --write
