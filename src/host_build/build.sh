#!/bin/sh
# A build on the host. Sent over SSH on stdin, read into $script and evaluated; nothing is installed.
#
#   begin DRV OUT SECONDS   build DRV, whose output is OUT, or attach to the build of it that runs; then wait
#   wait DRV OUT            until the build has ended, at most 20 seconds; then say how it is
#   stop DRV                end it, and all its processes, within 2 seconds
#
# One transient systemd service is the build. Its name is the lock: there is one build at a time, and another DRV ends the one before. It
# outlives the connection, since weak links break, and is bounded by its own time limit. Root's nix-store opens the store itself: builders are
# its children, in the service's cgroup, and end with it.
set -u
PATH=/run/current-system/sw/bin:/run/wrappers/bin:/usr/sbin:/usr/bin:/sbin:/bin
export PATH LC_ALL=C
: "${script:=}"

D=/run/nixos-host-controller                        # state: one file a word; it dies with a reboot, as the build does
U=nixos-host-controller-build
G=/nix/var/nix/gcroots/nixos-host-controller

get() { read -r word 2>/dev/null <"$D/build-$1" && echo "$word"; }
refuse() { echo "build: refused: $*"; exit 75; }
running() { case $(timeout 30 systemctl show -p ActiveState --value $U 2>/dev/null) in active|activating|deactivating) true;; *) false;; esac; }
# What this run of the build wrote, not what an earlier one did
log() { timeout 30 journalctl -q -n "$1" -o cat --no-pager "_SYSTEMD_INVOCATION_ID=$(get run)" _TRANSPORT=stdout 2>/dev/null | cut -c 1-300 | sed 's/^/log=/'; }

begin() {
  drv=$1 out=$2 seconds=$3
  if running; then
    [ "$(get drv)" != "$drv" ] || return 0
    stop "$(get drv)"
  fi
  nix-store --check-validity "$drv" || refuse "$drv is not in the store"
  mkdir -p $D $G && ln -sfn "$out" $G/next || refuse "cannot write to $D or $G"    # before the build: what it makes is never garbage
  rm -f $D/build-result $D/build-run
  # By rename: a shell reads its script while it runs it.
  { echo "$drv" >$D/build-drv && printf '%s\n' "$script" >$D/build-script.new && mv -f $D/build-script.new $D/build-script; } || refuse "cannot write to $D"
  systemd-run --quiet --collect --no-ask-password --unit=$U --service-type=exec -p "RuntimeMaxSec=$seconds" \
    -p KillMode=control-group -p TimeoutStopSec=1 -p Nice=15 -p CPUWeight=20 -p IOSchedulingClass=idle -p OOMScoreAdjust=500 \
    -p StandardOutput=null -p StandardError=journal -p LogRateLimitIntervalSec=0 -E HOME=/root \
    -p "ExecStopPost=-/bin/sh $D/build-script _ended" /bin/sh $D/build-script _run "$drv" || refuse "the build could not be started"
}
wait_() {
  tries=0
  # Asking pid 1 costs more than all else here: only at every 10th try.
  while [ ! -e $D/build-result ] && [ $tries -lt 100 ]; do
    [ $((tries % 10)) != 0 ] || running || break
    sleep 0.2; tries=$((tries + 1))
  done
  echo "protocol=1"
  if read -r result code 2>/dev/null <$D/build-result; then
    echo "result=$result"; echo "code=$code"
    [ "$result" = success ] && nix-store --check-validity "$2" && echo "valid=yes" && return
    timeout 5 journalctl --sync 2>/dev/null
    log 40
  elif running; then
    echo "result=running"
    log 1
  else
    echo "result=lost"
  fi
}
stop() { [ "$(get drv)" != "$1" ] || timeout 30 systemctl stop $U 2>/dev/null; }

main() {
  verb=$1; shift
  case $verb in
    begin) begin "$@"; wait_ "$1" "$2";; wait) wait_ "$@";; stop) stop "$1";;
    _run) echo "$INVOCATION_ID" >$D/build-run; exec nix-store --realise "$1" --option fallback true;;
    _ended) echo "$SERVICE_RESULT ${EXIT_STATUS:-}" >$D/build-result;;
    *) exit 64;;
  esac
  exit 0
}
main "$@"
