#!/bin/sh
# The landing protocol, on the host. Sent over SSH on stdin, read into $script and evaluated; nothing is installed, and all state dies
# with a reboot, as the landing does.
#
#   status                                             facts of the host and the state of the landing; changes nothing
#   land ID EPOCH NEW MODE ACTIVATE COMMIT [UNIT…]     begin, then wait: MODE is switch, boot, test, reboot (into NEW, once) or booted (after
#                                                      that, with the units that had failed before); ACTIVATE and COMMIT are seconds
#   needs NEW                                          whether NEW needs a reboot, and which units have failed; changes nothing
#   verify [restarts]                                  what a person would look at after a switch, with restarts so far; changes nothing
#   commit ID EPOCH | revert ID EPOCH                  ask the running landing, wait for what it does
#   wait ID                                            until the landing needs the controller or has ended, at most 20 seconds
#   log                                                the last lines of the activation
#   dry NEW                                            what a switch to NEW would do; changes nothing
#
# One transient systemd service *is* the landing. Its name is the lock, because pid 1 refuses a second one. Its ExecStopPost is
# the revert, so that whatever ends it (exit, crash, kill, stop, time-out) without a commit brings the old system back: there is no moment in
# which the new system is being activated and the way back is not armed. Only that service writes; requests are files that it reads.
# Two FIFOs wake whoever waits at once: `bell` the landing, `answer` those who ask it. A ring that another one hears costs a second, no more.
#
# Each look at a host runs this, and each process of it is felt on a small machine: what the shell can do, the shell does.
# shellcheck disable=SC2015,SC2317,SC3013 # `a && b || c` is meant: c also where b fails; functions are called by their names' values; every sh has -ef
set -u
PATH=${LANDING_PATH:-/run/current-system/sw/bin:/run/wrappers/bin:/usr/sbin:/usr/bin:/sbin:/bin}
export PATH LC_ALL=C
: "${script:=}" "${next:=}"                          # the second is what boots next, by boot.sh

D=/run/nixos-host-controller                        # state: one file a word, laid down when armed, then only overwritten in place
U=nixos-host-controller-landing                     # the landing
A=nixos-rebuild-switch-to-configuration             # the activation, by the name that nixos-rebuild uses: the two exclude each other
P=/nix/var/nix/profiles/system
G=/nix/var/nix/gcroots/nixos-host-controller
LOCK=/run/nixos/switch-to-configuration.lock

# What follows a commit by itself need not read on
case ${1:-} in _revert|_last) { read -r word <$D/state && [ "$word" = committed ] && exit; } 2>/dev/null;; esac

say() { echo "landing: $*"; }
take() { word=; [ ! -r "$1" ] || read -r word <"$1"; }               # the first line of a file, into $word; read strips the padding
get() { take "$D/$1"; echo "$word"; }
is() { take "$D/$1"; [ "$word" = "$2" ]; }                           # `is state activated`; `is code ""` where there is none
tell() { take "$2"; echo "$1=$word"; }
put() { printf '%-250.250s\n' "$2" 1<>"$D/$1"; }                     # overwrites in place: a full /run cannot stop it
state() { put state "$1"; ring answer; }                             # `put state` alone where nobody waits for that
ring() { [ ! -p "$D/$1" ] || printf . 1<>"$D/$1"; }
hear() { # FIFO SECONDS, after `listen` to it. NixOS has bash for sh, which waits by itself
  if [ ! -p "$D/$1" ]; then sleep "$2"
  elif [ -n "${BASH_VERSION:-}" ]; then
    # shellcheck disable=SC3045
    read -r -t "$2" -n 1 _ <&9
  else timeout "$2" head -c 1 <&9 >/dev/null 2>&1; fi
}
listen() { [ ! -p "$D/$1" ] || exec 9<>"$D/$1"; }
now() { read -r now _ </proc/uptime; now=${now%.*}; }                # into $now: immune to a clock that jumps
in_time() { take $D/deadline; now; [ "$now" -lt "$word" ]; }
current() { current=$(readlink -f /run/current-system); }               # into $current
leads() { [ "$1" -ef "$2" ] || [ "$(readlink -f "$1")" = "$2" ]; }   # LINK SYSTEM: also to one that is not there any more
runs() { leads /run/current-system "$1"; }
unit() { systemctl show -p "$2" --value "$1" 2>/dev/null; }          # gives up by itself: the bus allows 25 seconds
alive() { # whether a service has processes, or is between two of its commands: its control group says so without a question to pid 1
  for top in /sys/fs/cgroup /sys/fs/cgroup/systemd; do [ ! -d $top/system.slice ] || { [ -d "$top/system.slice/$1.service" ]; return; }; done
  case $(unit "$1" ActiveState) in active|activating|deactivating|reloading) true;; *) false;; esac
}
maintenance() { alive emergency || alive rescue; }
fail() { put code "$1"; put why "$2"; say "$2"; exit 1; }

