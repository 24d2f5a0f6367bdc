# extlinux-conf-builder DEFAULT: writes /boot/extlinux/extlinux.conf as NixOS's boot.loader.generic-extlinux-compatible does.
set -e
target=/boot
mkdir -p $target/nixos $target/extlinux
kept=

# copy_to_boot FILE: kernels and initrds lie beside the menu, whole or not at all
copy_to_boot() {
  source=$(readlink -f "$1")
  name=$(echo "$source" | sed -e 's|^/nix/store/||' -e 's|/|-|g')
  if [ ! -e "$target/nixos/$name" ]; then
    cp "$source" "$target/nixos/$name.tmp.$$"
    mv "$target/nixos/$name.tmp.$$" "$target/nixos/$name"
  fi
  kept="$kept $name"
}

add_entry() {
  path=$(readlink -f "$1") tag=$2
  [ -e "$path/kernel" ] && [ -e "$path/initrd" ] || return 0
  copy_to_boot "$path/kernel" && kernel=$name
  copy_to_boot "$path/initrd" && initrd=$name
  menu="NixOS - Default"
  [ "$tag" = default ] || menu="NixOS - Configuration $tag ($(date '+%Y-%m-%d %H:%M' -d "@$(stat -L -c %Z "$path")") - $(cat "$path/nixos-version"))"
  cat >> "$temporary" <<ENTRY

LABEL nixos-$tag
  MENU LABEL $menu
  LINUX ../nixos/$kernel
  INITRD ../nixos/$initrd
  APPEND init=$path/init $(cat "$path/kernel-params")
ENTRY
}

temporary=$target/extlinux/extlinux.conf.tmp.$$
cat > "$temporary" <<HEAD
# Generated file, all changes will be lost on nixos-rebuild!

# Change this to e.g. nixos-42 to temporarily boot to an older configuration.
DEFAULT nixos-default

MENU TITLE ------------------------------------------------------------
TIMEOUT 50
HEAD
add_entry "$1" default
generations=$(cd /nix/var/nix/profiles && ls -d system-*-link 2>/dev/null | sed 's/system-\([0-9]*\)-link/\1/' | sort -n -r | head -n 20)
for generation in $generations; do add_entry "/nix/var/nix/profiles/system-$generation-link" "$generation-default"; done
mv -f "$temporary" $target/extlinux/extlinux.conf

for file in $target/nixos/*; do
  case " $kept " in *" ${file##*/} "*) ;; *) rm -rf "$file" ;; esac
done
