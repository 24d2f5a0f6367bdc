#!@sh@
# bootctl set-oneshot ID: writes the EFI variable as the real one does, which refuses to run in a container. An empty ID removes it.
PATH=@tools@
[ "$1" = set-oneshot ] || { echo "bootctl: unknown command: $*" >&2; exit 1; }
variable=/sys/firmware/efi/efivars/LoaderEntryOneShot-4a67b082-0a4c-41cf-b6c7-440b29bb8c4f
if [ -z "$2" ]; then rm -f $variable; exit; fi
{
  printf '\007\000\000\000'
  for character in $(printf '%s' "$2" | sed 's/./& /g') ''; do printf '%s\000' "$character"; done
  printf '\000'
} > $variable