boots() { boots_next; [ "$next" = "$1" ] || [ "$next" = Unknown ]; }

# ---- reading ----

status() { # [brief]: without what cannot have moved while a landing waits for us: the boot default, the profile, what was booted
  echo "protocol=1"
  if [ "${1:-}" = brief ]; then
    take $D/new; current=$word; runs "$word" || current
    echo "current=$current"
  else
    boots_next; echo "boot_default=$next"
    # Store paths have no white space
    # shellcheck disable=SC2046
    set -- $(readlink /run/current-system /run/booted-system $P)
    # shellcheck disable=SC2046
    case "$# $*" in "3 /nix/store/"*" /nix/store/"*) ;; *) set -- $(readlink -m /run/current-system /run/booted-system; readlink $P) Unknown;; esac
    echo "current=$1"; echo "booted=$2"; number=${3#system-}; echo "generation=${number%-link}"
    [ $P -ef "$1" ] || set -- "$(readlink -m $P)"
    echo "profile=$1"
  fi
  printf nix=; command -v nix-store || echo
  tell nixos_version /run/current-system/nixos-version; tell architecture /run/current-system/system; tell kernel /proc/sys/kernel/osrelease
  tell boot_id /proc/sys/kernel/random/boot_id; tell machine_id /etc/machine-id
  ! differs /run/booted-system /run/current-system || echo "reboot=required"
  alive $U && { echo "landing=active"; left; }
  for name in id epoch state rc code why old new; do tell "landing_$name" "$D/$name"; done
}
left() { # how long a landing still waits for its commit, in seconds
  is state activated && take $D/deadline && now && [ "${word:-0}" -gt "$now" ] && echo "landing_left=$((word - now))"
}
# Whether one system boots what another one does not: what NixOS itself compares, with the parameters and the interface of init. What both lack is equal
differs() { # A B
  for part in kernel initrd kernel-modules; do
    [ "$1/$part" -ef "$2/$part" ] || { [ ! -e "$1/$part" ] && [ ! -e "$2/$part" ]; } || return 0
  done
  for part in kernel-params init-interface-version; do
    take "$1/$part"; left=$word; take "$2/$part"; [ "$left" = "$word" ] || return 0
  done
  return 1
}
needs() {
  echo "protocol=1"
  ! differs /run/booted-system "$1" || echo "reboot=required"
  troubled
  # shellcheck disable=SC2046 # one line of words
  echo failed=$(echo "$troubled" | head -n 20)
}
troubled() { # into $troubled: units that failed, or wait for a restart after a failure
  set -- "$(systemctl list-units --all --plain --no-legend --state=failed,auto-restart,auto-restart-queued 2>/dev/null)"
  troubled=; [ -z "$1" ] || troubled=$(echo "$1" | while read -r name _; do echo "$name"; done)
}
verify() {
  status brief
  # What maintenance is can be seen without a question to pid 1; only after a boot there may be something that still starts
  if maintenance; then echo "running=maintenance"
  elif is mode booted; then echo "running=$(systemctl is-system-running 2>/dev/null)"; fi
  troubled
  [ -z "$troubled" ] || troubled=$(echo "$troubled" | grep -vxF -f "$D/failed-before" | head -n 20)
  restarts=
  [ "${1:-}" != restarts ] || restarts=$(systemctl show -p Id -p NRestarts '*.service' 2>/dev/null |
    awk -F= '$1 == "Id" { id = $2 } $1 == "NRestarts" { n = $2 } NF == 0 { if (n > 0) print id ":" n; n = 0 } END { if (n > 0) print id ":" n }' | head -n 50)
  # shellcheck disable=SC2086 # one line of words
  { echo failed=$troubled; echo restarts=$restarts; }
  [ -z "$troubled$restarts" ] || for name in $({ echo "$troubled"; echo "$restarts" | cut -d: -f1; } | awk 'NF && !seen[$0]++' | head -n 5); do
    timeout 30 journalctl -q -u "$name" -n 8 -o cat --no-pager 2>/dev/null | cut -c 1-300 | sed "s|^|journal=$name: |"
  done
}
# What the last activation itself said: neither earlier ones, nor what systemd says about its unit
log() {
  run=$(timeout 30 journalctl -q -n 1 -o cat --output-fields=_SYSTEMD_INVOCATION_ID --no-pager "_SYSTEMD_UNIT=$A.service" _TRANSPORT=stdout 2>/dev/null)
  timeout 30 journalctl -q -n 30 -o cat --no-pager "_SYSTEMD_INVOCATION_ID=$run" _TRANSPORT=stdout 2>/dev/null | cut -c 1-300
}
dry() {
  said=$(NIXOS_NO_CHECK=1 timeout 120 "$1/bin/switch-to-configuration" dry-activate 2>&1)
  code=$?
  [ $code = 0 ] || refuse failed "switch-to-configuration dry-activate exited with $code: $(printf '%s' "$said" | tail -n 1 | cut -c 1-500)" 70
  printf '%s\n' "$said" | cut -c 1-500 | head -n 60
}

