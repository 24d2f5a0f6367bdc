# Puts what the image has in /nix/store onto the volume $1 that is mounted over it afterwards. Nothing else uses the volume meanwhile.
# An image whose programs are elsewhere needs none of it. One that was made with Nix has /nix-path-registration (closureInfo's), or what $2 says.
set -eu
volume=$1
store=$volume/nix/store
roots=$volume/nix/var/nix/gcroots/image
registration=${2:-/nix-path-registration}
registered=$volume/nix/var/nix/image-registration

# Nix wants a home that is the user's own
nix_store() { HOME=$volume/data nix-store --store "local?root=$volume" "$@"; }

there() { [ -e "$1" ] || [ -L "$1" ]; }

copy() {
  for path in "$store"/.seed-*; do # an earlier run was interrupted
    there "$path" || continue
    chmod -R u+w "$path"
    rm -rf "$path"
  done
  for path in /nix/store/*-*; do
    there "$path" || continue
    name=${path##*/}
    there "$store/$name" && continue
    cp -RPp "$path" "$store/.seed-$name" || return 1
    mv "$store/.seed-$name" "$store/$name" || return 1
    echo "copied $path"
  done
  [ ! -e "$registration" ] || nix_store --load-db < "$registration"
}

# A pod that starts again writes nothing: it does so on a full volume, too
if [ -e "$registration" ] && [ -e "$registered" ] && [ "$(cat "$registration")" = "$(cat "$registered")" ]; then
  exit 0
fi
mkdir -p "$store" "$roots" "$volume/data"
rm -rf "$registered" "$roots"
# The image's predecessor is garbage from here on
mkdir "$roots"
for path in /nix/store/*-*; do
  there "$path" || continue
  ln -s "$path" "$roots/${path##*/}"
done
if ! copy; then
  echo "no room: collecting garbage"
  nix_store --gc
  copy
fi
[ ! -e "$registration" ] || cp "$registration" "$registered"
