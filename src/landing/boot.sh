# What the machine boots next, from the boot loader's own files: the way back is only as good as this answer, so it is a store path or
# `Unknown`, never a guess. Part of landing.sh; all but `once` only read, below a root directory that is / but in tests.
# shellcheck shell=sh disable=SC2015 # `a && b || c` is meant: c also where b fails

# boot_default [ROOT]: which loader the firmware starts is not always to be seen, so all whose files are found have to agree.
boot_default() { boots_next "$@"; echo "$next"; }
boots_next() { # [ROOT]: the same, into $next
  root=${1:-} efivars=${1:-}/sys/firmware/efi/efivars
  # Store paths have no white space
  # shellcheck disable=SC2046
  set -- $(boot_defaults)
  for other do [ "$other" = "$1" ] || set -- Unknown; done
  next=${1:-Unknown}
}
boot_defaults() {
  others=count
  [ ! -d "$efivars" ] || case $(efi_variable LoaderInfo) in systemd-boot*) others=are-leftovers;; esac
  for boot in "$root"/boot "$root"/boot?* "$root"/boot/efi "$root"/efi; do
    [ ! -f "$boot/loader/loader.conf" ] || systemd_boot_default "$boot" || echo Unknown
    [ $others = count ] || continue
    [ ! -f "$boot/grub/grub.cfg" ] || grub_default "$boot/grub" || echo Unknown
    [ ! -f "$boot/extlinux/extlinux.conf" ] || extlinux_default "$boot/extlinux/extlinux.conf" || echo Unknown
    # limine, rEFInd, and the Raspberry Pi's firmware where it starts the kernel itself
    for other in limine EFI/refind cmdline.txt firmware/cmdline.txt; do [ ! -e "$boot/$other" ] || echo Unknown; done
  done
}

