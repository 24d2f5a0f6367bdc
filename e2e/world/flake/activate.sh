#!@sh@
# The activation script: idempotent; a snippet that fails is reported and the rest is done all the same, as on NixOS.
PATH=@tools@:/run/wrappers/bin:/usr/sbin:/usr/bin:/sbin:/bin
status=0
snippet() {
  @tools@/sh -eu -s || { code=$?; echo "Activation script snippet '$1' failed ($code)"; status=1; }
}

touch /etc/NIXOS
mkdir -p /run/wrappers/bin
ln -sfn /usr/bin/sudo /run/wrappers/bin/sudo

# /etc/static is this system's etc; what of it is gone is removed from /etc
ln -sfn @out@/etc /etc/static
ln -sfn /etc/static/os-release /etc/os-release
for directory in /etc/systemd/system /etc/systemd/system/multi-user.target.wants; do
  mkdir -p $directory
  for link in $directory/*; do
    case $(readlink "$link") in /etc/static/*) [ -e "$link" ] || rm -f "$link" ;; esac
  done
  for file in @out@$directory/*; do
    if [ -f "$file" ]; then ln -sfn "/etc/static${file#@out@/etc}" $directory/; fi
  done
done

@snippets@

ln -sfn @out@ /run/current-system
exit $status
