#!@sh@
# switch-to-configuration as NixOS has it, as far as whoever calls it can tell: goals, order, wording, lock and exit codes
# (0; 1 refused, or the boot loader failed; 2 a snippet failed; 4 a unit failed; 11 lock held; 100 needs a reboot).
PATH=@tools@:/usr/sbin:/usr/bin:/sbin:/bin
goal=$1
case $goal in
  switch|boot|test|dry-activate|check) ;;
  *)
    echo "Usage: $0 [check|switch|boot|test|dry-activate]" >&2
    exit 1 ;;
esac
[ "$(id -u)" = 0 ] || { echo "switch-to-configuration must be run as the root user" >&2; exit 1; }

mkdir -p /run/nixos
exec 9> /run/nixos/switch-to-configuration.lock
flock -n 9 || { echo "Could not acquire lock" >&2; exit 11; }

if [ "${NIXOS_NO_CHECK:-}" != 1 ]; then
  "${PRE_SWITCH_CHECK:-@out@/pre-switch-check}" @out@ "$goal" 9>&- || { echo "Pre-switch checks failed" >&2; exit 1; }
fi
[ "$goal" != check ] || exit 0

case $goal in switch|boot)
  case @installBootLoader@ in
    extlinux) sh @extlinuxConfBuilder@ @out@ 9>&- ;;
    systemd-boot) sh @systemdBootBuilder@ @out@ 9>&- ;;
    grub) sh @grubBuilder@ @out@ 9>&- ;;
    *) false ;;
  esac || { echo "Failed to install bootloader" >&2; exit 1; }
esac
[ "${NIXOS_NO_SYNC:-}" = 1 ] || sync -f /nix/store
[ "$goal" != boot ] || exit 0

old=$(readlink -f /run/current-system)
if ! cmp -s "$old/init-interface-version" @out@/init-interface-version; then
  echo "Warning: the new NixOS configuration has an 'init' that is incompatible with the current configuration. The new configuration won't take effect until you reboot the system." >&2
  exit 100
fi

# The real one speaks to systemd over the system bus, which is dead in emergency mode; systemctl does not need it
busctl status >/dev/null 2>&1 9>&- || { echo "Error: Failed to open dbus connection" >&2; exit 1; }

# --- what is to be done with each unit; only what is active is stopped, reloaded or restarted
stop= skip= reload= restart= start=
has() { grep -q "^$2=$3\$" "@out@/etc/systemd/system/$1"; }
for unit in $(ls "$old/etc/systemd/system" @out@/etc/systemd/system 2>/dev/null | grep '\.[a-z]*$' | grep -v -e : -e '\.wants$' | sort -u); do
  active=; case $(systemctl is-active "$unit" 9>&-) in active|activating|reloading) active=1 ;; esac
  before=$old/etc/systemd/system/$unit after=@out@/etc/systemd/system/$unit
  if [ ! -e "$after" ]; then
    [ -z "$active" ] || stop="$stop $unit"
  elif [ -z "$active" ]; then
    start="$start $unit"
  elif ! cmp -s "$before" "$after"; then
    if has "$unit" X-ReloadIfChanged true; then reload="$reload $unit"
    elif has "$unit" X-RestartIfChanged false; then skip="$skip $unit"
    elif has "$unit" X-StopIfChanged false; then restart="$restart $unit"
    else stop="$stop $unit" start="$start $unit"
    fi
  fi
done
announce() { [ -z "$2" ] || echo "$1 the following $3: $(echo $2 | sed 's/ /, /g')" >&2; }

if [ "$goal" = dry-activate ]; then
  announce "would stop" "$stop" units
  announce "would NOT stop" "$skip" "changed units"
  echo "would activate the configuration..." >&2
  announce "would reload" "$reload" units
  announce "would restart" "$restart" units
  announce "would start" "$start" units
  exit 0
fi

# --- do it
code=0
job() { [ -z "$2" ] || systemctl "$1" $2 9>&- || code=4; }
announce "stopping" "$stop" units
job stop "$stop"
announce "NOT restarting" "$skip" "changed units"
echo "activating the configuration..." >&2
@out@/activate 9>&- || { code=2; echo "Failed to run activate script" >&2; }
systemctl reset-failed 9>&-
systemctl daemon-reload 9>&- || { echo "Error: Failed to reload systemd" >&2; exit 1; }
announce "reloading" "$reload" units
job reload "$reload"
announce "restarting" "$restart" units
job restart "$restart"
announce "starting" "$start" units
job start "$start"
# As the real one does for every active target: what they want and was stopped by hand comes back
systemctl start multi-user.target 9>&- || code=4

# Any unit that is failed now counts, as does one that is about to be restarted after a failure
failed=$(systemctl list-units --state=failed --no-legend --plain 9>&- | cut -d' ' -f1)
for unit in $(systemctl list-units --state=auto-restart --no-legend --plain 9>&- | cut -d' ' -f1); do
  [ "$(systemctl show -p ExecMainStatus --value "$unit" 9>&-)" = 0 ] || failed="$failed $unit"
done
if [ -n "$failed" ]; then
  code=4
  echo "warning: the following units failed: $(echo $failed | sed 's/ /, /g')" >&2
  systemctl status --no-pager --full $failed >&2 9>&-
fi
[ $code = 0 ] || echo "switching to system configuration @out@ failed (status $code)" >&2
exit $code
