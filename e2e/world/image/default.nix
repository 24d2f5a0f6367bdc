# What the image's store has here: programs of this machine and of the test world's Nix, each moved into a store path of its own with the libraries and
# the loader that it was linked with. `nix build .#image` takes them from nixpkgs; both have what description.json says.
{
  nix,
  controller,
  # Another one is another store path, hence another image, with the same program
  release,
}:
let
  # Not sandboxed: what is put together is outside the store
  run =
    name: environment: script:
    derivation (
      {
        inherit name script;
        system = builtins.currentSystem;
        builder = "/bin/bash";
        args = [
          "-euc"
          ''
            mkdir -p $out/bin $out/lib
            relocate() {
              ldd "$@" | awk '$2 == "=>" { print $3 } $1 ~ "^/.*/ld-linux" { print $1 }' | sort -u | xargs cp -Lnt $out/lib
              for program in "$@"; do
                cp -L $program $out/bin
                patchelf --force-rpath --set-rpath $out/lib --set-interpreter "$(echo $out/lib/ld-linux-*)" $out/bin/''${program##*/}
              done
            }
            eval "$script"
          ''
        ];
        PATH = "/usr/sbin:/usr/bin:/sbin:/bin";
      }
      // environment
    );
in
[
  (run "nixos-host-controller" { inherit controller release; } ''
    relocate $controller
    strip $out/bin/*
    echo $release > $out/release
  '')
  (run "nix" { from = nix; } ''
    cp -aT $from/lib $out/lib
    cp -aT $from/bin $out/bin
    patchelf --set-interpreter "$(echo $out/lib/ld-linux-*)" $out/bin/nix
  '')
  # git looks for its helpers where it was built to: the image has a link there
  (run "git" { } ''
    relocate /usr/bin/git /usr/lib/git-core/git-remote-http
    mkdir -p $out/libexec/git-core
    mv $out/bin/git-remote-http $out/libexec/git-core
    ln -s git-remote-http $out/libexec/git-core/git-remote-https
  '')
  (run "openssh" { } "relocate /usr/bin/ssh /usr/bin/ssh-keygen")
  (run "gnupg" { } "relocate /usr/bin/gpg")
  (run "busybox" { } ''
    cp /bin/busybox $out/bin
    for applet in $($out/bin/busybox --list); do [ $applet = busybox ] || ln -s busybox $out/bin/$applet; done
  '')
  (run "cacert" { } ''
    mkdir -p $out/etc/ssl/certs
    cp -L /etc/ssl/certs/ca-certificates.crt $out/etc/ssl/certs/ca-bundle.crt
  '')
]