# ---- asking ----

refuse() { say "refused: $1: $2"; exit "$3"; }
busy() { # [WHO]: or another landing, by its id, of pid 1: one that only begins has no processes yet, and the file is of the one before
  who=$(unit $U Description)
  case $who in ''|"$U.service") refuse busy "${1:-another landing has just ended}" 75;; *) refuse busy "another landing is running: $who" 75;; esac
}
fence() { # EPOCH: an older one is refused; a newer one is remembered, so that whoever led before may ask for nothing more
  take $D/epoch
  [ "$1" -ge "${word:-0}" ] || refuse fenced "epoch $1 is older than $word" 77
  [ "$1" = "$word" ] || put epoch "$1"
}
land() {
  id=$1 epoch=$2 new=$3 mode=$4 activate=$5 commit=$6; shift 6
  ! is id "$id" || { fence "$epoch"; return 0; }                       # also where it has ended: it is not begun once more
  { [ -x "$new/bin/switch-to-configuration" ] && [ -f "$new/nixos-version" ]; } || refuse invalid "$new is not a NixOS system" 65
  ! maintenance || refuse not-ready "the host is in maintenance" 75
  ! alive $U || busy
  [ ! -e $LOCK ] || flock -s -n 8 8<$LOCK || busy "another switch-to-configuration is running"
  ! alive $A || busy "a nixos-rebuild is running"
  current; old=$current; boots_next
  [ "$mode" != booted ] || { [ "$old" = "$new" ] && [ /run/booted-system -ef "$new" ] && old=$next; } || refuse not-booted "$new was not booted" 75
  [ "$mode" != reboot ] || [ "$next" = "$old" ] || refuse boot-default "the boot default is $next, not what runs" 78
  [ "$next" = "$old" ] || [ "$next" = Unknown ] || [ "$mode" = boot ] || leads $P "$next" ||
    refuse boot-default "the boot default is $next, not what runs: a crash now would not bring $old back" 78
  # Somebody else may be at the same at this moment
  { [ -d $D ] || mkdir -p $D; } && { [ -p $D/answer ] || mkfifo $D/bell $D/answer 2>/dev/null || [ -p $D/answer ]; } || refuse cannot-write "cannot write to $D" 73
  # By rename: a shell reads its script while it runs it.
  printf '%s\n' "$script" >$D/script.$$ && mv -f $D/script.$$ $D/script || refuse cannot-write "cannot write to $D" 73
  [ ! -e $D/refused ] || rm -f $D/refused
  [ $# = 0 ] || printf '%s\n' "$@" >$D/baseline
  listen answer
  # DefaultDependencies=no and IgnoreOnIsolate: emergency.target and isolate must not take the way back with them.
  if systemd-run --quiet --collect --no-ask-password --unit=$U --description="$id" --service-type=exec -p DefaultDependencies=no -p IgnoreOnIsolate=yes \
    -p Conflicts=shutdown.target -p Before=shutdown.target -p OOMScoreAdjust=-1000 -p RuntimeMaxSec=$((activate + commit + 900)) -p TimeoutStopSec=900 \
    -E "LANDING_PATH=$old/sw/bin:/run/current-system/sw/bin:/usr/sbin:/usr/bin:/sbin:/bin" \
    -p "ExecStopPost=-/bin/sh $D/script _revert $id" -p "ExecStopPost=-/bin/sh $D/script _last $id" \
    /bin/sh $D/script _run "$id" "$epoch" "$new" "$mode" "$activate" "$commit" "$old"; then
    tries=0
    while [ ! -e $D/refused ] && { ! is id "$id" || ! settled; } && [ $tries -lt 10 ]; do hear answer 1; tries=$((tries + 1)); done
    [ ! -e $D/refused ] || refuse "$(cut -d' ' -f1 $D/refused)" "$(cut -d' ' -f2- $D/refused)" 75
    return 0
  fi
  ! is id "$id" || return 0
  # A machine that shuts down begins no service that would be stopped by it
  case $(systemctl is-system-running) in stopping) refuse not-ready "the host is stopping" 75;; esac
  busy
}
# Until the state is one in which something is up to the controller, or the landing has gone.
settled() { take $D/state; case $word in activated|rebooting|committed|reverted|superseded|failed) true;; *) ! alive $U;; esac; }
wait_() {
  listen answer
  tries=0; while is id "$1" && [ $tries -lt 20 ] && ! settled; do hear answer 1; tries=$((tries + 1)); done
  if is id "$1" && is state activated && alive $U; then status brief; else status; fi
}
ask() { # VERB ID EPOCH
  is id "$2" || refuse other "the landing here is $word" 75
  fence "$3"
  listen answer
  put "$1" "$2" && ring bell || refuse cannot-write "cannot write to $D" 73
  tries=0
  while [ $tries -lt 400 ] && alive $U; do
    take $D/state; case $word in committed|reverted|superseded) break;; esac
    hear answer 1; tries=$((tries + 1))
  done
  status
}

