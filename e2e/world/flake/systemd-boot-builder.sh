# systemd-boot-builder DEFAULT: writes /boot/loader as NixOS's boot.loader.systemd-boot does: an entry for each generation of the profile, and
# as default the one that is DEFAULT. What another loader left behind is removed, as a person does who changes it.
set -e
esp=/boot
mkdir -p $esp/loader/entries $esp/EFI/nixos
rm -rf $esp/extlinux
default=
for link in $(cd /nix/var/nix/profiles && ls -d system-*-link | sort -t- -k2 -n -r | head -n 20); do
  generation=${link#system-} path=$(readlink -f "/nix/var/nix/profiles/$link")
  generation=${generation%-link}
  for file in kernel initrd; do
    source=$(readlink -f "$path/$file")
    name=$(echo "$source" | sed -e 's|^/nix/store/||' -e 's|/|-|g').efi
    if [ ! -e "$esp/EFI/nixos/$name" ]; then
      cp "$source" "$esp/EFI/nixos/$name.tmp"
      mv "$esp/EFI/nixos/$name.tmp" "$esp/EFI/nixos/$name"
    fi
    eval "$file=/EFI/nixos/$name"
  done
  entry=nixos-generation-$generation.conf
  cat > "$esp/loader/entries/$entry.tmp" <<ENTRY
title NixOS
sort-key nixos
version Generation $generation NixOS $(cat "$path/nixos-version")
linux $kernel
initrd $initrd
options init=$path/init $(cat "$path/kernel-params")
ENTRY
  mv "$esp/loader/entries/$entry.tmp" "$esp/loader/entries/$entry"
  if [ "$path" = "$(readlink -f "$1")" ] && [ -z "$default" ]; then default=$entry; fi
done
# The real one, too, makes only what the profile has the default
if [ -n "$default" ]; then
  printf 'timeout 5\ndefault %s\nconsole-mode keep\n' "$default" > $esp/loader/loader.conf.tmp
  mv $esp/loader/loader.conf.tmp $esp/loader/loader.conf
fi