# For awk: print_system prints the system of the init= in what was noted, and fails unless there is exactly one.
INIT='
  function note(text,    path) {
    while (match(text, /(^|[ "\n])init=\/nix\/store\/[^\/ "\n]+\/init/)) {
      path = substr(text, RSTART, RLENGTH - 5); text = substr(text, RSTART + RLENGTH)
      sub(/^[ "\n]?init=/, "", path)
      if (!system_seen[path]++) { system_found = path; systems++ }
    }
  }
  function print_system() { if (systems != 1) exit 1; print system_found }
'
init_of() { awk "$INIT"'{ note($0) } END { print_system() }'; }

extlinux_default() { # EXTLINUX.CONF
  awk "$INIT"'toupper($1) == "DEFAULT" { label = $2 }
    toupper($1) == "LABEL" { here = $2 }
    toupper($1) == "APPEND" { append[here] = append[here] "\n" $0 }
    END { note(append[label]); print_system() }' "$1"
}

# ---- systemd-boot, as itself and under lanzaboote ----

# Four bytes of attributes, then UTF-16. What is set here overrides what NixOS writes, until somebody removes it. Through a pipe, because tail
# seeks in a file, and efivarfs refuses to.
efi_variable() { # NAME
  file=$efivars/$1-4a67b082-0a4c-41cf-b6c7-440b29bb8c4f
  # shellcheck disable=SC2002
  [ ! -f "$file" ] || cat "$file" | tail -c +5 | tr -d '\000'
}
systemd_boot_default() { # ESP
  set -- "$1" "$root/boot" # entries may lie in a partition of their own
  [ "$1" != "$2" ] || set -- "$1"
  for mount do set -- "$@" "$mount"/loader/entries/*.conf "$mount"/EFI/Linux/*.efi; done
  chosen=$(oneshot=$(efi_variable LoaderEntryOneShot) preferred=$(efi_variable LoaderEntryPreferred) default=$(efi_variable LoaderEntryDefault) \
    last=$(efi_variable LoaderEntryLastBooted) systemd_boot_entry "$@") && [ -n "$chosen" ] || return
  # A unified kernel image has its command line in a section of its own, padded with zeros
  case $chosen in *.efi) tr '\000' '\n' <"$chosen";; *) cat "$chosen";; esac | init_of
}
# The file of the entry that systemd-boot's config_select_default_entry takes: the first of its wishes that an id matches. A wish may be a glob and
# then means the first in its order, which is decided here for entries that differ in their boot counters and generations only.
systemd_boot_entry() { # ESP … ENTRY …
  awk '
    function add(file,    name) {
      name = tolower(file); sub(/.*\//, "", name)
      files[++count] = file; at[file] = count
      bad[count] = name ~ /\+0+(-[0-9]+)?\.[a-z]+$/
      sub(/\+[0-9]+(-[0-9]+)?\.conf$/, ".conf", name); sub(/\+[0-9]+(-[0-9]+)?\.efi$/, ".efi", name)
      id[count] = name; generation[count] = number(name)
    }
    function number(text) { return match(text, /generation[ -][0-9]+/) ? substr(text, RSTART + 11, RLENGTH - 11) + 0 : "" }
    function kind(entry) { return substr(id[entry], length(id[entry]) - 3) }
    function before(a, b) {
      if (bad[a] != bad[b]) { tie = 0; return bad[a] ? b : a }
      if (key[a] != key[b] || machine[a] != machine[b] || version[a] != version[b]) mixed = 1
      if (kind(a) != kind(b) || generation[a] == "" || generation[b] == "") mixed = 1
      if (generation[a] != generation[b]) { if (generation[a] > generation[b]) return a; tie = 0; return b }
      if (id[a] !~ /-specialisation-/ && id[b] ~ /-specialisation-/) return a
      if (id[b] !~ /-specialisation-/ && id[a] ~ /-specialisation-/) { tie = 0; return b }
      tie = 1; return a
    }
    function wish(pattern, good,    i, best) {
      if (decided || pattern == "") return
      pattern = tolower(pattern)
      if (pattern ~ /[^a-z0-9_.+*?-]/ || pattern ~ /^auto-/) { decided = 1; return }
      gsub(/[.+]/, "[&]", pattern); gsub(/[*]/, ".*", pattern); gsub(/[?]/, ".", pattern)
      for (i = 1; i <= count; i++) if (id[i] ~ ("^" pattern "$") && !(good && bad[i])) best = best ? before(best, i) : i
      if (best) { decided = 1; if (!mixed && !tie) chosen = files[best] }
    }
    BEGIN {
      conf = ARGV[1] "/loader/loader.conf"
      for (i = 1; i < ARGC; i++) { if (ARGV[i] ~ /[^*]\.(conf|efi)$/) add(ARGV[i]); if (ARGV[i] !~ /[^*]\.conf$/) ARGV[i] = "" }
      ARGV[1] = conf
    }
    FILENAME == conf { if ($1 == "preferred" || $1 == "default") said[$1] = $2; next }
    { entry = at[FILENAME] }
    $1 == "sort-key" { key[entry] = $2 }
    $1 == "machine-id" { machine[entry] = $2 }
    $1 == "version" { version[entry] = 1; generation[entry] = number(tolower($0)) }
    END {
      wish(ENVIRON["oneshot"]); wish(ENVIRON["preferred"], 1); wish(said["preferred"], 1)
      saved = ENVIRON["default"] == "@saved" ? 1 : said["default"] == "@saved" ? 2 : 0
      wish(saved == 1 ? ENVIRON["last"] : ENVIRON["default"]); wish(saved == 2 ? ENVIRON["last"] : said["default"])
      print chosen
    }' "$@"
}

# ---- GRUB ----

grub_default() { # DIRECTORY
  [ ! -f "$1/grubenv" ] || set -- "$1" "$1/grubenv"
  awk "$INIT"'
    FILENAME ~ /\/grubenv$/ { if (match($0, /^[a-z_]+=/)) env[substr($0, 1, RLENGTH - 1)] = substr($0, RLENGTH + 1); next }
    # The menu: its entries by place and by title, those of submenus with their path
    /^[ \t]*set default=/ { if ($0 ~ /next_entry/) once = 1; else { chosen = $0; sub(/^[ \t]*set default=/, "", chosen); gsub(/"/, "", chosen) } }
    /^[ \t]*(menuentry|submenu) / {
      match($0, /["\047][^"\047]*["\047]/); title = substr($0, RSTART + 1, RLENGTH - 2)
      place = path[depth] (depth ? ">" : "") (n[depth]++ + 0)
      name = path[depth] (depth ? ">" : "") title
      if (!(name in places)) places[name] = place
    }
    /[{][ \t]*$/ { outer[++open] = depth; if ($0 ~ /^[ \t]*(menuentry|submenu) /) { path[++depth] = place; n[depth] = 0 } }
    /^[ \t]*[}][ \t]*$/ { depth = outer[open--] }
    / init=/ { lines[path[depth]] = lines[path[depth]] "\n" $0 }
    END {
      if (once && env["next_entry"] != "") chosen = env["next_entry"]
      else if (chosen == "${saved_entry}") chosen = env["saved_entry"]
      if (chosen ~ /[$]/) exit 1
      if (chosen == "") chosen = "0"
      parts = split(chosen, part, ">")
      for (i = 1; i <= parts; i++) {
        name = place = where (i > 1 ? ">" : "") part[i]
        where = part[i] ~ /^[0-9]+$/ ? place : (name in places) ? places[name] : "none"
      }
      note(lines[where]); print_system()
    }' "${2:-/dev/null}" "$1/grub.cfg"
}

# ---- once ----

# The next boot starts a system that has an entry in the menu, the boot after it the default again. Fails, and prints why, where the loader has no such thing.
once() { # SYSTEM
  root=
  for boot in /boot /boot?* /boot/efi /efi; do
    if [ -f "$boot/loader/loader.conf" ]; then
      for entry in "$boot"/loader/entries/*.conf "$boot"/EFI/Linux/*.efi /boot/loader/entries/*.conf; do
        [ -f "$entry" ] && [ "$(tr '\000' '\n' <"$entry" | init_of)" = "$1" ] || continue
        id=$(echo "${entry##*/}" | sed 's/+[0-9]*\(-[0-9]*\)\{0,1\}\(\.[a-z]*\)$/\2/')
        bootctl set-oneshot "$id" 2>&1
        return
      done
      echo "the boot menu has no entry of $1"; return 1
    elif [ -f "$boot/grub/grub.cfg" ]; then
      grub_clears "$boot/grub" || return
      entry=$(grub_entry "$boot/grub/grub.cfg" "$1")
      [ -n "$entry" ] || { echo "the boot menu has no entry of $1"; return 1; }
      grub-editenv "$boot/grub/grubenv" set next_entry="$entry" 2>&1
      return
    fi
  done
  echo "only systemd-boot and GRUB can start a system once"
  return 1
}
never_mind() { # what `once` said
  for boot in /boot /boot?* /boot/efi /efi; do
    [ ! -f "$boot/loader/loader.conf" ] || bootctl set-oneshot "" 2>&1
    [ ! -f "$boot/grub/grubenv" ] || grub-editenv "$boot/grub/grubenv" unset next_entry 2>&1
  done
}
# GRUB forgets what it was told for once by writing to its environment. Where it cannot, once would be for ever.
grub_clears() { # DIRECTORY
  case $(findmnt -n -o FSTYPE,SOURCE -T "$1") in
    *" /dev/mapper/"*|*" /dev/dm-"*|*" /dev/md"*) ;;
    ext[234]" "*|vfat" "*) return 0;;
  esac
  echo "GRUB cannot write to its environment there, so that a boot for once would be one for ever"
  return 1
}
grub_entry() { # GRUB.CFG SYSTEM: the entry that starts it, as grub-reboot takes it: with the titles of its submenus
  awk -v want=" init=$2/init " '
    /^[ \t]*(menuentry|submenu) / { match($0, /["\047][^"\047]*["\047]/); title = substr($0, RSTART + 1, RLENGTH - 2) }
    /[{][ \t]*$/ { outer[++depth] = path; if ($1 == "submenu") path = path title ">" }
    /^[ \t]*[}][ \t]*$/ { path = outer[depth--] }
    index($0 " ", want) { print path title; exit }' "$1"
}