# ---- the landing: only what follows changes the host ----

stc() { system=$1 goal=$2 limit=$3; NIXOS_NO_CHECK=1 NIXOS_INSTALL_BOOTLOADER=0 timeout -k 10 "$limit" "$system/bin/switch-to-configuration" "$goal"; }
not_now() { echo "$*" >$D/refused; ring answer; exit 0; }
run() {
  id=$1 epoch=$2 new=$3 mode=$4 activate=$5 commit=$6 old=$7
  runs "$old" || { current; old=$current; }
  profile=$old; [ $P -ef "$old" ] || profile=$(readlink -f $P)
  take $D/epoch
  [ "$epoch" -ge "${word:-0}" ] || not_now "fenced epoch $epoch is older than $word"
  { [ -d $G ] || mkdir -p $G; } && ln -sfn "$old" $G/old && ln -sfn "$new" $G/new || not_now "cannot-write cannot write to $G"
  [ "$mode" != booted ] || { boots_next; old=$next profile=$next; }      # the profile was moved before the boot
  if [ "$mode" = booted ]; then cat $D/baseline >$D/failed-before 2>/dev/null; else troubled; echo "$troubled" >$D/failed-before; fi
  for word in code why rc commit revert deadline; do put $word "" || not_now "cannot-write cannot write to $D"; done
  put state armed && put epoch "$epoch" && put mode "$mode" && put old "$old" && put profile "$profile" && put new "$new" &&
    put target "$(unit default.target ActiveState)" && put window "$commit" && now && put deadline $((now + activate)) && put id "$id" || not_now "cannot-write cannot write to $D"
  listen bell
  open_lock
  [ "$mode" != boot ] || { lock || fail commit-failed "another switch-to-configuration is running"; commit_; exit; }
  [ "$mode" != reboot ] || reboot_
  [ "$mode" != booted ] || { put rc 0; now; put deadline $((now + commit)); state activated; }
  is state activated || activate
  while :; do
    ! is state activating || watch_activation
    ! is revert "$id" || fail asked "the controller asked for the old system"
    if is state activated && lock && is commit "$id"; then commit_; exit; fi
    in_time || past_deadline
    hear bell 2
  done
}
activate() {
  put state activating
  # Its output goes to the journal: a pipe into the connection would kill it when the connection dies.
  systemd-run --quiet --collect --no-ask-password --unit=$A --service-type=exec -p DefaultDependencies=no -p IgnoreOnIsolate=yes \
    -p KillMode=control-group -p TimeoutStopSec=10 -E NIXOS_INSTALL_BOOTLOADER=0 -E "LANDING_PATH=$PATH" /bin/sh $D/script _activate "$new" ||
    fail activation-failed "the activation could not be started"
}
# The new system becomes a generation with an entry in the boot menu, while the default stays; the next boot starts that entry, and only that
# boot. Whoever does not make it the default then, for whatever reason, gets the old system with the boot after it.
reboot_() {
  lock || fail commit-failed "another switch-to-configuration is running"
  put state staging
  set_profile "$new" || fail commit-failed "cannot make a generation of $P"
  unlock
  stc "$old" boot 300 || fail commit-failed "switch-to-configuration boot exited with $?"
  boots_next; [ "$next" = "$old" ] || fail commit-failed "the boot default is $next after switch-to-configuration boot of $old"
  reason=$(once "$new") || fail no-once "$reason"
  boots_next; [ "$next" = "$new" ] || fail no-once "the boot loader was told to start $new once, and would start $next"
  flush
  now; put deadline $((now + 300))
  state rebooting
  say "rebooting into $new, once"
  timeout 10 systemctl reboot --no-block || fail reboot-failed "systemctl reboot failed"
  # The shutdown ends this service, and with it this loop
  while in_time; do sleep 1; done
  fail reboot-failed "the machine did not shut down"
}
watch_activation() {
  if ! is rc ""; then
    # Exit codes are no verdict, but all except 0 and 4 (switched, a unit failed) mean that something was not done.
    case $word in 0|4) ;; *) fail activation-failed "switch-to-configuration test exited with $word";; esac
    take $D/window; now; put deadline $((now + word)); state activated
  elif ! alive $A; then
    sleep 1
    ! is rc "" || alive $A || fail activation-killed "the activation was killed"
  fi
}
past_deadline() {
  # A pid 1 that does not answer cannot run a revert, but the next boot can
  timeout 15 systemctl show -p Version >/dev/null || [ "$(boot_default)" != "$old" ] || { sync & sleep 3; systemctl --force --force reboot; }
  ! is state activated || [ $locked = yes ] || fail not-committed "another switch-to-configuration was running until the deadline"
  ! is state activated || fail not-committed "nobody committed in time: the controller could not reach or verify the new system"
  fail activation-timeout "the activation did not end in time"
}
# From the end of the activation until its own call of `boot` the landing holds the lock that every switch-to-configuration takes: whoever
# switches by hand meanwhile is refused (exit code 11), and there is no race between the look at the current system and the commit.
open_lock() { locked=no; { [ -d "${LOCK%/*}" ] || mkdir -p "${LOCK%/*}"; } && exec 8>>$LOCK; }
lock() { [ $locked = yes ] || { flock -n 8 && locked=yes; }; }
unlock() { exec 8>&-; locked=no; }                                    # nobody else has it open: no process of ours is left running
commit_() { # profile, then boot: `boot` makes only a generation of the profile the default. Then read back: its exit code is no proof.
  case $mode in
    boot) runs "$old" || fail superseded "somebody else switched";;
    *) runs "$new" || { current; fail superseded "somebody else switched to $current"; };;
  esac
  put state committing
  if [ "$mode" != test ]; then
    set_profile "$new" || fail commit-failed "cannot make a generation of $P"
    unlock
    stc "$new" boot 300 || fail commit-failed "switch-to-configuration boot exited with $?"
    flush
    leads $P "$new" || fail commit-failed "the profile is $(readlink -f $P) after it was set"
    boots "$new" || fail commit-failed "the boot default is $next after switch-to-configuration boot"
  fi
  state committed
  rm -f $G/old $G/new
  say "committed $new"
}
# What `nix-env -p $P --set` does, link by link. Not by nix-env: it opens Nix's database, which may be locked, or full, or, since the new system's
# Nix has been at it, of a version that the old one's refuses.
set_profile() { # SYSTEM
  [ -d "$1" ] || return
  last=0
  for link in "$P"-*-link; do
    link=${link#"$P-"}; link=${link%-link}
    case $link in *[!0-9]*) ;; *) [ "$link" -le "$last" ] || last=$link;; esac
  done
  [ "$P-$last-link" -ef "$1" ] || { last=$((last + 1)); ln -s "$1" "$P-$last-link" || return; }
  ln -sfn "${P##*/}-$last-link" $P.next && mv -fT $P.next $P
}
flush() { # what the next boot needs reaches the disk, of the file systems that hold it
  set -- /nix/store /nix/var/nix/profiles
  for mount in /boot /boot?* /boot/efi /efi; do [ ! -d "$mount" ] || set -- "$@" "$mount"; done
  timeout 300 sync -f "$@" || timeout 300 sync
}

