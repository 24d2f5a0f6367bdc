# shellcheck shell=bash
# What setup, enter and join share: where things are kept, and how a part is made once.

world=$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")
cache=${NHC_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/nixos-host-controller}
# shellcheck disable=SC2034 # used by enter and join
runs=$cache/runs

say() { echo "world: $*" >&2; }
die() { say "$@"; exit 1; }

# The cgroup v2 tree, where the hosts' systemd lives: its own mount on machines with v1, the whole on others.
cgroup_root() {
  local tree=/sys/fs/cgroup
  [ -d $tree/unified ] && tree=$tree/unified
  [ -f $tree/cgroup.procs ] || die "no cgroup v2 tree under /sys/fs/cgroup: the hosts' systemd needs one"
  echo $tree/nixos-host-controller
}

# at_least HAVE WANT: compares dotted versions.
at_least() { [ "$(printf '%s\n' "$2" "$1" | sort -V | head -n1)" = "$2" ]; }

# The machine's own Debian mirror: no registry is named in this project.
# shellcheck disable=SC2016 # apt's own variable
mirror() { apt-get indextargets --format '$(REPO_URI)' 'Codename: bookworm' | head -n1; }

# part NAME RECIPE [ARGUMENT...]: prints nothing, leaves $cache/NAME made by parts/RECIPE, called with the directory to fill
# and the arguments. The key is the recipe, the directory it names in an "# inputs:" line, and the arguments: what did not change is not made again.
part() {
  local name=$1 recipe=$world/parts/$2 inputs key into began=$SECONDS
  shift 2
  inputs=$(sed -n 's/^# inputs: //p' "$recipe")
  key=$({ cd "$world" || exit; find "$recipe" ${inputs:+"$inputs"} -type f | sort | xargs cat; echo "$@"; } | sha256sum | cut -c1-16)
  into=$cache/parts/$name-$key
  if [ ! -f "$into/.complete" ]; then
    say "making $name${*:+ ($*)}"
    rm -rf "$into" && mkdir -p "$into"
    "$recipe" "$into" "$@" > "$into.log" 2>&1 || die "$name failed; its log is $into.log, its end:" $'\n'"$(tail -n 20 "$into.log")"
    touch "$into/.complete"
    say "made $name in $((SECONDS - began)) s"
  fi
  ln -sfn "parts/$name-$key" "$cache/$name"
}