# ---- the way back. All its waits together stay below TimeoutStopSec: past that pid 1 would end `revert` and not begin `last` ----

revert() { # ExecStopPost: whatever ended the landing, unless it committed the host goes back
  is id "$1" || return 0
  began=no
  take $D/state; case $word in
    armed|activating|activated|reverting) ;;
    committing|staging) began=yes;;
    rebooting) [ "$(timeout 10 systemctl is-system-running)" != stopping ] || return 0; began=yes;;    # on its way; otherwise it will not be
    *) return 0;;
  esac
  mode=$(get mode) old=$(get old) new=$(get new) profile=$(get profile)
  # First of all, whoever switched meanwhile: an activation that goes on would switch once more, with nobody left to go back. One that has
  # ended is not in that unit any more, but perhaps a person's nixos-rebuild is
  ! is state activating || ! is rc "" || { timeout 10 systemctl kill -s KILL $A 2>/dev/null; timeout 20 systemctl stop $A 2>/dev/null; }
  ours || return 0
  ! is code "" || { put code killed; put why "the landing was stopped or killed"; }
  state reverting
  say "going back to $old: $(get why)"
  # A profile that is neither what was there nor what this landing set is a person's
  ! leads $P "$new" || [ "$profile" = "$new" ] || set_profile "$profile"
  [ "$mode" != reboot ] || never_mind
  [ $began = no ] || back boot
  [ "$(timeout 10 systemctl is-system-running)" != stopping ] || return 0      # the boot default does the rest
  [ "$mode" != booted ] || return 0                                            # there is no way to the old kernel but by a boot: `last`
  if [ "$mode" != boot ] && [ "$mode" != reboot ]; then
    make_room
    timeout 5 busctl status >/dev/null 2>&1 || leave_emergency
    back test || return 0
    home || { timeout 10 systemctl start --no-block default.target; patiently 10 home; }
  fi
  if [ $began = yes ] && ! boots "$old"; then
    put why "$(get why); the boot default could not be set back"; state failed
  elif home; then
    state reverted
    rm -f $G/old $G/new
  fi
  current; say "$(get state): current system is $current"
}
ours() { # a system that is neither of this landing's is somebody else's, and is left alone
  ! runs "$old" && ! runs "$new" || return 0
  current; put code superseded; put why "somebody else switched to $current"; state superseded
  return 1
}
# The old system's switch-to-configuration, once nobody else's holds the lock. Where it ends with 2 or 4 it has done all that it could.
back() { # GOAL
  now; end=$((now + 240)) failures=0
  while ours; do
    stc "$old" "$1" 180
    case $? in 0|2|4) return 0;; 11) ;; *) failures=$((failures + 1));; esac
    now; [ $failures -lt 3 ] && [ "$now" -lt $end ] || return 1
    sleep 1
  done
}
patiently() { limit=$1; shift; while ! "$@" && [ "$limit" -gt 0 ]; do sleep 1; limit=$((limit - 1)); done; }
make_room() { # systemd reloads only with 16 MiB free in /run
  # shellcheck disable=SC2046 # two numbers
  set -- $(df -k --output=avail,size /run | tail -n 1)
  [ "$1" -ge 20480 ] || mount -o "remount,size=$(($2 + 32768))k" /run
}
leave_emergency() { # the bus is dead there, and the real switch-to-configuration needs it
  "$old/activate"
  timeout 60 systemctl daemon-reload
  timeout 10 systemctl start --no-block default.target
  patiently 20 timeout 5 busctl status >/dev/null 2>&1
}
home() { take $D/old; runs "$word" && { ! is target active || timeout 10 systemctl is-active --quiet default.target; }; }
last() { # second ExecStopPost: if even the revert did not come through, boot the old system
  is id "$1" || return 0
  take $D/state; case $word in committed|reverted|superseded|failed|rebooting|"") return 0;; esac
  [ "$(timeout 10 systemctl is-system-running)" != stopping ] || return 0
  boots_next; is old "$next" || { state failed; say "cannot reboot into the old system: the boot default is $next"; return 0; }
  ! is mode boot || { state reverted; return 0; }
  say "rebooting into $(get old): $(get why)"
  # This must end for an orderly reboot to go on: what forces one lives in a unit that the shutdown does not wait for
  systemd-run --quiet --collect --no-ask-password -p DefaultDependencies=no -p IgnoreOnIsolate=yes /bin/sh $D/script _force
  timeout 10 systemctl reboot --no-block || systemctl --force --force reboot
}
main() {
  verb=$1; shift
  case $verb in
    status|log) $verb;; needs) needs "$1";; verify) verify "$@";; dry) dry "$1";; wait) wait_ "$1";;
    land) land "$@" && wait_ "$1";; commit|revert) ask "$verb" "$@";;
    _run) run "$@";; _revert) revert "$@";; _last) last "$@";;
    _force) sleep 30; systemctl --force --force reboot;;
    _activate) "$1/bin/switch-to-configuration" test; put rc $?; ring bell;;
    *) exit 64;;
  esac
  exit
}
main "$@"
